"Exports of shops: 40 products in each format are 40 products, with the same names, images, colours and prices."

import csv
import io
import re
from functools import partial
from xml.sax.saxutils import escape

import pandas as pd
import pytest
from conftest import jpeg

from clip_ft.data import clean_products
from clip_ft.shops import IMAGE_SEPARATOR, read_export, shop_format, shop_products

COLOURS = ('Red', 'Blue', 'Green')
SIZES = ('S', 'M')


def products():
    "40 products: every third one has three colours, every second one two sizes; one to three images."
    for i in range(40):
        colours = COLOURS if i % 3 == 0 else COLOURS[i % 3:][:1]
        images = [f'https://cdn.shop.example/w_200,h_{i}/p{i}-{n}.jpg' for n in range(1 + i % 3)]
        yield {'number': i, 'name': f'Linen tee {i}, "no. {i}"', 'text': f'<p>A tee,<br>number {i}.</p>',
               'category': ('Shirts', 'Trousers')[i % 2], 'colours': colours, 'sizes': SIZES if i % 2 else SIZES[:1],
               'gender': ('female', 'male')[i % 2], 'price': f'{10 + i}.50', 'images': images}


def variants(product):
    return [(colour, size) for colour in product['colours'] for size in product['sizes']]


def text_of(rows, separator=','):
    "A table as text; missing values are empty, as in an export."
    header = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, header, restval='', delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


SHOPIFY = {'Handle': 'URL handle', 'Body (HTML)': 'Description', 'Variant Price': 'Price', 'Variant SKU': 'SKU',
           'Image Src': 'Product image URL', 'Image Position': 'Image position', 'Variant Image': 'Variant image URL',
           'Option1 Name': 'Option1 name', 'Option1 Value': 'Option1 value', 'Option2 Name': 'Option2 name',
           'Option2 Value': 'Option2 value', 'Product Category': 'Product category'}


def shopify(renamed=()):
    rows = []
    for p in products():
        own = {'Title': p['name'], 'Body (HTML)': p['text'], 'Vendor': 'Acme', 'Tags': 'linen, summer',
               'Product Category': 'Apparel & Accessories > Clothing', 'Type': p['category'], 'Option1 Name': 'Color',
               'Option2 Name': 'Size', 'Google Shopping / Gender': p['gender']}
        lines = [{'Option1 Value': colour, 'Option2 Value': size, 'Variant Price': p['price'],
                  'Variant SKU': f'S{p["number"]}-{colour}-{size}'} for colour, size in variants(p)]
        lines += [{} for _ in range(len(p['images']) - len(lines))]
        for number in range(len(p['images'])):  # the last image comes first in the file
            lines[number].update({'Image Src': p['images'][-1 - number], 'Image Position': len(p['images']) - number})
        lines[0].update(own)
        rows += [{'Handle': f'tee-{p["number"]}', **line} for line in lines]
    return text_of([{dict(renamed).get(name, name): value for name, value in row.items()} for row in rows])


def woocommerce(parent='sku'):
    rows = []
    for p in products():
        n = p['number']
        own = {'ID': 100 + n, 'Type': 'variable', 'SKU': f'S{n}', 'Name': p['name'], 'Published': 1,
               'Short description': 'short', 'Description': p['text'], 'Categories': f'Sale, Wear > {p["category"]}',
               'Images': ', '.join(p['images']), 'Attribute 1 name': 'Color', 'Attribute 2 name': 'Size',
               'Attribute 1 value(s)': ', '.join(p['colours']), 'Attribute 2 value(s)': ', '.join(p['sizes']),
               'Attribute 3 name': 'Brand', 'Attribute 3 value(s)': 'Acme', 'Attribute 4 name': 'Gender',
               'Attribute 4 value(s)': p['gender']}
        several = variants(p)
        if len(several) == 1:
            rows.append({**own, 'Type': 'simple', 'Regular price': '99.00', 'Sale price': p['price']})
            continue
        rows.append(own)
        for number, (colour, size) in enumerate(several):
            rows.append({'ID': 1000 + 10*n + number, 'Type': 'variation', 'SKU': f'S{n}-{number}', 'Parent': own['SKU'],
                         'Name': f'{p["name"]} - {colour}', 'Regular price': p['price'], 'Images': p['images'][0],
                         'Attribute 1 name': 'Color', 'Attribute 1 value(s)': colour,
                         'Attribute 2 name': 'Size', 'Attribute 2 value(s)': size})
            if parent == 'id':
                rows[-1]['Parent'] = f'id:{own["ID"]}'
    return text_of(rows)


def items():
    "The items of a feed: pairs of attribute and value, one list per variant."
    for p in products():
        for number, (colour, size) in enumerate(variants(p)):
            yield [('id', f'{p["number"]}-{number}'), ('title', p['name']), ('description', p['text']),
                   ('item_group_id', f'tee-{p["number"]}'), ('image_link', p['images'][0]),
                   *(('additional_image_link', image) for image in p['images'][1:]), ('price', f'{p["price"]} USD'),
                   ('google_product_category', '212'), ('product_type', f'Clothing > {p["category"]}'),
                   ('brand', 'Acme'), ('color', colour), ('size', size), ('gender', p['gender'])]


def merchant():
    rows = []
    for item in items():
        row = dict(item)
        row['additional_image_link'] = ','.join(value for name, value in item if name == 'additional_image_link')
        rows.append(row)
    return text_of(rows, '\t')


def feed(kind):
    own = {'rss': 'item', 'atom': 'entry'}[kind]
    plain = ('title', 'description') if kind == 'rss' else ('title',)
    entries = ''.join(f'<{own}>' + ''.join(
        f'<{name}>{escape(value)}</{name}>' if name in plain else f'<g:{name}><![CDATA[{value}]]></g:{name}>'
        for name, value in item) + f'<g:shipping><g:price>5 USD</g:price></g:shipping></{own}>' for item in items())
    namespace = 'xmlns:g="http://base.google.com/ns/1.0"'
    if kind == 'rss':
        return f'<?xml version="1.0"?><rss version="2.0" {namespace}><channel><title>A</title>{entries}</channel></rss>'
    return f'<feed xmlns="http://www.w3.org/2005/Atom" {namespace}><title>A</title>{entries}</feed>'


def magento():
    rows = []
    for p in products():
        n = p['number']
        several = variants(p)
        children = [f'S{n}-{number}' for number in range(len(several))] if len(several) > 1 else []
        attributes = f'brand=Acme,gender={p["gender"]}'
        if not children:
            attributes += f',color={p["colours"][0]},size={p["sizes"][0]}'
        rows.append({
            'sku': f'S{n}', 'attribute_set_code': 'Top', 'product_type': 'configurable' if children else 'simple',
            'categories': f'Default Category/Sale,Default Category/Clothing/{p["category"]}', 'name': p['name'],
            'description': p['text'], 'price': p['price'], 'url_key': f'tee-{n}', 'visibility': 'Catalog, Search',
            'base_image': f'/p/{n}/0.jpg', 'small_image': f'/p/{n}/0.jpg',
            'additional_images': ','.join(f'/p/{n}/{i}.jpg' for i in range(len(p['images']))),
            'additional_attributes': attributes,
            'configurable_variations': '|'.join(f'sku={child},color={colour},size={size}'
                                                for child, (colour, size) in zip(children, several, strict=False))})
        rows += [{'sku': child, 'product_type': 'simple', 'name': f'{p["name"]}-{colour}-{size}', 'price': p['price'],
                  'visibility': 'Not Visible Individually', 'base_image': 'no_selection',
                  'additional_attributes': f'color={colour},size={size}'}
                 for child, (colour, size) in zip(children, several, strict=False)]
        rows.append({'sku': f'S{n}', 'store_view_code': 'de', 'name': 'Leinenhemd'})
    return text_of(rows)


WORDS = {  # English header to the one in an export
    'German': {'Type': 'Typ', 'SKU': 'Artikelnummer', 'Short description': 'Kurzbeschreibung', 'Images': 'Bilder',
               'Description': 'Beschreibung', 'Categories': 'Kategorien', 'Regular price': 'Regulärer Preis',
               'Sale price': 'Angebotspreis', 'Parent': 'Übergeordnetes Produkt',
               'Attribute # name': 'Attribut # Name', 'Attribute # value(s)': 'Attribut # Wert(e)'},
    'French': {'SKU': 'UGS', 'Name': 'Nom', 'Short description': 'Description courte', 'Categories': 'Catégories',
               'Regular price': 'Tarif régulier', 'Sale price': 'Tarif promo',
               'Attribute # name': "Nom de l'attribut #", 'Attribute # value(s)': "Valeur(s) de l'attribut # "},
    'Turkish': {'Type': 'Tür', 'SKU': 'Stok kodu (SKU)', 'Name': 'İsim', 'Short description': 'Kısa açıklama',
                'Description': 'Açıklama', 'Categories': 'Kategoriler', 'Regular price': 'Normal fiyat',
                'Sale price': 'İndirimli satış fiyatı', 'Images': 'Görseller', 'Parent': 'Ebeveyn',
                'Attribute # name': 'Nitelik # ismi', 'Attribute # value(s)': 'Nitelik # değer(ler)i'},
}


def woocommerce_in(language):
    header, rest = woocommerce().split('\r\n', 1)
    names = [re.sub(r'\d', '#', name) for name in header.split(',')]
    numbers = [re.search(r'\d|$', name)[0] for name in header.split(',')]
    words = [WORDS[language].get(name, name) for name in names]
    return ','.join(word.replace('#', number)
                    for word, number in zip(words, numbers, strict=True)) + '\r\n' + rest


EXPORTS = {
    'shopify.csv': ('Shopify', shopify),
    'shopify_2024.csv': ('Shopify', lambda: shopify(SHOPIFY.items())),
    'woocommerce.csv': ('WooCommerce', woocommerce),
    'woocommerce_id.csv': ('WooCommerce', lambda: woocommerce('id')),
    **{f'woocommerce_{language}.csv': ('WooCommerce', partial(woocommerce_in, language)) for language in WORDS},
    'merchant.tsv': ('Google Merchant Center', merchant),
    'merchant_names.tsv': ('Google Merchant Center', lambda: merchant().replace('image_link', 'image link', 1)),
    'rss.xml': ('Google Merchant Center', lambda: feed('rss')),
    'atom.xml': ('Google Merchant Center', lambda: feed('atom')),
    'magento.csv': ('Magento', magento),
}


@pytest.mark.parametrize('file', EXPORTS)
def test_forty_products_are_forty_products(file, tmp_path):
    expected_format, write = EXPORTS[file]
    (tmp_path/file).write_text(write(), encoding='utf-8')
    raw = read_export(tmp_path/file)
    assert shop_format(raw) == expected_format
    table = shop_products(raw)
    assert list(table)[:4] == ['image', 'display name', 'description', 'category'] and len(table) == 40
    for row, p in zip(table.to_dict('records'), products(), strict=True):
        images = p['images']
        if file == 'magento.csv':
            images = [f'p/{p["number"]}/{i}.jpg' for i in range(len(images))]
        assert row['images'].split(IMAGE_SEPARATOR) == images and row['image'] == images[0]
        assert (row['display name'], row['category'], row['brand']) == (p['name'], p['category'], 'Acme')
        assert row['description'] == p['text'] and row['price'] == p['price'] and row['gender'] == p['gender']
        assert row['colour'].split(', ') == list(p['colours']) and row['size'].split(', ') == list(p['sizes'])
    assert table['id'].is_unique and ('currency' in table) == (expected_format == 'Google Merchant Center')


def test_rows_that_belong_to_nothing_are_products_of_their_own():
    woo = pd.DataFrame({'ID': ['1', '2', '3'], 'Type': ['simple', 'variation', 'simple'], 'Name': ['a', 'b', 'c'],
                        'Images': '', 'Categories': '', 'Parent': ['', 'id:99', '']})
    assert shop_products(woo)['display name'].to_list() == ['a', 'b', 'c']
    merchant = pd.DataFrame({'id': ['', '', '3'], 'title': ['a', 'b', 'c'], 'image_link': ['1', '', '3']})
    assert shop_products(merchant)['image'].to_list() == ['1', '', '3']


@pytest.mark.parametrize('columns', [
    ['image', 'description', 'display name', 'category'], ['id', 'title', 'image'], ['name', 'type', 'price'],
    ['sku', 'name', 'image'], ['Handle', 'Title'],
    ['image', 'description', 'display name', 'category', 'id', 'title', 'image_link'],
])
def test_other_tables_are_left_alone(columns):
    table = pd.DataFrame([['x']*len(columns)], columns=columns)
    assert shop_format(table) == '' and shop_products(table) is table


def test_many_variants_and_images():
    rows = pd.DataFrame({'Handle': [f'h{i//4}' for i in range(20_000)], 'Title': 'A tee', 'Body (HTML)': 'text',
                         'Image Src': [f'https://x.org/{i}.jpg' for i in range(20_000)]})
    table = shop_products(rows)
    assert len(table) == 5_000 and table['images'].str.count(r' \| ').eq(3).all()


@pytest.mark.parametrize('file', ['shopify.csv', 'merchant.tsv'])
def test_all_images_of_an_export_are_kept(file, tmp_path):
    (tmp_path/file).write_text(EXPORTS[file][1](), encoding='utf-8')
    expected = [[name.rpartition('/')[2] for name in p['images']] for p in products()]
    for seed, name in enumerate(name for names in expected for name in names):
        (tmp_path/name).write_bytes(jpeg(seed))
    kept, rejects = clean_products(shop_products(read_export(tmp_path/file)), tmp_path)
    assert [names.split(IMAGE_SEPARATOR) for names in kept['images']] == expected and rejects.empty
