"""What becomes of 40 products in each format of a catalogue: rows, products, images and rejects.

    python benchmarks/catalogue_formats.py

The products are those of tests/test_shops.py, with one to three images each. Two of them have no usable image, and two
have no description. Each format goes through get_data and preprocess; exports with addresses are downloaded from a
server on this computer. Writes benchmarks/results/catalogue_formats.csv. Takes about a minute.
"""
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from common import RESULTS, silent

sys.path.insert(0, str(Path(__file__).parents[1]/'tests'))

from conftest import jpeg
from test_download import Server, Shop
from test_shops import EXPORTS, products

from clip_ft.core import Paths
from clip_ft.data import preprocess
from clip_ft.shops import IMAGE_SEPARATOR, read_export
from clip_ft.sources import get_data

BROKEN, EMPTY = (3, 8), (5, 12)  # numbers of the products without a usable image, and without a description


def file_name(address: str) -> str:
    return address.rpartition('/')[2]


def rows() -> pd.DataFrame:
    "The table of a shop without a format of its own: one row per product, the first image only."
    table = pd.DataFrame(products())
    return pd.DataFrame({
        'image': table['images'].str[0].map(file_name), 'title': table['name'], 'category': table['category'],
        'description': table['text'].where(~table['number'].isin(EMPTY), ''), 'price': table['price'],
        'colour': table['colours'].str.join(', ')})


def write_images(folder: Path) -> None:
    "The images of all products except the broken ones."
    folder.mkdir(parents=True)
    for product in products():
        for number, address in enumerate(product['images']):
            if product['number'] not in BROKEN:
                (folder/file_name(address)).write_bytes(jpeg(10*product['number'] + number))


def table(name: str, write: Callable[[pd.DataFrame, Path], object]) -> Callable[[Path, str], Path]:
    "A folder with a table and images."
    def make(folder: Path, _server: str) -> Path:
        write_images(folder/'images')
        write(rows(), folder/name)
        return folder
    return make


def packed(folder: Path, server: str) -> Path:
    "The same as a zip file, inside a wrapping folder."
    inside = table('data.csv', lambda rows, path: rows.to_csv(path, index=False))(folder/'shop', server)
    with zipfile.ZipFile(folder/'shop.zip', 'w') as archive:
        for path in sorted(inside.rglob('*.*')):
            archive.write(path, path.relative_to(folder))
    return folder/'shop.zip'


def image_folder(folder: Path, _server: str) -> Path:
    "The layout of Hugging Face with metadata."
    write_images(folder)
    rows().rename(columns={'image': 'file_name'}).to_csv(folder/'metadata.csv', index=False)
    return folder


def images_in_parquet(folder: Path, _server: str) -> Path:
    "The layout of Hugging Face with the images inside of the table."
    write_images(folder/'source')
    data = rows().rename(columns={'image': 'name'})
    paths = [folder/'source'/name for name in data['name']]
    images = [{'bytes': path.read_bytes() if path.exists() else None, 'path': path.name} for path in paths]
    (folder/'set').mkdir()
    pq.write_table(pa.table({'image': images, **data.drop(columns='name').to_dict('list')}), folder/'set/train.parquet')
    return folder/'set'


def class_folders(folder: Path, _server: str) -> Path:
    "Images without a table: the folders are categories, the file names are texts."
    for product in products():
        path = folder/product['category']/f'linen-tee-{product["number"]}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'' if product['number'] in BROKEN else jpeg(product['number']))
    return folder


def export(name: str) -> Callable[[Path, str], Path]:
    "The export of a shop; the addresses of broken images answer with status 404."
    def make(folder: Path, server: str) -> Path:
        text = EXPORTS[name][1]()
        for product in products():
            kind = 'gone' if product['number'] in BROKEN else 'photo'
            for address in product['images']:
                text = text.replace(address, address.replace('https://cdn.shop.example', f'{server}/{kind}'))
            if product['number'] in EMPTY:
                text = text.replace(product['text'], '').replace(escape(product['text']), '')
        folder.mkdir(parents=True)
        (folder/name).write_text(text, encoding='utf-8')
        if 'https' in text or server in text:
            return folder/name
        for product in products():  # Magento names files
            for number in range(len(product['images'])):
                path = folder/f'media/p/{product["number"]}/{number}.jpg'
                if product['number'] not in BROKEN:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(jpeg(10*product['number'] + number))
        return folder
    return make


FORMATS = {
    'CSV': table('data.csv', lambda rows, path: rows.to_csv(path, index=False)),
    'CSV, semicolons, Windows-1252': table('data.csv', lambda rows, path: rows.assign(
        title='Größe ' + rows['title']).to_csv(path, index=False, sep=';', encoding='cp1252')),
    'TSV, UTF-16': table('data.tsv', lambda rows, path: rows.to_csv(path, index=False, sep='\t', encoding='utf-16')),
    'Excel': table('data.xlsx', lambda rows, path: rows.to_excel(path, index=False)),
    'JSON': table('products.json', lambda rows, path: rows.to_json(path, orient='records')),
    'JSON Lines': table('data.jsonl', lambda rows, path: rows.to_json(path, orient='records', lines=True)),
    'Parquet': table('data.parquet', lambda rows, path: rows.to_parquet(path)),
    'zip file': packed,
    'Hugging Face, image folder': image_folder,
    'Hugging Face, Parquet with images': images_in_parquet,
    'class folders without a table': class_folders,
    **{f'{EXPORTS[name][0]}, {name}': export(name) for name in EXPORTS},
}


def measure(name: str, folder: Path, server: str) -> dict:
    "Take one format through get_data and preprocess."
    source = FORMATS[name](folder/'source', server)
    paths = Paths(folder/'root')
    get_data(source, paths, allow_private=True)
    kept = pd.concat(preprocess(paths))
    rejects = pd.read_csv(paths.rejects_csv)
    lists = kept.get('images', kept['image']).str.split(IMAGE_SEPARATOR, regex=False)
    reasons = rejects['reason'].str.replace(':.*', '', regex=True).value_counts()
    exported = folder/'source'/name.partition(', ')[2]
    rows_in = len(read_export(exported)) if exported.is_file() else len(rows())
    return {'format': name, 'rows in': rows_in, 'products': len(kept) + len(rejects), 'products kept': len(kept),
            'images kept': int(lists.str.len().sum()), 'rejects': len(rejects),
            'reasons': '; '.join(f'{reason} ({count})' for reason, count in reasons.items())}


def main() -> None:
    "Measure all formats and write the table."
    server = Server(('127.0.0.1', 0), Shop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    results = []
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as folder, silent():
            results.append(measure(name, Path(folder), f'http://127.0.0.1:{server.server_port}'))
        print(results[-1])
    server.shutdown()
    pd.DataFrame(results).to_csv(RESULTS/'catalogue_formats.csv', index=False)


if __name__ == '__main__':
    main()
