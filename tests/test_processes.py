"""A run of several processes gives the result of one; any number can resume it; if one is stopped, all of them end.

On the CPU the processes communicate by gloo.
"""
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import BIN, join, last_step
from torch.distributed.run import get_args_parser as torchrun_parser

from clip_ft.commands import train_main
from clip_ft.core import Paths
from clip_ft.data import load_split
from clip_ft.model import tiny_model
from clip_ft.options import train_parser

EPOCHS = 3      # of four steps each
SETTINGS = ['--model', 'tiny', '--device', 'cpu', '--epochs', EPOCHS, '--lr', 3e-4, '--batch-size', 16,
            '--val-size', .2, '--monitor', 'loss', '--hard-negative-size', 4, '--hard-negative-skip', 1,
            '--false-negative-margin', .3, '--ema', .5, '--distill', 5]
# Two processes add up the same numbers in another order, which changes the last of float32's seven digits, 1e-7. AdamW
# divides by the root of small second moments and so magnifies the difference. After 12 steps the losses agree to this
# tolerance; with a wrong gradient they would differ by 1e-2.
TOLERANCE = 1e-5


TORCHRUN = ['--standalone', '--nproc-per-node', '2', '--']


def arguments(root, *args):
    "The options of clip_ft_train in all tests: hard negatives, distillation and a search log, besides the plain loop."
    return ['--root', root, *SETTINGS, '--queries', root/'queries.csv', *args]


@pytest.fixture(scope='module')
def train(fork):
    "A function that starts clip_ft_train in a number of processes."
    def begin(root, *args, count=1):
        (root/'log.txt').write_text('')
        args = arguments(root, '--processes', count, *args)
        return fork(train_main, [str(arg) for arg in args], log=root/'log.txt')
    return begin


def finish(process, root, code=0):
    "Wait for a process, and return what it wrote."
    return join([process], root/'log.txt', code)


def stop(process, root, number, rank=None, steps=0):
    "Send a signal to one of several processes, or to their parent, as soon as a snapshot has so many steps."
    end = time.monotonic()+300
    while last_step(root) < steps:
        assert process.is_alive() and time.monotonic() < end, (root/'log.txt').read_text()[-5000:]
        time.sleep(.005)
    members = sorted(psutil.Process(process.pid).children(), key=psutil.Process.create_time)
    os.kill(process.pid if rank is None else members[rank].pid, number)
    sent = time.monotonic()
    process.join(60)
    assert time.monotonic() < sent+20 and not any(member.is_running() for member in members)


@pytest.fixture(scope='module')
def logged_shop(split_shop):
    "A project that is split and ready to train, with a search log: three clicked products for each query."
    root = Path(shutil.copytree(split_shop, split_shop.parent/'logged'))
    products = load_split(Paths(root))[0].head(60)
    queries = [f'shoppers {text}' for text in products['display name'][::3].repeat(3)]
    log = pd.DataFrame(dict(query=queries, image=products['image'].to_numpy(), clicks=np.arange(60) % 7+1))
    log.to_csv(root/'queries.csv', index=False)
    return root


@pytest.fixture
def project(logged_shop, tmp_path):
    "A copy of it."
    return Path(shutil.copytree(logged_shop, tmp_path/'shop'))


@pytest.fixture(scope='module')
def one(logged_shop, train):
    "The project after a run in one process."
    root = Path(shutil.copytree(logged_shop, logged_shop.parent/'one'))
    finish(train(root), root)
    return root


def distance(a, b):
    "Euclidean distance of two state dicts."
    return sum((a[name]-b[name]).float().square().sum().item() for name in a)**.5


def assert_same(root, other):
    "The histories and the best models of two runs agree up to rounding."
    a, b = (pd.read_csv(Paths(path).history_csv) for path in (root, other))
    assert list(a) == list(b) and len(a) == len(b) == EPOCHS+1
    for name in a:
        # rounding can swap two products that are equally good
        counted = any(part in name for part in ('hit_rate', 'accuracy', 'mrr', 'rank'))
        tolerance = .05 if counted else TOLERANCE*(100 if name.endswith('clip_score') else 1)
        np.testing.assert_allclose(a[name].astype(float), b[name].astype(float), rtol=0, atol=tolerance, err_msg=name)
    mine, theirs = (torch.load(Paths(path).best_checkpoint)['model_state_dict'] for path in (root, other))
    begin = tiny_model(load_split(Paths(other))[0].full_text)[0].state_dict()
    # single weights with hardly any gradient may differ more, because AdamW divides by its size
    assert distance(mine, theirs) < .01*distance(theirs, begin)


def written(root):
    "Names of the files and folders below checkpoints/."
    return {path.relative_to(root).as_posix() for path in (root/'checkpoints').rglob('*')}


def test_torchrun_passes_all_options_on():
    "No option of clip_ft_train is taken for one of torchrun, as it does without a double hyphen."
    options = [option for action in train_parser()._actions for option in action.option_strings]
    args = torchrun_parser().parse_args([*TORCHRUN, 'clip_ft_train', *options])
    assert (args.training_script, args.training_script_args) == ('clip_ft_train', options)


def test_two_processes_give_what_one_gives(one, project):
    "Started by torchrun, each with gradient caching, three products at a time."
    command = [BIN/'torchrun', *TORCHRUN, BIN/'clip_ft_train', *arguments(project, '--micro-batch', 3)]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=400,
                          env=os.environ | dict(OMP_NUM_THREADS='1'))
    out, err = done.stdout, done.stderr.replace('\r', '\n')
    assert done.returncode == 0, err[-5000:]
    assert_same(project, one)
    assert out.count('The model was written to') == 1 and out.count('epoch 1  train_loss') == 1
    for bar, count in {'Epoch 1/3': 1, 'Epoch 3/3': 1, 'Embedding images': 2}.items():  # of the base, hard negatives
        assert err.count(f'{bar}:   0%') == count, bar
    assert 'Traceback' not in err
    mine, theirs = written(project), written(one)
    assert mine == theirs and not any('/.' in name for name in mine)


def test_begun_by_one_and_finished_by_two(one, project, train):
    process = train(project, '--save-minutes', 0)
    stop(process, project, signal.SIGKILL, steps=6)
    assert finish(train(project, count=2), project).count('Resuming the run') == 1
    assert_same(project, one)


def test_one_process_that_is_stopped_ends_all(one, project, train):
    "Killed ones are named; interrupted ones stop after the same step, which is saved; either run can be resumed."
    for steps, rank in ((1, 1), (3, 0)):
        process = train(project, '--save-minutes', 0, count=2)
        stop(process, project, signal.SIGKILL, rank, steps)
        output = finish(process, project, code=1)
        assert output.count('error: ') == 1 and 'Traceback' not in output, output
        assert f'error: Process {rank} of 2 was ended by the signal SIGKILL' in output.splitlines()[-1]
    for count, number, rank in ((4, signal.SIGTERM, 3), (2, signal.SIGINT, None)):
        process = train(project, '--save-minutes', 0, count=count)
        stop(process, project, number, rank, last_step(project)+1)
        output = finish(process, project, code=130)
        assert f'Interrupted after step {last_step(project)}.' in output
        assert output.splitlines()[-1] == 'interrupted; repeat the command to go on' and 'Traceback' not in output
    assert f'after step {last_step(project)} of' in finish(train(project), project)
    assert_same(project, one)


def test_a_batch_that_cannot_be_shared_is_one_error(project, train):
    output = finish(train(project, '--batch-size', 31, count=2), project, code=2)
    assert output.count('error: A batch of 31 products cannot be divided among 2 processes.') == 1, output
    assert output.count('error: ') == 1 and 'Traceback' not in output
    assert not (project/'checkpoints').exists()
