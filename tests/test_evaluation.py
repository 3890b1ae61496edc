"clip_ft_evaluate with the user's own files: queries, a report, judgments of the public benchmark; and errors in them."
import json
import shutil

import pandas as pd
import pytest

from clip_ft.commands import evaluate_main, preprocess_main
from clip_ft.core import Paths
from clip_ft.data import load_split, product_ids
from clip_ft.model import save_model, tiny_model
from clip_ft.splits import write_split


@pytest.fixture(scope='module')
def place(split_shop, tmp_path_factory):
    "A shop after preprocess, and an untrained model: (root, folder of the model)."
    root = tmp_path_factory.mktemp('evaluation')/'shop'
    shutil.copytree(split_shop, root)
    save_model(root/'model', *tiny_model(load_split(Paths(root))[0]['full_text']))
    return root, root/'model'


def test_own_queries_and_the_report(place, run, tmp_path):
    root, model = place
    train, test = load_split(Paths(root))
    queries = dict(query=['something warm', 'a present, "nice"', 'something warm'],
                   image=[train.image[0], test.image[0], test.image[1]])
    pd.DataFrame(queries).to_csv(tmp_path/'mine.csv', index=False)
    report = tmp_path/'out'/'page.html'
    out = run(evaluate_main, '--root', root, '--model', model, '--queries', tmp_path/'mine.csv', '--report', report)
    assert f'all {len(train)+len(test)} products' in out and 'Warning' not in out
    assert out.startswith(f'Verdict, among {len(train)+len(test)} products:\nFull texts: found among the first ten ')
    lines = [line for line in out.split('Your queries')[1].splitlines() if 'hit_rate@10' in line]
    assert len(lines) == 1 and 'mine' in out
    page = report.read_text(encoding='utf-8')
    assert page.startswith('<!DOCTYPE html>') and '<script' not in page and len(page) < 3e6 and page.count('<img') >= 5
    assert [path.name for path in report.parent.iterdir()] == ['page.html']
    sentence = next(line for line in out.splitlines() if line.startswith('Names: found among the first ten'))
    assert page.index('What to do next') < page.index(sentence)
    assert f'searched among {len(train)+len(test)} products' in page


def split_shop_of(root, columns, tests):
    "Another split of a shop, with columns replaced."
    paths = Paths(root)
    products = pd.concat(load_split(paths), ignore_index=True).drop(columns=['colour', 'gender', 'pattern'])
    products = products.assign(**columns)
    write_split(paths, products[tests:], products[:tests], products[:0])
    return root


@pytest.mark.parametrize('columns, kinds', [
    ({'category': ''}, ()),
    ({'category': 'Clothing > Caps'}, ()),
    ({'category': 'Clothing > Caps', 'Manufacturer': ['Acme', 'Bolt']*999}, ('brand',)),
], ids=['no category', 'one category', 'one category and brands'])
def test_three_test_products(place, run, tmp_path, columns, kinds):
    root = shutil.copytree(place[0], tmp_path/'other')
    count = sum(map(len, load_split(Paths(root))))
    columns = {name: value if isinstance(value, str) else value[:count] for name, value in columns.items()}
    split_shop_of(root, columns, tests=3)
    out = run(evaluate_main, '--root', root, '--model', place[1], '--base', place[1], '--report', tmp_path/'page.html')
    sentences = out.split('\n\n')[0].splitlines()[1:]
    assert len(sentences) == 4 + len(kinds)
    assert all(sentence.endswith(': no difference') for sentence in sentences)  # the same model twice
    assert not kinds or sentences[-1].startswith('Brand and category (such as "acme caps"): right among the first five')


def test_the_gallery(place, run):
    root, model = place
    train, test = load_split(Paths(root))
    out = run(evaluate_main, '--root', root, '--model', model, '--gallery', 'test')
    assert out.startswith(f'Verdict, among {len(test)} products:') and f'among {len(test)} products  ' in out
    assert 'each searched among these products only' in out and f'{len(train)+len(test)} products:' not in out


@pytest.mark.parametrize('text, message', [
    ('query,image\nred,{0}\n,{0}\n', 'row 3, column query'),
    ('query,image\nred,{0}\nred,gone.jpg\n', "row 3, column image: 'gone.jpg'"),
    ('query,picture\nred,{0}\n', "no column 'image'"),
    ('query,image\n', 'the table has no rows'),
    ('query,image\n"red,{0}\n', 'a quoted text is not closed'),
    (None, 'No such file'),
])
def test_wrong_queries(place, run, tmp_path, text, message):
    root, model = place
    path = tmp_path/'mine.csv'
    if text:
        path.write_text(text.format(load_split(Paths(root))[1].image[0]))
    said = run(evaluate_main, '--root', root, '--model', model, '--queries', path, refused=True)
    assert 'mine.csv' in said and message in said


def test_a_split_that_leaks_is_reported(place, run, tmp_path):
    root = shutil.copytree(place[0], tmp_path/'leaky')
    paths = Paths(root)
    test = pd.read_csv(paths.test_csv)
    pd.concat([pd.read_csv(paths.train_csv), test.head(3)]).to_csv(paths.train_csv, index=False)
    paths.split_json.unlink()  # it has the hash of the table before
    out = run(evaluate_main, '--root', root, '--model', place[1])
    assert f'Warning: Of {len(test)} test products' in out and 'image of 3' in out


def test_kagl(place, run, tmp_path):
    "Queries that are display names, and others; before and after a split that keeps their products out of training."
    root = shutil.copytree(place[0], tmp_path/'kagl')
    paths, files = Paths(root), (tmp_path/'names.json', tmp_path/'kinds.json')
    train, _ = load_split(paths)
    ids = product_ids(train)
    for file, column, n in zip(files, ('display name', 'category'), (12, 3)):
        values = train[column].drop_duplicates()[:n]
        judged = {value: dict.fromkeys(ids[(train[column] == value).to_numpy()], 1) for value in values}
        file.write_text(json.dumps(judged))

    def kagl(*queries):
        return run(evaluate_main, '--root', root, '--model', place[1], '--protocol', 'kagl', '--queries', *queries)

    out = kagl(*files)
    for text in ('AvgRecall', 'Recall@1', 'Recall@10', 'AvgP', 'P@10', 'MRR'):
        assert text in out
    for text in ('12 display names', '3 queries that are not display names', 'in the training set'):
        assert text in out
    assert 'FashionCLIP' not in out                # published for a larger gallery: not comparable
    out = run(preprocess_main, '--root', root, '--test-size', .2, '--keep-out', files[0])
    kept = {product for judged in json.loads(files[0].read_text()).values() for product in judged}
    assert f'{len(kept)} of the {len(kept)} products' in out
    train, test = load_split(paths)
    assert not kept & set(product_ids(train)) and kept <= set(product_ids(test))
    for column in ('display name', 'description', 'pixel_id'):
        assert not set(train[column]) & set(test[column])
    assert 'training set' not in kagl(files[0])


@pytest.mark.parametrize('text, message', [
    ('{"a": 1}', "query 'a'"), ('{"blue', 'not JSON'), ('{}', 'at least one query'),
])
def test_wrong_judgments(place, run, tmp_path, text, message):
    root, model = place
    path = tmp_path/'bad.json'
    path.write_text(text)
    options = '--protocol', 'kagl', '--queries', path
    assert message in run(evaluate_main, '--root', root, '--model', model, *options, refused=True)
    before = {file: file.stat().st_mtime_ns for file in root.rglob('*.csv')}
    assert message in run(preprocess_main, '--root', root, '--keep-out', path, refused=True)
    assert {file: file.stat().st_mtime_ns for file in root.rglob('*.csv')} == before
