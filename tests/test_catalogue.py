"The table of a catalogue in any format, encoding and language of its column names."

import json

import pandas as pd
import pytest
from conftest import HEADER, rows

from clip_ft.catalogue import find_table, read_any_table, recognize_columns
from clip_ft.commands import get_data_main, preprocess_main
from clip_ft.core import InputError, Paths
from clip_ft.data import preprocess, read_products
from clip_ft.sources import get_data
from clip_ft.tables import read_table
from clip_ft.texts import attribute_phrases

WORDS = {
    'cp1251': 'красное платье хлопок летний длинный рукав женский мягкий чёрный подкладка',
    'cp1250': 'červené šaty dlouhý rukáv dámské měkký velikost bílý žluté příjemný',
    'cp1252': 'rotes Kleid für den Sommer lange Ärmel weiß Größe Reißverschluss',
    'cp1253': 'κόκκινο φόρεμα βαμβάκι καλοκαιρινό μακρύ μανίκι γυναικείο μαλακό',
    'cp1254': 'kırmızı elbise yumuşak günlük kullanım için bileşim şık güzel',
    'cp1255': 'אדומה שמלה כותנה קיץ שרוול ארוך נשים רכה נוחה מידה צבע לבן שחור ליומיום הרכב פוליאסטר בטנה רוכסן כיסים',
    'cp1256': 'أحمر فستان قطن صيفي طويل كم نسائي ناعم مريح مقاس لون أبيض',
    'gbk': '红色 连衣裙 纯棉 夏季 长袖 女士 柔软 舒适 尺码 颜色',
    'big5': '紅色 連衣裙 純棉 夏季 長袖 女士 柔軟 舒適 尺碼 顏色',
    'euc_kr': '빨간 원피스 여름 긴팔 여성 부드러운 편안한 사이즈 색상 흰색 검정 일상 착용 폴리에스터 안감 지퍼 주머니',
    'shift_jis': '赤い ワンピース 長袖 レディース 柔らかい サイズ ポケット',
}


@pytest.mark.parametrize('encoding', WORDS)
def test_encodings_are_detected_and_named(tmp_path, encoding, capsys):
    words = WORDS[encoding].split()
    text = HEADER + ''.join(f'{i}.jpg,{" ".join(words[i:])},{word},{word}\n' for i, word in enumerate(words))
    (tmp_path/'data.csv').write_bytes(text.encode(encoding))
    assert read_table(tmp_path/'data.csv')['display name'].tolist() == words
    out = capsys.readouterr().out
    assert 'is not UTF-8; the table is read as' in out and out.count('\n') == 1


@pytest.mark.parametrize('encoding, word', [
    ('cp1251', 'красное'), ('cp1255', 'אדומה'), ('cp1252', 'crème'), ('gbk', '红色'), ('cp1253', 'Κόκκινο'),
    ('cp949', '빨간'), ('cp1250', 'Červené'),
])
def test_an_uncertain_encoding_is_asked_for_and_remembered(catalogue, tmp_path, run, encoding, word):
    (catalogue/'data.csv').write_bytes((HEADER + rows(20).replace('Product', word)).encode(encoding))
    root = tmp_path/'root'
    run(get_data_main, '--root', root, '--source', catalogue)
    error = run(preprocess_main, '--root', root, refused=True)
    assert 'data.csv' in error and f'{word!r} in ' in error and '; pass it, such as --encoding' in error
    assert f'it could be {word!r} in ' in error or encoding == 'cp1252'  # of the most likely encoding
    assert 'no encoding' in run(preprocess_main, '--root', root, '--encoding', 'klingon', refused=True)
    run(preprocess_main, '--root', root, '--encoding', encoding)
    assert pd.concat(preprocess(Paths(root)))['display name'].str.startswith(word).all()


def write_as(table, path):
    if path.suffix == '.xlsx':
        table.to_excel(path, index=False)
    elif path.suffix == '.parquet':
        table.to_parquet(path)
    elif path.suffix.lower() in ('.json', '.jsonl'):
        table.to_json(path, orient='records', lines=path.suffix == '.jsonl')
    else:
        table.to_csv(path, index=False, sep='\t' if path.suffix == '.tsv' else ',')


@pytest.mark.parametrize('name', [
    'data.tsv', 'DATA.CSV', 'Products.Csv', 'data.xlsx', 'data.parquet', 'data.jsonl', 'data.json', 'export-2026.xlsx',
])
def test_formats_and_names(catalogue, tmp_path, name):
    table = read_table(catalogue/'data.csv').assign(price='9.90', count=[None, *range(19)])
    (catalogue/'data.csv').unlink()
    write_as(table, catalogue/name)
    paths = Paths(tmp_path/'root')
    assert get_data(catalogue, paths) == catalogue.resolve()
    products = read_products(catalogue)
    assert products['image'].tolist() == [f'{i}.jpg' for i in range(20)]
    assert products['price'].tolist() == ['9.90']*20 and products['count'][0] == ''
    assert len(pd.concat(preprocess(paths))) == 20
    limited = Paths(tmp_path/'limited')
    assert len(read_products(get_data(catalogue, limited, limit=5))) == 5


def test_a_missing_table_names_the_folder_that_was_given(catalogue, tmp_path, run):
    (catalogue/'data.csv').rename(catalogue/'data.xls')
    error = run(get_data_main, '--root', tmp_path/'root', '--source', catalogue, refused=True)
    assert f'in {catalogue}: it contains no CSV file or other table' in error


@pytest.mark.parametrize('name, content, message', [
    ('data.xlsx', b'PK', 'not an Excel file'), ('data.xls', b'', 'save the table as .xlsx'),
    ('data.parquet', b'PAR1', 'not a Parquet file'), ('data.json', b'{"a": ', 'not JSON'),
    ('data.json', b'["a"]', 'array of objects'), ('data.json', b'[]', 'array of objects'),
    ('data.jsonl', b'{"a": 1}\n{"a"\n', 'line 2: not JSON'), ('data.json', b'['*100_000, 'not JSON'),
])
def test_unreadable_formats(tmp_path, name, content, message):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_any_table(tmp_path/name)


def test_nested_values_are_flattened(tmp_path):
    record = {'id': 1, 'price': {'amount': 9.5, 'tax': {'rate': 19}}, 'images': ['a.jpg', 'b.jpg'], 'sold': True,
              'variants': [{'size': 'S'}], 'note': None}
    (tmp_path/'data.json').write_text(json.dumps([record, {'id': 2}]))
    table = read_any_table(tmp_path/'data.json')
    assert table.iloc[0].to_dict() == {
        'id': '1', 'price.amount': '9.5', 'price.tax.rate': '19', 'images': 'a.jpg, b.jpg', 'sold': 'true',
        'variants': '[{"size": "S"}]', 'note': ''}
    assert table.iloc[1]['images'] == ''
    records = [{'id': 1, 'price': {'amount': 9.5}, 'images': ['a.jpg', 'b.jpg']}]
    pd.DataFrame(records).to_parquet(tmp_path/'data.parquet')
    assert read_any_table(tmp_path/'data.parquet').iloc[0].to_dict() == {
        'id': '1', 'price.amount': '9.5', 'images': 'a.jpg, b.jpg'}


@pytest.mark.parametrize('text', [
    HEADER + '1.jpg,19 €,Größe,x', HEADER + '1.jpg,a,b,x\n', 'Export of 2024\n\n' + HEADER + '1.jpg,a,b,x',
    'Export,,,\n' + HEADER + '1.jpg,a,b,x', HEADER.replace('display name', '\u200b\u00a0display name ') + '1.jpg,a,b,x',
])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16-le', 'utf-16-be', 'iso8859-15', 'cp1252'])
def test_titles_and_unicode_without_a_mark(tmp_path, text, encoding):
    (tmp_path/'data.csv').write_bytes((text*1).encode(encoding, 'ignore'))
    table = read_table(tmp_path/'data.csv')
    assert list(table) == ['image', 'description', 'display name', 'category'] and len(table) == 1
    assert table.iloc[0].to_list() == text.splitlines()[-1].split(',')


def test_text_that_was_converted_twice(tmp_path, capsys):
    text = HEADER + '1.jpg,für Kälte,Größe,x\n2.jpg,a,b,x\n'
    (tmp_path/'data.csv').write_bytes(text.encode().decode('cp1252').encode())
    assert read_table(tmp_path/'data.csv')['display name'].to_list() == ['Größe', 'b']
    assert "'fÃ¼r' is read as 'für'" in capsys.readouterr().out
    (tmp_path/'data.csv').write_text(text.replace('Größe', 'GrÃ¶ÃŸe'), encoding='utf-8')  # only a part of it
    assert read_table(tmp_path/'data.csv')['display name'].to_list() == ['GrÃ¶ÃŸe', 'b']


def test_a_line_in_another_encoding(tmp_path):
    lines = [f'{i}.jpg,für,Größe,x\n'.encode() for i in range(9)]
    (tmp_path/'data.csv').write_bytes(HEADER.encode() + b''.join(lines) + '9.jpg,für,Größe,x\n'.encode('cp1252'))
    with pytest.raises(InputError, match='line 11 is not UTF-8, but 9 other lines are; correct this line'):
        read_table(tmp_path/'data.csv')


@pytest.mark.parametrize('form', [
    '{"shop": "x", "products": %s}', '%s', '{"image": {"0": "1.jpg"}, "name": {"0": "a"}}'])
def test_json_documents(tmp_path, form):
    records = '[{"image": "1.jpg", "name": "a"}]'
    (tmp_path/'products.json').write_text(form % records if '%s' in form else form)
    assert read_any_table(find_table(tmp_path)).to_dict('records') == json.loads(records)


def test_the_sheet_of_the_products_is_read(tmp_path, capsys):
    with pd.ExcelWriter(tmp_path/'data.xlsx') as book:
        pd.DataFrame({'Notes': ['made in 2024']}).to_excel(book, sheet_name='About', index=False)
        table = pd.DataFrame({'image': ['1.jpg'], 'title': ['a'], 'price': [9.5]})
        table.to_excel(book, sheet_name='Products', index=False, startrow=2)
    assert read_any_table(tmp_path/'data.xlsx').iloc[0].to_list() == ['1.jpg', 'a', '9.5']
    assert "the sheet 'Products' is read" in capsys.readouterr().out


@pytest.mark.parametrize('text, expected', [
    ('a|b\n1|2;3\n', {'a': ['1'], 'b': ['2;3']}),
    ('sep=;\na;b\n1;2,5\n', {'a': ['1'], 'b': ['2,5']}),
    ('more,more,more 2,\n1,2,3,4\n', {'more': ['1'], 'more 3': ['2'], 'more 2': ['3'], 'column 4': ['4']}),
    ('a\tb\n1\t"Soft" touch sole\n2\t5" nail\n3\t"all ""quoted"""\n', {
        'a': ['1', '2', '3'], 'b': ['"Soft" touch sole', '5" nail', 'all "quoted"']}),
    ('a,b\n\n1,2\n\n3,4\n\n', {'a': ['1', '3'], 'b': ['2', '4']}),
    ('a,b\n1,' + 'x'*154_000 + '\n', {'a': ['1'], 'b': ['x'*154_000]}),
])
def test_odd_csv_files(tmp_path, text, expected):
    (tmp_path/'data.csv').write_text(text)
    assert read_table(tmp_path/'data.csv').to_dict('list') == expected


def test_settings_in_json_are_no_tables(tmp_path):
    (tmp_path/'dataset-metadata.json').write_text('{"title": "x"}')
    with pytest.raises(InputError, match='no CSV file'):
        find_table(tmp_path)
    (tmp_path/'judgments.jsonl').write_text('{}')
    (tmp_path/'stock.csv').touch()
    assert find_table(tmp_path).name == 'stock.csv'


@pytest.mark.parametrize('names', [
    ['Image Src', 'Title', 'Body (HTML)', 'Type', 'Vendor', 'Color', 'Gender', 'Variant Price'],
    ['Images', 'Name', 'Description', 'Categories', 'Brands', 'COLOUR', 'sex', 'Regular price'],
    ['base_image', 'name', 'description', 'categories', 'manufacturer', 'color', 'gender', 'price'],
    ['image_link', 'title', 'description', 'product_type', 'brand', 'color', 'gender', 'price'],
    ['Bild', 'Produktname', 'Beschreibung', 'Kategorie', 'Marke', 'Farbe', 'Geschlecht', 'Preis'],
    ['Fichier', 'Nom du produit', 'Description', 'Catégorie', 'Marque', 'Couleur', 'Genre', 'Prix'],
    ['Imagen', 'Nombre', 'Descripción', 'Categoría', 'Marca', 'Color', 'Género', 'Precio'],
    ['Фото', 'Название', 'Описание', 'Категория', 'Бренд', 'Цвет', 'Пол', 'Цена'],
    ['图片', '标题', '描述', '类目', '品牌', '颜色', '性别', '价格'],
    ['画像', '商品名', '説明', 'カテゴリ', 'ブランド', '色', '性別', '価格'],
    ['Resim', 'Ürün adı', 'Açıklama', 'Kategori', 'Marka', 'Renk', 'Cinsiyet', 'Fiyat'],
    ['Product Image File - 1', 'Product Name', 'Product Description', 'Category', 'Brand', 'Color', 'Gender', 'Price'],
    ['Main Image URL', 'name(en)', 'description(en)', 'categoryName', 'brandName', 'colour', 'sex', 'Price (USD)'],
])
def test_columns_of_shops_and_languages(names):
    roles = ['image', 'display name', 'description', 'category', 'brand', 'colour', 'gender', 'price']
    found = recognize_columns(names)
    assert {role: found.get(role, [role])[0] for role in roles} == dict(zip(roles, names, strict=True))


def test_columns_are_printed_remembered_and_used_by_later_stages(catalogue, tmp_path, run):
    table = read_table(catalogue/'data.csv')
    table.columns = ['file', 'Body (HTML)', 'title', 'Sort']
    table.assign(Colour='Red', sex='Women', Name='x').to_csv(catalogue/'data.csv', index=False)
    root = tmp_path/'root'
    run(get_data_main, '--root', root, '--source', catalogue)
    printed = run(preprocess_main, '--root', root)
    assert 'Columns: file -> image' in printed and 'No product has a category: ' in printed
    columns = ('Columns: Sort -> category, file -> image, Body (HTML) -> description, '
               'title -> display name (not Name), Colour -> colour, sex -> gender\n')
    assert columns in run(preprocess_main, '--root', root, '--columns', 'category=Sort')
    assert columns in run(preprocess_main, '--root', root)  # remembered
    train, _ = preprocess(Paths(root))
    assert set(attribute_phrases(train)['gender colour']) == {'women red shirts', 'women red shoes', 'women red hats'}
    table.assign(title=table['title'], Farbe='Blue', Product_Title='y').to_csv(catalogue/'data.csv', index=False)
    assert 'title -> display name (not Product_Title)' in run(preprocess_main, '--root', root)


def test_columns_of_get_data_are_remembered(catalogue, tmp_path, run):
    table = read_table(catalogue/'data.csv').rename(columns={'category': 'Sort'})
    table.to_csv(catalogue/'data.csv', index=False)
    run(get_data_main, '--root', tmp_path/'root', '--source', catalogue, '--columns', 'category=Sort')
    assert 'Sort -> category' in run(preprocess_main, '--root', tmp_path/'root')
