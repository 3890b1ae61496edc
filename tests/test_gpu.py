"""On a CUDA device: compiled and replayed steps, gradient caching and 16-bit embedding give what the plain path gives. Skipped elsewhere."""
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
from clip_ft.sources import get_data
from clip_ft.dataset import PixelCache, device_batches
from clip_ft.embedding import load_embeddings
from clip_ft.encode import embed_images, embed_texts
from clip_ft.fast import InferenceModel
from clip_ft.model import tiny_model
from clip_ft.parameters import merged_state_dict
from clip_ft.training import TrainConfig, Trainer
from clip_ft.data import image_paths
from clip_ft.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    paths = Paths(tmp_path_factory.mktemp('demo'))
    folder = get_data('demo', paths, limit=600)
    products, test = preprocess(paths)
    return paths, products, test, image_folder(folder), PixelCache.build(image_paths(products, image_folder(folder)), 96, paths.pixels)


def losses(demo, n=40, **changes):
    "Losses of n steps, and the trainer."
    _, products, _, _, cache = demo
    model, processor = tiny_model(products.full_text)
    run = Trainer(model.cuda(), processor, cache, products, TrainConfig(**(dict(lr=5e-4, batch_size=64, epochs=20) | changes)))
    rows = [o for epoch in range(1, 10) for o in run.batches(epoch)][:n]
    return torch.stack([run.train_step(o)[0] for o in rows]).cpu().numpy(), run


def test_fast_steps_equal_plain_ones(demo):
    plain, _ = losses(demo, compile=False)
    fast, run = losses(demo)
    assert len(run.run_step.recordings) >= 2                           # several widths were really recorded
    again, _ = losses(demo, compile=False, batch_size=64)
    noise = np.abs(again-plain).max()                     # what the device itself varies by, from run to run
    assert np.abs(fast[:10]-plain[:10]).max() < .02 and np.abs(fast-plain).mean() < .05, (np.abs(fast-plain).max(), noise)
    run.close()


@pytest.mark.parametrize('changes', [dict(chunk=24), dict(chunk=24, compile=False), dict(ema=.9, layer_decay=.8), dict(freeze_vision=2), dict(freeze_text=-1), dict(lora=4)])
def test_options_on_the_fast_path(demo, changes):
    reference = {k: v for k, v in changes.items() if k != 'chunk'}
    plain, a = losses(demo, 12, **reference | dict(compile=False))
    fast, b = losses(demo, 12, **changes)
    assert np.abs(fast-plain)[:6].max() < .02 and np.abs(fast-plain).mean() < .02     # rounding grows as training goes on
    for name, w in merged_state_dict(b.model).items(): assert torch.isfinite(w).all(), name


def test_embedding_in_16_bits(demo):
    _, products, _, folder, cache = demo
    model, processor = tiny_model(products.full_text)
    exact = embed_images(model, processor, cache, progress=False), embed_texts(model, processor, products.full_text)
    half = embed_images(model.cuda(), processor, cache, progress=False), embed_texts(model, processor, products.full_text)
    for a, b in zip(exact, half):
        assert b.dtype == np.float32 and np.abs((a*b).sum(1)-1).max() < 1e-4
        assert np.abs(a@a.T-b@b.T).max() < 2e-3
    with torch.no_grad(): model.vision_model.encoder.layers[0].mlp.fc2.bias += 1e6      # too large for 16 bits
    big = embed_images(model, processor, cache, progress=False)
    assert np.isfinite(big).all()


def test_train_and_resume(demo):
    paths, products, test, folder, _ = demo
    model, processor = tiny_model(products.full_text)
    history = train(model.cuda(), processor, products, test, folder, paths, TrainConfig(epochs=3, lr=1e-3, batch_size=64, hard_negatives=8, patience=3))
    assert history.epoch.tolist() == [0, 1, 2, 3] and history.test_loss.iloc[-1] < history.test_loss[0]
    assert all(o._compiled_call_impl is None for o in model.modules())


def test_batches_from_the_cache_file(demo):
    *_, cache = demo
    rows = np.random.default_rng(0).permutation(len(cache))[:301]
    found = torch.cat([o.clone() for o in device_batches(cache.pixels, rows, 16, 'cuda')])
    assert (found.cpu().numpy() == cache.pixels[rows]).all()


def test_one_copy_for_many_calls(demo):
    _, products, _, _, cache = demo
    model, processor = tiny_model(products.full_text)
    inference = InferenceModel.of(model.cuda())
    assert inference.full is model and InferenceModel.of(inference) is inference and inference.half.logit_scale.dtype == torch.float32
    assert (embed_images(inference, processor, cache, progress=False) == embed_images(model, processor, cache, progress=False)).all()
    assert (embed_texts(inference, processor, products.full_text) == embed_texts(model, processor, products.full_text)).all()
    with torch.no_grad(): inference.half.vision_model.encoder.layers[0].mlp.fc2.bias += 1e6       # too large for 16 bits: the whole model takes over
    full = embed_images(inference, processor, cache, progress=False)
    assert np.isfinite(full).all() and np.abs((full*embed_images(model, processor, cache, progress=False)).sum(1)-1).max() < 1e-4


def test_memory_is_flat_in_the_batch_size(demo):
    "Activations of four chunks take the memory of one."
    peaks = []
    for batch_size in (64, 256):
        torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _, run = losses(demo, 2, batch_size=batch_size, chunk=64, compile=False)
        peaks.append(torch.cuda.max_memory_allocated()-before)
        run.close(); del run
    assert peaks[1] < 1.2*peaks[0], peaks


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_two_devices_give_what_one_gives(demo, tmp_path):
    "The same command, and `accelerate launch` in front of it: training with hard negatives and an average, then embedding."
    settings = '--model tiny --epochs 4 --patience 4 --lr 5e-4 --batch-size 64 --hard-negatives 4 --ema .5'.split()
    launcher = ['-m', 'accelerate.commands.launch', '--multi_gpu', '--num_machines', 1, '--num_processes', 2, '--main_process_port', 0, '--mixed_precision', 'no', '--dynamo_backend', 'no']
    found = {}
    for n in (1, 2):
        root = shutil.copytree(demo[0].root, tmp_path/str(n))
        shutil.rmtree(root/'checkpoints', ignore_errors=True)
        for module, name, options, said in (('training', 'train_main', settings, 'Kept: epoch'), ('embedding', 'embed_main', [], 'images embedded')):
            script = tmp_path/f'{name}.py'
            script.write_text(f'from clip_ft.{module} import {name}\n{name}()\n')
            command = [sys.executable, *(launcher if n == 2 else []), script, '--root', root, *options]
            done = subprocess.run([str(o) for o in command], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'), timeout=400)
            assert done.returncode == 0, done.stderr[-5000:]
            assert done.stdout.count(said) == 1 and 'destroy_process_group' not in done.stderr and 'fork_rng' not in done.stderr, done.stderr[-5000:]
        found[n] = pd.read_csv(Paths(root).history_csv), load_embeddings(Paths(root).embeddings)
    (one, a), (two, b) = found[1], found[2]
    assert len(one) == len(two) == 5 and one.step.tolist() == two.step.tolist()
    for name in ('train_loss', 'val_loss', 'test_loss'): assert (one[name]-two[name]).abs().max() < .05, (one[name], two[name])     # 16 bits: rounding grows
    assert one.test_loss.iloc[-1] < one.test_loss[0]-.3
    assert (a['image_names'] == b['image_names']).all() and (a['embeddings']*b['embeddings']).sum(1).mean() > .98
