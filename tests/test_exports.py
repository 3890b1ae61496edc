"Exports of shops, tables of addresses and data sets of Hugging Face as sources of get_data."

import io
import json
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import HEADER, jpeg, rows
from test_download import REASONS, Shop, shop  # noqa: F401
from test_shops import magento, merchant, products, shopify

from clip_ft.commands import get_data_main, preprocess_main
from clip_ft.core import InputError, Paths
from clip_ft.data import preprocess, read_products
from clip_ft.download import DownloadSettings
from clip_ft.hub import is_dataset, read_dataset
from clip_ft.sources import get_data


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr('clip_ft.sources.DownloadSettings',
                        lambda private: DownloadSettings(private, max_bytes=200_000, retries=1, backoff=.05))


def test_an_export_with_addresses(shop, quick, run, tmp_path):  # noqa: F811
    broken = {3: 'gone', 8: 'page', 9: 'noai', 20: 'bomb', 21: 'private'}
    text = shopify().replace('https://cdn.shop.example', f'{shop}/photo')
    for number, kind in broken.items():
        for image in next(p for p in products() if p['number'] == number)['images']:
            address = image.replace('https://cdn.shop.example', f'{shop}/photo')
            text = text.replace(address, address.replace('/photo/', f'/{kind}/'))
    (tmp_path/'products.csv').write_text(text)
    root = tmp_path/'root'
    options = ['--root', root, '--source', tmp_path/'products.csv']
    with pytest.raises(InputError, match=r'could be downloaded: image address is in a private network \(40\)'):
        get_data(tmp_path/'products.csv', Paths(root))
    printed = run(get_data_main, *options, '--allow-private')
    assert 'products.csv is an export of Shopify' in printed
    assert '35 of 40 products have an image; the others' in printed
    run(preprocess_main, '--root', root)
    paths = Paths(root)
    train, test, rejects = (pd.read_csv(path) for path in (paths.train_csv, paths.test_csv, paths.rejects_csv))
    assert len(train) + len(test) + len(rejects) == 40 and 'image problem' not in [*train, *test]
    assert sorted(rejects['reason']) == sorted(REASONS[kind] for kind in broken.values())
    assert {'images', 'colour', 'brand', 'price'} <= set(train)
    assert train['images'].str.contains(' | ', regex=False).any()
    count = sum(Shop.requests.values())
    run(get_data_main, *options)  # finished, so nothing is requested
    assert sum(Shop.requests.values()) == count


def test_a_later_call_repeats_only_what_may_pass(shop, quick, monkeypatch, run, tmp_path):  # noqa: F811
    kinds = ['photo', 'failing', 'gone', 'slow', 'photo', 'failing']
    table = ''.join(f'{shop}/{kind}/{i}.jpg,text {i},Product {i},Hats\n' for i, kind in enumerate(kinds))
    (tmp_path/'t.csv').write_text(HEADER + table)
    options = ['--root', tmp_path/'root', '--source', tmp_path/'t.csv', '--allow-private']
    monkeypatch.setattr('clip_ft.sources.DownloadSettings',
                        lambda private: DownloadSettings(private, retries=0, seconds=.5))
    assert '2 of 6 products have an image' in run(get_data_main, *options)
    Shop.requests.clear()
    monkeypatch.setattr(Shop, 'answer_failing', Shop.answer_photo)
    assert '2 of 3 products whose image could not be downloaded before have one now' in run(get_data_main, *options)
    assert {path.split('/')[1] for path in Shop.requests} == {'failing', 'slow'}
    written = read_products(tmp_path/'root/data/extracted')
    assert (written['image problem'] == '').to_list() == [True, True, False, False, True, True]
    assert (tmp_path/'root/data/extracted/images'/written['image'][1]).read_bytes()


def test_a_sample_of_an_export(shop, quick, tmp_path):  # noqa: F811
    (tmp_path/'feed.tsv').write_text(merchant().replace('https://cdn.shop.example', f'{shop}/photo'))
    folder = get_data(tmp_path/'feed.tsv', Paths(tmp_path/'root'), limit=10, allow_private=True)
    table = read_products(folder)
    assert len(table) == 10 and table['category'].value_counts().to_dict() == {'Shirts': 5, 'Trousers': 5}
    images = [image for p in products() for image in p['images'] if p['name'] in set(table['display name'])]
    assert len(Shop.requests) == len(images)


def test_a_table_of_addresses_without_a_format(shop, quick, run, tmp_path):  # noqa: F811
    lines = rows(12).replace('.jpg', '.jpg,x').splitlines()
    header = HEADER.replace('image', 'photo,note').strip()
    (tmp_path/'t.csv').write_text('\n'.join([header, *(f'{shop}/photo/{line}' for line in lines)]))
    options = ['--root', tmp_path/'root', '--source', tmp_path/'t.csv', '--allow-private', '--columns', 'image=photo']
    assert '12 of 12 products have an image' in run(get_data_main, *options)
    assert len(read_products(tmp_path/'root/data/extracted')) == 12


def test_an_export_beside_its_images(tmp_path):
    folder = tmp_path/'shop'
    for p in products():
        for number in range(len(p['images'])):
            path = folder/f'media/p/{p["number"]}/{number}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(p['number']))
    (folder/'export.csv').write_text(magento())
    paths = Paths(tmp_path/'root')
    assert get_data(folder, paths) == folder
    assert sum(map(len, preprocess(paths))) == 40
    with zipfile.ZipFile(tmp_path/'shop.zip', 'w') as archive:
        for path in folder.rglob('*.*'):
            archive.write(path, path.relative_to(folder))
    for limit, count in ((None, 40), (10, 10)):
        paths = Paths(tmp_path/f'zip{count}')
        get_data(tmp_path/'shop.zip', paths, limit=limit)
        assert sum(map(len, preprocess(paths))) == count


def test_names_of_files_need_their_folder(run, tmp_path):
    (tmp_path/'t.csv').write_text(HEADER + rows(3))
    assert 'pass the folder' in run(get_data_main, '--root', tmp_path/'r', '--source', tmp_path/'t.csv', refused=True)


# Data sets of Hugging Face

FEATURES = {'image': {'_type': 'Image'}, 'category': {'names': ['Hats', 'Shoes'], '_type': 'ClassLabel'}}


def parquet(path, numbers, **more):
    "Write a part of a data set."
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{'bytes': jpeg(n), 'path': f'{n}.jpg'} for n in numbers]
    table = pa.table({'image': images, 'category': [n % 2 for n in numbers],
                      'display name': [f'Product {n}' for n in numbers], 'year': numbers,
                      'description': [f'text {n} about it' for n in numbers], **more})
    info = json.dumps({'info': {'features': FEATURES}})
    pq.write_table(table.replace_schema_metadata({'huggingface': info}), path, row_group_size=7)


def test_parquet(tmp_path):
    parquet(tmp_path/'set/data/train-00000-of-00002.parquet', range(30))
    parquet(tmp_path/'set/data/train-00001-of-00002.parquet', range(30, 35))
    parquet(tmp_path/'set/data/test-00000-of-00001.parquet', range(35, 40))
    paths = Paths(tmp_path/'root')
    table = read_products(get_data(tmp_path/'set', paths))
    assert table['split'].value_counts().to_dict() == {'train': 35, 'test': 5}
    for row in table.to_dict('records'):
        number = int(row['year'])
        assert row['category'] == ('Hats', 'Shoes')[number % 2] and row['display name'] == f'Product {number}'
        assert (paths.extracted/'images'/row['image']).read_bytes() == jpeg(number)
    assert sum(map(len, preprocess(paths))) == 40
    sample = Paths(tmp_path/'sample')
    assert len(read_products(get_data(tmp_path/'set', sample, limit=8))) == 8
    assert len(list((sample.extracted/'images').iterdir())) == 8 and sum(map(len, preprocess(sample))) == 8


def test_several_images_and_broken_ones(tmp_path):
    images = [[{'bytes': image, 'path': None} for image in cell] for cell in ([jpeg(1), jpeg(2)], [b'x'], [])]
    table = pa.table({'pictures': images, 'description': ['a', 'b', None], 'tags': [['x', 'y'], [], None]})
    (tmp_path/'set').mkdir()
    pq.write_table(table, tmp_path/'set/a.parquet')
    get_data(tmp_path/'set', Paths(tmp_path/'root'))
    written = pd.read_csv(tmp_path/'root/data/extracted/data.csv', keep_default_na=False)
    assert written['images'].to_list() == ['00000000-0.jpg | 00000000-1.jpg', '', '']
    assert written['tags'].to_list() == ['x, y', '', '']
    assert (written['image problem'] != '').to_list() == [False, True, True]


@pytest.mark.parametrize('suffix', ['csv', 'jsonl', 'parquet'])
@pytest.mark.parametrize('splits', [('',), ('train', 'test')])
def test_image_folder(suffix, splits, tmp_path):
    for place, numbers in zip(splits, (range(20), range(20, 30)), strict=False):
        folder = tmp_path/'set'/place
        (folder/'pictures').mkdir(parents=True)
        for n in numbers:
            (folder/f'pictures/{n}.jpg').write_bytes(jpeg(n))
        table = pd.DataFrame({'file_name': [f'pictures/{n}.jpg' for n in numbers], 'category': 'Hats',
                              'description': [f'text {n}' for n in numbers],
                              'display name': [f'Product {n}' for n in numbers]})
        out = io.StringIO()
        if suffix == 'csv':
            table.to_csv(out, index=False)
        elif suffix == 'jsonl':
            table.to_json(out, orient='records', lines=True)
        else:
            pq.write_table(pa.Table.from_pandas(table, preserve_index=False), folder/'metadata.parquet')
        if suffix != 'parquet':
            (folder/f'metadata.{suffix}').write_text(out.getvalue())
    paths = Paths(tmp_path/'root')
    assert is_dataset(tmp_path/'set') and get_data(tmp_path/'set', paths) == tmp_path/'set'
    assert sum(map(len, preprocess(paths))) == (20 if splits == ('',) else 30)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('limit', [None, 6])
def test_class_folders(packed, limit, tmp_path, capsys):
    folder = tmp_path/'set'
    for n in range(20):
        path = folder/'train'/('Hats', 'Red shoes')[n % 2]/f'linen-thing_{chr(97 + n)*3}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(n))
    if packed:
        with zipfile.ZipFile(tmp_path/'set.zip', 'w') as archive:
            for path in folder.rglob('*.jpg'):
                archive.write(path, path.relative_to(folder))
    get_data(tmp_path/'set.zip' if packed else folder, Paths(tmp_path/'root'), limit=limit)
    assert "such as 'linen thing aaa'" in capsys.readouterr().out
    products = pd.concat(preprocess(Paths(tmp_path/'root')))
    assert len(products) == (limit or 20) and set(products['category']) == {'Hats', 'Red shoes'}


def test_class_folders_without_texts(tmp_path, run):
    (tmp_path/'set/shoes').mkdir(parents=True)
    for n in range(4):
        (tmp_path/f'set/shoes/IMG_00{n}.jpg').write_bytes(jpeg(n))
    error = run(get_data_main, '--root', tmp_path/'root', '--source', tmp_path/'set', refused=True)
    assert '4 images but no table' in error and 'add a table data.csv' in error


def test_other_folders_are_no_data_sets(catalogue, tmp_path):
    parquet(tmp_path/'a.parquet', range(3))
    assert is_dataset(tmp_path) and not is_dataset(catalogue)
    pq.write_table(pa.table({'image': ['a.jpg']}), tmp_path/'a.parquet')
    assert not is_dataset(tmp_path)


def test_configurations_are_not_mixed(tmp_path, run):
    parquet(tmp_path/'one/a.parquet', range(3))
    parquet(tmp_path/'two/a.parquet', range(3), more=range(3))
    assert 'different columns' in run(get_data_main, '--root', tmp_path/'root', '--source', tmp_path, refused=True)


def test_a_data_set_by_name(tmp_path, monkeypatch):
    parquet(tmp_path/'cache/data/train-0.parquet', range(20))
    monkeypatch.setattr('huggingface_hub.HfApi.list_repo_files', lambda self, name, repo_type: ['data/train-0.parquet'])
    monkeypatch.setattr('huggingface_hub.snapshot_download', lambda name, **options: str(tmp_path/'cache'))
    paths = Paths(tmp_path/'root')
    assert len(read_products(get_data('hf:someone/fashion', paths))) == 20
    assert json.loads((paths.extracted/'source.json').read_text())['source'] == 'hf:someone/fashion'
    assert read_dataset(tmp_path/'cache')['category'].to_list() == ['Hats', 'Shoes']*10
