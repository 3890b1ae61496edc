"clip_ft_evaluate with what a user brings: own queries, a report, files of the public benchmark; and what is wrong with them."

import json
import shutil

import pandas as pd
import pytest

from clip_ft.core import Paths
from clip_ft.data import load_split, preprocess_main, product_ids
from clip_ft.model import save_model, tiny_model
from clip_ft.report import evaluate_main


@pytest.fixture(scope='module')
def place(split_shop, tmp_path_factory):
    "A split shop and an untrained model: (root, folder of the model)."
    root = tmp_path_factory.mktemp('evaluation') / 'shop'
    shutil.copytree(split_shop, root)
    save_model(root / 'model', *tiny_model(load_split(Paths(root))[0]['full_text']))
    return root, root / 'model'


def test_own_queries_and_the_report(place, run, tmp_path):
    root, model = place
    train, test = load_split(Paths(root))
    pd.DataFrame(
        dict(
            query=['something warm', 'a present, "nice"', 'something warm'],
            image=[train.image[0], test.image[0], test.image[1]],
        )
    ).to_csv(tmp_path / 'mine.csv', index=False)
    out = run(
        evaluate_main,
        '--root',
        root,
        '--model',
        model,
        '--queries',
        tmp_path / 'mine.csv',
        '--report',
        tmp_path / 'out' / 'page.html',
    )
    assert f'all {len(train) + len(test)} products' in out and 'Warning' not in out
    lines = [o for o in out.split('Your queries')[1].splitlines() if 'hit_rate@10' in o]
    assert len(lines) == 1 and 'mine' in out
    page = (tmp_path / 'out' / 'page.html').read_text(encoding='utf-8')
    assert page.startswith('<!DOCTYPE html>') and '<script' not in page and len(page) < 3e6 and page.count('<img') >= 5
    assert [o.name for o in (tmp_path / 'out').iterdir()] == ['page.html']


@pytest.mark.parametrize(
    'text, message',
    [
        ('query,image\nred,{0}\n,{0}\n', 'row 3, column query'),
        ('query,image\nred,{0}\nred,gone.jpg\n', "row 3, column image: 'gone.jpg'"),
        ('query,picture\nred,{0}\n', "no column 'image'"),
        ('query,image\n', 'the table has no rows'),
        ('query,image\n"red,{0}\n', 'a quote is not closed'),
        (None, 'cannot be read'),
    ],
)
def test_own_queries_that_are_wrong(place, run, tmp_path, text, message):
    root, model = place
    if text:
        (tmp_path / 'mine.csv').write_text(text.format(load_split(Paths(root))[1].image[0]))
    said = run(evaluate_main, '--root', root, '--model', model, '--queries', tmp_path / 'mine.csv', refused=True)
    assert 'mine.csv' in said and message in said


def test_a_split_that_leaks_is_named(place, run, tmp_path):
    root = shutil.copytree(place[0], tmp_path / 'leaky')
    paths = Paths(root)
    test = pd.read_csv(paths.test_csv)
    pd.concat([pd.read_csv(paths.train_csv), test.head(3)]).to_csv(paths.train_csv, index=False)
    out = run(evaluate_main, '--root', root, '--model', place[1])
    assert f'Warning: Of {len(test)} test products' in out and 'image of 3' in out


def test_kagl(place, run, tmp_path):
    "Display names, right for the products that bear them; first without, then with the option that keeps them out of training."
    root = shutil.copytree(place[0], tmp_path / 'kagl')
    paths = Paths(root)
    train, test = load_split(paths)
    ids = product_ids(train)
    names = {
        name: dict.fromkeys(ids[(train['display name'] == name).to_numpy()], 1)
        for name in train['display name'].drop_duplicates()[:12]
    }
    kinds = {
        name: dict.fromkeys(ids[(train['category'] == name).to_numpy()], 1)
        for name in train['category'].drop_duplicates()[:3]
    }
    for file, content in (('names.json', names), ('kinds.json', kinds)):
        (tmp_path / file).write_text(json.dumps(content))
    kagl = lambda *files: run(
        evaluate_main, '--root', root, '--model', place[1], '--protocol', 'kagl', '--queries', *files
    )
    out = kagl(tmp_path / 'names.json', tmp_path / 'kinds.json')
    assert all(
        o in out
        for o in (
            'AvgRecall',
            'Recall@1',
            'Recall@10',
            'AvgP',
            'P@10',
            'MRR',
            '12 display names',
            '3 queries that are no display names',
        )
    )
    assert (
        'in the training set' in out and 'FashionCLIP' not in out
    )  # a small gallery is not put beside the published figures
    out = run(preprocess_main, '--root', root, '--test-size', 0.2, '--keep-out', tmp_path / 'names.json')
    kept = {i for judged in names.values() for i in judged}
    assert f'{len(kept)} of the {len(kept)} products' in out
    train, test = load_split(paths)
    assert not kept & set(product_ids(train)) and kept <= set(product_ids(test))
    for column in ('display name', 'description', 'pixel_id'):
        assert not set(train[column]) & set(test[column])
    assert 'training set' not in kagl(tmp_path / 'names.json')


@pytest.mark.parametrize(
    'text, message', [('{"a": 1}', "query 'a'"), ('{"blue', 'not JSON'), ('{}', 'at least one query')]
)
def test_judgments_that_are_wrong(place, run, tmp_path, text, message):
    (tmp_path / 'bad.json').write_text(text)
    assert message in run(
        evaluate_main,
        '--root',
        place[0],
        '--model',
        place[1],
        '--protocol',
        'kagl',
        '--queries',
        tmp_path / 'bad.json',
        refused=True,
    )
    before = {o: o.stat().st_mtime_ns for o in place[0].rglob('*.csv')}
    assert message in run(preprocess_main, '--root', place[0], '--keep-out', tmp_path / 'bad.json', refused=True)
    assert {o: o.stat().st_mtime_ns for o in place[0].rglob('*.csv')} == before
