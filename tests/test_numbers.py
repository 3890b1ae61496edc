"Numbers as shops write them, decided per column, and ranges over columns without numbers."

import numpy as np
import pandas as pd
import pytest
from conftest import HEADER, rows

from clip_ft.cleaning import plain_numbers
from clip_ft.commands import preprocess_main
from clip_ft.core import InputError, Paths
from clip_ft.data import preprocess
from clip_ft.exact import ExactIndex
from clip_ft.facets import Facets
from clip_ft.sources import get_data
from clip_ft.store import LanceStore


@pytest.mark.parametrize('values, expected', [
    (['$19.99', '$5', '$1,299.00'], ['19.99', '5', '1299.00']),
    (['19,99', '5,00', 'on request', ''], ['19.99', '5.00', '', '']),
    (['1.299,00 €', '19,90 €', 'auf Anfrage'], ['1299.00', '19.90', '']),
    (['1,299.00', '10.50', 'POA', '-'], ['1299.00', '10.50', '', '']),
    (['Rs. 1,299', 'Rs. 899'], ['1299', '899']), (['1.299', '899', '2.499'], ['1299', '899', '2499']),
    (['19.99 EUR', '45.10 EUR'], ['19.99', '45.10']), (['US$ 10.50', 'USD 3'], ['10.50', '3']),
    (["1'299.00", 'CHF 19.–'], ['1299.00', '19']), (['1\u202f299,00 руб.', '99 руб.'], ['1299.00', '99']),
    (['1,29,999', '₹999'], ['129999', '999']), (['R$ 1.299,90', 'R$ 5,00'], ['1299.90', '5.00']),
    (['1,299 kr', '99 kr'], ['1299', '99']), (['1.299.000 ₫', '99.000 ₫'], ['1299000', '99000']),
    (['from $10.00', 'ab 5 €'], ['10.00', '5']), (['19,-', '5,-'], ['19', '5']),
    (['9.90', *['on request']*5, 'call us'], ['9.90', *['']*6]),
    (['10 - 20', '30'], ['10', '30']), (['$10.00 – $20.00', 'from only $5'], ['10.00', '5']),
    (['12,50€/kg', '3,20 € / Stück'], ['12.50', '3.20']), (['19,99 29,99 €', '5,00 €'], ['', '5.00']),
    (['UVP 19,99 € inkl. 19 % MwSt.', 'ca. 5 €'], ['19.99', '5']), (['5.00 each (incl. VAT)', '4*'], ['5.00', '4']),
])
def test_prices(values, expected):
    numbers, note = plain_numbers(pd.Series(values), 'price')
    assert numbers.tolist() == expected and note.startswith('price: ')


@pytest.mark.parametrize('name, values', [
    ('size', ['38', 'M', 'L', '40']), ('size', ['010', '38']), ('weight', ['1.250', '2.125']), ('sku', ['1,299', '2']),
    ('date', ['01.02.2024']), ('colour', ['red', '']), ('season', ['2010', '2011']), ('size', ['8-10', '10-12']),
    ('material', ['100 % cotton', '50 % wool']), ('empty', ['', '']), ('price', ['9.90', '12', '']),
])
def test_other_columns_stay(name, values):
    numbers, note = plain_numbers(pd.Series(values), name)
    assert numbers.tolist() == values and note == ''


def test_currencies_are_not_mixed_silently():
    note = plain_numbers(pd.Series(['€10', '12 EUR', 'US$10', 'CA$ 3', '£4', 'ca. 7 €', '8']), 'price')[1]
    assert note.endswith('the currencies are not converted: EUR (3), USD (1), CAD (1), GBP (1)')
    assert 'converted' not in plain_numbers(pd.Series(['€10', '12 EUR', '13,00 Euro', '9']), 'price')[1]
    assert 'of ranges, the lower price is read (2)' in plain_numbers(pd.Series(['1-2 €', '1-2 €', '3 €']), 'price')[1]


def test_an_ambiguous_column_is_reported():
    assert 'assumed' in plain_numbers(pd.Series(['1,299', '2,500']), 'price')[1]
    assert 'assumed' not in plain_numbers(pd.Series(['1,299', '2,50']), 'price')[1]


def test_numbers_of_frames_stay():
    for values in (pd.Series([1.5, np.nan]), pd.Series([1, 2]), pd.Series([], dtype=float)):
        assert plain_numbers(values, 'price')[0] is values


@pytest.fixture
def products(catalogue, tmp_path):
    lines = rows(20).splitlines()
    prices = ['"1.299,50 €"', *[f'"{i},90 €"' for i in range(1, 19)], 'auf Anfrage']
    table = HEADER.strip() + ',Preis,fit\n' + ''.join(f'{line},{price},slim\n' for line, price in zip(lines, prices))
    (catalogue/'data.csv').write_text(table)
    paths = Paths(tmp_path/'root')
    get_data(catalogue, paths)
    return pd.concat(preprocess(paths), ignore_index=True), paths


def test_every_stage_reads_numbers(products, tmp_path, run):
    table, paths = products
    assert sorted(pd.to_numeric(table['price']).dropna())[-2:] == [18.9, 1299.5]
    out = run(preprocess_main, '--root', paths.root)
    assert "price: '1.299,50 €' is read as 1299.50 (decimal comma); 1 without a number" in out
    assert 'price' in Facets(table).numbers
    vectors = np.eye(len(table), 32, dtype=np.float32)
    vectors[:, 0] = 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = LanceStore(tmp_path/'store')
    store.write(table, ['']*len(table), vectors, 'x')
    embeddings = {'embeddings': vectors, 'weights_hash': 'x', 'image_names': table['image'], 'dataframe': table}
    for index in (ExactIndex(embeddings), store):
        found = index.nearest(vectors[:1], 20, {'price': (10, 2000)})[0]
        assert len(found) == 10 and len(index.nearest(vectors[:1], 20, {'price': (5000, None)})[0]) == 0
        with pytest.raises(InputError, match="column 'fit' contains no numbers"):
            index.nearest(vectors[:1], 20, {'fit': (1, None)})
