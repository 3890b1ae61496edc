"What several test files share: the commands as processes, and one small shop that all six commands have run on."
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clip_ft.core import Paths
from clip_ft.data import preprocess
from clip_ft.sources import get_data

BIN = Path(sys.executable).parent


def start(name, *args):
    heeds = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background of a shell would ignore Ctrl-C
    return subprocess.Popen([str(BIN/name), *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)


def command(name, *args, code=0):
    process = start(name, *args)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f'{name} {args}: exit {process.returncode}\n{out}\n{err}'
    return out, err


@pytest.fixture(scope='session')
def shop(tmp_path_factory):
    "A small demo shop after all six commands, and what they printed. Nobody changes it; `copied_shop` is there for that."
    root = tmp_path_factory.mktemp('shop')
    said = {
        'get_data': command('clip_ft_get_data', '--root', root, '--source', 'demo', '--limit', 200),
        'preprocess': command('clip_ft_preprocess', '--root', root, '--test-size', .2),
        'train': command('clip_ft_train', '--root', root, '--model', 'tiny', '--epochs', 2, '--lr', 1e-3),
        'evaluate': command('clip_ft_evaluate', '--root', root),
        'embed': command('clip_ft_embed', '--root', root),
        'search': command('clip_ft_search', 'blue jeans', '--root', root, '--save-grid', root/'grid.png'),
    }
    return root, {name: out for name, (out, err) in said.items()}


@pytest.fixture(scope='session')
def split_shop(tmp_path_factory):
    "A smaller demo shop that is split and ready to train. Nobody changes it; copy it."
    root = tmp_path_factory.mktemp('split_shop')/'new'
    get_data('demo', Paths(root), limit=120)
    preprocess(Paths(root), test_size=.2)
    return root


@pytest.fixture
def copied_shop(shop, tmp_path):
    "A copy of the shop, to break things in."
    return Path(shutil.copytree(shop[0], tmp_path/'copied'))


@pytest.fixture
def run(capsys):
    "Run a console script in this process: its output; with `refused`, after the checks that it failed in one line."
    def run(main, *args, refused=False):
        try: main([str(o) for o in args]); code = 0
        except SystemExit as stop: code = stop.code
        out, err = capsys.readouterr()
        assert code == (2 if refused else 0), err
        if not refused: return out
        assert err.startswith('error: ') and err.count('\n') == 1 and len(err) < 600, err
        return err
    return run
