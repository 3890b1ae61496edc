"Texts and images that many products share are dropped from the texts and from the duplicate groups."

import pandas as pd
import pytest
from conftest import jpeg

from clip_ft.cleaning import is_boilerplate
from clip_ft.data import clean_products, duplicate_groups
from clip_ft.queries import query_sets


@pytest.fixture
def shop(tmp_path):
    "100 products with texts and images of their own."
    for i in range(100):
        (tmp_path/f'{i}.jpg').write_bytes(jpeg(i, (16, 16)))
    return pd.DataFrame({
        'image': [f'{i}.jpg' for i in range(100)], 'description': [f'Soft cotton {i}. Warm.' for i in range(100)],
        'display name': [f'Tee {i}' for i in range(100)], 'category': 'Shirts'}), tmp_path


def test_a_description_that_many_products_share(shop):
    products, folder = shop
    products.loc[:29, 'description'] = 'Description follows shortly.'
    notes = []
    kept, rejects = clean_products(products, folder, notes=notes)
    assert len(kept) == 100 and len(rejects) == 0 and duplicate_groups(kept).max() == 99
    assert kept['full_text'][0] == 'Tee 0. Shirts.' and 'follows' not in ''.join(kept['full_text'])
    assert notes == ["description: 30 products share 'Description follows shortly.'; it is left out of their texts"]
    assert len(query_sets(kept)['description']) == 70 and '' not in query_sets(kept)['name'].texts


def test_a_name_that_many_products_share(shop):
    products, folder = shop
    products.loc[:29, 'display name'] = 'Product'
    products.loc[25:60, 'description'] = 'Follows.'
    kept, rejects = clean_products(products, folder)
    assert len(kept) == 95 and set(rejects['reason']) == {'all texts are boilerplate'}
    assert kept['display name'][0] == 'Soft cotton 0.' and duplicate_groups(kept).max() == 94


def test_variants_of_a_product_are_duplicates_and_no_boilerplate(shop):
    products, folder = shop
    products.loc[:29, ['display name', 'description']] = ['Basic tee', 'Soft']
    kept, _ = clean_products(products, folder)
    assert len(kept) == 100 and duplicate_groups(kept).max() == 70 and kept['description'][0] == 'Soft'


def test_a_placeholder_image(shop):
    products, folder = shop
    for i in range(30):
        (folder/f'{i}.jpg').write_bytes(jpeg(0, (16, 16)))
    products.loc[:9, 'description'] = 'Follows.'
    kept, rejects = clean_products(products, folder)
    assert len(kept) == 70 and set(rejects['reason']) == {'image is a placeholder: shared by 30 products'}


def test_a_share_of_large_catalogues():
    names = pd.Series(range(5000)).astype(str)
    for count, expected in ((40, 0), (60, 60)):  # 1 % are 50
        texts = pd.Series(['x']*count + [f'about {i}' for i in range(5000 - count)])
        assert is_boilerplate(texts, names).sum() == expected
