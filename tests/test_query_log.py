"Train on a search log: hostile logs, what is learned from which lines, exact resumption, known queries."
import shutil
import signal
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from clip_ft.commands import evaluate_main, train_main
from clip_ft.core import InputError, Paths
from clip_ft.data import catalogue_folder, image_folder, load_split
from clip_ft.dataset import PixelCache
from clip_ft.learned import read_learned, validation_split
from clip_ft.metrics import retrieval_metrics
from clip_ft.model import tiny_model
from clip_ft.queries import read_queries
from clip_ft.query_log import match_log, read_log, training_log
from clip_ft.settings import TrainConfig
from clip_ft.training import Trainer, train
from clip_ft.views import image_rows

CATALOGUE = pd.DataFrame({'image': [f'{i}.jpg' for i in range(4)]})


@pytest.mark.parametrize(('text', 'message'), [
    ('', 'no rows'),
    ('query,image,weight\n', 'no rows'),
    ('words,image\na,1.jpg\n', "no column 'query'"),
    ('a,b\n1,2\n', "no column 'query', 'image'"),
    ('query,image,weight\na,1.jpg,1\n"",1.jpg,1\n', 'row 3, column query'),
    ('query,image,weight\n\u00a0,1.jpg,1\n', 'row 2, column query'),
    ('query,image,weight\na, ,1\n', 'row 2, column image'),
    ('Query;Image;Weight\na;1.jpg;-1\n', "row 2, column Weight: '-1' is not a number"),
    ('query,image,weight\na,1.jpg,1\nb,2.jpg,NaN\n', "row 3, column weight: 'NaN' is not a number"),
    ('query,image,weight\na,1.jpg,\n', "row 2, column weight: '' is not a number"),
    ('query;image;weight\na;1.jpg;0,5\n', "row 2, column weight: '0,5' is not a number"),
    ('query,image,clicks\na,1.jpg,1e300\n', "row 2, column clicks: '1e300' is not a number"),
    ('query,image,clicks\na,1.jpg,inf\n', 'row 2, column clicks'),
])
def test_a_line_that_cannot_be_used_is_an_error_with_its_place(tmp_path, text, message):
    path = tmp_path/'log.csv'
    path.write_text(text)
    with pytest.raises(InputError, match=r'log\.csv') as error:
        read_log(path)
    assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(('text', 'encoding'), [
    ('query,image,clicks\nRotes Kleid,1.jpg,2\nrotes  kleid ,1.jpg,3\n', 'utf-8-sig'),
    ('sep=;\nSearch Term;Image;Clicks\nRotes Kleid;1.jpg;2\nROTES KLEID;1.jpg;3\n', 'utf-8'),
    ('query\timage\tcount\tday\nRotes Kleid\t1.jpg\t2\tMo\nRotes Kleid\t1.jpg\t3\tTu\n', 'utf-16'),
])
def test_formats_and_near_duplicates(tmp_path, text, encoding):
    path = tmp_path/'log.csv'
    path.write_text(text, encoding=encoding)
    log = match_log(read_log(path), CATALOGUE)
    assert log.texts == ['Rotes Kleid'] and log.product.tolist() == [1]
    assert log.weight.tolist() == [np.float32(np.log1p(5))]
    assert log.summary == 'queries: 2 lines, 1 query, 1 product'


def test_unknown_images_are_counted(tmp_path):
    path = tmp_path/'log.csv'
    path.write_text('query,image,weight\na,1.jpg,1e9\nb,x.jpg,1\nc,y.jpg,1\na,2.jpg,1e-9\n')
    log = match_log(read_log(path), CATALOGUE)
    assert log.summary.endswith("2 lines name unknown images (first: row 3, 'x.jpg')")
    assert np.isfinite(log.weight).all() and (log.weight > 0).all()
    path.write_text('query,image\na,x.jpg\n')
    with pytest.raises(InputError, match='none of the 1 lines names an image of the catalogue'):
        match_log(read_log(path), CATALOGUE)


def test_graded_queries_change_ndcg_only(tmp_path):
    products = CATALOGUE.assign(**{'display name': list('abcd'), 'description': list('efgh')})
    path, metrics, eye = tmp_path/'own.csv', [], np.eye(4, dtype=np.float32)
    for grades in ((1, 1, 1), (1, 2, 3)):
        path.write_text('query,image,grade\n' + ''.join(f'q,{i}.jpg,{grade}\n' for i, grade in enumerate(grades)))
        queries = read_queries(path, products)
        query = np.array([[.9, .4, .3, .1]], np.float32)
        metrics.append(retrieval_metrics(query, eye, queries.relevant, gains=queries.gains))
    equal, graded = metrics
    assert equal.pop('ndcg@10') == 1 and .7 < graded.pop('ndcg@10') < .9
    assert equal == graded


@pytest.fixture
def shop(split_shop, tmp_path):
    "A copy of a small project that is ready to train, its tables, and a log of all its products."
    root = shutil.copytree(split_shop, tmp_path/'shop')
    products, test = load_split(Paths(root))
    every = pd.concat([products, test], ignore_index=True)
    log = pd.DataFrame({'query': 'fancy ' + every['category'].str.lower(), 'image': every['image'],
                        'clicks': 1 + np.arange(len(every)) % 5})
    return root, products, test, log


def few_trainer(root, products, test, log, **changes):
    "A trainer on the first 48 products."
    paths, few = Paths(root), products.head(48)
    images = image_rows(few).paths(image_folder(catalogue_folder(paths)))
    model, processor = tiny_model(products['full_text'])
    config = TrainConfig(**(dict(lr=1e-3, batch_size=12, epochs=3) | changes))
    pairs = None if log is None else training_log(log, few, test)
    return Trainer(model, processor, PixelCache.build(images, 96, paths.pixels), few, config, paths, log=pairs)


def test_what_is_learned_from_which_lines(shop, capsys):
    root, products, test, log = shop
    plain, trainer = few_trainer(root, products, test, None), few_trainer(root, products, test, log)
    printed = capsys.readouterr().out
    assert f'{len(test)} pairs of test products are left out' in printed and 'pairs of validation products' in printed
    fit, _, _ = validation_split(products.head(48), trainer.config.val_size)
    learned = products.iloc[fit[trainer.log.product]]
    assert len(trainer.log) == len(plain.batches) == learned['image'].nunique()  # one line per product
    weights = dict(zip(log['image'], np.log1p(log['clicks'])))
    assert np.allclose(trainer.log.weight, [weights[name] for name in learned['image']])
    rows, steps = trainer.epoch_batches(1)[0], range(16)
    assert sum(trainer.log.due(step) for step in steps) == 4
    for step in steps:                                                    # all other steps are those without a log
        one, two = (each.batches.batch(rows, step) for each in (plain, trainer))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert 'queries' not in plain.fingerprint and trainer.fingerprint['queries']


def test_gradient_of_a_log_batch_does_not_depend_on_micro_batches(shop):
    gradients = []
    for size in (0, 5):
        trainer = few_trainer(*shop, micro_batch=size, hard_negative_size=2)
        trainer.main, embeds = False, trainer.embed_products()
        loss, *_ = trainer.backward(trainer.log.batch(3))
        assert loss.isfinite()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-4*gradients[0].norm()
    trainer.step, trainer.product_embeds = next(s for s in range(9) if trainer.log.due(s)), embeds.clone()
    trainer.train_step(torch.arange(12))
    assert torch.equal(trainer.product_embeds, embeds)                    # those of the catalogue's texts stay


def test_an_interrupted_run_resumes_with_its_log_only(shop):
    root, products, test, log = shop

    def run(folder, queries):
        paths = Paths(folder)
        paths.pixels = Paths(root).pixels
        model, processor = tiny_model(products['full_text'])
        config = TrainConfig(lr=5e-4, batch_size=12, epochs=2)
        images = image_folder(catalogue_folder(Paths(root)))
        history = train(model, processor, products.head(48), test, images, paths, config, queries=queries)
        return history, model, paths

    train_step = Trainer.train_step

    def interrupted(trainer, rows):
        if trainer.step == 2:                                             # after the first step of the log
            signal.raise_signal(signal.SIGINT)
        return train_step(trainer, rows)

    straight, model, paths = run(root/'straight', log)
    known = read_learned(paths.best_model).know_queries(log['query'])
    assert known[:40].any() and read_learned(paths.best_model).know_queries(['dresses']).sum() == 0
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with mock.patch.object(Trainer, 'train_step', interrupted), pytest.raises(KeyboardInterrupt):
            run(root/'stopped', log)
    finally:
        signal.signal(signal.SIGINT, handler)
    for other in (None, log.assign(clicks=1)):
        with pytest.raises(InputError, match=r'differs in .*queries'):
            run(root/'stopped', other)
    resumed, again, _ = run(root/'stopped', log)
    assert resumed.values[1:].tolist() == straight.values[1:].tolist()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_the_commands(shop, run, tmp_path):
    root, products, _, log = shop
    path = tmp_path/'log.csv'
    log.assign(clicks=-1).to_csv(path, index=False)
    options = '--root', root, '--queries', path
    train_options = '--model', 'tiny', '--epochs', 1, '--device', 'cpu'
    assert "row 2, column clicks: '-1'" in run(train_main, *options, *train_options, refused=True)
    pd.concat([log, log.head(1).assign(image='gone.jpg')]).to_csv(path, index=False)
    printed = run(train_main, *options, *train_options)
    lines = len(log) + 1
    assert f'queries: {lines} lines' in printed
    assert f"1 line names an unknown image (first: row {lines + 1}, 'gone.jpg')" in printed
    own = tmp_path/'own.csv'
    asked = pd.DataFrame({'query': [log['query'][0].upper(), 'something new'], 'image': products['image'].head(2)})
    asked.assign(grade=[3, 1]).to_csv(own, index=False)
    printed = run(evaluate_main, '--root', root, '--queries', own, '--base', 'none')
    assert 'own.csv: 1 of 2 queries were in the search log that the model was trained on' in printed
