"Steps with a short and a long text per product: in several processes, with a search log, scaled, and resumed."

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import PartialState
from conftest import join

from clip_ft.core import InputError, Paths
from clip_ft.data import catalogue_folder, image_folder, load_split
from clip_ft.dataset import PixelCache
from clip_ft.model import tiny_model
from clip_ft.processes import run_processes
from clip_ft.query_log import training_log
from clip_ft.settings import TrainConfig
from clip_ft.steps import TrainingSteps
from clip_ft.views import image_rows


def few_steps(root, queries=False, **changes):
    "Steps with two texts, on the first 48 products; with or without a log of searches for them."
    paths = Paths(root)
    products, test = load_split(paths)
    few = products.head(48)
    files = image_rows(few).paths(image_folder(catalogue_folder(paths)))
    lines = pd.DataFrame({'query': 'fancy '+few['category'], 'image': few['image'], 'clicks': 1+np.arange(len(few))})
    model, processor = tiny_model(products['full_text'])
    config = TrainConfig(**(dict(lr=1e-3, batch_size=12, epochs=3, val_size=0, two_texts=True) | changes))
    log = training_log(lines, few, test) if queries else None
    return TrainingSteps(model, processor, PixelCache.build(files, 96, paths.pixels), few, config, log)


def train(steps, count):
    "Metrics of some steps of the first epoch, [count, 3]."
    return torch.stack([steps.train_step(rows) for rows in steps.epoch_batches(1)[:count]])


OPTIONS = dict(distill=2., hard_negative_size=4, queries=True)  # the second step takes its pairs from the log


def train_rank(root, out):
    "Three steps in one of several processes."
    process = PartialState(cpu=True)
    steps = few_steps(root, **OPTIONS, micro_batch=4)
    metrics = train(steps, 3)
    torch.save(dict(metrics=metrics, products=steps.product_embeds), out/f'{process.process_index}.pt')
    process.destroy_process_group()


def test_two_processes_give_what_one_gives(split_shop, tmp_path, fork):
    one = few_steps(split_shop, **OPTIONS)
    assert [one.log.due(step) for step in range(3)] == [False, True, False]
    metrics = train(one, 3)
    join([fork(run_processes, 2, train_rank, split_shop, tmp_path, log=tmp_path/'log.txt')], tmp_path/'log.txt')
    for rank in (0, 1):
        found = torch.load(tmp_path/f'{rank}.pt')
        assert (found['metrics'][:, 0]-metrics[:, 0]).abs().max() < 1e-4
        assert (found['metrics'][:, 1]-metrics[:, 1]).abs().max() < 1e-2
        assert (found['products']-one.product_embeds).abs().max() < 2e-3  # in 16 bits


def test_a_step_of_the_log_has_one_text(split_shop):
    metrics = []
    for two_texts in (False, True):
        steps = few_steps(split_shop, queries=True, two_texts=two_texts)
        steps.step = 1
        assert steps.log.due(1) and steps.log.batch(1)['groups'].shape == (12, 2)
        metrics.append(steps.train_step(torch.arange(12)))
    assert torch.equal(*metrics)


def test_the_gradient_is_scaled(split_shop):
    gradients = []
    for scale in (1., 8.):
        steps = few_steps(split_shop)
        steps.optimizer.scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        steps.backward(steps.batches.batch(torch.arange(12), 0))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in steps.model.parameters()]))
    assert (gradients[1]-8*gradients[0]).norm() < 1e-4*gradients[1].norm()


def test_resumed_steps_are_the_same(split_shop):
    steps, again = few_steps(split_shop, ema=.5), few_steps(split_shop, ema=.5)
    train(steps, 2)
    again.restore(steps.state())
    for rows in steps.epoch_batches(2)[:2]:
        assert torch.equal(steps.train_step(rows), again.train_step(rows))
    assert all(torch.equal(*pair) for pair in zip(*(each.model.state_dict().values() for each in (steps, again))))


@pytest.mark.parametrize(('kind', 'side'), [('full_text', 'short'), ('name', 'long')])
def test_a_side_without_texts_is_one_error(split_shop, kind, side):
    with pytest.raises(InputError, match=f'No {side} text to train on: .* Add one, or train without two_texts.'):
        few_steps(split_shop, texts={kind: 1})
