"""On a CUDA device: recorded steps, gradient caching and 16-bit embedding give the results of the plain code.

Skipped on machines without one.
"""
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from clip_ft.core import Paths
from clip_ft.data import image_folder, preprocess
from clip_ft.dataset import PixelCache, device_batches
from clip_ft.embeddings_file import load_embeddings
from clip_ft.encode import embed_images, embed_texts
from clip_ft.fast import InferenceModel
from clip_ft.model import tiny_model
from clip_ft.parameters import merged_state_dict
from clip_ft.query_log import training_log
from clip_ft.settings import TrainConfig
from clip_ft.sources import get_data
from clip_ft.training import Trainer, train
from clip_ft.views import image_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    "Paths, training products, test products, image folder and pixel cache of a small demo."
    paths = Paths(tmp_path_factory.mktemp('demo'))
    folder = image_folder(get_data('demo', paths, limit=600))
    products, test = preprocess(paths)
    return paths, products, test, folder, PixelCache.build(image_rows(products).paths(folder), 96, paths.pixels)


def losses(demo, steps=40, queries=None, device='cuda', **changes):
    "Losses of some steps, and the trainer."
    paths, products, test, _, cache = demo
    model, processor = tiny_model(products.full_text)
    config = TrainConfig(**(dict(lr=5e-4, batch_size=64, epochs=20, val_size=0) | changes))
    log = None if queries is None else training_log(queries, products, test)
    trainer = Trainer(model.to(device), processor, cache, products, config, paths, log=log)
    rows = [batch for epoch in range(1, 10) for batch in trainer.epoch_batches(epoch)][:steps]
    return torch.stack([trainer.train_step(batch)[0] for batch in rows]).cpu().numpy(), trainer


def test_recorded_steps_equal_plain_ones(demo):
    plain, _ = losses(demo, compile=False)
    fast, trainer = losses(demo)
    assert len(trainer.recorded.recordings) >= 2            # several widths of texts were recorded
    assert np.abs(fast[:10]-plain[:10]).max() < .02
    assert np.abs(fast-plain).mean() < .05, np.abs(fast-plain).max()
    trainer.close()
    assert not trainer.recorded.recordings


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_steps_are_recorded_on_the_second_device(demo):
    first, _ = losses(demo)
    second, trainer = losses(demo, device='cuda:1')
    assert len(trainer.recorded.recordings) >= 2
    assert np.abs(first-second).mean() < .05, np.abs(first-second).max()


def test_recorded_steps_of_a_search_log(demo):
    products = demo[1]
    queries = pd.DataFrame({'query': 'fancy ' + products['category'], 'image': products['image'],
                            'clicks': 1 + np.arange(len(products)) % 9})
    plain, _ = losses(demo, 24, queries, query_share=.5, compile=False)
    fast, trainer = losses(demo, 24, queries, query_share=.5)
    assert any('weights' in recording.inputs for recording in trainer.recorded.recordings.values())
    assert np.abs(fast[:10]-plain[:10]).max() < .02
    assert np.abs(fast-plain).mean() < .05, np.abs(fast-plain).max()


@pytest.mark.parametrize('changes', [
    dict(micro_batch=24), dict(micro_batch=24, compile=False), dict(ema=.9, layer_decay=.8),
    dict(freeze_vision=2), dict(freeze_text=-1), dict(lora=4), dict(distill=10.), dict(distill=10., micro_batch=24),
    dict(two_texts=True), dict(two_texts=True, micro_batch=24),
    dict(hard_negative_size=4, hard_negative_skip=1, false_negative_margin=.3)])
def test_options_of_recorded_steps(demo, changes):
    reference = {name: value for name, value in changes.items() if name != 'micro_batch'}
    plain, _ = losses(demo, 12, **reference | dict(compile=False))
    fast, trainer = losses(demo, 12, **changes)
    if 'two_texts' in changes:
        assert any('long_input_ids' in recording.inputs for recording in trainer.recorded.recordings.values())
    assert np.abs(fast-plain)[:6].max() < .02               # rounding errors grow as training continues
    assert np.abs(fast-plain).mean() < .02
    for name, weight in merged_state_dict(trainer.model).items():
        assert torch.isfinite(weight).all(), name


def test_embedding_in_16_bits(demo):
    _, products, _, _, cache = demo
    model, processor = tiny_model(products.full_text)
    exact = embed_images(model, processor, cache, progress=False), embed_texts(model, processor, products.full_text)
    model.cuda()
    half = embed_images(model, processor, cache, progress=False), embed_texts(model, processor, products.full_text)
    for a, b in zip(exact, half, strict=True):
        assert b.dtype == np.float32
        assert np.abs((a*b).sum(1)-1).max() < 1e-4
        assert np.abs(a@a.T-b@b.T).max() < 2e-3
    with torch.no_grad():
        model.vision_model.encoder.layers[0].mlp.fc2.bias += 1e6      # too large for 16 bits
    assert np.isfinite(embed_images(model, processor, cache, progress=False)).all()


def test_train_gives_a_plain_model_back(demo):
    paths, products, test, folder, _ = demo
    model, processor = tiny_model(products.full_text)
    config = TrainConfig(epochs=3, lr=1e-3, batch_size=64, hard_negative_size=8, patience=3)
    history = train(model.cuda(), processor, products, test, folder, paths, config)
    assert history.epoch.tolist() == [0, 1, 2, 3]
    assert history.test_loss.iloc[-1] < history.test_loss[0]
    assert all(module._compiled_call_impl is None for module in model.modules())
    assert type(model.vision_model.embeddings.patch_embedding) is torch.nn.Conv2d


def test_batches_from_the_cache_file(demo):
    *_, cache = demo
    rows = np.random.default_rng(0).permutation(len(cache))[:301]
    found = torch.cat([batch.clone() for batch in device_batches(cache.pixels, rows, 16, 'cuda')])
    assert (found.cpu().numpy() == cache.pixels[rows]).all()


def test_one_copy_for_many_calls(demo):
    _, products, _, _, cache = demo
    model, processor = tiny_model(products.full_text)
    inference = InferenceModel.of(model.cuda())
    assert inference.full is model and InferenceModel.of(inference) is inference
    assert inference.half.logit_scale.dtype == torch.float32
    images = embed_images(model, processor, cache, progress=False)
    assert (embed_images(inference, processor, cache, progress=False) == images).all()
    texts = embed_texts(model, processor, products.full_text)
    assert (embed_texts(inference, processor, products.full_text) == texts).all()
    with torch.no_grad():
        inference.half.vision_model.encoder.layers[0].mlp.fc2.bias += 1e6       # the full model has to take over
    full = embed_images(inference, processor, cache, progress=False)
    assert np.isfinite(full).all() and np.abs((full*images).sum(1)-1).max() < 1e-4


def test_memory_is_flat_in_the_batch_size(demo):
    "Four micro-batches take the memory of one."
    peaks = []
    for batch_size in (64, 256):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _, trainer = losses(demo, 2, batch_size=batch_size, micro_batch=64, compile=False)
        peaks.append(torch.cuda.max_memory_allocated()-before)
        trainer.close()
        del trainer
    assert peaks[1] < 1.2*peaks[0], peaks


SETTINGS = ['--model', 'tiny', '--epochs', 4, '--patience', 4, '--lr', 5e-4, '--batch-size', 64,
            '--hard-negative-size', 4, '--ema', .5]
COMMANDS = (('train_main', SETTINGS, 'The model was written to'), ('embed_main', [], 'images embedded'))


def train_and_embed(root, devices):
    "Run two commands on one or two devices; return the history and the embeddings."
    for name, options, message in COMMANDS:
        script = root/f'{name}.py'
        script.write_text(f'from clip_ft.commands import {name}\n{name}()\n')
        command = [sys.executable, script, '--root', root, '--processes', devices, *options]
        done = subprocess.run([str(arg) for arg in command], capture_output=True, text=True,
                              env=os.environ | dict(OMP_NUM_THREADS='1'), timeout=400)
        assert done.returncode == 0, done.stderr[-5000:]
        assert done.stdout.count(message) == 1, done.stdout
        for warning in ('destroy_process_group', 'fork_rng'):
            assert warning not in done.stderr, done.stderr[-5000:]
    return pd.read_csv(Paths(root).history_csv), load_embeddings(Paths(root).embeddings)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_two_devices_give_what_one_gives(demo, tmp_path):
    results = []
    for devices in (1, 2):
        root = shutil.copytree(demo[0].root, tmp_path/str(devices))
        shutil.rmtree(root/'checkpoints', ignore_errors=True)
        results.append(train_and_embed(root, devices))
    (one, a), (two, b) = results
    assert len(one) == len(two) == 5 and one.step.tolist() == two.step.tolist()
    for name in ('train_loss', 'val_loss', 'test_loss'):
        assert (one[name]-two[name]).abs().max() < .05, name     # rounding errors of 16 bits grow
    assert one.test_loss.iloc[-1] < one.test_loss[0]-.3
    assert (a['image_names'] == b['image_names']).all()
    assert (a['embeddings']*b['embeddings']).sum(1).mean() > .98
