"The commands that write, search, serve and update a store: counts, killed runs, two at once, another model."
import json
import os
import re
import time

import numpy as np
import pandas as pd
import pytest
from conftest import embed_in_small_blocks, join, jpeg

from clip_ft.commands import embed_main, preprocess_main, search_main, sync_main
from clip_ft.core import Paths
from clip_ft.data import catalogue_folder, image_folder, load_split
from clip_ft.model import load_model
from clip_ft.processes import stage_lock
from clip_ft.search import Searcher

pytest.importorskip('lancedb')
import clip_ft.embedding
import clip_ft.store
from clip_ft.store import LanceStore

COUNTS = (r'([\d,]+) added, ([\d,]+) changed, ([\d,]+) removed, ([\d,]+) unchanged\.(?s:.*)\n'
          r'([\d,]+) images were embedded')


def sync(run, root, *args):
    "Run clip_ft_sync; return what it has added, changed, removed, left and embedded."
    found = re.search(COUNTS, run(sync_main, '--root', root, *args))
    return [int(number.replace(',', '')) for number in found.groups()]


def count_embedded(monkeypatch):
    "A list to which the number of images of each forward pass is appended."
    seen, embed_images = [], clip_ft.embedding.embed_images

    def counted(model, processor, images, **options):
        seen.append(len(images))
        return embed_images(model, processor, images, **options)

    monkeypatch.setattr(clip_ft.embedding, 'embed_images', counted)
    return seen


def test_the_store_gives_the_results_of_the_file(copied_shop, run):
    run(embed_main, '--root', copied_shop, '--store')
    for query in (['blue jeans'], ['red dress', '--where', 'category=Dresses'], ['zyxwv'], ['jeans', '--offset', 3]):
        args = [*query, '--root', copied_shop, '--no-words', '--json']
        memory, stored = (json.loads(run(search_main, *args, *more)) for more in ([], ['--store']))
        assert [list(product) for product in stored] == [list(product) for product in memory]
        assert [product['image'] for product in stored] == [product['image'] for product in memory]
        assert [product['match'] for product in stored] == [product['match'] for product in memory]
        np.testing.assert_allclose([product['clip_score'] for product in stored],
                                   [product['clip_score'] for product in memory], atol=1e-3)
    table = run(search_main, 'blue jeans', '--root', copied_shop, '--no-words')
    assert run(search_main, 'blue jeans', '--root', copied_shop, '--no-words', '--store') == table
    assert run(embed_main, '--root', copied_shop, '--store').count(' 0 added, 0 changed, 0 removed') == 1
    assert sync(run, copied_shop)[4] == 0


def test_counts(copied_shop, run, monkeypatch):
    paths, seen = Paths(copied_shop), count_embedded(monkeypatch)
    table = catalogue_folder(paths)/'data.csv'
    whole = pd.read_csv(table, dtype=str, keep_default_na=False)
    first = sync(run, paths.root)
    assert first[1:4] == [0, 0, 0] and first[0] == first[4] == sum(seen) > 150
    seen.clear()
    assert sync(run, paths.root) == [0, 0, 0, first[0], 0] and not seen
    kept = load_split(paths)[0]
    alone = kept[kept['images'] == kept['image']]['image'].tolist() or kept['image'].tolist()
    gone, renamed, photographed = alone[:5], alone[5:8], alone[8]
    part = whole[~whole['image'].isin(gone)].copy()
    part.loc[part['image'].isin(renamed), 'display name'] = ['Zeppelin One', 'Zeppelin Two', 'Zeppelin Three']
    part.to_csv(table, index=False)
    folder = image_folder(catalogue_folder(paths), kept)
    (folder/photographed).write_bytes(jpeg(7, (90, 90)))
    run(preprocess_main, '--root', paths.root)
    added, changed, removed, unchanged, embedded = sync(run, paths.root)
    assert (added, changed, removed, embedded) == (0, 4, 5, 1) and sum(seen) == 1
    assert unchanged == first[0] - 9
    assert set(LanceStore(paths.store).match('zeppelin', 9)) == set(renamed)
    whole.to_csv(table, index=False)
    run(preprocess_main, '--root', paths.root)
    assert sync(run, paths.root) == [5, 3, 0, first[0] - 8, 5]


def test_two_at_once(copied_shop, run):
    with stage_lock('sync', Paths(copied_shop).store):
        line = run(sync_main, '--root', copied_shop, refused=True)
        assert re.search(rf'Cannot sync in .*: process {os.getpid()} on', line)


def test_refusals(copied_shop, run, tmp_path):
    assert 'There is no store in' in run(search_main, 'red', '--root', copied_shop, '--store', refused=True)
    assert not Paths(copied_shop).store.exists()
    line = run(search_main, '--root', copied_shop, '--store', 'red', 'shoes', refused=True)
    assert 'There is no store in red' in line and '--store=PLACE' in line
    run(embed_main, '--root', copied_shop, '--store', tmp_path/'mixed', '--text-share', .3)
    assert '--text-share 0.3' in run(sync_main, '--root', copied_shop, '--store', tmp_path/'mixed', refused=True)
    for more in ([], ['--store', tmp_path/'mixed']):
        line = run(search_main, 'red \udcff', '--root', copied_shop, *more, refused=True)
        assert 'not UTF-8' in line


def sync_another(root, calls):
    "Sync with changed weights in small blocks, record the images that pass through, and hang after some calls."
    embed_in_small_blocks(root, calls)
    paths = Paths(root)
    model, processor = load_model(paths.best_model, 'cpu', verbose=False)
    model.logit_scale.data += 1
    train, test = load_split(paths)
    products = pd.concat([train, test], ignore_index=True)
    LanceStore(paths.store).sync(model, processor, products, image_folder(catalogue_folder(paths), products),
                                 unseen=test['image'])


def test_another_model_is_killed_and_completed(copied_shop, run, fork):
    root, paths = copied_shop, Paths(copied_shop)
    total = sync(run, root)[0]
    model, processor = load_model(paths.best_model, 'cpu', verbose=False)
    before = Searcher(model, processor, LanceStore(paths.store))
    found, made_by = before.search('blue jeans'), LanceStore(paths.store).weights_hash
    process = fork(sync_another, root, 3, log=root/'log.txt')
    end = time.time() + 120
    while time.time() < end and not ((root/'seen').exists() and (root/'seen').stat().st_size >= 48):
        time.sleep(.05)
    time.sleep(1)
    process.kill()
    process.join()
    now = LanceStore(paths.store)
    assert (now.weights_hash, now.table.count_rows()) == (made_by, total)
    pd.testing.assert_frame_equal(Searcher(model, processor, now).search('blue jeans'), found)
    (root/'seen').unlink()
    join([fork(sync_another, root, -1, log=root/'log.txt')], root/'log.txt')
    assert total - 48 <= len((root/'seen').read_text()) <= total - 32  # at most one block again
    now = LanceStore(paths.store)
    assert now.weights_hash != made_by and now.table.count_rows() == total and now.match_scale is not None
    pd.testing.assert_frame_equal(before.search('blue jeans'), found)  # a handle keeps the old table
    back = run(sync_main, '--root', root)
    assert 'The model has changed: a new table' in back
    assert LanceStore(paths.store).weights_hash == made_by


def test_serve(copied_shop, run, tmp_path):
    pytest.importorskip('fastapi')
    from test_service import Service, same
    paths = Paths(copied_shop)
    sync(run, copied_shop)
    paths.embeddings.unlink(missing_ok=True)  # the service does not need it
    service = Service(copied_shop, tmp_path/'log.txt', '--store')
    try:
        model, processor = load_model(paths.best_model, 'cpu', verbose=False)
        searcher = Searcher(model, processor, LanceStore(paths.store))
        for query in ('red shoes', 'blue jeans', 'zyxwv'):
            same(service.search(query=query, top_k=9), searcher.search(query, 9))
        same(service.search(query='red', top_k=5, where={'category': 'Dresses'}),
             searcher.search('red', 5, where={'category': 'Dresses'}))
        assert service.ask('/search', 'POST', '{"query": "red \\ud800"}')[0] in range(400, 500)
        first, gone = service.generation(), searcher.search('red shoes', 1)['image'].iloc[0]
        assert first == 1
        LanceStore(paths.store).delete([gone])
        end = time.time() + 60
        while service.generation() == first and time.time() < end:
            time.sleep(.2)
        assert gone not in [product['image'] for product in service.search(query='red shoes', top_k=200)]
        same(service.search(query='red shoes', top_k=9), Searcher(model, processor, LanceStore(paths.store)).search(
            'red shoes', 9))
        time.sleep(3)
        assert service.generation() == first + 1  # it is loaded once
    finally:
        service.end()
    assert 'ERROR' not in service.log.read_text()
