"Whatever happens while files are written, a project holds the old state, the new one, or says what to do."

import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
from conftest import snapshot

from clip_ft.commands import embed_main, evaluate_main, get_data_main, preprocess_main, search_main, train_main
from clip_ft.core import InputError, Paths, temporary_path
from clip_ft.data import load_split, preprocess
from clip_ft.embeddings_file import load_embeddings
from clip_ft.learned import LEARNED_FILE
from clip_ft.processes import stage_lock
from clip_ft.record import STATE_FILE
from clip_ft.sources import get_data

TRAIN = ['--model', 'tiny', '--device', 'cpu', '--epochs', 1, '--lr', 1e-4]
DEMO = ['--source', 'demo', '--limit', 12]


def hidden(root):
    "Temporary files and locks."
    return [path for path in Path(root).rglob('.*') if path.is_file()]


# Killed at each renaming

def _killed(main, args, number):
    "Run a command; SIGKILL it before its renaming with this number."
    replace, left = os.replace, iter(range(number, -1, -1))

    def replace_or_die(source, target):
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die
    main(args)


@pytest.fixture
def killed(fork, tmp_path):
    "A function that runs a command and kills it before a renaming; returns False if it ended before."
    def killed(number, main, *args):
        process = fork(_killed, main, [str(arg) for arg in args], number, log=tmp_path/'log.txt')
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL), (tmp_path/'log.txt').read_text()[-2000:]
        return process.exitcode != 0
    return killed


def test_preprocess_killed(split_shop, tmp_path, killed):
    "The old split, the new split, or an error that says to run clip_ft_preprocess again."
    root = shutil.copytree(split_shop, tmp_path/'shop')
    paths, seen = Paths(root), []
    files = [paths.split_json, paths.train_csv, paths.test_csv, paths.rejects_csv]
    preprocess(paths, test_size=.2, seed=7)
    new = [path.read_bytes() for path in files]
    preprocess(paths, test_size=.2, seed=42)
    old = [path.read_bytes() for path in files]
    while killed(len(seen) + 3, preprocess_main, '--root', root, '--test-size', .2, '--seed', 7):
        content = [path.read_bytes() for path in files]
        try:
            load_split(paths)
            assert content == old
            seen.append('old')
        except InputError as error:
            assert 'run clip_ft_preprocess again' in str(error)
            assert content not in (old, new)
            seen.append('error')
            for path, data in zip(files, old, strict=True):
                path.write_bytes(data)
    assert set(seen) == {'old', 'error'} and len(seen) >= 4
    assert [path.read_bytes() for path in files] == new and not hidden(root)


@pytest.mark.parametrize('source', ['demo', 'folder', 'archive'])
def test_get_data_killed(source, catalogue, catalogue_zip, tmp_path, killed, run):
    "The same call completes what a killed one has begun."
    source = {'demo': DEMO[1], 'folder': catalogue, 'archive': catalogue_zip}[source]
    args = ['--source', source, '--limit', 4]
    run(get_data_main, '--root', tmp_path/'whole', *args)
    whole = _without_state(tmp_path/'whole')
    for number in range(100):
        root = tmp_path/str(number)
        if not killed(number, get_data_main, '--root', root, *args):
            break
        assert 'clip_ft_get_data' in run(preprocess_main, '--root', root, refused=True)
        run(get_data_main, '--root', root, *args)
        assert _without_state(root) == whole and not hidden(root)
    assert number >= 2


def _without_state(root):
    "The files of a catalogue, without the state, which contains their times."
    return {name: data for name, data in snapshot(Paths(root).extracted).items() if name != STATE_FILE}


def test_embed_killed(copied_shop, killed):
    paths, number = Paths(copied_shop), 0
    before = load_embeddings(paths.embeddings)
    paths.embeddings.unlink()
    while killed(number, embed_main, '--root', copied_shop, '--device', 'cpu'):
        assert not paths.embeddings.exists()
        number += 1
    assert number >= 3 and not hidden(copied_shop)
    assert (load_embeddings(paths.embeddings)['embeddings'] == before['embeddings']).all()


# A full disk

def _limited(main, args, size):
    "Run a command that may not write files over a size."
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    main(args)


@pytest.mark.parametrize('main, size, args', [
    (get_data_main, 500, DEMO),
    (preprocess_main, 4000, ['--test-size', .3]),
    (train_main, 60_000, TRAIN),
    (embed_main, 5000, ['--device', 'cpu']),
    (search_main, 5000, ['blue jeans', '--device', 'cpu', '--save-grid', 'grid.png']),
])
def test_too_large_a_file_is_one_line(main, size, args, copied_shop, fork, tmp_path):
    "A limit on the size of files stands for a full disk: the error comes from the same places."
    root, log = copied_shop, tmp_path/'log.txt'
    if main is get_data_main:
        root = tmp_path/'new'
    args = [str(root/arg) if arg == 'grid.png' else str(arg) for arg in args]
    before = snapshot(root)
    process = fork(_limited, main, ['--root', str(root), *args], size, log=log)
    process.join(120)
    output = log.read_text()
    line = output.splitlines()[-1]
    assert process.exitcode == 2 and 'Traceback' not in output, output[-2000:]
    assert line.startswith(f'error: File too large: {root}') and '.clip_ft-' not in line
    after = snapshot(root)
    assert not hidden(root)
    assert all(after.get(name) == data for name, data in before.items() if not name.endswith('.png'))


def test_full_disk_says_what_to_do(tmp_path, run, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'replace', full)
    line = run(get_data_main, '--root', tmp_path, *DEMO, refused=True)
    assert f'No space left on device: {tmp_path}' in line and 'free some space' in line


# Two processes, and models of another split

@pytest.mark.parametrize('main, stage, folder, args', [
    (get_data_main, 'get_data', 'data', DEMO),
    (preprocess_main, 'preprocess', 'data/processed', []),
    (train_main, 'train', 'checkpoints', TRAIN),
    (evaluate_main, 'evaluate', '', ['--device', 'cpu', '--report', 'report.html']),
    (embed_main, 'embed', 'data/processed', ['--device', 'cpu']),
])
def test_a_second_process_is_refused(main, stage, folder, args, copied_shop, run):
    if main is get_data_main:
        shutil.rmtree(Paths(copied_shop).extracted)
    args = [copied_shop/arg if arg == 'report.html' else arg for arg in args]
    before = snapshot(copied_shop)
    with stage_lock(stage, copied_shop/folder):
        line = run(main, '--root', copied_shop, *args, refused=True)
    assert re.search(rf'Cannot {stage.replace("_", " ")} in .*: process {os.getpid()} on \S+, since 20\d\d-', line)
    assert snapshot(copied_shop) == before


def test_readers_need_no_lock(copied_shop, run):
    with stage_lock('train', Paths(copied_shop).checkpoints), stage_lock('embed', Paths(copied_shop).processed):
        assert 'score' in run(search_main, 'blue jeans', '--root', copied_shop, '--device', 'cpu')


def test_a_model_of_another_split(copied_shop, run):
    paths = Paths(copied_shop)
    args = ['--root', copied_shop, '--device', 'cpu', '--base', 'none']
    report = copied_shop/'report.html'
    (paths.best_model/LEARNED_FILE).unlink()  # as written by an older version
    preprocess(paths, test_size=.2, seed=7)
    assert f'Warning: {paths.best_model} was trained on another split' in run(evaluate_main, *args, '--report', report)
    assert 'was trained on another split' in report.read_text()
    preprocess(paths, test_size=.2, seed=42)  # the split that it was trained on
    assert 'another split' not in run(evaluate_main, *args)


def test_best_model_of_two_epochs(copied_shop, run):
    "As if training had been killed between the two renamings."
    notes = Paths(copied_shop).best_model/'clip_ft.json'
    notes.write_text(re.sub(r'"step": \d+', '"step": 1', notes.read_text()))
    assert 'not of the same epoch' in run(evaluate_main, '--root', copied_shop, '--device', 'cpu', refused=True)


def test_files_of_a_living_process_stay(tmp_path):
    mine = temporary_path(tmp_path/'data'/'extracted'/'a.jpg')
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b'being written')
    get_data('demo', Paths(tmp_path), limit=3)
    assert mine.exists()
