"""Bad and hostile input to clip_ft.data: each gives one clear error, or a sensible result, and leaves what was there intact."""
import io
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import command
from PIL import Image

from clip_ft import core, data, sources
from clip_ft.cleaning import clean_text, is_placeholder
from clip_ft.core import InputError, Paths, atomic_write, console_script
from clip_ft.data import (
    catalogue_folder, clean_products, duplicate_groups, image_folder, load_split, preprocess, preprocess_main,
    read_products, split_products,
)
from clip_ft.images import check_images, open_image
from clip_ft.sources import get_data, get_data_main, stratified_sample
from clip_ft.tables import read_table, write_table
from clip_ft.dataset import PixelCache, ResizeSpec, pixel_blocks

HEADER = 'image,description,display name,category\n'


def jpeg(seed=0, size=(24, 32)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'JPEG')
    return out.getvalue()


def rows(n, start=0):
    return ''.join(f'{i}.jpg,text {i} about it,Product {i},{("Shirts", "Shoes", "Hats")[i % 3]}\n' for i in range(start, start + n))


@pytest.fixture
def catalogue(tmp_path):
    "A folder with a table of 20 products and their pictures."
    folder = tmp_path/'catalogue'
    (folder/'data').mkdir(parents=True)
    (folder/'data.csv').write_text(HEADER + rows(20))
    for i in range(20): (folder/'data'/f'{i}.jpg').write_bytes(jpeg(i))
    return folder


@pytest.fixture
def catalogue_zip(catalogue):
    path = catalogue.with_suffix('.zip')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for o in sorted(catalogue.rglob('*')):
            if o.is_file(): archive.write(o, Path('wrapped')/o.relative_to(catalogue))
    return path


def snapshot(folder):
    "Every file below a folder with its content: to show that nothing changed."
    return {str(o.relative_to(folder)): o.read_bytes() for o in sorted(Path(folder).rglob('*')) if o.is_file() and not o.is_symlink()}


def zip_of(path, *members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members: archive.writestr(name, content)
    return path


def add_rows(folder, *lines):
    with open(folder/'data.csv', 'a') as out: out.write('\n'.join(lines) + '\n')


def reasons(folder):
    "The reason for each rejected picture name, after the check that no row was lost."
    products = read_products(folder)
    kept, rejects = clean_products(products, image_folder(folder, products), workers=2)
    assert len(kept) + len(rejects) == len(products)
    assert sorted([*kept['image'], *rejects['image']]) == sorted(products['image'])
    return dict(zip(rejects['image'], rejects['reason']))


# Tables

def test_missing_column_is_named_with_the_way_out(catalogue):
    (catalogue/'data.csv').write_text('file,description,display name\n1.jpg,x,y\n')
    with pytest.raises(InputError, match=r"no column 'image', 'category'; the table has 'file', .*columns=.*--columns"):
        read_products(catalogue)


def test_extra_columns_are_kept(catalogue):
    (catalogue/'data.csv').write_text('price,image,description,display name,category,row\n9.90,1.jpg,nice and warm,Cap,Hats,7\n')
    products = read_products(catalogue)
    assert products['price'].tolist() == ['9.90']
    kept, _ = clean_products(products, catalogue/'data')
    assert kept['price'].tolist() == ['9.90']


def test_own_names_and_a_clash_with_a_standard_name(tmp_path):
    path = tmp_path/'t.csv'
    path.write_text('image,file,title,category\nmain,1.jpg,Cap,Hats\n')
    products = read_products(path, {'image': 'file', 'display name': 'title', 'description': 'title'})
    assert products.iloc[0].to_dict() == {'image': '1.jpg', 'description': 'Cap', 'display name': 'Cap', 'category': 'Hats', 'original image': 'main'}


def test_styles_beside_data_are_joined_by_stem(catalogue):
    (catalogue/'styles.csv').write_text('id,baseColour,category\n3,Blue,zzz\n3,Red,zzz\n999,Green,zzz\n')
    products = read_products(catalogue)
    assert products['baseColour'][3] == 'Blue' and products['baseColour'][4] == ''
    assert 'zzz' not in set(products['category'])


@pytest.mark.parametrize('content, message', [
    (b'', 'no rows'), (b'\xef\xbb\xbf', 'no rows'), (b'\n\n', 'no rows'), (HEADER.encode(), 'no rows'), (b'\n\na,b\n1,2\n', 'first row is blank'),
    (b'a,b,a\n1,2,3\n', "same name: 'a'"), (b'a,b\n1,2\n1,2,3\n', 'row 3 has 3 fields'),
    (b'a,b\n1,2\n3,"open\n4,5\n', 'row 3: a quote'), (b'a,b\n1,"open\n' + b'x,"y"\n'*3, 'row 2: a quote'), (b'a,b\n1,"' + b'x'*200_000, 'row 2: a quote'),
    (b'PK\x03\x04\x00\x00', 'not a text table'), ('a,b\n1,2\n'.encode('utf-16-le'), 'not a text table'), (b'a,b\n1,\x81\n', 'line 2 is not UTF-8, nor'),
])
def test_a_table_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path/'data.csv'
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error: read_table(path)
    assert 'data.csv' in str(error.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'cp1252'])
@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_dialects(tmp_path, encoding, separator, end, capsys):
    path = tmp_path/'t.csv'
    path.write_bytes(end.join([separator.join([' image ', 'name']), separator.join(['1.jpg', '"Ünï, ""q""; \nx"']), '2.jpg', '', '']).encode(encoding))
    table = read_table(path)
    assert table.values.tolist() == [['1.jpg', 'Ünï, "q"; \nx'], ['2.jpg', '']]
    assert list(table) == ['image', 'name']
    assert ('line 2 is not UTF-8' in capsys.readouterr().out) == (encoding == 'cp1252')


def test_text_stays_text(tmp_path):
    (tmp_path/'t.csv').write_text('a,b,c\nNA,010,1e5\nnull,TRUE,\n')
    assert read_table(tmp_path/'t.csv').values.tolist() == [['NA', '010', '1e5'], ['null', 'TRUE', '']]


def test_any_text_survives_a_round_trip(tmp_path):
    nasty = ['a\rb', 'a\nb', 'a\r\nb', '"', ',', ';', "it's", ' lead', '\ttab', '=1+1', '""', '😀', '\u2028']
    table = pd.DataFrame({'x': nasty, 'y': nasty[::-1]}, dtype=str)
    write_table(table, tmp_path/'t.csv')
    pd.testing.assert_frame_equal(read_table(tmp_path/'t.csv'), table)


def test_which_table(tmp_path):
    with pytest.raises(InputError, match='no CSV file'): data.find_table(tmp_path)
    (tmp_path/'b.csv').touch()
    assert data.find_table(tmp_path).name == 'b.csv'
    (tmp_path/'a.csv').touch()
    with pytest.raises(InputError, match='several tables, a.csv, b.csv'): data.find_table(tmp_path)
    (tmp_path/'styles.csv').touch()
    assert data.find_table(tmp_path).name == 'styles.csv'
    with pytest.raises(InputError, match='no such folder'): data.find_table(tmp_path/'nowhere')


# Names of pictures

@pytest.mark.parametrize('name', ['../../etc/passwd', '/etc/passwd', '..\\secret.jpg', 'C:\\x.jpg', 'a/../../x.jpg', '~/x.jpg', '..', 'x\x00.jpg'])
def test_names_that_leave_the_folder(catalogue, name):
    before = snapshot(catalogue)
    products = read_products(catalogue)
    products.loc[4, 'image'] = name
    kept, rejects = clean_products(products, catalogue/'data')
    assert rejects['reason'].tolist() == ['image is outside the folder'] and rejects['row'].tolist() == [6]
    assert len(kept) == 19 and snapshot(catalogue) == before


def test_missing_names_and_folders_and_endless_names(catalogue):
    add_rows(catalogue, '404.jpg,some text,A,Hats', '.,some other text,B,Hats', f'{"x"*5000},more text,C,Hats', ',text again,D,Hats')
    assert list(reasons(catalogue).values()) == ['image is missing']*3 + ['no image is named']


def test_symlink_that_leaves_the_folder(catalogue, tmp_path):
    (tmp_path/'secret.jpg').write_bytes(jpeg(99))
    (tmp_path/'private').mkdir()
    (tmp_path/'private/p.jpg').write_bytes(jpeg(98))
    (catalogue/'data/link.jpg').symlink_to(tmp_path/'secret.jpg')
    (catalogue/'data/inside.jpg').symlink_to(catalogue/'data/1.jpg')
    (catalogue/'data/sub').symlink_to(tmp_path/'private')
    (catalogue/'data/loop.jpg').symlink_to('loop.jpg')
    add_rows(catalogue, 'link.jpg,words one,A,Hats', 'inside.jpg,words two,B,Hats', 'sub/p.jpg,words three,C,Hats', 'loop.jpg,words four,D,Hats')
    outside = 'image is outside the folder'
    assert reasons(catalogue) == {'link.jpg': outside, 'sub/p.jpg': outside, 'loop.jpg': 'image is missing'}


def test_a_sample_does_not_copy_through_links_and_names(catalogue, tmp_path):
    (tmp_path/'secret.jpg').write_bytes(b'secret')
    (catalogue/'data/link.jpg').symlink_to(tmp_path/'secret.jpg')
    add_rows(catalogue, 'link.jpg,words one,A,Hats', '../../secret.jpg,words two,B,Hats')
    folder = get_data(catalogue, Paths(tmp_path/'root'), limit=22)
    assert len(read_products(folder)) == 22 and b'secret' not in snapshot(tmp_path/'root').values()


# Pictures

def huge_png(width=30_000, height=30_000):
    "A complete one-bit PNG of 900 million white pixels, in about 110 kB."
    def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    line = zlib.compressobj(9)
    pixels = b''.join(line.compress((b'\0' + b'\xff'*((width + 7)//8))*100) for _ in range(height//100)) + line.flush()
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def bad_pictures(folder):
    good = jpeg(1, (200, 200))
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(png, 'PNG')
    tiff = io.BytesIO()
    Image.new('RGB', (8, 8)).save(tiff, 'TIFF')
    files = {'truncated.jpg': good[:len(good)//2], 'header.jpg': good[:300], 'text.jpg': b'<html>not found</html>', 'empty.jpg': b'',
        'huge.png': huge_png(), 'large.png': huge_png(12_000, 8_400), 'cut.png': png.getvalue()[:3000], 'tiff.jpg': tiff.getvalue(),
        'flipped.png': png.getvalue()[:2000] + b'\0'*50 + png.getvalue()[2050:]}
    for name, content in files.items(): (folder/name).write_bytes(content)
    return files


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')  # pytest undoes the filter that clip_ft.data sets
def test_bad_pictures_are_rejected_each_with_its_reason(catalogue):
    files = bad_pictures(catalogue/'data')
    add_rows(catalogue, *(f'{name},text on {name},Name {name},Hats' for name in files))
    before = snapshot(catalogue)
    got = reasons(catalogue)
    assert got.keys() == files.keys()
    assert got['huge.png'].startswith('image is too large')
    assert got['large.png'] == 'image is too large: 12000 x 8400 pixels, over 100,000,000'
    assert got['text.jpg'] == got['tiff.jpg'] == got['empty.jpg'] == 'not an image: none of JPEG, PNG, WEBP, GIF, BMP'
    for name in ('truncated.jpg', 'cut.png', 'flipped.png'): assert got[name].startswith('image cannot be decoded: ')
    assert snapshot(catalogue) == before


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_open_image_names_the_file_and_keeps_nothing_open(tmp_path):
    open_before = len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0
    for name in bad_pictures(tmp_path):
        with pytest.raises(InputError, match=name): open_image(tmp_path/name)
        with pytest.raises(InputError, match=name): open_image(tmp_path/name, size=32)
    if open_before: assert len(os.listdir('/proc/self/fd')) == open_before
    with pytest.raises(InputError, match='missing'): open_image(tmp_path)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I', 'I;16', 'F'])
def test_every_mode_becomes_rgb(mode):
    assert open_image(Image.new(mode, (3, 5))).mode == 'RGB' and open_image(Image.new(mode, (3, 5))).size == (3, 5)


def test_palette_with_transparency_is_on_white(tmp_path):
    image = Image.new('P', (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    for name in ('a.png', 'a.gif'):
        image.save(tmp_path/name, transparency=0)
        assert [open_image(tmp_path/name).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_all_eight_orientations(tmp_path):
    upright = Image.new('RGB', (40, 20), 'white')
    upright.paste('black', (0, 0, 20, 10))  # black where the top left is
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what the camera did, as transpositions that undo each EXIF code
    for code, transposition in back.items():
        stored = upright if transposition is None else upright.transpose(transposition)
        exif = Image.Exif()
        exif[0x0112] = code
        stored.save(tmp_path/'x.png', exif=exif)
        assert np.array_equal(np.asarray(open_image(tmp_path/'x.png')), np.asarray(upright)), code


def test_broken_exif_is_no_reason_to_refuse(tmp_path):
    whole = jpeg()
    (tmp_path/'x.jpg').write_bytes(whole[:2] + b'\xff\xe1\x00\x10Exif\0\0XX*\0\0\0\0\0' + whole[2:])
    assert open_image(tmp_path/'x.jpg').size == (24, 32)


def test_draft_keeps_twice_the_size(tmp_path):
    (tmp_path/'x.jpg').write_bytes(jpeg(0, (1024, 640)))
    for size in (10, 40, 41, 80, 81, 160, 161, 300, 1000):
        assert min(open_image(tmp_path/'x.jpg', size).size) >= min(2*size, 640)
    assert open_image(tmp_path/'x.jpg', 40).size == (128, 80)


def test_pictures_open_in_threads(catalogue):
    alone = check_images(catalogue/'data', [f'{i}.jpg' for i in range(20)], workers=1)
    many = check_images(catalogue/'data', [f'{i % 20}.jpg' for i in range(400)], workers=16)
    assert many['pixel_id'].tolist() == alone['pixel_id'].tolist()*20 and alone['pixel_id'].nunique() == 20


def test_pixel_id_sees_pixels_not_bytes_and_shapes_too(tmp_path):
    white = Image.new('RGB', (4, 6), 'white')
    white.save(tmp_path/'a.png')
    white.save(tmp_path/'b.bmp')
    white.resize((6, 4)).save(tmp_path/'c.png')
    a, b, c = check_images(tmp_path, ['a.png', 'b.bmp', 'c.png'])['pixel_id']
    assert a == b != c and len(a) == 16


# Cleaning and splitting

def test_duplicates_and_placeholders(catalogue):
    add_rows(catalogue, rows(1).strip(), '0.jpg,another text,Another name,Hats', '1.jpg,  - ,N1,Hats', '2.jpg,<b>NA</b>,N2,Hats',
        '3.jpg,Style Note:,N3,Hats', '4.jpg,fine text,&nbsp;,Hats', ',,,', ',,,')
    products = read_products(catalogue)
    kept, rejects = clean_products(products, catalogue/'data')
    assert rejects['row'].tolist() == list(range(22, 30))
    assert rejects['reason'].tolist() == ['the same row again', 'the same picture again', *['description says nothing']*3,
        *['display name says nothing']*2, 'the same row again']
    assert rejects['description'][3] == '<b>NA</b>'  # as it came
    assert list(rejects) == [*products.columns, 'row', 'reason'] and len(kept) == 20


def test_a_good_row_is_not_lost_to_a_bad_one_with_its_picture(catalogue):
    (catalogue/'data.csv').write_text(HEADER + '1.jpg,-,Cap,Hats\n1.jpg,warm wool,Cap,Hats\n')
    assert reasons(catalogue) == {'1.jpg': 'description says nothing'}


def test_full_text_without_a_category(catalogue):
    (catalogue/'data.csv').write_text(HEADER + '1.jpg,warm wool,Cap.,\n2.jpg,cold wool,Hat,NA\n3.jpg,silk,Scarf,Scarves\n')
    kept, _ = clean_products(read_products(catalogue), catalogue/'data')
    assert kept['full_text'].tolist() == ['Cap. warm wool', 'Hat. cold wool', 'Scarf. Scarves. silk']


def test_text_that_would_be_slow_or_odd():
    texts = pd.Series(['<a'*50_000, '&'*50_000, ' '*50_000, '& rsquo '*10_000, '<'*50_000 + '>', 'a\x00b\u200bc', '5 < 6 and 7 > 3', '&lt;i&gt;x&lt;/i&gt;', 'cut </', 'cut< / ', '< '*50_000])
    assert clean_text(texts)[5:10].tolist() == ['a b c', '5 < 6 and 7 > 3', 'x', 'cut', 'cut']
    assert is_placeholder(pd.Series(['---', 'N.A.', '(none)', 'Nanette', '中文', '5'])).tolist() == [True, True, True, False, False, False]


def test_no_rows_at_all():
    empty = pd.DataFrame(columns=['image', 'description', 'display name', 'category'], dtype=str)
    kept, rejects = clean_products(empty, '.')
    assert len(kept) == len(rejects) == 0 and 'full_text' in kept and 'reason' in rejects
    assert len(duplicate_groups(kept)) == 0
    with pytest.raises(InputError, match='0 products'): split_products(kept)


def test_zero_usable_rows_say_why_and_keep_the_old_split(catalogue, tmp_path):
    paths = Paths(tmp_path/'root')
    get_data(catalogue, paths)
    preprocess(paths)
    before = snapshot(paths.split)
    (catalogue/'data.csv').write_text(HEADER + '1.jpg,-,A,Hats\n2.jpg,NA,B,Hats\n404.jpg,good text,C,Hats\n')
    with pytest.raises(InputError, match=r'none of the 3 rows can be used: description says nothing \(2\), image is missing \(1\)'): preprocess(paths)
    assert len(read_table(paths.rejects_csv)) == 3 and snapshot(paths.split) == before


def reference_groups(products):
    "Connected components by plain search, to check duplicate_groups against."
    keys = [products[o].str.casefold().tolist() for o in ('display name', 'description', 'pixel_id')]
    groups, left = [-1]*len(products), set(range(len(products)))
    while left:
        todo, number = [min(left)], min(left)
        left -= set(todo)
        while todo:
            i = todo.pop()
            groups[i] = number
            near = {j for j in left if any(k[i] == k[j] for k in keys)}
            left -= near
            todo += near
    return np.unique(groups, return_inverse=True)[1]


@pytest.mark.parametrize('seed', range(8))
def test_twins_against_a_plain_search_and_no_twin_straddles(seed):
    rng = np.random.default_rng(seed)
    products = pd.DataFrame({o: rng.integers(0, 150, 200).astype(str) for o in ('display name', 'description', 'pixel_id')}, dtype=str)
    products['description'] = rng.permutation([str(i) for i in range(190)] + ['same']*10)
    products['category'] = rng.choice(['a', 'b', 'c'], 200, p=[.7, .29, .01])
    groups = duplicate_groups(products)
    assert groups.dtype == np.int64 and np.array_equal(groups, reference_groups(products))
    train, test = split_products(products.assign(group=groups), 0.2, seed)
    assert not set(train['group']) & set(test['group']) and len(train) + len(test) == 200
    assert len(test) and len(train)


@pytest.mark.parametrize('test_size', [0.01, 0.1, 0.3, 0.5, 0.9])
def test_split_share_by_category(test_size):
    n = 5000
    names = pd.Series(np.arange(n)//2).astype(str)  # twins in pairs
    products = pd.DataFrame({'display name': names, 'description': 'about ' + names, 'category': np.where(np.arange(n) < 4000, 'Shirts', 'Hats')})
    train, test = split_products(products, test_size)
    assert abs(len(test)/n - test_size) < 0.01
    assert abs((test['category'] == 'Hats').mean() - 0.2) < 0.02
    pd.testing.assert_frame_equal(split_products(products, test_size)[1], test)
    assert not split_products(products, test_size, seed=1)[1].equals(test)


def test_split_of_very_few():
    two = pd.DataFrame({'display name': ['a', 'b'], 'description': ['x', 'y'], 'category': ['c', 'c']})
    assert [len(o) for o in split_products(two)] == [1, 1]
    with pytest.raises(InputError, match='twins of each other'): split_products(two.assign(description='z'))
    for size in (0, 1, -1, 2, float('nan')):
        with pytest.raises(InputError, match='between 0 and 1'): split_products(two, size)


def test_sample_has_its_shares_and_size():
    categories = pd.Series(np.random.default_rng(0).choice(['a', 'b', 'c', ''], 1000, p=[.6, .3, .09, .01]))
    for limit in (1, 2, 3, 10, 77, 999, 1000, 5000):
        drawn = stratified_sample(categories, limit, seed=3)
        assert len(drawn) == len(set(drawn)) == min(limit, 1000) and (np.diff(drawn) > 0).all()
        share = categories.value_counts()*min(1, limit/1000) - categories[drawn].value_counts().reindex(categories.unique(), fill_value=0)
        assert share.abs().max() < 1


# Archives

def link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


@pytest.mark.parametrize('bad, message', [
    (('../evil.txt', 'x'), 'leaves the folder'), (('data/../../evil.txt', 'x'), 'leaves the folder'), (('/tmp/evil.txt', 'x'), 'leaves the folder'),
    (('C:/evil.txt', 'x'), 'leaves the folder'), (('C:evil.txt', 'x'), 'leaves the folder'), (('..\\evil.txt', 'x'), 'leaves the folder'),
    ((r'data\..\..\evil.txt', 'x'), 'leaves the folder'), (link('data/link', '/etc'), 'a link or a special file'), (('data.csv', 'again'), 'same name'),
    (('./data.csv', 'again'), 'same name'), (('data.csv/x.jpg', 'x'), 'both a file and a folder'), (('zeros.jpg', bytes(30*2**20)), 'over 200 times'),
])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_hostile_members_are_refused_before_anything_is_unpacked(tmp_path, bad, message):
    (tmp_path/'evil.txt').write_text('mine')
    path = zip_of(tmp_path/'bad.zip', ('data.csv', HEADER + rows(3)), ('data/1.jpg', jpeg()), bad)
    paths = Paths(tmp_path/'root')
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=message) as error: get_data(path, paths)
    assert 'bad.zip' in str(error.value) and snapshot(tmp_path) == before
    assert get_data(zip_of(tmp_path/'good.zip', ('data.csv', HEADER + rows(3)), ('data/1.jpg', jpeg())), paths)  # the root is not spoiled


def test_many_small_bombs_are_one_bomb(tmp_path):
    path = zip_of(tmp_path/'bad.zip', *((f'{i}.jpg', bytes(9*2**20)) for i in range(3)))
    with pytest.raises(InputError, match='over 200 times'): get_data(path, Paths(tmp_path/'root'))


def patch_size(path, name, size):
    "Make both headers of a member claim another size."
    content = bytearray(path.read_bytes())
    for signature, at, length, skip in ((b'PK\x03\x04', 22, 26, 30), (b'PK\x01\x02', 24, 28, 46)):
        place = -1
        while (place := content.find(signature, place + 1)) >= 0:
            n, = struct.unpack_from('<H', content, place + length)
            if content[place + skip:place + skip + n] == name.encode(): struct.pack_into('<I', content, place + at, size)
    path.write_bytes(content)


@pytest.mark.parametrize('claim', [10, 40*2**20 + 5])
def test_a_header_that_lies_about_the_size(tmp_path, claim):
    content = np.random.default_rng(0).integers(0, 4, 40*2**20 if claim == 10 else 10*2**20, dtype=np.uint8).tobytes()
    path = zip_of(tmp_path/'bad.zip', ('data.csv', HEADER + rows(3)), ('data/1.jpg', content))
    patch_size(path, 'data/1.jpg', claim)
    paths = Paths(tmp_path/'root')
    with pytest.raises(InputError, match="member 'data/1.jpg' cannot be unpacked"): get_data(path, paths)
    assert sum(len(o) for o in snapshot(paths.extracted).values()) < 10_000  # neither the lie nor its temporary file is left


def test_the_copy_itself_counts_bytes(tmp_path):
    for content in (b'12345', b'123'):
        with pytest.raises(InputError, match='as long as'): sources._copy(io.BytesIO(content), tmp_path/'x', 4)
    assert not list(tmp_path.iterdir())


def test_encrypted_damaged_and_no_zip(tmp_path, catalogue_zip):
    paths = Paths(tmp_path/'root')
    content = bytearray(catalogue_zip.read_bytes())
    (tmp_path/'cut.zip').write_bytes(content[:len(content)//2])
    (tmp_path/'text.zip').write_text('hello')
    for name in ('cut.zip', 'text.zip'):
        with pytest.raises(InputError, match=f'{name}: not a zip archive'): get_data(tmp_path/name, paths)
    at = content.find(b'PK\x01\x02')
    content[at + 8] |= 1
    (tmp_path/'locked.zip').write_bytes(content)
    with pytest.raises(InputError, match='is encrypted'): get_data(tmp_path/'locked.zip', paths)
    content[at + 8] &= ~1
    with zipfile.ZipFile(catalogue_zip) as archive: place = archive.getinfo('wrapped/data/3.jpg').header_offset + 80
    content[place:place + 20] = bytes(20)
    (tmp_path/'flipped.zip').write_bytes(content)
    with pytest.raises(InputError, match="'wrapped/data/3.jpg' cannot be unpacked"): get_data(tmp_path/'flipped.zip', paths)
    assert not (paths.extracted/'wrapped/data/3.jpg').exists()


def test_a_zip_does_not_forge_the_record(tmp_path):
    path = zip_of(tmp_path/'a.zip', ('data.csv', HEADER + rows(3)), ('source.json', '{"folder": "/etc"}'), ('data/1.jpg', jpeg()))
    paths = Paths(tmp_path/'root')
    assert get_data(path, paths).resolve() == paths.extracted.resolve()
    assert json.loads((paths.extracted/'source.json').read_text())['source'] == str(path)


# get_data

def test_zip_folder_and_limit_agree(catalogue, catalogue_zip, tmp_path):
    whole = get_data(catalogue_zip, Paths(tmp_path/'a'))
    assert whole.name == 'wrapped' and snapshot(whole) == snapshot(catalogue)
    assert get_data(catalogue, Paths(tmp_path/'b')) == catalogue
    from_zip, from_folder = (get_data(o, Paths(tmp_path/name), limit=7) for o, name in ((catalogue_zip, 'c'), (catalogue, 'd')))
    a, b = snapshot(from_zip), snapshot(from_folder)
    a.pop('source.json'), b.pop('source.json')
    assert a == b and len(a) == 8 and len(read_products(from_zip)) == 7


def test_folder_in_place_is_not_touched(catalogue, tmp_path):
    before = snapshot(catalogue)
    paths = Paths(tmp_path/'root')
    assert get_data(catalogue, paths) == catalogue == catalogue_folder(paths)
    preprocess(paths)
    assert snapshot(catalogue) == before


def test_the_same_again_does_no_work(catalogue_zip, tmp_path, monkeypatch):
    paths = Paths(tmp_path/'root')
    folder = get_data(catalogue_zip, paths, limit=5)
    monkeypatch.setattr(sources, '_fetch', None)
    assert get_data(str(catalogue_zip), paths, limit=5) == folder


def test_another_source_is_refused_and_leaves_what_was_there(catalogue, catalogue_zip, tmp_path):
    paths = Paths(tmp_path/'root')
    get_data(catalogue_zip, paths, limit=5)
    before = snapshot(tmp_path)
    for call in (dict(source=catalogue), dict(source=catalogue_zip), dict(source=catalogue_zip, limit=6), dict(source=catalogue_zip, limit=5, seed=1), dict(source='demo')):
        with pytest.raises(InputError, match='catalogue.zip with limit 5.*choose another root'): get_data(paths=paths, **call)
    assert snapshot(tmp_path) == before
    os.utime(catalogue_zip, (1, 1))
    with pytest.raises(InputError, match='not the same'): get_data(catalogue_zip, paths, limit=5)


def test_foreign_files_and_a_damaged_record(catalogue_zip, tmp_path):
    paths = Paths(tmp_path/'root')
    paths.extracted.mkdir(parents=True)
    (paths.extracted/'mine.txt').write_text('mine')
    with pytest.raises(InputError, match='did not put there'): get_data(catalogue_zip, paths)
    assert snapshot(tmp_path/'root') == {'data/extracted/mine.txt': b'mine'}
    for text in ('{"half', '[]', 'null', '"x"', '{}', '{"folder": 5}'):
        (paths.extracted/'source.json').write_text(text)
        with pytest.raises(InputError): get_data(catalogue_zip, paths)
        with pytest.raises(InputError): catalogue_folder(paths)


@pytest.mark.parametrize('limit', [None, 12])
@pytest.mark.parametrize('which', ['zip', 'folder'])
def test_interrupted_and_resumed(catalogue, catalogue_zip, tmp_path, monkeypatch, limit, which):
    if which == 'folder' and limit is None: pytest.skip('nothing is copied')
    source, paths, copy, done = catalogue_zip if which == 'zip' else catalogue, Paths(tmp_path/'root'), sources._copy, []

    def stop_at_the_sixth(stream, target, size):
        if len(done) == 5: raise KeyboardInterrupt
        done.append(target)
        copy(stream, target, size)
    monkeypatch.setattr(sources, '_copy', stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt): get_data(source, paths, limit)
    with pytest.raises(InputError, match='no catalogue yet'): catalogue_folder(paths)
    with pytest.raises(InputError, match='not the same'): get_data(source, paths, limit=3)
    kept = {o: os.stat(o).st_mtime_ns for o in done if paths.extracted in o.parents}
    monkeypatch.setattr(sources, '_copy', copy)
    folder = get_data(source, paths, limit)
    assert kept and all(os.stat(o).st_mtime_ns == when for o, when in kept.items())  # what was whole was not done twice
    fresh = get_data(source, Paths(tmp_path/'fresh'), limit)
    a, b = snapshot(folder), snapshot(fresh)
    a.pop('source.json', 0), b.pop('source.json', 0)
    assert a == b and not [o for o in a if Path(o).name.startswith('.')]


def test_older_layout(tmp_path):
    folder = tmp_path/'older'
    (folder/'images').mkdir(parents=True)
    for i in (1, 2, 3): (folder/'images'/f'{i}.jpg').write_bytes(jpeg(i))
    (folder/'styles.csv').write_text('id,gender,articleType,baseColour,season,usage,productDisplayName\n1,Men,Shirts,Blue,Fall,Casual,"Check, Shirt"\n'
        '2,Men,Shirts,Red,Fall,Casual,Plain Shirt, long, warm\n3,Women,Watches,,,,Watch\n')
    (folder/'images.csv').write_text('filename,link\n1.jpg,http://x\n')
    train, test = preprocess_folder(folder, tmp_path/'root')
    both = pd.concat([train, test]).set_index('image')
    assert both['display name'].to_dict() == {'1.jpg': 'Check, Shirt', '2.jpg': 'Plain Shirt, long, warm', '3.jpg': 'Watch'}
    assert both['description']['1.jpg'] == 'Check, Shirt: blue, casual, men, fall' and both['baseColour']['1.jpg'] == 'Blue'


def preprocess_folder(folder, root):
    paths = Paths(root)
    get_data(folder, paths)
    return preprocess(paths)


@pytest.mark.parametrize('source', ['nowhere', 'nowhere.zip', '', 'Demo'])
def test_no_such_source(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="'demo', 'kaggle' or the path"): get_data(source, Paths(tmp_path/'root'))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('error', [ConnectionError('no route'), OSError('401'), RuntimeError('credentials')])
def test_kaggle_without_network_or_account(tmp_path, monkeypatch, error):
    import kagglehub
    def fail(*args, **kwargs): raise error
    monkeypatch.setattr(kagglehub, 'dataset_download', fail)
    with pytest.raises(InputError, match='download the zip by hand from https://www.kaggle.com/datasets/nirmalsankalana'): get_data('kaggle', Paths(tmp_path))
    assert not snapshot(tmp_path)


def test_a_folder_called_demo_is_not_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'demo').mkdir()
    (tmp_path/'data/extracted').mkdir(parents=True)
    (tmp_path/'data/extracted/mine.txt').write_text('mine')
    with pytest.raises(InputError, match='did not put there'): get_data('demo', Paths())
    assert len(snapshot(tmp_path)) == 1


def test_kaggle_is_a_folder_then(tmp_path, monkeypatch, catalogue):
    import kagglehub
    monkeypatch.setattr(kagglehub, 'dataset_download', lambda handle: str(catalogue))
    assert get_data('kaggle', Paths(tmp_path/'root')) == catalogue
    assert len(read_products(get_data('kaggle', Paths(tmp_path/'limited'), limit=4))) == 4


# Writing and the command line

@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path/'a.csv'
    path.write_text('old')
    with pytest.raises(error):
        with atomic_write(path) as temporary:
            assert temporary.parent == tmp_path and temporary.suffix == '.csv'
            temporary.write_text('new')
            raise error
    assert snapshot(tmp_path) == {'a.csv': b'old'}


def test_atomic_write_from_many_threads(tmp_path):
    def write(i):
        with atomic_write(tmp_path/'a.txt') as temporary: temporary.write_text(str(i)*1000)
    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert len(set((tmp_path/'a.txt').read_text())) == 1 and len(snapshot(tmp_path)) == 1


@pytest.mark.parametrize('error, code, line', [(InputError('bad\n\nthing'), 2, 'error: bad thing'), (FileNotFoundError(2, 'No such file', 'x.csv'), 2, 'x.csv'),
    (KeyboardInterrupt(), 130, 'interrupted')])
def test_console_script(capsys, error, code, line):
    @console_script
    def main(argv=None): raise error
    with pytest.raises(SystemExit) as stop: main([])
    err = capsys.readouterr().err
    assert stop.value.code == code and line in err and err.count('\n') == 1


def test_console_script_lets_bugs_through():
    @console_script
    def main(argv=None): raise KeyError('a bug')
    with pytest.raises(KeyError): main([])


@pytest.mark.parametrize('main, argv, message', [
    (get_data_main, ['--source', 'nowhere'], 'no such zip or folder'), (get_data_main, ['--limit', '0'], 'at least 1'),
    (get_data_main, ['--limit', 'many'], 'must be a non-negative integer'), (get_data_main, ['--seed', '-1'], 'must be a non-negative integer'), (get_data_main, ['--nonsense'], 'unrecognized'),
    (get_data_main, ['--columns', 'image'], 'not of the form'), (preprocess_main, [], 'run clip_ft_get_data'), (preprocess_main, ['--test-size', '2'], 'between 0 and 1'),
])
def test_commands_with_bad_arguments(tmp_path, capsys, main, argv, message):
    with pytest.raises(SystemExit) as stop: main(['--root', str(tmp_path), *argv])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and err.count('\n') == 1 and err.startswith('error: ')
    assert not snapshot(tmp_path)


def test_commands_from_a_shell(catalogue_zip, tmp_path):
    root = tmp_path/'root'
    out, _ = command('clip_ft_get_data', '--root', root, '--source', catalogue_zip)
    assert 'the catalogue is in' in out
    _, err = command('clip_ft_preprocess', '--root', root, '--columns', 'display name=title', code=2)
    assert err.startswith("error: there is no column 'title'") and 'Traceback' not in err
    out, _ = command('clip_ft_preprocess', '--root', root, '--test-size', '0.25')
    assert '15 rows to train on and 5 to test on' in out
    train, test = load_split(Paths(root))
    assert len(train) == 15 and len(test) == 5
    assert command('clip_ft_preprocess', '--help')[0].count('default:') >= 3


# Decoding by processes

@pytest.fixture
def by_processes(monkeypatch):
    "As on a machine with four cores and with many pictures."
    if sys.platform != 'linux': pytest.skip('only Linux forks')
    monkeypatch.setattr(core, 'PROCESS_THRESHOLD', 1)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(4))


def test_processes_decode_as_threads_do(catalogue, tmp_path, by_processes, monkeypatch):
    (catalogue/'data'/'5.jpg').write_bytes(b'<html>404</html>')
    names, geometry = [f'{i}.jpg' for i in range(21)], ResizeSpec(16)       # one is no picture, one is missing
    whole = [catalogue/'data'/o for o in names if o not in ('5.jpg', '20.jpg')]
    def everything():
        checked = check_images(catalogue/'data', names)
        with pytest.raises(InputError, match='5.jpg.*not an image'): list(pixel_blocks([catalogue/'data'/o for o in names], geometry))
        return checked.values.tolist(), np.concatenate(list(pixel_blocks(whole, geometry, block_size=6))), PixelCache.build(whole, 16, tmp_path/f'{core.PROCESS_THRESHOLD}').pixels
    several = everything()
    monkeypatch.setattr(core, 'PROCESS_THRESHOLD', 100)
    alone = everything()
    assert several[0] == alone[0] and several[0][5][1].startswith('not an image') and several[0][20][1]
    assert (several[1] == alone[1]).all() and (several[2] == alone[2]).all() and (alone[1] == alone[2]).all()


ENDLESS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell's job in the background inherits that it is ignored
os.sched_getaffinity = lambda _: range(4)
from clip_ft.images import check_images
print('ready', flush=True)
check_images(sys.argv[1], [f'{i % 20}.jpg' for i in range(3_000_000)])
"""

@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux forks')
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_processes_go_when_their_parent_goes(catalogue, how):
    process = subprocess.Popen([sys.executable, '-c', ENDLESS, catalogue/'data'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == 'ready\n'
    end, workers = time.monotonic()+60, []
    while len(workers) < 4 and time.monotonic() < end: workers = psutil.Process(process.pid).children(); time.sleep(.05)
    assert len(workers) == 4
    time.sleep(.5)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()      # Ctrl-C reaches the whole group
    _, err = process.communicate(timeout=60)
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive and process.returncode
    if how == signal.SIGINT: assert err.count('KeyboardInterrupt') == 1 and 'Process Fork' not in err, err[-2000:]
