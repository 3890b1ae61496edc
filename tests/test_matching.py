"Names that are not letter by letter those of the files: the right file, or a reason; links; very small catalogues."

import re
import time
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from conftest import HEADER, jpeg, reasons, rows

from clip_ft.commands import get_data_main, preprocess_main
from clip_ft.core import InputError, Paths
from clip_ft.data import clean_products, image_folder, load_split, preprocess, read_products
from clip_ft.images import _followed
from clip_ft.matching import list_files, match_images, nearest_files
from clip_ft.sources import get_data


@pytest.fixture(autouse=True)
def no_links():
    "Links that a test allows are not allowed in the next one."
    yield
    _followed.clear()


def shop(folder, files, names=None):
    "A catalogue whose files have these names; the table has others, in the same order."
    folder.mkdir()
    for number, file in enumerate(files):
        (folder/file).parent.mkdir(parents=True, exist_ok=True)
        (folder/file).write_bytes(jpeg(number))
    table = pd.DataFrame({'image': files if names is None else names})
    for column in ('description', 'display name'):
        table[column] = [f'{column} {number}' for number in range(len(table))]
    table.assign(category='Hats').to_csv(folder/'data.csv', index=False)
    return folder


NUMBERS = [f'{number:04}' for number in range(8)]
NFD = unicodedata.normalize('NFD', 'é')
KINDS = {  # files, names, phrase of the summary
    'without extension': ('photos/{}.jpg', '{}', 'by name without extension'),
    'another extension': ('photos/{}.jpeg', '{}.png', 'by name without extension, or with another one'),
    'upper case': ('photos/{}.JPG', '{}.jpg', 'in another case'),
    'addresses': ('photos/{}.jpg', 'https://cdn.shopify.com/s/files/1/2/{}.jpg?v=1588', 'of an address'),
    'protocol-relative': ('photos/{}.jpg', '//cdn.shop.com/{}.jpg#x', 'by the file name of an address'),
    'mirror of a server': ('cdn.shop.com/p/{}/main.jpg', 'https://cdn.shop.com/p/{}/main.jpg', 'of an address'),
    'address without extension': ('photos/{}.webp', 'http://cdn.shop.com/{}?width=300', 'of an address'),
    'leading slash': ('photos/a/{}.jpg', '/a/{}.jpg', 'leading slash'),
    'media folder': ('photos/{}.jpg', '/pub/media/catalog/{}.jpg', 'by file name in other folders'),
    'backslashes': ('photos/{}.jpg', 'photos\\{}.jpg', 'with backslashes'),
    'path of another machine': ('photos/{}.jpg', 'C:\\Users\\me\\{}.jpg', 'by file name in other folders'),
    'percent': ('photos/{} a.jpg', '{}%20a.jpg', 'with percent-encoded characters'),
    'accents': (f'photos/{NFD}{{}}.jpg', 'é{}.jpg', 'in another Unicode form'),
    'deep': ('images/full/{}.jpg', '{}.jpg', 'by name'),
    'prefix folders': ('images/0{0[3]}/{0}.jpg', '{}', 'without extension'),
    'leading zeros': ('images/0{0[3]}/0{0}1.jpg', '{0[3]}1', 'without leading zeros'),
    'several names': ('photos/{}.jpg', '{0}.jpg, {0}-2.jpg', 'from lists of names'),
    'several addresses': ('photos/{}.jpg', 'https://x.com/{0}.jpg?a=1|https://x.com/{0}-2.jpg', 'of an address'),
    'quotation marks': ('photos/{}.jpg', '"{}.jpg"\u200b', 'without quotation marks'),
    'tag': ('photos/{} & a.jpg', '<img alt="x" src="photos/{} &amp; a.jpg">', 'without quotation marks'),
    'plus': ('photos/{} a.jpg', '{}+a.jpg', 'with percent-encoded characters'),
    'size': ('photos/{}.jpg', 'https://x.com/{}-300x300.jpg', 'of an address'),
    'large': ('photos/{}.jpg', '{}_large.jpg', 'without the size in the name'),
    'all at once': (f'images/x/0{{0[3]}}/{NFD} {{0}}.JPEG', 'https://x.com/p/%C3%89%20{}.png?w=1', 'of an address'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_of_name(tmp_path, capsys, kind):
    files, names, phrase = KINDS[kind]
    folder = shop(tmp_path/'shop', [files.format(n) for n in NUMBERS], [names.format(n) for n in NUMBERS])
    paths = Paths(tmp_path/'root')
    get_data(folder, paths)
    both = pd.concat(preprocess(paths)).sort_values('display name')
    assert re.search(f'images: 8 .*{re.escape(phrase)}', capsys.readouterr().out)
    image_dir = image_folder(folder, both)
    assert [str((image_dir/name).relative_to(folder)) for name in both['image']] == [files.format(n) for n in NUMBERS]
    assert image_folder(folder, load_split(paths)[1]) == image_dir
    if kind != 'deep':
        assert both['original image'].tolist() == [names.format(n) for n in NUMBERS]


def test_absolute_paths(tmp_path):
    files = [f'photos/{n}.jpg' for n in NUMBERS]
    folder = shop(tmp_path/'shop', files, [str(tmp_path/'shop'/file) for file in files])
    products = read_products(folder)
    kept, _ = clean_products(products, image_folder(folder, products))
    assert kept['image'].tolist() == [f'{n}.jpg' for n in NUMBERS]
    (tmp_path/'0000.jpg').write_bytes(jpeg(99))
    products.loc[0, 'image'] = str(tmp_path/'0000.jpg')  # exists, but outside
    _, rejects = clean_products(products, image_folder(folder, products))
    assert rejects['reason'].tolist() == ['image is outside the folder']


def test_photos_in_train_and_test(tmp_path):
    files = [f'{"test" if int(n) < 3 else "train"}/{n}.jpg' for n in NUMBERS]
    folder = shop(tmp_path/'shop', files, [f'{n}.jpg' for n in NUMBERS])
    products = read_products(folder)
    assert image_folder(folder, products) == folder
    assert clean_products(products, folder)[0]['image'].tolist() == files
    (folder/'train/0001.jpg').write_bytes(jpeg(50))
    assert reasons(folder) == {'0001.jpg': 'several files fit the image name: test/0001.jpg, train/0001.jpg'}


def test_thumbnails_are_not_a_second_choice(tmp_path):
    folder = shop(tmp_path/'shop', [f'images/{n}.jpg' for n in NUMBERS], NUMBERS)
    (folder/'thumbs').mkdir()
    for n in NUMBERS[1:]:
        (folder/f'thumbs/{n}.jpg').write_bytes(jpeg(7))
    assert reasons(folder) == {} and image_folder(folder).name == 'images'


def test_a_third_of_the_files_with_each_ending(tmp_path):
    endings = ['.jpg', '.JPG', '.jpeg']
    files = [f'photos/{n}{endings[int(n) % 3]}' for n in NUMBERS]
    assert reasons(shop(tmp_path/'shop', files, [f'{n}.jpg' for n in NUMBERS])) == {}


def test_several_or_no_files(tmp_path):
    files = ['p/1.jpg', 'p/1.png', 'p/white_dress.jpg', 'p/3.jpg', 'p/4.jpg']
    folder = shop(tmp_path/'shop', files, ['1', 'whit_dress', '3.jpg', '3.png', '4'])
    assert reasons(folder) == {
        '1': 'several files fit the image name: 1.jpg, 1.png',
        'whit_dress': 'image is missing: the nearest file is white_dress.jpg',
        '3.png': 'image is missing: the nearest file, 3.jpg, is the image of another row',
    }


@pytest.mark.parametrize('name', [
    '../0001.jpg', '%2e%2e/0001.jpg', '..\\0001.jpg', '~/0001.jpg', 'x/../../0001.jpg', '..%5c0001.jpg', '0001.jpg\0',
])
def test_no_rule_reaches_outside(tmp_path, name):
    folder = shop(tmp_path/'shop', [f'photos/{n}.jpg' for n in NUMBERS])
    found = match_images(pd.Series([name]), list_files(folder), folder)
    assert found['image'].tolist() == ['']


def test_many_names_are_matched_quickly():
    files = [f'data/{number}.jpg' for number in range(10_000)]
    unknown = [f'data/x{number}.jpg' for number in range(10_000)]
    for names, count in (([f'{number}' for number in range(10_000)], 10_000), (unknown, 0)):
        start = time.process_time()
        found = match_images(pd.Series(names, dtype=object), files, '/nowhere')
        assert (found['image'] != '').sum() == count
        nearest_files([name for name, image in zip(names, found['image'], strict=True) if not image], files)
        assert time.process_time() - start < 10


def test_a_sample_has_the_matched_images(tmp_path, catalogue_zip):
    folder = shop(tmp_path/'shop', [f'images/0{n[3]}/{n}.jpg' for n in NUMBERS], NUMBERS)
    sample = get_data(folder, Paths(tmp_path/'root'), limit=4)
    images = [name for name in list_files(sample) if name.endswith('.jpg')]
    assert len(images) == 4 and reasons(sample) == {}


def linked(tmp_path):
    "A shop whose photos are links to a store beside it."
    folder, store = shop(tmp_path/'shop', [f'photos/{n}.jpg' for n in NUMBERS]), tmp_path/'store'/'blobs'
    store.mkdir(parents=True)
    for number, path in enumerate(sorted((folder/'photos').iterdir())):
        path.rename(store/f'{number:x}')
        path.symlink_to(store/f'{number:x}')
    return folder, store


def test_links_are_refused_with_a_way_out(tmp_path, run):
    folder, store = linked(tmp_path)
    run(get_data_main, '--root', tmp_path/'root', '--source', folder)
    error = run(preprocess_main, '--root', tmp_path/'root', '--follow-links', tmp_path/'x', refused=True)
    assert 'no such folder' in error
    with pytest.raises(InputError) as refused:
        preprocess(Paths(tmp_path/'root'))
    error = str(refused.value)
    assert 'image is outside the folder (8)' in error and f'is in {store}' in error and '--follow-links' in error
    run(preprocess_main, '--root', tmp_path/'root', '--follow-links', store)
    _followed.clear()  # as in a new process
    run(preprocess_main, '--root', tmp_path/'root')  # the folder is remembered
    (tmp_path/'secret.jpg').write_bytes(jpeg(77))
    (folder/'photos/0000.jpg').unlink()
    (folder/'photos/0000.jpg').symlink_to(tmp_path/'secret.jpg')
    assert 'image is outside the folder' in run(preprocess_main, '--root', tmp_path/'root')


def test_links_are_copied_into_a_sample(tmp_path):
    folder, store = linked(tmp_path)
    paths = Paths(tmp_path/'root')
    with pytest.raises(InputError, match=r'None .* can be copied: 4 images are links .*--follow-links'):
        get_data(folder, paths, limit=4)
    sample = get_data(folder, paths, limit=4, follow_links=store.parent)
    copied = list(Path(sample).rglob('*.jpg'))
    assert len(copied) == 4 and not any(path.is_symlink() for path in copied)
    assert sum(map(len, preprocess(paths))) == 4
    get_data(folder, Paths(tmp_path/'whole'))
    get_data(folder, Paths(tmp_path/'whole'), follow_links=store)  # a second call may allow them
    assert sum(map(len, preprocess(Paths(tmp_path/'whole')))) == 8


@pytest.mark.parametrize('count', [2, 3, 4, 5, 6, 10, 19])
def test_small_catalogues(tmp_path, capsys, catalogue, count):
    (catalogue/'data.csv').write_text(HEADER + rows(count))
    paths = Paths(tmp_path/'root')
    get_data(catalogue, paths)
    train, test = preprocess(paths)
    assert len(train) + len(test) == count and min(len(train), len(test)) >= min(2, count//2)
    if count >= 6:
        assert len(train) >= 4 and len(test) >= 2
    assert ('training requires' in capsys.readouterr().out) == (count < 6)


def test_one_product_or_one_group(tmp_path, catalogue):
    paths = Paths(tmp_path/'root')
    get_data(catalogue, paths)
    (catalogue/'data.csv').write_text(HEADER + rows(1))
    with pytest.raises(InputError, match=r'Cannot split 1 product.*at least 2'):
        preprocess(paths)
    (catalogue/'data.csv').write_text(HEADER + '1.jpg,warm,Hat,Hats\n2.jpg,cold,Hat,Hats\n3.jpg,cold,Cap,Hats\n')
    with pytest.raises(InputError, match=r'Cannot split 3 products .* duplicates of each other'):
        preprocess(paths)


def test_few_groups(tmp_path, catalogue, capsys):
    names = ['A', 'A', 'A', 'A', 'A', 'B', 'B', 'B', 'C', 'C', 'D', 'D']
    (catalogue/'data.csv').write_text(HEADER + ''.join(f'{i}.jpg,text {i},{name},x\n' for i, name in enumerate(names)))
    paths = Paths(tmp_path/'root')
    get_data(catalogue, paths)
    train, test = preprocess(paths)
    assert len(set(test['display name'])) == len(set(train['display name'])) == 2
    few = ''.join(f'{i}.jpg,text {i},{name},x\n' for i, name in enumerate('EEEEEFFF'))
    (catalogue/'data.csv').write_text(HEADER + few)
    get_data(catalogue, Paths(tmp_path/'few'))
    preprocess(Paths(tmp_path/'few'))
    assert 'duplicates of each other' in capsys.readouterr().out
