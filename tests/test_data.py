"Reading tables, cleaning, duplicates and the split: a clear error or the right result."

import time

import numpy as np
import pandas as pd
import pytest
from conftest import HEADER, add_rows, command, jpeg, reasons, rows, snapshot

from clip_ft.cleaning import clean_text, is_placeholder
from clip_ft.commands import get_data_main, preprocess_main
from clip_ft.core import InputError, Paths
from clip_ft.data import (
    clean_products,
    duplicate_groups,
    find_table,
    load_split,
    preprocess,
    read_products,
    split_products,
)
from clip_ft.sources import get_data
from clip_ft.tables import read_table, write_table


def test_missing_column_is_named_with_a_remedy(catalogue):
    (catalogue/'data.csv').write_text('shot,description,display name\n1.jpg,x,y\n')
    with pytest.raises(InputError, match=r"no column 'image', 'category'; the table has 'shot', .*columns=.*--columns"):
        read_products(catalogue)


def test_extra_columns_are_kept(catalogue):
    header = 'price,image,description,display name,category,row\n'
    (catalogue/'data.csv').write_text(header + '9.90,1.jpg,nice and warm,Cap,Hats,7\n')
    products = read_products(catalogue)
    assert products['price'].tolist() == ['9.90']
    kept, _ = clean_products(products, catalogue/'data')
    assert kept['price'].tolist() == ['9.90']


def test_own_names_and_a_clash_with_a_standard_name(tmp_path):
    path = tmp_path/'t.csv'
    path.write_text('image,file,title,category\nmain,1.jpg,Cap,Hats\n')
    products = read_products(path, {'image': 'file', 'display name': 'title', 'description': 'title'})
    assert products.iloc[0].to_dict() == {
        'image': '1.jpg', 'description': 'Cap', 'display name': 'Cap', 'category': 'Hats', 'original image': 'main',
    }


def test_styles_beside_data_are_joined_by_stem(catalogue):
    (catalogue/'styles.csv').write_text('id,baseColour,category\n3,Blue,zzz\n3,Red,zzz\n999,Green,zzz\n')
    products = read_products(catalogue)
    assert products['baseColour'][3] == 'Blue' and products['baseColour'][4] == ''
    assert 'zzz' not in set(products['category'])


def test_older_layout(tmp_path):
    folder = tmp_path/'older'
    (folder/'images').mkdir(parents=True)
    for i in (1, 2, 3):
        (folder/'images'/f'{i}.jpg').write_bytes(jpeg(i))
    (folder/'styles.csv').write_text(
        'id,gender,articleType,baseColour,season,usage,productDisplayName\n'
        '1,Men,Shirts,Blue,Fall,Casual,"Check, Shirt"\n'
        '2,Men,Shirts,Red,Fall,Casual,Plain Shirt, long, warm\n'
        '3,Women,Watches,,,,Watch\n'
    )
    (folder/'images.csv').write_text('filename,link\n1.jpg,http://x\n')
    paths = Paths(tmp_path/'root')
    get_data(folder, paths)
    both = pd.concat(preprocess(paths)).set_index('image')
    names = {'1.jpg': 'Check, Shirt', '2.jpg': 'Plain Shirt, long, warm', '3.jpg': 'Watch'}
    assert both['display name'].to_dict() == names
    assert both['description']['1.jpg'] == 'Check, Shirt: blue, casual, men, fall'
    assert both['baseColour']['1.jpg'] == 'Blue'


@pytest.mark.parametrize('content, message', [
    (b'', 'no rows'),
    (b'\xef\xbb\xbf', 'no rows'),
    (b'\n\n', 'no rows'),
    (HEADER.encode(), 'no rows'),
    (b'\n\na,b\n1,2\n', 'first row is blank'),
    (b'a,b\n1,2\n1,2,3\n', 'row 3 has 3 fields'),
    (b'a,b\n1,2\n3,"open\n4,5\n', 'row 3: a quoted'),
    (b'a,b\n1,"open\n' + b'x,"y"\n'*3, 'row 2: a quoted'),
    (b'a,b\n1,"' + b'x'*200_000, 'row 2: a quoted'),
    (b'PK\x03\x04\x00\x00', 'not a text file'),
    (b'a,b\n1,2\0\n', 'not a text file'),
    (b'a,b\n1,\x81\n', 'line 2 is not UTF-8 or'),
])
def test_unreadable_tables(tmp_path, content, message):
    path = tmp_path/'data.csv'
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_table(path)
    assert 'data.csv' in str(error.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'cp1252'])
@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_dialects(tmp_path, encoding, separator, end, capsys):
    path = tmp_path/'t.csv'
    lines = [separator.join([' image ', 'name']), separator.join(['1.jpg', '"Ünï, ""q""; \nx"']), '2.jpg', '', '']
    path.write_bytes(end.join(lines).encode(encoding))
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


def test_find_table(tmp_path):
    with pytest.raises(InputError, match='no CSV file'):
        find_table(tmp_path)
    (tmp_path/'b.csv').touch()
    assert find_table(tmp_path).name == 'b.csv'
    (tmp_path/'a.csv').touch()
    with pytest.raises(InputError, match=r'several tables, a\.csv, b\.csv'):
        find_table(tmp_path)
    (tmp_path/'styles.csv').touch()
    assert find_table(tmp_path).name == 'styles.csv'
    with pytest.raises(InputError, match='no such folder'):
        find_table(tmp_path/'nowhere')


def test_duplicates_and_placeholders(catalogue):
    add_rows(catalogue, rows(1).strip(), '0.jpg,another text,Another name,Hats', '1.jpg,  - ,N1,Hats',
             '2.jpg,<b>NA</b>,N2,Hats', '3.jpg,Style Note:,N3,Hats', '4.jpg,fine text,&nbsp;,Hats', ',,,', ',,,')
    products = read_products(catalogue)
    kept, rejects = clean_products(products, catalogue/'data')
    assert rejects['row'].tolist() == list(range(22, 30))
    assert rejects['reason'].tolist() == [
        'duplicate row', 'duplicate image name', *['description is empty or a placeholder']*3,
        *['display name is empty or a placeholder']*2,
        'duplicate row',
    ]
    assert rejects['description'][3] == '<b>NA</b>'  # as in the table
    assert list(rejects) == [*products.columns, 'row', 'reason'] and len(kept) == 20


def test_rejected_row_does_not_make_a_later_row_a_duplicate(catalogue):
    (catalogue/'data.csv').write_text(HEADER + '1.jpg,-,Cap,Hats\n1.jpg,warm wool,Cap,Hats\n')
    assert reasons(catalogue) == {'1.jpg': 'description is empty or a placeholder'}


def test_full_text_without_a_category(catalogue):
    rows = '1.jpg,warm wool,Cap.,\n2.jpg,cold wool,Hat,NA\n3.jpg,silk,Scarf,Scarves\n'
    (catalogue/'data.csv').write_text(HEADER + rows)
    kept, _ = clean_products(read_products(catalogue), catalogue/'data')
    assert kept['full_text'].tolist() == ['Cap. warm wool', 'Hat. cold wool', 'Scarf. Scarves. silk']


@pytest.mark.parametrize('text', [
    '<a'*50_000, '&'*50_000, ' '*50_000, '& rsquo '*10_000, '<'*50_000 + '>', '< '*50_000,
])
def test_long_texts_are_cleaned_quickly(text):
    start = time.perf_counter()
    clean_text(pd.Series([text]))
    assert time.perf_counter() - start < 5  # a pattern that backtracks would take minutes


def test_odd_texts():
    texts = pd.Series(['a\x00b\u200bc', '5 < 6 and 7 > 3', '&lt;i&gt;x&lt;/i&gt;', 'cut </', 'cut< / '])
    assert clean_text(texts).tolist() == ['a b c', '5 < 6 and 7 > 3', 'x', 'cut', 'cut']
    texts = pd.Series(['---', 'N.A.', '(none)', 'Nanette', '中文', '5'])
    assert is_placeholder(texts).tolist() == [True, True, True, False, False, False]


def test_no_rows_at_all():
    empty = pd.DataFrame(columns=['image', 'description', 'display name', 'category'], dtype=str)
    kept, rejects = clean_products(empty, '.')
    assert len(kept) == len(rejects) == 0 and 'full_text' in kept and 'reason' in rejects
    assert len(duplicate_groups(kept)) == 0
    with pytest.raises(InputError, match='0 products'):
        split_products(kept)


def test_no_usable_row_is_an_error_and_keeps_the_old_split(catalogue, tmp_path):
    paths = Paths(tmp_path/'root')
    get_data(catalogue, paths)
    preprocess(paths)
    before = snapshot(paths.split)
    (catalogue/'data.csv').write_text(HEADER + '1.jpg,-,A,Hats\n2.jpg,NA,B,Hats\n404.jpg,good text,C,Hats\n')
    message = r'None of the 3 rows is usable: description is empty or a placeholder \(2\), image is missing \(1\)'
    with pytest.raises(InputError, match=message):
        preprocess(paths)
    assert len(read_table(paths.rejects_csv)) == 3 and snapshot(paths.split) == before


def reference_groups(products):
    "Find the connected components by graph search, as a reference for duplicate_groups."
    keys = [products[name].str.casefold().tolist() for name in ('display name', 'description', 'pixel_id')]
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
def test_duplicate_groups_and_split_against_a_reference(seed):
    rng = np.random.default_rng(seed)
    columns = ('display name', 'description', 'pixel_id')
    products = pd.DataFrame({name: rng.integers(0, 150, 200).astype(str) for name in columns}, dtype=str)
    products['description'] = rng.permutation([str(i) for i in range(190)] + ['same']*10)
    products['category'] = rng.choice(['a', 'b', 'c'], 200, p=[.7, .29, .01])
    products['image'] = [f'{i}.jpg' for i in range(200)]
    groups = duplicate_groups(products)
    assert groups.dtype == np.int64 and np.array_equal(groups, reference_groups(products))
    train, test = split_products(products.assign(group=groups), 0.2, seed)
    assert not set(train['group']) & set(test['group']) and len(train) + len(test) == 200
    assert len(test) and len(train)


@pytest.mark.parametrize('test_size', [0.01, 0.1, 0.3, 0.5, 0.9])
def test_split_share_by_category(test_size):
    number = np.arange(5000)
    names = pd.Series(number//2).astype(str)  # duplicates in pairs
    products = pd.DataFrame({
        'image': names, 'display name': names, 'description': 'about ' + names,
        'category': np.where(number < 4000, 'Shirts', 'Hats'),
    })
    _, test = split_products(products, test_size)
    for category, pairs in (('Shirts', 2000), ('Hats', 500)):
        share = (test['category'] == category).sum()/2/pairs
        assert abs(share - test_size) < 3*(test_size*(1 - test_size)/pairs)**.5
    pd.testing.assert_frame_equal(split_products(products, test_size)[1], test)
    assert not split_products(products, test_size, seed=1)[1].equals(test)


def test_split_of_very_few():
    two = pd.DataFrame({'image': ['1.jpg', '2.jpg'], 'display name': ['a', 'b'], 'description': ['x', 'y'],
                        'category': ['c', 'c']})
    assert [len(part) for part in split_products(two)] == [1, 1]
    with pytest.raises(InputError, match='duplicates of each other'):
        split_products(two.assign(description='z'))
    for size in (0, 1, -1, 2, float('nan')):
        with pytest.raises(InputError, match='between 0 and 1'):
            split_products(two, size)


@pytest.mark.parametrize('main, args, message', [
    (get_data_main, ['--source', 'nowhere'], "Unknown source 'nowhere'"),
    (get_data_main, ['--limit', '0'], 'at least 1'),
    (get_data_main, ['--limit', 'many'], '--limit: must be a non-negative integer'),
    (get_data_main, ['--seed', '-1'], '--seed: must be a non-negative integer'),
    (get_data_main, ['--nonsense'], 'unrecognized'),
    (get_data_main, ['--columns', 'image'], 'not of the form'),
    (preprocess_main, [], 'run clip_ft_get_data'),
    (preprocess_main, ['--test-size', '2'], 'between 0 and 1'),
])
def test_commands_with_bad_arguments(tmp_path, run, main, args, message):
    assert message in run(main, '--root', tmp_path, *args, refused=True)
    assert not snapshot(tmp_path)


def test_commands_from_a_shell(catalogue_zip, tmp_path):
    root = tmp_path/'root'
    out, _ = command('clip_ft_get_data', '--root', root, '--source', catalogue_zip)
    assert 'the catalogue is in' in out
    _, err = command('clip_ft_preprocess', '--root', root, '--columns', 'display name=title', code=2)
    assert err.startswith('error: ') and "no column 'title'" in err and err.count('\n') == 1
    out, _ = command('clip_ft_preprocess', '--root', root, '--test-size', '0.25')
    train, test = load_split(Paths(root))
    assert f'{len(train)} rows to train on and {len(test)} to test on' in out
    assert len(train) + len(test) == 20 and 2 <= len(test) <= 10
    text = ' '.join(command('clip_ft_preprocess', '--help')[0].split())
    assert all(default in text for default in ('by default the current one', 'at first 0.1', 'at first 42'))


def test_frames_of_pandas_with_lists_and_repeated_columns(catalogue):
    products = read_products(catalogue).assign(tags=[['a', 'b']]*20, sizes=[{'s': 1}]*20, year=pd.NA)
    products = pd.concat([products, products[['year']]], axis=1).set_axis(range(100, 120))
    kept, rejects = clean_products(products, catalogue/'data')
    assert len(kept) == 20 and rejects.empty and kept['tags'].eq('a, b').all() and 'year 2' in kept
    with pytest.raises(InputError, match="no column 'display name'; they have 'image'"):
        clean_products(products.drop(columns='display name'), catalogue/'data')


def test_names_and_images_are_enough(catalogue):
    products, notes = read_products(catalogue)[['image', 'display name']], []
    kept, rejects = clean_products(products, catalogue/'data', notes=notes)
    assert len(kept) == 20 and rejects.empty and kept['category'].eq('').all()
    assert kept['description'].equals(kept['display name'])
    assert kept['full_text'].str.rstrip('.').equals(kept['display name'])
    assert [note.partition(':')[0] for note in notes] == [
        'No product has a description', 'No product has a category']


def test_ids_of_a_column_are_used_where_they_fit(catalogue):
    products = read_products(catalogue).assign(SKU=[f'T-{i}' for i in range(20)])
    wanted = {'T-3', 'T-4'}
    train, test = split_products(products, .2, keep_out=wanted)
    assert wanted <= set(test['SKU']) and len(train)
    train, test = split_products(products, .2, keep_out={'3', '4'})
    assert {'3.jpg', '4.jpg'} <= set(test['image'])
