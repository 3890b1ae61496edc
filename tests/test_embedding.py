"A killed run of embed_catalogue or LanceStore.sync is resumed, with the result of an uninterrupted run."

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import embed_in_small_blocks, join

import clip_ft.core
import clip_ft.embedding
import clip_ft.store
from clip_ft.commands import embed_main
from clip_ft.core import Paths
from clip_ft.data import catalogue_folder, image_folder, load_split
from clip_ft.embedding import embed_blocks, embed_catalogue
from clip_ft.embeddings_file import load_embeddings, save_embeddings
from clip_ft.model import load_model
from clip_ft.store import LanceStore
from clip_ft.views import image_rows


def embed_slowly(root, target, calls, count=1):
    "Embed in small shards, record the images that pass through the model, and hang after some calls; -1 means never."
    root = Path(root)
    embed_in_small_blocks(root, calls)
    if target == 'file':
        embed_main(['--root', str(root), '--device', 'cpu', '--processes', str(count)])
    else:
        paths = Paths(root)
        model, processor = load_model(paths.best_model, 'cpu')
        LanceStore(root/'store').sync(model, processor, one_image_each(paths), image_folder(catalogue_folder(paths)))


def one_image_each(paths):
    "The training products with their main images."
    return load_split(paths)[0].drop(columns=['images', 'pixel_ids'])


@pytest.fixture
def one_thread():
    "As in the processes below: the order of the sums depends on the number of threads."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kill_when(process, ready):
    "Kill a process as soon as a condition holds."
    end = time.monotonic() + 300
    while not ready() and process.is_alive() and time.monotonic() < end:
        time.sleep(.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and ready()


def finished_shards(paths):
    return [path for path in paths.processed.rglob('shards/*/*.npz') if not path.name.startswith('.')]


def spoil_two_images(paths):
    "Break one image of the training split and remove one of the test split."
    image_dir = image_folder(catalogue_folder(paths))
    (image_dir/pd.read_csv(paths.train_csv).image[3]).write_bytes(b'no image')
    (image_dir/pd.read_csv(paths.test_csv).image[3]).unlink()


def test_killed_and_finished_by_two(copied_shop, one_thread, monkeypatch, fork):
    root, paths = copied_shop, Paths(copied_shop)
    monkeypatch.setattr(clip_ft.embedding, 'SHARD', 16)
    spoil_two_images(paths)
    count = sum(len(image_rows(part).names) for part in load_split(paths))
    stored = load_embeddings(paths.embeddings)
    save_embeddings(paths.embeddings, **stored)  # without digests, so nothing is reused
    old = paths.embeddings.read_bytes()
    kill_when(fork(embed_slowly, root, 'file', 4, log=root/'log.txt'), lambda: len(finished_shards(paths)) == 4)
    assert paths.embeddings.read_bytes() == old  # untouched until the new one is complete
    (root/'seen').unlink()
    out = join([fork(embed_slowly, root, 'file', -1, 2, log=root/'log.txt')], root/'log.txt')
    assert out.count('images embedded') == 1 and '2 of' in out and 'embedding_rejects.csv' in out
    seen = len((root/'seen').read_text())
    assert seen == count - 4*16 - 1  # the broken image of the training split is in a finished shard
    rejects = pd.read_csv(paths.processed/'embedding_rejects.csv')
    assert len(rejects) == 2 and rejects.problem.str.contains('missing|not an image').all()
    by_two = paths.embeddings.read_bytes()
    paths.embeddings.unlink()
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


def test_a_killed_store_is_completed(copied_shop, fork):
    root, paths = copied_shop, Paths(copied_shop)
    products = one_image_each(paths)
    reader, sizes = LanceStore(root/'store'), []

    def enough():
        nonlocal reader
        if reader.table is None:
            reader = LanceStore(root/'store')  # the table does not exist yet
        else:
            sizes.append(len(reader))
        return sizes and sizes[-1] == 48

    kill_when(fork(embed_slowly, root, 'store', 3, log=root/'log.txt'), enough)
    assert sizes == sorted(sizes) and set(sizes) <= {0, 16, 32, 48}  # a reader sees only whole blocks
    (root/'seen').unlink()
    join([fork(embed_slowly, root, 'store', -1, log=root/'log.txt')], root/'log.txt')
    assert len((root/'seen').read_text()) == len(products) - 48
    store, data = LanceStore(root/'store'), load_embeddings(paths.embeddings)
    row_of = {name: row for row, name in enumerate(data['image_names'])}
    assert set(store.dataframe.image) == set(products.image)
    expected = data['embeddings'][[row_of[name] for name in products.image]]
    np.testing.assert_allclose(store.vectors(products.image), expected, atol=1e-5)
