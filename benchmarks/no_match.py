"""Share of queries that a search flags with "No good match", for queries with and without right products.

    python benchmarks/no_match.py PROJECT --label NAME [--left-out TABLE] [--half choose] [--seed 0]
    python benchmarks/no_match.py FOLDER --label NAME --demo SEED

PROJECT has a model and embeddings. TABLE is a CSV file of products, with the columns image and category, whose
categories are neither in the catalogue of PROJECT nor in the training of its model; their images are in its folder of
images. --demo draws, trains and embeds the demo catalogue without eight kinds in FOLDER first.

The scale of matches is fitted here, to the names and images of every second test product; the queries are those of the
others. Features were chosen with --half choose, on one half of the left-out kinds, of the foreign words and of the test
products; the results are those of the other halves. Products whose names have all words of a left-out kind are removed
from the catalogue.

right: share of the queries with a right product among the first five: of the category (and colour) that is asked
for, or, for the first words of a description, with all of them in its texts. flagged_right: share that is flagged among
these. The rows of the label in the CSV file are replaced.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from common import RESULTS, silent

from clip_ft.core import Paths
from clip_ft.data import duplicate_groups, load_split
from clip_ft.embeddings_file import load_embeddings
from clip_ft.encode import embed_texts
from clip_ft.match_fit import example_queries, fit_match_scale
from clip_ft.match_scale import match_note, product_words, query_words, word_columns
from clip_ft.search import Searcher
from clip_ft.words import WordIndex

COLOURS = ('red', 'black', 'blue')
FOREIGN = [
    'tractor', 'sofa', 'lawnmower', 'fridge', 'piano', 'bicycle', 'dishwasher', 'drill', 'hammer', 'laptop',
    'printer', 'banana', 'cheese', 'carrot', 'violin', 'canoe', 'mattress', 'curtain', 'teapot', 'toaster',
    'microwave', 'candle', 'ladder', 'shovel', 'kettle', 'wardrobe', 'armchair', 'aquarium', 'bookshelf', 'trumpet',
    'chainsaw', 'blender', 'carpet', 'doorbell', 'envelope', 'fireplace', 'guitar', 'helicopter', 'icecream', 'jigsaw',
    'keyboard', 'lighthouse', 'motorbike', 'noodles', 'omelette', 'pillow', 'radiator', 'saucepan', 'telescope',
    'umbrella stand', 'vacuum cleaner', 'wheelbarrow', 'dog food', 'cat litter', 'garden hose', 'paint brush',
]
NONSENSE = [
    'qwrtz', 'asdfgh', 'zzxxy', 'blorf', 'fnarg', 'plugh', 'wibble', 'snorg', 'kjhgf', 'vxcmnb', 'uiopq', 'grtlx',
    'drooble', 'quzzle', 'krandl', 'pffzt', 'mnbvc', 'lkjhg', 'trewq', 'zorblat', 'sklimp', 'vroont', 'glomph',
    'yuvvik',
]
SYNONYMS = dict(
    Backpacks='rucksack knapsack', Bra='brassiere', Briefs='underpants undies', Caps='headgear', Dresses='gown frock',
    Handbags='purse tote clutch', Heels='stilettos', Jackets='blazer parka', Jeans='denims',
    Nightdress='nightie nightgown',
    Shirts='button-down', Shorts='bermudas', Socks='hosiery', Sunglasses='shades', Sweaters='jumper pullover cardigan',
    Sweatshirts='hoodie', Tops='blouse camisole', Trousers='slacks chinos', Tshirts='tee', Wallets='billfold purse',
    Watches='wristwatch timepiece', Scarves='shawl', Sandals='slippers', Flats='ballerinas', Perfume='cologne',
) | {'Sports Shoes': 'sneakers trainers', 'Casual Shoes': 'sneakers loafers', 'Formal Shoes': 'brogues oxfords',
     'Track Pants': 'joggers sweatpants', 'Perfume and Body Mist': 'cologne fragrance'}
SEARCHED = 10  # results per query
COLUMNS = ['project', 'group', 'queries', 'flagged', 'right', 'flagged_right']


def half(values: list, part: str) -> list:
    "A random half of some values, for choosing features or for reporting."
    order = np.random.default_rng(5).permutation(len(values))
    return [values[place] for place in np.sort(order[part == 'choose'::2])]


def with_words(products: pd.DataFrame, texts: list[str]) -> np.ndarray:
    "Whether each product has all words of one of the texts in its name, category or attributes."
    asked = [set(query_words(text)) for text in texts]
    return np.array([any(words >= each for each in asked) for words in product_words(products, word_columns(products))])


def searcher_of(paths: Paths, data: dict, kept: np.ndarray, fitted: set[str], seed: int) -> Searcher:
    "Search some products, with a scale that is fitted to the images in `fitted`."
    part = data | dict(embeddings=data['embeddings'][kept], image_names=data['image_names'][kept], match_scale=None,
                       dataframe=data['dataframe'][kept].reset_index(drop=True))
    searcher = Searcher(*load_project_model(paths), part, image_dir=images_of(paths, data))
    products, index = searcher.dataframe, searcher.index
    main = np.arange(len(index)) if index.owners is None else np.unique(index.owners, return_index=True)[1]
    searcher.match_scale = fit_match_scale(
        index.embeddings[main].astype(np.float32), products, np.flatnonzero(products['image'].isin(fitted)),
        lambda texts: embed_texts(searcher.inference, searcher.processor, texts), WordIndex(products).scores, {}, seed)
    return searcher


def load_project_model(paths: Paths) -> tuple:
    from clip_ft.model import load_model
    return load_model(paths.best_model, verbose=False)


def images_of(paths: Paths, data: dict) -> Path:
    from clip_ft.data import catalogue_folder, image_folder
    return image_folder(catalogue_folder(paths), data['dataframe'])


def measure_texts(searcher: Searcher, queries: pd.DataFrame, limit: int | None) -> list[dict]:
    "One row per group of queries: text, category, colour, group."
    columns = [*word_columns(searcher.dataframe), 'description']
    if limit:
        queries = queries.sample(frac=1, random_state=0).groupby('group').head(limit).sort_index()
    results = searcher.search_many(queries['text'], SEARCHED)
    found = []
    for query, shown in zip(queries.itertuples(), results):
        first, right = shown.head(5), []
        if query.category:
            right = np.array(first['category'] == query.category, dtype=bool)
            if query.colour:
                right &= np.array(first['colour'] == query.colour, dtype=bool)
            if query.group == 'answerable: first words of a description':
                asked = set(query_words(query.text))
                right |= np.array([words >= asked for words in product_words(first, columns)], bool)
        found.append(dict(group=query.group, flagged=bool(match_note(shown)), right=bool(np.any(right)),
                          answerable=bool(query.category)))
    return summary(pd.DataFrame(found))


def summary(found: pd.DataFrame) -> list[dict]:
    rows = []
    for group, each in found.groupby('group', sort=False):
        row = dict(group=group, queries=len(each), flagged=each['flagged'].mean())
        if each['answerable'].all():
            row |= dict(right=each['right'].mean(), flagged_right=each.loc[each['right'], 'flagged'].mean())
        rows.append(row)
    return rows


def text_queries(products: pd.DataFrame, rows: np.ndarray, kinds: list[str], part: str) -> pd.DataFrame:
    "Texts with the category and colour that are asked for; empty for texts without an answer."
    found = example_queries(products, rows, np.random.default_rng(9))
    sources = found['source'].replace('description', 'first words of a description')
    groups = [found.assign(group='answerable: ' + sources)]

    def add(group: str, texts: list[str], category: str | list[str] = '') -> None:
        groups.append(pd.DataFrame(dict(text=texts, category=category, colour='', group=group)))

    present = set(products['category'])
    pairs = [(text, kind) for kind, texts in SYNONYMS.items() if kind in present for text in texts.split()]
    add('answerable: synonym of a category', [text for text, _ in pairs], [kind for _, kind in pairs])
    words = [word for word in half(FOREIGN, part) if not with_words(products, [word]).any()]
    for name, absent in (('left-out', kinds), ('foreign', words)):
        add(f'{name} kind', [kind.lower() for kind in absent])
        add(f'colour and {name} kind', [f'{colour} {kind.lower()}' for kind in absent for colour in COLOURS])
    add('nonsense', half(NONSENSE, part))
    return pd.concat([group for group in groups if len(group)], ignore_index=True)


def measure_images(searcher: Searcher, asked: pd.DataFrame, left_out: pd.DataFrame) -> list[dict]:
    "Photos of products that are not in the catalogue, of its kinds and of others."
    found = []
    groups = (('answerable: photo', asked, True), ('photo of a left-out kind', left_out, False))
    for group, photos, answerable in groups:
        for image, category in zip(photos['image'], photos['category']):
            shown = searcher.search(image=searcher.image_dir/image, top_k=SEARCHED)
            found.append(dict(group=group, flagged=bool(match_note(shown)), answerable=answerable,
                              right=category in set(shown['category'].head(5))))
    return summary(pd.DataFrame(found))


def make_demo(root: Path, seed: int, count: int = 8) -> Path:
    "Draw and train the demo without some kinds; return the table of their products."
    from clip_ft.data import preprocess
    from clip_ft.demo import draw_catalogue
    from clip_ft.embedding import embed_catalogue
    from clip_ft.settings import demo_config
    from clip_ft.sources import get_data
    from clip_ft.train_command import open_model
    from clip_ft.training import train
    table = root/'left_out.csv'
    if not table.exists():
        drawn = root/'drawn'
        draw_catalogue(drawn, seed=seed)
        products = pd.read_csv(drawn/'data.csv', dtype=str, keep_default_na=False)
        kinds = np.random.default_rng(seed).choice(np.array(sorted(set(products['category']))), count, replace=False)
        out = products['category'].isin(kinds)
        products[~out].to_csv(drawn/'data.csv', index=False)
        paths = Paths(root)
        get_data(drawn, paths)
        split = preprocess(paths)
        model, processor = open_model('tiny', split[0]['full_text'])
        config = demo_config()
        config.seed = seed
        with silent():
            train(model, processor, *split, drawn/'data', paths, config)
            model, processor = load_project_model(paths)
            embed_catalogue(model, processor, paths)
        products[out].to_csv(table, index=False)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('project', type=Path)
    parser.add_argument('--label', required=True)
    parser.add_argument('--left-out', type=Path)
    parser.add_argument('--demo', type=int)
    parser.add_argument('--half', choices=('choose', 'report'), default='report')
    parser.add_argument('--photos', type=int, default=150)
    parser.add_argument('--queries', type=int, help='most queries per group')
    parser.add_argument('--seed', type=int, default=0, help='of the queries that the scale is fitted to')
    parser.add_argument('--csv', type=Path, default=Path(RESULTS)/'no_match.csv')
    args = parser.parse_args()
    if args.demo is not None:
        args.left_out = make_demo(args.project, args.demo)
    paths = Paths(args.project)
    data, test = load_embeddings(paths.embeddings), load_split(paths)[1]['image']
    products = data['dataframe']
    left_out = pd.DataFrame(columns=['image', 'category'])
    if args.left_out:
        left_out = pd.read_csv(args.left_out, dtype=str, keep_default_na=False)
    kinds = half(sorted(set(left_out['category'])), args.half)
    left_out = left_out[left_out['category'].isin(kinds)]
    rng = np.random.default_rng(1)
    tested = np.flatnonzero(products['image'].isin(set(test)))
    fitted, asked = (tested[::4], tested[2::4]) if args.half == 'choose' else (tested[::2], tested[1::2])
    fit_images = set(products['image'].iloc[fitted])
    named = with_words(products, kinds) if kinds else np.zeros(len(products), bool)
    searcher = searcher_of(paths, data, ~named, fit_images, args.seed)
    queried = np.flatnonzero(searcher.dataframe['image'].isin(set(products['image'].iloc[asked])))
    rows = measure_texts(searcher, text_queries(searcher.dataframe, queried, kinds, args.half), args.queries)
    photos = rng.permutation(asked)[:args.photos]
    groups = duplicate_groups(products)
    gone = np.isin(groups, groups[photos]) | named
    without = searcher_of(paths, data, ~gone, fit_images, args.seed)
    shown = left_out.iloc[rng.permutation(len(left_out))[:args.photos]]
    rows += measure_images(without, products.iloc[photos], shown)
    table = pd.DataFrame(rows, columns=COLUMNS).assign(project=args.label).round(3)
    print(f'{len(searcher):,} products; without {", ".join(kinds)}')
    print(table.to_string(index=False))
    for name in ('text', 'image'):
        scale = getattr(searcher.match_scale, name)
        print(name, 'weights', (scale.weights*1).round(2), 'knots', scale.knots.round(2))
    if args.half == 'report':
        if args.csv.exists():
            old = pd.read_csv(args.csv)
            table = pd.concat([old[old['project'] != args.label], table], ignore_index=True)
        table.to_csv(args.csv, index=False)


if __name__ == '__main__':
    main()
