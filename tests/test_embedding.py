"Embedding that is killed and finished by two processes gives the file that one process gives; so does the store."

import os
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

# A slow run with small shards that records how many images went through the model.
SLOW = """
import sys, time
import clip_ft.embedding as e, clip_ft.store as s
from clip_ft.core import Paths
from clip_ft.data import catalogue_folder, image_folder, load_split
from clip_ft.model import load_model
root, what, wait = sys.argv[1], sys.argv[2], float(sys.argv[3])
e.SHARD = s.SHARD = 16
plain = e.embed_images
def embed_images(model, processor, images, **options):
    time.sleep(wait)
    with open(root+'/seen', 'a') as f: f.write('.'*len(images))
    return plain(model, processor, images, **options)
e.embed_images = embed_images
if what == 'file': e.embed_main(['--root', root, '--device', 'cpu'])
else:
    paths = Paths(root)
    products = load_split(paths)[0]
    model, processor = load_model(paths.best_model, 'cpu')
    s.LanceStore(root+'/store').sync(model, processor, products, image_folder(catalogue_folder(paths)))
"""


@pytest.fixture
def one_thread():
    "As in the processes below: the order of the sums depends on the number of threads."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(root, what, wait, processes=1):
    script = root / 'slow.py'
    script.write_text(SLOW)
    launcher = [BIN / 'torchrun', '--standalone', '--nproc-per-node', processes] if processes > 1 else [sys.executable]
    return subprocess.Popen(
        [str(o) for o in [*launcher, script, root, what, wait]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )


def kill_when(process, ready):
    end = time.monotonic() + 120
    while not ready():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1][-3000:]
        time.sleep(0.01)
    process.kill()
    process.communicate()


def test_killed_and_finished_by_two(copied_shop, one_thread, monkeypatch):
    root, paths = copied_shop, Paths(copied_shop)
    monkeypatch.setattr(clip_ft.embedding, 'SHARD', 16)
    image_dir = image_folder(catalogue_folder(paths))
    for name, content in (('train', b'no image'), ('test', None)):  # one broken, one missing
        image = image_dir / pd.read_csv(paths.split / f'{name}.csv').image[3]
        image.unlink()
        if content:
            image.write_bytes(content)
    n = sum(map(len, load_split(paths)))
    old = paths.embeddings.read_bytes()
    kill_when(start(root, 'file', 0.3), lambda: len(list(paths.processed.rglob('shards/*/*.npz'))) >= 4)
    assert paths.embeddings.read_bytes() == old  # untouched until the new one is complete
    done = len([o for o in paths.processed.rglob('shards/*/*.npz') if not o.name.startswith('.')])
    (root / 'seen').unlink()
    process = start(root, 'file', 0, processes=2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    assert out.count('images embedded') == 1 and "2 of" in out and 'embedding_rejects.csv' in out
    assert (
        n - 16 * done - 2 <= len((root / 'seen').read_text()) <= n - 16 * (done - 1)
    )  # the shards that were done were not embedded again, except perhaps the one with the broken image
    rejects = pd.read_csv(paths.processed / 'embedding_rejects.csv')
    assert len(rejects) == 2 and rejects.problem.str.contains('missing|not an image').all()
    both = paths.embeddings.read_bytes()
    data = embed_catalogue(*load_model(paths.best_model, 'cpu'), paths)  # again from nothing, in one process
    assert paths.embeddings.read_bytes() == both
    assert len(data['embeddings']) == n - 2 and not set(rejects.image) & set(data['image_names'])
    assert not (paths.processed / 'shards').exists()


def test_memory_holds_two_blocks(shop, monkeypatch):
    "However many images: never more than two blocks are decoded and not yet embedded."
    paths = Paths(shop[0])
    image_dir, names = image_folder(catalogue_folder(paths)), load_embeddings(paths.embeddings)['image_names'].tolist()
    decoded, plain = [0], clip_ft.embedding.read_image

    def counted(*args):
        decoded[0] += 1
        return plain(*args)

    monkeypatch.setattr(clip_ft.embedding, 'read_image', counted)
    model, processor = load_model(paths.best_model, 'cpu')
    blocks = [names[i : i + 10] for i in range(0, 120, 10)]
    embedded_blocks = embed_blocks(model, processor, image_dir, [(block, {}) for block in blocks], 120, progress=False)
    for i, embedded in enumerate(embedded_blocks, 1):
        assert decoded[0] <= 10 * (i + 1) and all(embedded.digests) and not any(embedded.problems)
    assert i == 12


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux forks')
def test_processes_give_the_same_vectors(shop, monkeypatch):
    paths = Paths(shop[0])
    image_dir, names = image_folder(catalogue_folder(paths)), load_embeddings(paths.embeddings)['image_names'].tolist()
    model, processor = load_model(paths.best_model, 'cpu')
    blocks = [[*names[:20], 'nothing.jpg'], names[20:50]]
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(4))

    def everything(known):
        embedded_blocks = embed_blocks(model, processor, image_dir, zip(blocks, known), 51, progress=False)
        return [tuple(array.tolist() for array in embedded) for embedded in embedded_blocks]

    threads = everything([{}, {}])
    monkeypatch.setattr(clip_ft.core, 'PROCESS_THRESHOLD', 1)
    assert everything([{}, {}]) == threads and threads[0][2][20]
    known = [dict(zip(digests, vectors)) for digests, vectors, _ in threads]
    monkeypatch.setattr(clip_ft.embedding, 'embed_images', None)  # nothing is left to embed
    assert everything(known) == threads


def test_a_store_that_is_killed_goes_on(copied_shop):
    root, paths = copied_shop, Paths(copied_shop)
    products = load_split(paths)[0]
    reader, sizes = LanceStore(root / 'store'), []

    def enough():
        nonlocal reader
        if reader.table is None:
            reader = LanceStore(root / 'store')  # until there is one
        else:
            sizes.append(len(reader))
        return sizes and sizes[-1] >= 48

    kill_when(start(root, 'store', 0.2), enough)
    there = len(LanceStore(root / 'store'))
    assert sizes == sorted(sizes) and all(o % 16 == 0 for o in sizes)  # another process saw whole blocks only
    (root / 'seen').unlink()
    process = start(root, 'store', 0)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    assert len((root / 'seen').read_text()) == len(products) - there
    store, data = LanceStore(root / 'store'), load_embeddings(paths.embeddings)
    rows = {o: i for i, o in enumerate(data['image_names'])}
    assert set(store.dataframe.image) == set(products.image)
    np.testing.assert_allclose(
        store.vectors(products.image), data['embeddings'][[rows[o] for o in products.image]], atol=1e-5
    )
