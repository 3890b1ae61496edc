"A LanceStore gives the results of exact search for texts full of quotes, backslashes, comments and foreign letters."

import numpy as np
import pandas as pd
import pytest
from conftest import jpeg

from clip_ft.core import InputError
from clip_ft.exact import ExactIndex
from clip_ft.model import tiny_model
from clip_ft.where import Contains

pytest.importorskip('lancedb')
from clip_ft.store import LanceStore

PARTS = ("'", "''", "\\'", '\\', '\\\\', '"', '`', '--', '/*', '*/', ';', ')', '(', '%', '_', '?', '$1', ' OR 1=1', 'x',
         'X', 'é', 'İ', 'Σ', 'ς', 'ß', 'e\u0301', '红', '👗', '\u2019', '\uff07', '\u202e', '\u2028', '\n', '\t', '\r',
         '\0', '\x1b', ' ')
COLUMNS = ('category', 'Price', 'price', "it's", 'a`b', 'x\\', 'vector', 'digest', '_rowid', '_distance', '_score',
           '__action', 'größe', '1st', 'a.b', '"quoted"', "') OR 1=1 --", ' ', '_61')


def random_texts(rng, count):
    "Distinct texts of one to six parts, many of them with the same beginning."
    texts = {}
    while len(texts) < count:
        texts["3x"[rng.integers(2)] + ''.join(rng.choice(PARTS, rng.integers(1, 6)))] = None
    return list(texts)


def variants(text):
    "The text, and others that wrong quoting would confuse with it."
    return [text, text.replace("'", "''"), text.replace("''", "'"), text.replace("'", "\\'"), text + "' OR '1'='1",
            text + "\\') OR 1=1 --", text.upper(), text[1:], text + '\\']


@pytest.fixture
def both(tmp_path):
    "A store and exact search of the same 120 products; the columns have hostile names and values."
    rng = np.random.default_rng(0)
    images, values = random_texts(rng, 120), random_texts(rng, 30)
    products = pd.DataFrame({'image': images, 'display name': images})
    for column in COLUMNS:
        products[column] = rng.choice(values, 120)
    vectors = rng.normal(size=(120, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = LanceStore(tmp_path/'lance')
    store.write(products[:50].drop(columns=list(COLUMNS[5:])), ['d']*50, vectors[:50], 'm')
    store.write(products, ['d']*120, vectors, 'm')
    exact = ExactIndex(dict(embeddings=vectors, image_names=images, dataframe=products, weights_hash='m'))
    return store, exact, values


def found(index, where):
    return sorted(index.nearest(np.eye(8, dtype=np.float32)[:1], 1000, where)[0]['image'])


def test_conditions(both):
    store, exact, values = both
    rng = np.random.default_rng(1)
    rows = []
    for number in range(200):
        column = str(rng.choice(['image', 'display name', *COLUMNS]))
        texts = [str(rng.choice(variants(str(rng.choice(exact.dataframe[column]))))) for _ in range(rng.integers(1, 4))]
        condition = Contains(texts[0][:rng.integers(1, 5)]) if number % 2 and texts[0][:1].strip() else texts
        where = {column: condition, 'category': values} if number % 3 else {column: condition}
        rows.append(len(found(exact, where)))
        assert found(store, where) == found(exact, where), where
    assert min(rows) == 0 and np.mean(np.array(rows) > 0) > .5  # both kinds occur
    assert store.table_of(exact.dataframe['image']).equals(exact.dataframe.astype(str))


def test_ranges(both):
    store, exact, _ = both
    prices = ['5', ' 5 ', '\t7\n', '+6', '-1', '1e3', 'inf', '-inf', 'nan', '0x10', '1_0', '1,5', "5'", '', '1e400']
    exact.dataframe['price'] = np.resize(prices, 120)
    store.write(exact.dataframe, ['d']*120, exact.embeddings, 'm')
    inf = float('inf')
    for limits in ((5, None), (None, 7), (-1, 6.5), (None, inf), (-inf, 0), (inf, None), (-inf, inf), (7, 5)):
        assert found(store, {'price': limits}) == found(exact, {'price': limits}), limits


def test_lookup_and_deletion_by_name(both):
    store, exact, _ = both
    images = exact.dataframe['image'].tolist()
    assert np.allclose(store.vectors(images[::-1]), exact.vectors(images[::-1]))
    assert store.table_of(images[:60]).equals(exact.table_of(images[:60]).astype(str))
    strangers = [text for image in images for text in variants(image) if text not in images]
    for name in strangers[::7]:
        with pytest.raises(InputError, match='no image'):
            store.vectors([name])
    store.delete(strangers)
    assert len(store) == 120
    for image in images[::2]:
        store.delete([image])
    assert sorted(store.dataframe['image']) == sorted(images[1::2])


def test_sync_deletes_only_what_is_gone(tmp_path):
    names = ["3'x.jpg", "3''x.jpg", "3'''x.jpg", "'.jpg", "''.jpg", "x') OR 1=1 --.jpg", '".jpg', '%.jpg', 'c.jpg']
    for seed, name in enumerate(names):
        (tmp_path/name).write_bytes(jpeg(seed))
    products = pd.DataFrame({'image': names, 'display name': names})
    model, processor = tiny_model(['a few words'])
    store = LanceStore(tmp_path/'lance')
    store.sync(model, processor, products, tmp_path, progress=False)
    vectors = dict(zip(names, store.vectors(names), strict=True))
    for gone in names[:-1]:
        left = products[products['image'] != gone]
        done = store.sync(model, processor, left, tmp_path, progress=False)
        assert done.values.tolist() == [[gone, 'deleted']]
        assert sorted(store.dataframe['image']) == sorted(left['image'])
        store.sync(model, processor, products, tmp_path, progress=False)
    assert all(np.allclose(store.vectors([name])[0], vectors[name], atol=1e-6) for name in names)


def test_words_of_all_indexed_columns(tmp_path):
    "Brands and codes are found by their words, and a store of an earlier version is searched by names."
    products = pd.DataFrame({'image': ['1.jpg', '2.jpg', '3.jpg'], 'display name': ['Red dress', 'Blue jeans', 'Cap'],
                             'category': ['Dresses', 'Jeans', 'Hats'], 'brand': ['Fjord', 'Sol', 'Fjord'],
                             'sku': ['A-1', 'B-22', 'C-333']})
    vectors = np.eye(3, 4, dtype=np.float32)
    store = LanceStore(tmp_path/'store')
    store.write(products, ['a', 'b', 'c'], vectors, 'model')
    store.optimize()
    assert store.columns == list(products)
    assert set(store.match('fjord', 3)) == {'1.jpg', '3.jpg'}
    assert (store.match('B-22', 1), store.match('hats', 3, {'brand': 'Sol'})) == (['2.jpg'], [])
    store.write(products.iloc[[1]].assign(brand='Nord'), ['b'], vectors[[1]], 'model')
    assert (store.match('sol', 3), store.match('nord', 3)) == ([], ['2.jpg'])
    store.table.drop_columns(['_words'])
    old = LanceStore(tmp_path/'store')
    old.write(products.iloc[[0]], ['a'], vectors[[0]], 'model')
    old.optimize()
    assert (old.match('fjord', 3), old.match('dress', 3)) == ([], ['1.jpg'])
