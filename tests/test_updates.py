"get_data updates a catalogue in place when its source has changed."
import json
import os
import zipfile
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import HEADER, jpeg, rows, snapshot
from test_download import Shop, shop  # noqa: F401
from test_shops import products, shopify

from clip_ft import archives, sources
from clip_ft.commands import get_data_main
from clip_ft.core import InputError, Paths
from clip_ft.data import preprocess, read_products
from clip_ft.record import STATE_FILE, read_state
from clip_ft.sources import get_data

CHANGES = '1 product is new (20.jpg), 2 changed (4.jpg, 5.jpg), 1 was removed (7.jpg)'


def pack(catalogue, path, time=0):
    "Write a folder as a zip file, which has another time each time."
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(catalogue.rglob('*')):
            if file.is_file():
                archive.write(file, file.relative_to(catalogue))
    os.utime(path, (time, time))
    return path


def change(catalogue):
    "A product more, one less, another text, and another photo of the same size."
    lines = rows(21).replace('text 4 about it', 'another text').splitlines()
    del lines[7]
    (catalogue/'data.csv').write_text(HEADER + '\n'.join(lines) + '\n')
    photo = catalogue/'data'/'5.jpg'
    content = bytearray(photo.read_bytes())
    content[-40] ^= 1
    photo.write_bytes(content)
    os.utime(photo, (10**9, 10**9))
    (catalogue/'data'/'7.jpg').unlink()
    (catalogue/'data'/'20.jpg').write_bytes(jpeg(20))


def content(paths):
    return {name: data for name, data in snapshot(paths.extracted).items() if not name.startswith('source.')}


@pytest.mark.parametrize('which, limit', [('zip', None), ('zip', 100), ('folder', 100)])
def test_a_changed_source_is_updated(catalogue, tmp_path, run, which, limit):
    paths = Paths(tmp_path/'root')
    source = pack(catalogue, tmp_path/'shop.zip') if which == 'zip' else catalogue
    options = ['--root', paths.root, '--source', source, *(['--limit', limit] if limit else [])]
    assert 'Since' not in run(get_data_main, *options)
    change(catalogue)
    if which == 'zip':
        pack(catalogue, source, 100)
    written, copy = [], archives.copy_stream

    def recorded(stream, target, size):
        written.append(target.name)
        copy(stream, target, size)

    with patch.object(archives, 'copy_stream', recorded), patch.object(sources, 'copy_stream', recorded):
        assert f'Since the last call: {CHANGES}\n' in run(get_data_main, *options)
    assert sorted(name for name in written if name.endswith('.jpg')) == ['20.jpg', '5.jpg']
    fresh = Paths(tmp_path/'fresh')
    get_data(source, fresh, limit)
    assert content(paths) == content(fresh)
    with patch.object(sources, '_fetch', None):
        assert 'Since' not in run(get_data_main, *options)


def test_a_folder_in_place_is_compared(catalogue, tmp_path, run):
    options = ['--root', tmp_path/'root', '--source', catalogue]
    run(get_data_main, *options)
    before = snapshot(catalogue)
    assert snapshot(catalogue) == before
    change(catalogue)
    assert CHANGES in run(get_data_main, *options)
    assert 'Since' not in run(get_data_main, *options)
    (catalogue/'data'/'note.txt').write_text('not a product')
    assert 'no product has changed' in run(get_data_main, *options)


@pytest.mark.parametrize('stop', range(1, 6))
def test_killed_and_finished_by_the_same_call(catalogue, tmp_path, run, stop):
    paths, source = Paths(tmp_path/'root'), pack(catalogue, tmp_path/'shop.zip')
    get_data(source, paths)
    change(catalogue)
    pack(catalogue, source, 100)
    steps = ['copy_stream', 'remove_old', 'write_source', 'save', 'copy_stream']
    where = [archives, sources._Files, sources, sources.SourceState, archives][stop - 1]
    name, calls = steps[stop - 1], []
    original = getattr(where, name)

    def killed(*args):
        calls.append(args)
        if len(calls) == {2: 2, 3: 2, 5: 2}.get(stop, 1):
            raise KeyboardInterrupt
        return original(*args)

    with patch.object(where, name, killed), pytest.raises(KeyboardInterrupt):
        get_data(source, paths)
    out = run(get_data_main, '--root', paths.root, '--source', source)
    assert CHANGES in out or stop == 3  # only the record was incomplete, and the changes had been printed
    fresh = Paths(tmp_path/'fresh')
    get_data(source, fresh)
    assert content(paths) == content(fresh)


def test_only_own_files_are_removed(catalogue, tmp_path):
    paths, source = Paths(tmp_path/'root'), pack(catalogue, tmp_path/'shop.zip')
    get_data(source, paths)
    mine, outside = paths.extracted/'data'/'mine.txt', tmp_path/'outside.jpg'
    for file in (mine, outside):
        file.write_text('mine')
    state = read_state(paths)
    files = np.array([*state.files, '../../../outside.jpg', str(outside)], object)
    state._replace(files=files).save(paths)
    (catalogue/'data.csv').rename(catalogue/'styles.csv')
    change(catalogue)
    (catalogue/'styles.csv').unlink()
    (catalogue/'data.csv').rename(catalogue/'styles.csv')
    pack(catalogue, source, 100)
    get_data(source, paths)
    assert mine.exists() and outside.exists() and not (paths.extracted/'data'/'7.jpg').exists()
    assert not (paths.extracted/'data.csv').exists() and len(read_products(paths.extracted)) == 20


def test_without_state_a_changed_file_is_another_catalogue(catalogue, tmp_path):
    paths, source = Paths(tmp_path/'root'), pack(catalogue, tmp_path/'shop.zip')
    get_data(source, paths)
    (paths.extracted/STATE_FILE).unlink()
    get_data(source, paths)
    os.utime(source, (9, 9))
    with pytest.raises(InputError, match='another catalogue'):
        get_data(source, paths)


def test_projects_of_older_versions_go_on(catalogue, tmp_path):
    paths = Paths(tmp_path/'root')
    get_data(catalogue, paths)
    (paths.extracted/STATE_FILE).unlink()
    record = json.loads((paths.extracted/'source.json').read_text())
    for name in ('content', 'given'):
        del record[name]
    (paths.extracted/'source.json').write_text(json.dumps(record))
    assert get_data(catalogue, paths) == catalogue.resolve()
    assert len(read_state(paths).names) == 20 and sum(map(len, preprocess(paths))) == 20


def test_an_export_is_updated(shop, tmp_path, run):  # noqa: F811
    text = shopify().replace('https://cdn.shop.example', f'{shop}/photo')
    table = tmp_path/'products.csv'
    table.write_text(text)
    paths = Paths(tmp_path/'root')
    options = ['--root', paths.root, '--source', table, '--allow-private']
    run(get_data_main, *options)
    count, images = sum(Shop.requests.values()), set(os.listdir(paths.extracted/'images'))
    address = next(product['images'][0] for product in products() if len(product['images']) == 1)
    address = address.replace('https://cdn.shop.example', f'{shop}/photo')
    table.write_text(text.replace(address, address.replace('/photo/', '/photo/new/')))
    out = run(get_data_main, *options)
    assert '1 product is new (' in out and '0 changed, 1 was removed (' in out
    assert sum(Shop.requests.values()) == count + 1
    after = set(os.listdir(paths.extracted/'images'))
    assert len(after - images) == len(images - after) == 1


def test_a_data_set_is_updated(tmp_path, run):
    def write(numbers):
        (tmp_path/'set').mkdir(exist_ok=True)
        pq.write_table(pa.table({
            'image': [{'bytes': jpeg(n), 'path': f'{n}.jpg'} for n in numbers], 'category': ['Hats']*len(numbers),
            'display name': [f'Product {n}' for n in numbers], 'description': [f'text {n}' for n in numbers],
        }), tmp_path/'set'/'train.parquet')

    write(range(12))
    paths = Paths(tmp_path/'root')
    options = ['--root', paths.root, '--source', tmp_path/'set']
    run(get_data_main, *options)
    write([*range(5), 50, *range(6, 11)])
    assert '0 products are new, 1 changed (00000005-0.jpg), 1 was removed' in run(get_data_main, *options)
    assert (paths.extracted/'images'/'00000005-0.jpg').read_bytes() == jpeg(50)
    assert len(os.listdir(paths.extracted/'images')) == 11


def test_a_sample_of_a_changed_folder_is_almost_the_same(catalogue, tmp_path):
    (catalogue/'data.csv').write_text(HEADER + rows(60))
    for i in range(20, 66):
        (catalogue/'data'/f'{i}.jpg').write_bytes(jpeg(i))
    paths = Paths(tmp_path/'root')
    before = set(read_products(get_data(catalogue, paths, limit=24))['image'])
    (catalogue/'data.csv').write_text(HEADER + rows(66))
    after = set(read_products(get_data(catalogue, paths, limit=24))['image'])
    assert len(before) == len(after) == 24 and len(before & after) >= 20
    assert {file.name for file in (paths.extracted/'data').iterdir()} == after
