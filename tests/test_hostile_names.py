"""Names and texts of a hostile catalogue: all commands keep them, and print, draw and write them harmlessly.

One catalogue goes through all commands, in this process. Its folder, images, categories, columns and texts contain
escape sequences, marks of direction, formulas, mathematics and the names of columns that clip_ft adds.
"""

import io
import json
import os
import stat
from contextlib import redirect_stderr, redirect_stdout

import pandas as pd
import pytest
from conftest import jpeg

from clip_ft.commands import embed_main, evaluate_main, get_data_main, preprocess_main, search_main, train_main
from clip_ft.core import Paths, printable
from clip_ft.data import load_split, plot_summary
from clip_ft.plots import plot_hit_rate, plot_ranks
from clip_ft.tables import read_table, with_formulas, write_table

HOSTILE = ['\x1b[31mred\x1b[0m', '\x9b2J', '\x1b]0;title\x07', '\u202egpj.exe', '\u2066x\u2069', '=1+1', '+1', '-1+1',
           '@SUM(A1)', '$5 off, $9', '$\\frac{$', "Women\\'s", "3''x", '\x7f', 'x\x85', '\u2028', '*',
           '\u0645\u06cc\u200c\u062e']
ADDED = ('pixel_id', 'full_text', 'rank', 'clip_score', 'row', 'reason', 'vector', 'digest', 'problem', 'outcome',
         '_row', 'original pixel_id')
OWN = (*ADDED, '=1+1', 'a\x1b[31m', "it's", 'a;b;c;d;e;f;g;h;i;j;k;l;m;n;o;p;q;r;s;t;u;v;w;x;y;z')


def call(main, *args):
    "Run a command in this process; return its exit code and everything that it printed."
    printed, code = io.StringIO(), 0
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code
    return code, printed.getvalue()


def is_harmless(text):
    "Progress bars return to the start of the line; no other control character is allowed."
    return all(character in '\n\r' or printable(character) == character for character in text)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "The project after all commands, its table, what the commands printed, and the folder of the written files."
    home = tmp_path_factory.mktemp('hostile')
    folder, paths, out = home/'a\x1b[2J\u202e\nb', Paths(home/'root\x1b[31m\u202e'), home/'\x9bout'
    (folder/'images').mkdir(parents=True)
    out.mkdir()
    texts = [HOSTILE[i % 18] for i in range(54)]
    table = pd.DataFrame({
        'image': [f'{text}{i}.jpg'.replace('\\', '') for i, text in enumerate(texts)], 'category': texts,
        'description': [f'text {i} about {text}' for i, text in enumerate(texts)],
        'display name': [f'{text} {i}' for i, text in enumerate(texts)]})
    for column in OWN:
        table[column] = [f'{column} {i}' for i in range(54)]
    table.loc[20, 'pixel_id'] = 'x'*200_000
    table.loc[21, 'description'] = 'many words '*15_000
    for i, name in enumerate(table['image'][8:]):  # the first eight are missing
        (folder/'images'/name).write_bytes(jpeg(i))
    write_table(table, folder/'data.csv')
    queries = out/'queries\x1b[31m.csv'
    queries.write_text(f'query,image\ntext,{table["image"][17]}\n', encoding='utf-8')
    search = ('red', '--top-k', 60)
    calls = {'get_data': (get_data_main, '--source', folder), 'preprocess': (preprocess_main, '--test-size', .4),
             'train': (train_main, '--model', 'tiny', '--epochs', 1), 'embed': (embed_main,),
             'evaluate': (evaluate_main, '--base', 'none', '--queries', queries, '--report', out/'\x1breport.html'),
             'search': (search_main, *search, '--save-grid', out/'\u202egrid.png'),
             'json': (search_main, *search, '--json')}
    printed = {}
    for name, (main, *args) in calls.items():
        code, printed[name] = call(main, '--root', paths.root, *args)
        assert code == 0, printed[name]
    return paths, table, printed, out


def test_nothing_is_sent_to_the_terminal(project):
    paths, _, printed, out = project
    for name, text in printed.items():
        assert is_harmless(text), name
    assert '\\x1b[31m' in printed['embed'] and '\\u202egrid.png' in printed['search']
    assert {file.name for file in out.iterdir()} == {'queries\x1b[31m.csv', '\x1breport.html', '\u202egrid.png'}
    root = ('--root', paths.root)
    for args in [(*root, 'x', '--where', 'a\x1b[31m\n=b', '--like', '\x9b'), (*root, '--\x1b[31m\n'),
                 (*root, 'x', '--image', 'a\x1b\u202e\nb'), (*root, 'x', '--debug', '--like', '\x9b'),
                 (*root, 'x', '--save-grid', paths.root), ('--root', 'no\x1b[31m\nsuch', 'x')]:
        code, text = call(search_main, *args)
        assert code == 2 and is_harmless(text), text
        assert text.count('\n') == 1 or '--debug' in args, text


def test_own_columns_are_kept(project):
    paths, table, printed, _ = project
    own = table.set_index(table['image'].str.strip())
    kept = pd.concat(load_split(paths)).set_index('image')
    rejects = with_formulas(read_table(paths.rejects_csv)).set_index('image')
    found = pd.DataFrame(json.loads(printed['json'][:printed['json'].rindex(']') + 1])).set_index('image')
    assert len(kept) + len(rejects) == len(own) and len(found) == len(kept) >= 40 and len(rejects) >= 8
    for rows in (kept, found, rejects):
        for column in OWN:
            names = [column, f'original {column}', f'original original {column}']
            assert any((rows[name] == own[column].reindex(rows.index)).all() for name in names if name in rows), column
    assert set(kept['pixel_id'].str.len()) == {16} and kept['full_text'].str.contains('text').sum() >= 40
    assert found['rank'].tolist() == list(range(1, len(found) + 1))
    assert set(rejects['reason'].str.partition(':')[0]) == {'image is missing'}  # some name the nearest file


def test_tables_for_people_contain_no_formulas(project):
    paths = project[0]
    text = paths.rejects_csv.read_text(encoding='utf-8')
    cells = read_table(paths.rejects_csv)
    assert not any(cell.startswith(('=', '+', '-', '@')) for column in cells for cell in (column, *cells[column])
                   if cell != '+1')  # a number
    assert "'=1+1" in text and "'@SUM" not in text  # not a rejected row
    assert pd.concat(load_split(paths))['display name'].str.startswith('@SUM').any()  # read again, so not changed


def test_targets_of_a_grid(project, tmp_path):
    paths = project[0]
    file, link, pipe = tmp_path/'private.png', tmp_path/'link.png', tmp_path/'pipe'
    file.write_bytes(b'old')
    file.chmod(0o640)
    link.symlink_to(file)
    os.mkfifo(pipe)
    assert call(search_main, 'red', '--root', paths.root, '--save-grid', link)[0] == 0
    assert link.is_symlink() and file.read_bytes().startswith(b'\x89PNG')
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    for target in (pipe, tmp_path, '/dev/null', ''):
        for main, option in ((search_main, '--save-grid'), (evaluate_main, '--report')):
            code, text = call(main, *(('red',) if main is search_main else ()), '--root', paths.root, option, target)
            assert code == 2 and text.startswith('error: Cannot write') and text.count('\n') == 1, text
    assert pipe.is_fifo() and not os.path.isfile('/dev/null')


def test_dollars_are_not_mathematics(project):
    products = pd.concat(load_split(project[0]), ignore_index=True)
    ranks = {'$5 off, $9': [1, 2], '$\\frac{$': [3, 1]}
    for figure in (plot_summary(products), plot_hit_rate(**ranks), plot_ranks(**ranks)):
        assert figure._repr_png_().startswith(b'\x89PNG')
