"Unsafe archives, interrupted copies and unknown sources raise a clear error and change no existing file."

import io
import json
import re
import stat
import struct
import unicodedata
import zipfile
from pathlib import Path
from unittest.mock import patch

import kagglehub
import numpy as np
import pandas as pd
import pytest
from conftest import HEADER, add_rows, jpeg, rows, snapshot

from clip_ft import archives, sources
from clip_ft.core import InputError, Paths
from clip_ft.data import catalogue_folder, preprocess, read_products
from clip_ft.exports import stratified_sample
from clip_ft.sources import get_data


def zip_of(path, *members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def without_record(folder):
    "Return the files of a catalogue, except for the record of its source."
    return {name: content for name, content in snapshot(folder).items() if not name.startswith('source.')}


def test_sample_has_its_shares_and_size():
    categories = pd.Series(np.random.default_rng(0).choice(['a', 'b', 'c', ''], 1000, p=[.6, .3, .09, .01]))
    for limit in (1, 2, 3, 10, 77, 999, 1000, 5000):
        drawn = stratified_sample(categories, limit, seed=3)
        assert len(drawn) == len(set(drawn)) == min(limit, 1000) and (np.diff(drawn) > 0).all()
        exact = categories.value_counts()*min(1, limit/1000)
        counts = categories[drawn].value_counts().reindex(exact.index, fill_value=0)
        assert (exact - counts).abs().max() < 1


def test_a_sample_does_not_copy_through_links_and_names(catalogue, tmp_path):
    (tmp_path/'secret.jpg').write_bytes(b'secret')
    (catalogue/'data/link.jpg').symlink_to(tmp_path/'secret.jpg')
    add_rows(catalogue, 'link.jpg,words one,A,Hats', '../../secret.jpg,words two,B,Hats')
    folder = get_data(catalogue, Paths(tmp_path/'root'), limit=22)
    assert len(read_products(folder)) == 22 and b'secret' not in snapshot(tmp_path/'root').values()


def link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


def packed(method):
    info = zipfile.ZipInfo('data/zeros.jpg')
    info.compress_type = method
    return info, bytes(2**20)


@pytest.mark.parametrize('bad, message', [
    (('../evil.txt', 'x'), 'leaves the folder'),
    (('data/../../evil.txt', 'x'), 'leaves the folder'),
    (('/tmp/evil.txt', 'x'), 'leaves the folder'),
    (('C:/evil.txt', 'x'), 'leaves the folder'),
    (('C:evil.txt', 'x'), 'leaves the folder'),
    (('..\\evil.txt', 'x'), 'leaves the folder'),
    ((r'data\..\..\evil.txt', 'x'), 'leaves the folder'),
    (link('data/link', '/etc'), 'a link or a special file'),
    ((r'\evil.txt', 'x'), 'leaves the folder'),
    (('data/.. /evil.txt', 'x'), 'leaves the folder'),
    (('.', 'x'), 'no name'),
    (('DATA.CSV', 'x'), 'same file on Windows or macOS'),
    (('data.csv.', 'x'), 'same file on Windows or macOS'),
    (('Data/1.jpg', 'x'), 'same file on Windows or macOS'),
    ((r'data\1.jpg', 'x'), 'same name'),
    (('data/1.JPG/x.jpg', 'x'), 'both a file and a folder'),
    (packed(zipfile.ZIP_BZIP2), 'compressed with bzip2'),
    (packed(zipfile.ZIP_LZMA), 'compressed with lzma'),
    (('data.csv', 'again'), 'same name'),
    (('./data.csv', 'again'), 'same name'),
    (('data.csv/x.jpg', 'x'), 'both a file and a folder'),
    (('data.csv/x/y.jpg', 'x'), 'both a file and a folder'),
    (('zeros.jpg', bytes(30*2**20)), 'over 200 times'),
])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_unsafe_members_are_refused_before_the_first_is_unpacked(tmp_path, bad, message):
    (tmp_path/'evil.txt').write_text('mine')
    path = zip_of(tmp_path/'bad.zip', ('data.csv', HEADER + rows(3)), ('data/1.jpg', jpeg()), bad)
    paths = Paths(tmp_path/'root')
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        get_data(path, paths)
    assert 'bad.zip' in str(error.value) and snapshot(tmp_path) == before
    good = zip_of(tmp_path/'good.zip', ('data.csv', HEADER + rows(3)), ('data/1.jpg', jpeg()))
    assert len(read_products(get_data(good, paths))) == 3  # the refused archive left no files


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_names_that_differ_in_their_unicode_form_only(tmp_path, form):
    names = [unicodedata.normalize(other, 'data/\xdc\xe9.jpg') for other in ('NFC', 'NFD')]
    table = HEADER + unicodedata.normalize(form, '\xdc\xe9.jpg') + ',text,Name,Hats\n'
    path = zip_of(tmp_path/'bad.zip', ('data.csv', table), *((name, jpeg()) for name in names))
    with pytest.raises(InputError, match='same file on Windows or macOS'):
        get_data(path, Paths(tmp_path/'root'))


def test_backslashes_separate_folders(catalogue, tmp_path):
    files = {path.relative_to(catalogue): path.read_bytes() for path in catalogue.rglob('*') if path.is_file()}
    path = zip_of(tmp_path/'a.zip', *((str(name).replace('/', '\\'), data) for name, data in files.items()))
    assert without_record(get_data(path, Paths(tmp_path/'all'))) == snapshot(catalogue)
    assert len(read_products(get_data(path, Paths(tmp_path/'some'), limit=7))) == 7
    assert len(snapshot(tmp_path/'some/data/extracted/data')) == 7


def test_a_member_without_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path/'bad.zip', 'w') as archive:
        archive.writestr('data.csv', HEADER + rows(3))
        archive.writestr('x', 'x')
        archive.filelist[-1].filename = ''
    with pytest.raises(InputError, match='it has no name'):
        get_data(tmp_path/'bad.zip', Paths(tmp_path/'root'))


def test_total_compression_ratio_is_limited(tmp_path):
    path = zip_of(tmp_path/'bad.zip', *((f'{i}.jpg', bytes(9*2**20)) for i in range(3)))
    with pytest.raises(InputError, match='over 200 times'):
        get_data(path, Paths(tmp_path/'root'))


def patch_size(path, name, size):
    "Write another size into both headers of a member."
    content = bytearray(path.read_bytes())
    for signature, size_at, length_at, name_at in ((b'PK\x03\x04', 22, 26, 30), (b'PK\x01\x02', 24, 28, 46)):
        for match in re.finditer(re.escape(signature), bytes(content)):
            place = match.start()
            length, = struct.unpack_from('<H', content, place + length_at)
            if content[place + name_at:place + name_at + length] == name.encode():
                struct.pack_into('<I', content, place + size_at, size)
    path.write_bytes(content)


@pytest.mark.parametrize('announced', [10, 40*2**20 + 5])
def test_wrong_size_in_a_header(tmp_path, announced):
    real = 4*2**20 if announced == 10 else 2*2**20
    content = np.random.default_rng(0).integers(0, 4, real, dtype=np.uint8).tobytes()
    path = zip_of(tmp_path/'bad.zip', ('data.csv', HEADER + rows(3)), ('data/1.jpg', content))
    patch_size(path, 'data/1.jpg', announced)
    paths = Paths(tmp_path/'root')
    with pytest.raises(InputError, match=r"member 'data/1\.jpg' cannot be unpacked"):
        get_data(path, paths)
    assert sum(map(len, snapshot(paths.extracted).values())) < 10_000  # no incomplete or temporary file remains


def test_copy_checks_the_size(tmp_path):
    for content in (b'12345', b'123'):
        with pytest.raises(InputError, match='expected size'):
            archives.copy_stream(io.BytesIO(content), tmp_path/'x', 4)
    assert not list(tmp_path.iterdir())


def test_encrypted_damaged_and_no_zip(tmp_path, catalogue_zip):
    paths = Paths(tmp_path/'root')
    content = bytearray(catalogue_zip.read_bytes())
    (tmp_path/'cut.zip').write_bytes(content[:len(content)//2])
    (tmp_path/'text.zip').write_text('hello')
    for name in ('cut.zip', 'text.zip'):
        with pytest.raises(InputError, match=f'{name}: not a zip archive'):
            get_data(tmp_path/name, paths)
    at = content.find(b'PK\x01\x02')
    content[at + 8] |= 1
    (tmp_path/'locked.zip').write_bytes(content)
    with pytest.raises(InputError, match='is encrypted'):
        get_data(tmp_path/'locked.zip', paths)
    content[at + 8] &= ~1
    with zipfile.ZipFile(catalogue_zip) as archive:
        place = archive.getinfo('wrapped/data/3.jpg').header_offset + 80
    content[place:place + 20] = bytes(20)
    (tmp_path/'flipped.zip').write_bytes(content)
    with pytest.raises(InputError, match=r"'wrapped/data/3\.jpg' cannot be unpacked"):
        get_data(tmp_path/'flipped.zip', paths)
    assert not (paths.extracted/'wrapped/data/3.jpg').exists()


def test_zip_cannot_overwrite_the_record(tmp_path):
    forged = ('source.json', '{"folder": "/etc"}')
    path = zip_of(tmp_path/'a.zip', ('data.csv', HEADER + rows(3)), forged, ('data/1.jpg', jpeg()))
    paths = Paths(tmp_path/'root')
    assert get_data(path, paths).resolve() == paths.extracted.resolve()
    assert json.loads((paths.extracted/'source.json').read_text())['source'] == str(path)


def test_zip_folder_and_limit_agree(catalogue, catalogue_zip, tmp_path):
    whole = get_data(catalogue_zip, Paths(tmp_path/'a'))
    assert whole.name == 'wrapped' and snapshot(whole) == snapshot(catalogue)
    assert get_data(catalogue, Paths(tmp_path/'b')) == catalogue
    from_zip = get_data(catalogue_zip, Paths(tmp_path/'c'), limit=7)
    from_folder = get_data(catalogue, Paths(tmp_path/'d'), limit=7)
    files = without_record(from_zip)
    assert files == without_record(from_folder) and len(files) == 8 and len(read_products(from_zip)) == 7


def test_folder_in_place_is_not_touched(catalogue, tmp_path):
    before = snapshot(catalogue)
    paths = Paths(tmp_path/'root')
    assert get_data(catalogue, paths) == catalogue == catalogue_folder(paths)
    preprocess(paths)
    assert snapshot(catalogue) == before


def test_repeated_call_copies_nothing(catalogue_zip, tmp_path, monkeypatch):
    paths = Paths(tmp_path/'root')
    folder = get_data(catalogue_zip, paths, limit=5)
    monkeypatch.setattr(sources, '_fetch', None)
    assert get_data(str(catalogue_zip), paths, limit=5) == folder


def test_another_source_is_refused_and_changes_nothing(catalogue, catalogue_zip, tmp_path):
    paths = Paths(tmp_path/'root')
    get_data(catalogue_zip, paths, limit=5)
    before = snapshot(tmp_path)
    for call in (
        {'source': catalogue}, {'source': catalogue_zip}, {'source': catalogue_zip, 'limit': 6},
        {'source': catalogue_zip, 'limit': 5, 'seed': 1}, {'source': 'demo'},
    ):
        with pytest.raises(InputError, match=r'catalogue\.zip with limit 5.*choose another root'):
            get_data(paths=paths, **call)
    assert snapshot(tmp_path) == before


def test_other_files_and_damaged_records_are_errors(catalogue_zip, tmp_path):
    paths = Paths(tmp_path/'root')
    paths.extracted.mkdir(parents=True)
    (paths.extracted/'mine.txt').write_text('mine')
    with pytest.raises(InputError, match='not from get_data'):
        get_data(catalogue_zip, paths)
    assert snapshot(tmp_path/'root') == {'data/extracted/mine.txt': b'mine'}
    for text in ('{"half', '[]', 'null', '"x"', '{}', '{"folder": 5}'):
        (paths.extracted/'source.json').write_text(text)
        with pytest.raises(InputError):
            get_data(catalogue_zip, paths)
        with pytest.raises(InputError):
            catalogue_folder(paths)


@pytest.mark.parametrize('which, limit', [('zip', None), ('zip', 12), ('folder', 12)])
def test_interrupted_and_repeated(catalogue, catalogue_zip, tmp_path, which, limit):
    source = catalogue_zip if which == 'zip' else catalogue
    paths = Paths(tmp_path/'root')
    copy = archives.copy_stream
    done = []

    def stop_at_the_sixth(stream, target, size):
        if len(done) == 5:
            raise KeyboardInterrupt
        copy(stream, target, size)
        done.append(target)
    replaced = [patch.object(module, 'copy_stream', stop_at_the_sixth) for module in (archives, sources)]
    with replaced[0], replaced[1], pytest.raises(KeyboardInterrupt):
        get_data(source, paths, limit)
    with pytest.raises(InputError, match='No catalogue in'):
        catalogue_folder(paths)
    with pytest.raises(InputError, match='another catalogue'):
        get_data(source, paths, limit=3)
    written = {path: path.stat().st_mtime_ns for path in done if paths.extracted in path.parents}
    folder = get_data(source, paths, limit)
    assert written
    for path, when in written.items():
        assert path.stat().st_mtime_ns == when  # complete files are not copied again
    files = without_record(folder)
    assert files == without_record(get_data(source, Paths(tmp_path/'fresh'), limit))
    assert not [name for name in files if Path(name).name.startswith('.')]


@pytest.mark.parametrize('source', ['nowhere', 'nowhere.zip', '', 'Demo'])
def test_no_such_source(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="'demo', 'kaggle', 'hf:NAME' or the path"):
        get_data(source, Paths(tmp_path/'root'))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('error', [ConnectionError('no route'), OSError('401'), RuntimeError('credentials')])
def test_kaggle_without_network_or_account(tmp_path, error):
    message = 'download the zip file from https://www.kaggle.com/datasets/nirmalsankalana'
    with patch.object(kagglehub, 'dataset_download', side_effect=error), pytest.raises(InputError, match=message):
        get_data('kaggle', Paths(tmp_path))
    assert not snapshot(tmp_path)


def test_folder_named_demo_is_not_the_source_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'demo').mkdir()
    (tmp_path/'data/extracted').mkdir(parents=True)
    (tmp_path/'data/extracted/mine.txt').write_text('mine')
    with pytest.raises(InputError, match='not from get_data'):
        get_data('demo', Paths())
    assert len(snapshot(tmp_path)) == 1


def test_kaggle_download_is_used_like_a_folder(tmp_path, catalogue):
    with patch.object(kagglehub, 'dataset_download', return_value=str(catalogue)):
        assert get_data('kaggle', Paths(tmp_path/'root')) == catalogue
        assert len(read_products(get_data('kaggle', Paths(tmp_path/'limited'), limit=4))) == 4


class OldName(zipfile.ZipInfo):
    "A member whose name is stored in a code page, without the flag for UTF-8."
    encoding = 'cp437'

    def _encodeFilenameFlags(self):
        return self.filename.encode(self.encoding), self.flag_bits & ~0x800


OLD_NAMES = {
    'cp866': ['платье {}.jpg', 'Лёгкая юбка/синяя {}.jpg'],
    'cp1251': ['платье {}.jpg'],
    'gbk': ['连衣裙 {}.jpg', '红色/上衣 {}.jpg'],
    'cp932': ['ワンピース {}.jpg', '表示 {}.jpg'],
    'cp949': ['원피스 {}.jpg'],
    'big5': ['洋裝 {}.jpg', '紅色上衣 {}.jpg'],
    'cp437': ['Café {}.jpg', 'Größe {}.jpg'],
    'cp850': ['Ágata {}.jpg', 'São {}.jpg'],
    'utf-8': ['Café {}.jpg', '连衣裙 {}.jpg'],
}


@pytest.mark.parametrize('encoding', OLD_NAMES)
@pytest.mark.parametrize('limit', [None, 4])
def test_names_in_code_pages(tmp_path, encoding, limit):
    names = [name.format(number) for name in OLD_NAMES[encoding] for number in range(3)]
    table = HEADER + ''.join(f'{name},text {number},Name {number},Hats\n' for number, name in enumerate(names))
    with zipfile.ZipFile(tmp_path/'old.zip', 'w') as archive:
        archive.writestr('shop/data.csv', table)
        archive.writestr('shop/__MACOSX/._1.jpg', b'x')
        for number, name in enumerate(names):
            info = OldName(f'shop/photos/{name}')
            info.encoding = encoding
            archive.writestr(info, jpeg(number))
    paths = Paths(tmp_path/'root')
    get_data(tmp_path/'old.zip', paths, limit)
    both = pd.concat(preprocess(paths))
    assert len(both) == min(limit or 99, len(names)) and set(both['image']) <= set(names)


def test_backslashes_and_nested_folders(tmp_path):
    members = [(f'a\\b\\photos\\{number}.jpg', jpeg(number)) for number in range(3)]
    members += [('a\\b\\data.csv', HEADER + rows(3)), ('__MACOSX/a/._b', b'x'), ('readme/read.txt', b'x')]
    for limit in (None, 2):
        folder = get_data(zip_of(tmp_path/'x.zip', *members), Paths(tmp_path/f'root{limit}'), limit)
        assert len(preprocess(Paths(tmp_path/f'root{limit}'))[0]) >= 1 and len(read_products(folder)) == (limit or 3)
    zip_of(tmp_path/'two.zip', ('a/data.csv', HEADER + rows(3)), ('b/data.csv', HEADER + rows(3)))
    with pytest.raises(InputError, match='several folders with tables: a, b'):
        get_data(tmp_path/'two.zip', Paths(tmp_path/'two'))
