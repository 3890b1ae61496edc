"""kill -9 at any moment, the same command again: the run goes on and ends as if nothing had happened.

Starting Python and importing torch takes longer than what is tested here, so the commands run in children of a fork server
that has imported everything once. They are processes of their own all the same, and SIGKILL kills them.
"""
import multiprocessing
import os
import random
import re
import shutil
import threading
import time

import pytest
import torch
from tqdm import tqdm

from clip_ft.core import Paths
from clip_ft.checkpoints import Snapshots
from clip_ft.train_command import train_main

KILLS, EPOCHS, STEPS = 20, 12, 60     # five steps an epoch
# Everything that a snapshot must hold: optimizer, schedule, order of the batches, bank of embeddings, moving average, best epoch.
SETTINGS = ['--model', 'tiny', '--device', 'cpu', '--epochs', EPOCHS, '--patience', EPOCHS, '--lr', 3e-4, '--batch-size', 16, '--hard-negatives', 4, '--ema', .5]


def child(args, log):
    "The command `clip_ft_train`, in a process that does nothing else."
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1); os.dup2(out, 2)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())       # its usual lock is a semaphore of the system, which a killed process would leave behind
    train_main(args)


@pytest.fixture(scope='module')
def start():
    "A function that starts `clip_ft_train`: a process, and the file that its output goes to."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['clip_ft.training', 'transformers.models.clip.modeling_clip', 'transformers.models.clip.processing_clip', 'transformers.models.clip.image_processing_clip', 'matplotlib.backends.backend_agg'])
    running = []

    def begin(root, *args):
        log = root/'log.txt'
        log.write_text('')
        process = context.Process(target=child, args=([str(o) for o in ('--root', root, *SETTINGS, *args)], log))
        process.start()
        running.append(process)
        return process, log

    yield begin
    for process in running:
        if process.is_alive(): process.kill()
        process.join()


def finish(started, code=0):
    "Its output, once it has ended with this exit code."
    process, log = started
    process.join(120)
    assert process.exitcode == code, log.read_text()[-3000:]
    return log.read_text()


def wait_for(condition, process, seconds=60):
    end = time.monotonic()+seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end, 'it ended, or took too long'
        time.sleep(.003)


def last_step(root):
    "Number of the last step in a snapshot; 0 if there is none."
    return max((int(o.stem[5:]) for o in Paths(root).last.glob('step-*.pt')), default=0)


def half_written(root):
    "Temporary files and folders beside what is being written."
    return {o for folder in (Paths(root).checkpoints, Paths(root).last) if folder.is_dir() for o in folder.iterdir() if o.name.startswith('.')}


def copy(root, to):
    shutil.copytree(root, to)
    return to


def same_end(root, other):
    "Two runs ended alike: all figures of all epochs, and all weights, to the last bit."
    a, b = Paths(root), Paths(other)
    assert a.history_csv.read_text() == b.history_csv.read_text()
    mine, theirs = (torch.load(o.best_checkpoint) for o in (a, b))
    assert mine['epoch'] == theirs['epoch']
    for name, weight in theirs['model_state_dict'].items(): assert torch.equal(weight, mine['model_state_dict'][name]), name
    assert not a.last.exists() and not b.last.exists()          # complete: nothing to go on with


@pytest.fixture(scope='module')
def straight(split_shop, start):
    "The same shop after a run that nobody disturbed, which saved nothing on the way but after each epoch."
    root = copy(split_shop, split_shop.parent/'straight')
    finish(start(root))
    assert len(Paths(root).history_csv.read_text().splitlines()) == EPOCHS+2
    return root


@pytest.fixture(scope='module')
def halfway(split_shop, start):
    "The same shop, killed in the second half of the run: the last two snapshots are there."
    root = copy(split_shop, split_shop.parent/'halfway')
    process, _ = start(root, '--save-minutes', 0)
    wait_for(lambda: last_step(root) >= STEPS-12, process)
    process.kill(); process.join()
    assert len(list(Paths(root).last.glob('step-*.pt'))) >= 2
    return root


def test_killed_20_times(split_shop, straight, start):
    root, rng, report = copy(split_shop, split_shop.parent/'killed'), random.Random(0), []
    while len(report) < KILLS:
        before, torn = last_step(root), half_written(root)
        process, log = start(root, '--save-minutes', 0)
        starting, share = len(report)%5 == 4, (STEPS-8-before)/(KILLS-len(report))       # some are killed while they start, most while they train
        if not starting: wait_for(lambda: 'Epoch' in log.read_text(), process)
        end, target = time.monotonic()+(rng.uniform(0, 1.2) if starting else 4), before+min(rng.uniform(0, 2*share), STEPS-8-before)
        while time.monotonic() < end and last_step(root) < target: time.sleep(.003)
        if starting or len(report)%3: time.sleep(rng.uniform(0, .15))
        else: wait_for(lambda: half_written(root)-torn, process); time.sleep(rng.uniform(0, .01))        # every third in a save, as well as one can aim
        process.kill(); process.join()
        assert process.exitcode == -9, f'it ended before it had been killed {KILLS} times: {report}'
        told = re.search(r'after step ([\d,]+) of', log.read_text())
        if 'Epoch' in log.read_text(): assert int(told[1].replace(',', '') if told else 0) == before       # it went on from the last finished step
        report.append((last_step(root)-before, bool(half_written(root)-torn)))
    said = finish(start(root, '--save-minutes', 0))
    assert 'damaged' not in said and not half_written(root)
    same_end(root, straight)
    steps, in_saves = (sum(o) for o in zip(*report))
    print(f'{KILLS} kills over {steps} of {STEPS} steps, {in_saves} of them while a file was being written')
    assert steps > KILLS/2 and in_saves >= KILLS/10


def flip(path): data = bytearray(path.read_bytes()); data[len(data)//2] ^= 1; path.write_bytes(data)
def truncate(path): os.truncate(path, path.stat().st_size//2)
def empty(path): os.truncate(path, 0)


def test_damaged_snapshots(halfway, straight, start):
    "The newest one damaged: the one before it is taken. All damaged: from the beginning. The end is the same."
    started = {}
    for harm in (flip, truncate, empty):
        root = copy(halfway, halfway.parent/harm.__name__)
        newest, before = Snapshots(Paths(root).last).files()[:2]
        harm(newest)
        started[harm] = start(root), root, before
    for process, root, before in started.values():
        said = finish(process)
        assert said.count('is damaged') == 1 and f'after step {int(before.stem[5:])} of' in said
        same_end(root, straight)
    root = copy(halfway, halfway.parent/'all')
    for o, harm in zip(Snapshots(Paths(root).last).files(), (flip, empty, truncate)): harm(o)
    said = finish(start(root))
    assert 'starts from the beginning' in said and 'Going on' not in said and 'Traceback' not in said
    same_end(root, straight)


def test_stale_temporary_files_do_no_harm(halfway, straight, start):
    "What other killed processes left half written is ignored, and swept away."
    root = copy(halfway, halfway.parent/'stale')
    paths = Paths(root)
    whole = Snapshots(paths.last).files()[0].read_bytes()
    (paths.last/'.0123456789ab.pt').write_bytes(whole[:len(whole)//3])
    (paths.checkpoints/'.0123456789ab.csv').write_text('epoch,st')
    (paths.checkpoints/'.best_model-new-01234567').mkdir()
    (paths.checkpoints/'.best_model-new-01234567'/'model.safetensors').write_bytes(whole[:1000])
    assert 'damaged' not in finish(start(root))
    assert not half_written(root)
    same_end(root, straight)


def test_other_settings_are_refused(halfway, start):
    root = copy(halfway, halfway.parent/'other')
    before = last_step(root)
    said = finish(start(root, '--seed', 7, '--lr', 1e-3), code=2)
    line = said.splitlines()[-1]
    assert line.startswith('error: ') and 'seed' in line and 'lr' in line and '--fresh' in line and 'Traceback' not in said
    assert last_step(root) == before
    said = finish(start(root, '--seed', 7, '--epochs', 1, '--fresh'))
    assert 'Going on' not in said and 'Kept: epoch 1' in said
    assert not Paths(root).last.exists() and not half_written(root)


def test_any_damage_is_noticed(tmp_path):
    "Whichever byte changes and wherever a file ends: what is loaded is what was saved, or the state before it."
    snapshots, rng = Snapshots(tmp_path), random.Random(0)
    states = [dict(step=i, weights=torch.arange(300)*i, rows=[dict(epoch=i, loss=.5)]) for i in (1, 2)]
    for state in states: snapshots.save(state['step'], state)
    snapshots.wait()
    newest = snapshots.files()[0]
    whole = newest.read_bytes()
    fell_back = 0
    for i in range(300):
        data = bytearray(whole)
        if i%3: data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else: data = data[:rng.randrange(len(data))]
        newest.write_bytes(data)
        state = snapshots.load()
        assert state['step'] in (1, 2)
        expected = states[state['step']-1]
        assert torch.equal(state['weights'], expected['weights']) and state['rows'] == expected['rows']
        fell_back += state['step'] == 1
    assert fell_back > 150          # the others hit bytes that say nothing, such as padding
