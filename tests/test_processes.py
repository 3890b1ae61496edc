"""A run shared by two processes gives what one process gives, only the first of them speaks and writes, and either can finish the other's run.

`torchrun` starts the processes, as `accelerate launch` does with several GPUs; on the CPU they talk to each other through gloo.
"""
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import BIN

from clip_ft.core import Paths
from clip_ft.data import load_split
from clip_ft.model import tiny_model

EPOCHS = 3      # of five steps each
SETTINGS = ['--model', 'tiny', '--device', 'cpu', '--epochs', EPOCHS, '--lr', 3e-4, '--batch-size', 16, '--hard-negatives', 4, '--ema', .5]
# Two processes add up the same numbers in another order, which changes the last of float32's seven digits, 1e-7. AdamW divides
# by the root of small second moments and so makes more of it: after 15 steps the losses agree to this; a wrong gradient would give 1e-2.
CLOSE = 1e-4


def start(root, *args, processes=2, launcher='torchrun'):
    command = {
        'torchrun': [BIN/'torchrun', '--standalone', '--nproc-per-node', processes],
        'accelerate': [BIN/'accelerate', 'launch', '--multi_gpu', '--num_machines', 1, '--num_processes', processes, '--main_process_port', 0, '--mixed_precision', 'no', '--dynamo_backend', 'no'],
        None: [],
    }[launcher if processes > 1 else None]
    command = [*command, BIN/'clip_ft_train', '--root', root, *SETTINGS, *args]
    return subprocess.Popen([str(o) for o in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))


def finish(process):
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err[-5000:]
    return out, err.replace('\r', '\n')


@pytest.fixture
def again(split_shop, tmp_path): return Path(shutil.copytree(split_shop, tmp_path/'shop'))


@pytest.fixture(scope='module')
def one(split_shop):
    "The shop after a run in one process."
    root = Path(shutil.copytree(split_shop, split_shop.parent/'one'))
    finish(start(root, processes=1))
    return root


def same(root, other):
    "The history and the best model's weights of two runs agree up to rounding."
    a, b = (pd.read_csv(Paths(o).history_csv) for o in (root, other))
    assert list(a) == list(b) and len(a) == len(b) == EPOCHS+1
    for name in a:
        unit = 100 if name.endswith('clip_score') else 1
        counted = any(o in name for o in ('recall', 'accuracy', 'mrr', 'rank'))         # rounding can swap two products that are equally good
        np.testing.assert_allclose(a[name].astype(float), b[name].astype(float), rtol=0, atol=.05 if counted else CLOSE*unit, err_msg=name)
    mine, theirs = (torch.load(Paths(o).best_checkpoint)['model_state_dict'] for o in (root, other))
    begin = tiny_model(load_split(Paths(other))[0].full_text)[0].state_dict()
    assert distance(mine, theirs) < .01*distance(theirs, begin)      # single weights with hardly any gradient may differ more: AdamW divides by its size


def distance(a, b): return sum((a[k]-b[k]).float().square().sum().item() for k in a)**.5


def test_two_processes_give_what_one_gives(one, again):
    out, err = finish(start(again))
    same(again, one)
    assert out.count('Kept: epoch') == 1 and out.count('epoch 1  train_loss') == 1
    for bar in ('Epoch 1/3', 'Epoch 3/3', 'Embedding images'): assert err.count(f'{bar}:   0%') == 1, bar
    assert 'Traceback' not in err
    mine, theirs = ({o.relative_to(root).as_posix() for o in (root/'checkpoints').rglob('*')} for root in (again, one))
    assert mine == theirs and not any('/.' in o for o in mine)


def test_chunks_within_processes(one, again):
    "Gradient caching, three products at a time, in each of two processes."
    finish(start(again, '--chunk', 3))
    same(again, one)


def test_begun_by_two_and_finished_by_one(one, again):
    process = start(again, '--save-minutes', 0)
    steps = lambda: max((int(o.stem[5:]) for o in Paths(again).last.glob('step-*.pt')), default=0)
    end = time.monotonic()+120
    while steps() < 7:                # in the middle of the second epoch
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1][-5000:]
        time.sleep(.005)
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [o for o in family if 'clip_ft_train' in ' '.join(o.cmdline())]
    for o in [*family, process]: o.kill()
    process.communicate()
    assert len(workers) == 2
    before = steps()
    out, _ = finish(start(again, processes=1))
    assert f'after step {before} of' in out
    same(again, one)


def test_begun_by_one_and_finished_by_two(one, again):
    process = start(again, '--save-minutes', 0, processes=1)
    end = time.monotonic()+120
    while not list(Paths(again).last.glob('step-*7.pt')):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1][-5000:]
        time.sleep(.005)
    process.kill(); process.communicate()
    out, _ = finish(start(again, launcher='accelerate'))
    assert out.count('Going on with the run') == 1
    same(again, one)


def test_a_batch_that_cannot_be_shared_is_one_error(again):
    process = start(again, '--batch-size', 31)
    out, err = process.communicate(timeout=120)
    assert process.returncode
    assert err.count('error: ') == 1 and 'error: A batch of 31 products cannot be shared by 2 processes.' in err
    assert 'training.py", line' not in err                # no traceback of ours; the launcher adds its own
    assert not (again/'checkpoints').exists()
