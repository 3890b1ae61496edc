"A killed run of embed_catalogue or LanceStore.sync is resumed, with the result of an uninterrupted run."

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BIN

import clip_ft.core
import clip_ft.embedding
from clip_ft.core import Paths
from clip_ft.data import catalogue_folder, image_folder, load_split
from clip_ft.embedding import embed_blocks, embed_catalogue, load_embeddings
from clip_ft.model import load_model
from clip_ft.store import LanceStore

# A run with small shards that records the images that pass through the model, and hangs after some calls if told to.
SCRIPT = """
import sys
import time
import clip_ft.embedding as embedding
import clip_ft.store as store
from clip_ft.core import Paths
from clip_ft.data import catalogue_folder, image_folder, load_split
from clip_ft.model import load_model

root, target, calls_left = sys.argv[1], sys.argv[2], int(sys.argv[3])
embedding.SHARD = store.SHARD = 16
embed_images = embedding.embed_images

def recorded(model, processor, images, **options):
    global calls_left
    if calls_left == 0:
        time.sleep(600)  # until it is killed
    calls_left -= 1
    with open(root + '/seen', 'a') as file:
        file.write('.' * len(images))
    return embed_images(model, processor, images, **options)

embedding.embed_images = recorded
if target == 'file':
    embedding.embed_main(['--root', root, '--device', 'cpu'])
else:
    paths = Paths(root)
    model, processor = load_model(paths.best_model, 'cpu')
    products, image_dir = load_split(paths)[0], image_folder(catalogue_folder(paths))
    store.LanceStore(root + '/store').sync(model, processor, products, image_dir)
"""


@pytest.fixture
def one_thread():
    "As in the processes below: the order of the sums depends on the number of threads."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(root, target, calls=-1, processes=1):
    "Start a run that hangs after this many calls of embed_images; -1 means never."
    script = root/'script.py'
    script.write_text(SCRIPT)
    launcher = [sys.executable]
    if processes > 1:
        launcher = [BIN/'torchrun', '--standalone', '--nproc-per-node', processes]
    call = [str(part) for part in [*launcher, script, root, target, calls]]
    environment = os.environ | dict(OMP_NUM_THREADS='1')
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def kill_when(process, ready):
    "Kill a process as soon as a condition holds."
    end = time.monotonic() + 300
    while not ready() and process.poll() is None and time.monotonic() < end:
        time.sleep(.01)
    process.kill()
    error = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL and ready(), error[-3000:]


def finish(process):
    "Wait for a process that succeeds; return its output."
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def finished_shards(paths):
    return [path for path in paths.processed.rglob('shards/*/*.npz') if not path.name.startswith('.')]


def spoil_two_images(paths):
    "Break one image of the training split and remove one of the test split."
    image_dir = image_folder(catalogue_folder(paths))
    (image_dir/pd.read_csv(paths.train_csv).image[3]).write_bytes(b'no image')
    (image_dir/pd.read_csv(paths.test_csv).image[3]).unlink()


def test_killed_and_finished_by_two(copied_shop, one_thread, monkeypatch):
    root, paths = copied_shop, Paths(copied_shop)
    monkeypatch.setattr(clip_ft.embedding, 'SHARD', 16)
    spoil_two_images(paths)
    count = sum(map(len, load_split(paths)))
    old = paths.embeddings.read_bytes()
    kill_when(start(root, 'file', calls=4), lambda: len(finished_shards(paths)) == 4)
    assert paths.embeddings.read_bytes() == old  # untouched until the new one is complete
    (root/'seen').unlink()
    out = finish(start(root, 'file', processes=2))
    assert out.count('images embedded') == 1 and '2 of' in out and 'embedding_rejects.csv' in out
    seen = len((root/'seen').read_text())
    assert seen == count - 4*16 - 1  # the broken image of the training split is in a finished shard
    rejects = pd.read_csv(paths.processed/'embedding_rejects.csv')
    assert len(rejects) == 2 and rejects.problem.str.contains('missing|not an image').all()
    by_two = paths.embeddings.read_bytes()
    data = embed_catalogue(*load_model(paths.best_model, 'cpu'), paths)  # from scratch, in one process
    assert paths.embeddings.read_bytes() == by_two
    assert len(data['embeddings']) == count - 2 and not set(rejects.image) & set(data['image_names'])
    assert not (paths.processed/'shards').exists()


def test_memory_holds_two_blocks(shop, monkeypatch):
    "At most two blocks are decoded and not yet embedded."
    paths = Paths(shop[0])
    image_dir = image_folder(catalogue_folder(paths))
    names = load_embeddings(paths.embeddings)['image_names'].tolist()
    decoded, read_image = [0], clip_ft.embedding.read_image

    def counted(*args):
        decoded[0] += 1
        return read_image(*args)

    monkeypatch.setattr(clip_ft.embedding, 'read_image', counted)
    model, processor = load_model(paths.best_model, 'cpu')
    blocks = [(names[i:i + 10], {}) for i in range(0, 120, 10)]
    count = 0
    for embedded in embed_blocks(model, processor, image_dir, blocks, 120, progress=False):
        count += 1
        assert decoded[0] <= 10*(count + 1) and all(embedded.digests) and not any(embedded.problems)
    assert count == 12


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux forks')
def test_processes_give_the_same_vectors(shop, monkeypatch):
    paths = Paths(shop[0])
    image_dir = image_folder(catalogue_folder(paths))
    names = load_embeddings(paths.embeddings)['image_names'].tolist()
    model, processor = load_model(paths.best_model, 'cpu')
    blocks = [[*names[:20], 'nothing.jpg'], names[20:50]]
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(4))

    def embed(known):
        embedded_blocks = embed_blocks(model, processor, image_dir, zip(blocks, known), 51, progress=False)
        return [tuple(array.tolist() for array in embedded) for embedded in embedded_blocks]

    by_threads = embed([{}, {}])
    monkeypatch.setattr(clip_ft.core, 'PROCESS_THRESHOLD', 1)
    assert embed([{}, {}]) == by_threads and by_threads[0][2][20]
    known = [dict(zip(digests, vectors)) for digests, vectors, _ in by_threads]
    monkeypatch.setattr(clip_ft.embedding, 'embed_images', None)  # nothing is left to embed
    assert embed(known) == by_threads


def test_a_killed_store_is_completed(copied_shop):
    root, paths = copied_shop, Paths(copied_shop)
    products = load_split(paths)[0]
    reader, sizes = LanceStore(root/'store'), []

    def enough():
        nonlocal reader
        if reader.table is None:
            reader = LanceStore(root/'store')  # the table does not exist yet
        else:
            sizes.append(len(reader))
        return sizes and sizes[-1] == 48

    kill_when(start(root, 'store', calls=3), enough)
    assert sizes == sorted(sizes) and set(sizes) <= {0, 16, 32, 48}  # a reader sees only whole blocks
    (root/'seen').unlink()
    finish(start(root, 'store'))
    assert len((root/'seen').read_text()) == len(products) - 48
    store, data = LanceStore(root/'store'), load_embeddings(paths.embeddings)
    row_of = {name: row for row, name in enumerate(data['image_names'])}
    assert set(store.dataframe.image) == set(products.image)
    expected = data['embeddings'][[row_of[name] for name in products.image]]
    np.testing.assert_allclose(store.vectors(products.image), expected, atol=1e-5)
