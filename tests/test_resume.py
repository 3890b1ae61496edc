"Kill a run at any moment and repeat the command: it resumes, and ends as if nothing had happened. Ctrl-C likewise."

import os
import random
import re
import shutil
import signal
import time

import pytest
import torch
from conftest import join, last_step

from clip_ft.checkpoints import Snapshots
from clip_ft.commands import train_main
from clip_ft.core import Paths, temporary_path

KILLS, EPOCHS, STEPS = 8, 6, 30      # five steps per epoch
# With these settings a snapshot has to hold everything that it can hold: optimizer, schedule, order of the batches,
# embeddings of the products, moving average, best epoch.
SETTINGS = ['--model', 'tiny', '--device', 'cpu', '--epochs', EPOCHS, '--patience', EPOCHS, '--lr', 3e-4,
            '--batch-size', 16, '--hard-negative-size', 4, '--ema', .5, '--no-interpolate']


@pytest.fixture(scope='module')
def start(fork):
    "A function that starts clip_ft_train and returns the process and the file of its output."
    def begin(root, *args):
        log = root/'log.txt'
        log.write_text('')
        return fork(train_main, [str(arg) for arg in ('--root', root, *SETTINGS, *args)], log=log), log
    return begin


def finish(started, code=0):
    "Wait for a command, check its exit code and return its output."
    process, log = started
    return join([process], log, code)


def wait_for(condition, process, seconds=300):
    "Wait until a condition holds, while a process runs."
    end = time.monotonic()+seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end, 'the process ended, or took too long'
        time.sleep(.003)


def partly_written(root):
    "Temporary files and folders."
    folders = [folder for folder in (Paths(root).checkpoints, Paths(root).last) if folder.is_dir()]
    return {path for folder in folders for path in folder.iterdir() if path.name.startswith('.')}


def copy(root, to):
    "Copy a project."
    shutil.copytree(root, to)
    return to


def assert_same_end(root, other):
    "Two runs ended with the same metrics in all epochs and the same weights, to the last bit."
    a, b = Paths(root), Paths(other)
    assert a.history_csv.read_text() == b.history_csv.read_text()
    mine, theirs = (torch.load(paths.best_checkpoint) for paths in (a, b))
    assert mine['epoch'] == theirs['epoch']
    for name, weight in theirs['model_state_dict'].items():
        assert torch.equal(weight, mine['model_state_dict'][name]), name
    assert not a.last.exists() and not b.last.exists()          # complete: nothing to resume


@pytest.fixture(scope='module')
def straight(split_shop, start):
    "A project after a run that was not interrupted and saved snapshots after its epochs only."
    root = copy(split_shop, split_shop.parent/'straight')
    finish(start(root))
    assert len(Paths(root).history_csv.read_text().splitlines()) == EPOCHS+2
    return root


@pytest.fixture(scope='module')
def halfway(split_shop, start):
    "The same project, killed in the second half of the run, with its last two snapshots."
    root = copy(split_shop, split_shop.parent/'halfway')
    process, _ = start(root, '--save-minutes', 0)
    wait_for(lambda: last_step(root) >= STEPS-12, process)
    process.kill()
    process.join()
    assert len(list(Paths(root).last.glob('step-*.pt'))) >= 2
    return root


def kill_once(root, start, number, rng):
    "Start the run and kill it at a random moment; return the steps that it got further, and if it was in a write."
    before, torn = last_step(root), partly_written(root)
    process, log = start(root, '--save-minutes', 0)
    starting = number % 4 == 3                # every fourth is killed while it starts, the others while they train
    share = (STEPS-8-before)/(KILLS-number)
    if not starting:
        wait_for(lambda: 'Epoch' in log.read_text(), process)
    end = time.monotonic()+(rng.uniform(0, 1.2) if starting else 4)
    target = before+min(rng.uniform(0, 2*share), STEPS-8-before)
    while time.monotonic() < end and last_step(root) < target:
        time.sleep(.003)
    if starting or number % 3:
        time.sleep(rng.uniform(0, .15))
    else:                                     # every third in a write, as well as one can aim
        wait_for(lambda: partly_written(root)-torn, process)
        time.sleep(rng.uniform(0, .01))
    process.kill()
    process.join()
    assert process.exitcode == -9, f'the run ended before it had been killed {KILLS} times'
    if 'Epoch' in log.read_text():            # it resumed after the last finished step
        resumed = re.search(r'after step ([\d,]+) of', log.read_text())
        assert int(resumed[1].replace(',', '') if resumed else 0) == before
    return last_step(root)-before, bool(partly_written(root)-torn)


def test_killed_at_random_moments(split_shop, straight, start):
    root, rng = copy(split_shop, split_shop.parent/'killed'), random.Random(0)
    steps, in_writes = zip(*(kill_once(root, start, number, rng) for number in range(KILLS)), strict=True)
    output = finish(start(root, '--save-minutes', 0))
    assert 'damaged' not in output and not partly_written(root)
    assert_same_end(root, straight)
    print(f'{KILLS} kills over {sum(steps)} of {STEPS} steps, {sum(in_writes)} of them while a file was being written')
    assert sum(steps) > KILLS/2 and sum(in_writes) >= KILLS/10


def test_ctrl_c_saves_and_the_command_resumes(split_shop, straight, start):
    "Ctrl-C between two snapshots: the run saves one before it ends."
    root = copy(split_shop, split_shop.parent/'interrupted')
    process, log = start(root)
    wait_for(lambda: 'Epoch 3/' in log.read_text(), process)
    os.kill(process.pid, signal.SIGINT)
    output = finish((process, log), code=130)
    assert output.splitlines()[-1] == 'interrupted; repeat the command to go on' and 'Traceback' not in output
    stopped = int(re.search(r'Interrupted after step (\d+)', output)[1])
    assert last_step(root) == stopped and not partly_written(root)
    assert f'after step {stopped} of {STEPS}' in finish(start(root))
    assert_same_end(root, straight)


def flip(path):
    "Flip one bit in the middle of a file."
    data = bytearray(path.read_bytes())
    data[len(data)//2] ^= 1
    path.write_bytes(data)


def truncate(path):
    "Cut a file in half."
    os.truncate(path, path.stat().st_size//2)


def empty(path):
    "Remove the content of a file."
    os.truncate(path, 0)


def test_damaged_snapshots(halfway, straight, start):
    "If the newest snapshot is damaged, the one before it is used; if all are, the run starts from the beginning."
    root = copy(halfway, halfway.parent/'newest')
    newest, before = Snapshots(Paths(root).last).files()[:2]
    flip(newest)
    output = finish(start(root))
    assert output.count('is damaged') == 1 and f'after step {int(before.stem[5:])} of' in output
    assert_same_end(root, straight)
    root = copy(halfway, halfway.parent/'all')
    for path, damage in zip(Snapshots(Paths(root).last).files(), (flip, empty, truncate), strict=False):
        damage(path)
    output = finish(start(root))
    assert 'starts from the beginning' in output and 'Resuming' not in output and 'Traceback' not in output
    assert_same_end(root, straight)


def abandoned(path):
    "A temporary name as a process that has ended would have chosen it."
    temporary = temporary_path(path)
    return temporary.with_name(re.sub(r'-(\d+)-(\d+)-', r'-\1-1-', temporary.name))


def test_temporary_files_of_killed_processes(halfway, straight, start):
    "They are ignored and removed."
    root = copy(halfway, halfway.parent/'stale')
    paths = Paths(root)
    whole = Snapshots(paths.last).files()[0].read_bytes()
    abandoned(paths.last/'x.pt').write_bytes(whole[:len(whole)//3])
    abandoned(paths.checkpoints/'x.csv').write_text('epoch,st')
    folder = abandoned(paths.checkpoints/'x')
    folder.mkdir()
    (folder/'model.safetensors').write_bytes(whole[:1000])
    assert 'damaged' not in finish(start(root))
    assert not partly_written(root)
    assert_same_end(root, straight)


def test_other_settings_are_refused(halfway, start):
    root = copy(halfway, halfway.parent/'other')
    before = last_step(root)
    output = finish(start(root, '--seed', 7, '--lr', 1e-3), code=2)
    line = output.splitlines()[-1]
    assert line.startswith('error: ') and 'differs in lr, seed.' in line and '--fresh' in line
    assert 'Traceback' not in output
    assert last_step(root) == before
    output = finish(start(root, '--seed', 7, '--epochs', 1, '--fresh'))
    assert 'Resuming' not in output and 'All 1 epochs are done.' in output
    assert not Paths(root).last.exists() and not partly_written(root)


def test_any_damage_is_noticed(tmp_path):
    "Whichever byte changes and wherever a file ends: what is loaded was saved like this, or is the snapshot before."
    snapshots, rng = Snapshots(tmp_path), random.Random(0)
    states = [dict(step=i, weights=torch.arange(300)*i, rows=[dict(epoch=i, loss=.5)]) for i in (1, 2)]
    for state in states:
        snapshots.save(state['step'], state)
    snapshots.wait()
    newest = snapshots.files()[0]
    whole = newest.read_bytes()
    fell_back = 0
    for i in range(300):
        data = bytearray(whole)
        if i % 3:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            data = data[:rng.randrange(len(data))]
        newest.write_bytes(data)
        state = snapshots.load()
        assert state['step'] in (1, 2)
        expected = states[state['step']-1]
        assert torch.equal(state['weights'], expected['weights']) and state['rows'] == expected['rows']
        fell_back += state['step'] == 1
    assert fell_back > 150          # the others hit bytes without a meaning, such as padding
