"""A run of two processes gives the result of one; the first process writes; either kind can resume the other.

`torchrun` starts the processes, as `accelerate launch` does for several GPUs; on the CPU they communicate by gloo.
"""
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
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


LAUNCHERS = dict(torchrun=['--standalone', '--nproc-per-node', '2', '--'], accelerate=['--num_processes', '2'])
TORCHRUN = [BIN/'torchrun', *LAUNCHERS['torchrun']]


def arguments(root, *args):
    "The options of clip_ft_train in all tests: hard negatives, distillation and a search log, besides the plain loop."
    return ['--root', root, *SETTINGS, '--queries', root/'queries.csv', *args]


def start(root, *args, launcher=()):
    "Start clip_ft_train by a launcher."
    command = [*launcher, BIN/'clip_ft_train', *arguments(root, *args)]
    return subprocess.Popen([str(arg) for arg in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | dict(OMP_NUM_THREADS='1'))


def finish(process):
    "Wait for a command; return its output and its error stream, with progress bars as lines."
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-5000:]
    return out, err.replace('\r', '\n')


@pytest.fixture(scope='module')
def ranks(fork, fork_ranks):
    "A function that starts clip_ft_train in one or several processes without a launcher, which is faster."
    def begin(root, *args, count):
        (root/'log.txt').write_text('')
        call = train_main, [str(arg) for arg in arguments(root, *args)]
        return [fork(*call, log=root/'log.txt')] if count == 1 else fork_ranks(count, *call, log=root/'log.txt')
    return begin


def kill_in_second_epoch(processes, root):
    "Kill processes as soon as a snapshot of the second epoch exists; return the last step that was saved."
    end = time.monotonic()+300
    while last_step(root) < 6:
        assert processes[0].is_alive() and time.monotonic() < end, (root/'log.txt').read_text()[-5000:]
        time.sleep(.005)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    return last_step(root)


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
def one(logged_shop, ranks):
    "The project after a run in one process."
    root = Path(shutil.copytree(logged_shop, logged_shop.parent/'one'))
    join(ranks(root, count=1), root/'log.txt')
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


@pytest.mark.parametrize('name', LAUNCHERS)
def test_launchers_pass_all_options_on(name):
    "No option of clip_ft_train is taken for one of the launcher, as torchrun does without a double hyphen."
    parser = dict(torchrun=torchrun_parser, accelerate=launch_command_parser)[name]()
    options = [option for action in train_parser()._actions for option in action.option_strings]
    args = parser.parse_args([*LAUNCHERS[name], 'clip_ft_train', *options])
    assert (args.training_script, args.training_script_args) == ('clip_ft_train', options)


def test_two_processes_give_what_one_gives(one, project):
    "Each of the two with gradient caching, three products at a time."
    out, err = finish(start(project, '--micro-batch', 3, launcher=TORCHRUN))
    assert_same(project, one)
    assert out.count('The model was written to') == 1 and out.count('epoch 1  train_loss') == 1
    for bar, count in {'Epoch 1/3': 1, 'Epoch 3/3': 1, 'Embedding images': 2}.items():  # of the base, hard negatives
        assert err.count(f'{bar}:   0%') == count, bar
    assert 'Traceback' not in err
    mine, theirs = written(project), written(one)
    assert mine == theirs and not any('/.' in name for name in mine)


def test_begun_by_two_and_finished_by_one(one, project, ranks):
    before = kill_in_second_epoch(ranks(project, '--save-minutes', 0, count=2), project)
    assert f'after step {before} of' in join(ranks(project, count=1), project/'log.txt')
    assert_same(project, one)


def test_begun_by_one_and_finished_by_two(one, project, ranks):
    kill_in_second_epoch(ranks(project, '--save-minutes', 0, count=1), project)
    assert join(ranks(project, count=2), project/'log.txt').count('Resuming the run') == 1
    assert_same(project, one)


def test_a_batch_that_cannot_be_shared_is_one_error(project, ranks):
    output = join(ranks(project, '--batch-size', 31, count=2), project/'log.txt', code=2)
    assert output.count('error: A batch of 31 products cannot be divided among 2 processes.') == 1, output
    assert output.count('error: ') == 1 and 'Traceback' not in output
    assert not (project/'checkpoints').exists()
