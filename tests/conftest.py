"Helpers and fixtures that several test files share."

import io
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from clip_ft.commands import embed_main, evaluate_main, get_data_main, preprocess_main, search_main, train_main
from clip_ft.core import Paths
from clip_ft.data import clean_products, image_folder, preprocess, read_products
from clip_ft.sources import get_data

BIN = Path(sys.executable).parent
HEADER = 'image,description,display name,category\n'


# Commands as processes of their own

def command(name, *args, code=0):
    "Run a command; return its output and its error stream after checking the exit code."
    process = subprocess.run([str(BIN/name), *map(str, args)], capture_output=True, text=True, timeout=300)
    assert process.returncode == code, f'{name} {args}: exit {process.returncode}\n{process.stdout}\n{process.stderr}'
    return process.stdout, process.stderr


# Starting Python and importing torch takes longer than most of what is tested, so tests that kill processes start them
# as children of a fork server that has imported everything once. SIGKILL ends them like any other process.
PRELOAD = ['clip_ft.search_command', 'clip_ft.store', 'clip_ft.train_command', 'matplotlib.backends.backend_agg',
           *(f'transformers.models.clip.{part}_clip' for part in ('modeling', 'processing', 'image_processing'))]


def _child(function, args, log, environment):
    "Call a function in a process that does nothing else."
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())       # the default lock is a semaphore that a killed process would leave behind
    function(*args)


@pytest.fixture(scope='session')
def fork():
    "A function that starts another one in a new process; returns the process. Its output is appended to a file."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOAD)
    running = []

    def begin(function, *args, log, **environment):
        process = context.Process(target=_child, args=(function, args, log, environment))
        process.start()
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.is_alive():
            process.kill()
        process.join()


def free_port():
    "A port of this machine that no server uses."
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def join(processes, log, code=0):
    "Wait for processes, check their exit codes, and return what they wrote to a file."
    for process in processes:
        process.join(300)
    output = Path(log).read_text()
    assert all(process.exitcode == code for process in processes), output[-5000:]
    return output


def embed_in_small_blocks(root, calls):
    "Embed in small blocks, record the images that pass through the model, and hang after some calls; -1 means never."
    import clip_ft.embedding
    import clip_ft.store
    root, embed_images, left = Path(root), clip_ft.embedding.embed_images, calls

    def recorded(model, processor, images, **options):
        nonlocal left
        if left == 0:
            time.sleep(600)  # until it is killed
        left -= 1
        with open(root/'seen', 'a') as file:
            file.write('.' * len(images))
        return embed_images(model, processor, images, **options)

    clip_ft.embedding.embed_images = recorded
    clip_ft.embedding.SHARD = clip_ft.store.SHARD = 16


def last_step(root):
    "Number of the last step of a training run that a snapshot has; 0 if there is none."
    return max((int(path.stem[5:]) for path in Paths(root).last.glob('step-*.pt')), default=0)


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
    names = kept.get('original image', kept['image'])
    assert sorted([*names, *rejects['image']]) == sorted(products['image'])
    return dict(zip(rejects['image'], rejects['reason'], strict=True))


def snapshot(folder):
    "The content of every file below a folder, to check that nothing changed."
    files = [path for path in sorted(Path(folder).rglob('*')) if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Projects made from the demo

def _printed(main, args, out):
    "Run a console script; its output goes to a file, without what it writes to the error stream."
    with open(out, 'w') as file, redirect_stdout(file):
        main(args)


@pytest.fixture(scope='session')
def shop(tmp_path_factory, fork):
    "A small demo project after all six commands, and what they printed. Read only; `copied_shop` may be changed."
    root, logs = tmp_path_factory.mktemp('shop'), tmp_path_factory.mktemp('printed')

    def printed(main, *args):
        out = logs/f'{main.__name__}.txt'
        arguments = [str(arg) for arg in ('--root', root, *args)]
        join([fork(_printed, main, arguments, out, log=logs/'errors.txt')], logs/'errors.txt')
        return out.read_text()

    return root, {
        'get_data': printed(get_data_main, '--source', 'demo', '--limit', 200),
        'preprocess': printed(preprocess_main, '--test-size', .2),
        'train': printed(train_main, '--model', 'tiny', '--epochs', 2, '--lr', 1e-3),
        'evaluate': printed(evaluate_main),
        'embed': printed(embed_main),
        'search': printed(search_main, 'blue jeans', '--save-grid', root/'grid.png'),
    }


@pytest.fixture
def copied_shop(shop, tmp_path):
    "A copy of the shop that a test may change."
    return Path(shutil.copytree(shop[0], tmp_path/'copied'))


def split_demo(root, count, test_size):
    "A demo project of a number of products that is ready to train; returns its root."
    get_data('demo', Paths(root), limit=count)
    preprocess(Paths(root), test_size=test_size)
    return root


@pytest.fixture(scope='session')
def split_shop(tmp_path_factory):
    "A smaller demo project that is ready to train. Read only; copy it."
    return split_demo(tmp_path_factory.mktemp('split_shop')/'new', 120, .2)
