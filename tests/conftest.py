"Helpers and fixtures that several test files share."

import io
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_ft.core import Paths
from clip_ft.data import clean_products, image_folder, preprocess, read_products
from clip_ft.sources import get_data

BIN = Path(sys.executable).parent
HEADER = 'image,description,display name,category\n'


# Commands as processes of their own

def _accept_ctrl_c():
    "A background job of a shell would inherit that SIGINT is ignored."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(name, *args):
    "Start a command."
    return subprocess.Popen([str(BIN/name), *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=_accept_ctrl_c)


def command(name, *args, code=0):
    "Run a command; return its output and its error stream after checking the exit code."
    process = start(name, *args)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f'{name} {args}: exit {process.returncode}\n{out}\n{err}'
    return out, err


@pytest.fixture
def run(capsys):
    "Run a console script in this process; return its output or, with `refused`, its single line of error."
    def run(main, *args, refused=False):
        try:
            main([str(arg) for arg in args])
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert code == (2 if refused else 0), err
        if not refused:
            return out
        assert err.startswith('error: ') and err.count('\n') == 1 and len(err) < 600, err
        return err
    return run


# A small catalogue

def jpeg(seed=0, size=(24, 32)):
    "The bytes of a JPEG of random pixels."
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'JPEG')
    return out.getvalue()


def rows(count):
    "Rows of a table, without its header."
    categories = ('Shirts', 'Shoes', 'Hats')
    return ''.join(f'{i}.jpg,text {i} about it,Product {i},{categories[i % 3]}\n' for i in range(count))


@pytest.fixture
def catalogue(tmp_path):
    "A folder with a table of 20 products and their images."
    folder = tmp_path/'catalogue'
    (folder/'data').mkdir(parents=True)
    (folder/'data.csv').write_text(HEADER + rows(20))
    for i in range(20):
        (folder/'data'/f'{i}.jpg').write_bytes(jpeg(i))
    return folder


@pytest.fixture
def catalogue_zip(catalogue):
    "The catalogue as a zip file, inside a wrapping folder."
    path = catalogue.with_suffix('.zip')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(catalogue.rglob('*')):
            if file.is_file():
                archive.write(file, Path('wrapped')/file.relative_to(catalogue))
    return path


def add_rows(folder, *lines):
    "Append rows to the table of a catalogue."
    with open(folder/'data.csv', 'a') as out:
        out.write('\n'.join(lines) + '\n')


def reasons(folder):
    "Clean a catalogue, check that no row was lost, and return the reason for each rejected image name."
    products = read_products(folder)
    kept, rejects = clean_products(products, image_folder(folder, products), workers=2)
    assert len(kept) + len(rejects) == len(products)
    assert sorted([*kept['image'], *rejects['image']]) == sorted(products['image'])
    return dict(zip(rejects['image'], rejects['reason'], strict=True))


def snapshot(folder):
    "The content of every file below a folder, to check that nothing changed."
    files = [path for path in sorted(Path(folder).rglob('*')) if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Projects made from the demo

@pytest.fixture(scope='session')
def shop(tmp_path_factory):
    "A small demo project after all six commands, and what they printed. Read only; `copied_shop` may be changed."
    root = tmp_path_factory.mktemp('shop')
    printed = {
        'get_data': command('clip_ft_get_data', '--root', root, '--source', 'demo', '--limit', 200),
        'preprocess': command('clip_ft_preprocess', '--root', root, '--test-size', .2),
        'train': command('clip_ft_train', '--root', root, '--model', 'tiny', '--epochs', 2, '--lr', 1e-3),
        'evaluate': command('clip_ft_evaluate', '--root', root),
        'embed': command('clip_ft_embed', '--root', root),
        'search': command('clip_ft_search', 'blue jeans', '--root', root, '--save-grid', root/'grid.png'),
    }
    return root, {name: out for name, (out, _) in printed.items()}


@pytest.fixture
def copied_shop(shop, tmp_path):
    "A copy of the shop that a test may change."
    return Path(shutil.copytree(shop[0], tmp_path/'copied'))


@pytest.fixture(scope='session')
def split_shop(tmp_path_factory):
    "A smaller demo project that is ready to train. Read only; copy it."
    root = tmp_path_factory.mktemp('split_shop')/'new'
    get_data('demo', Paths(root), limit=120)
    preprocess(Paths(root), test_size=.2)
    return root
