"""Share of queries that a search flags with "No good match", for queries with and without right products.

    python benchmarks/no_match.py PROJECT --label NAME [--left-out TABLE] [--half choose] [--seeds 0 1 2]
    python benchmarks/no_match.py FOLDER --label NAME --demo --seeds 1 2 3

PROJECT has a model and embeddings. TABLE is a CSV file of products, with the columns image and category, whose
categories are neither in the catalogue of PROJECT nor in the training of its model; their images are in its folder of
images. --demo draws, trains and embeds the demo catalogue without eight kinds in FOLDER/SEED first, once per seed. The
other seeds choose the example queries of the scale and those that are asked.

The scale of matches is fitted here, to the names and images of every second test product; the queries are those of the
others. Features and floors were chosen with --half choose, on one half of the left-out kinds, of the foreign words and
of the test products; the results are those of the other halves. Products whose names have all words of a left-out kind
are removed from the catalogue.

Words of descriptions are cut in other ways than those that the scale is fitted to: eight words from the beginning, four
to twelve from any place, and three to seven after a category, as in "tshirts with white high collared". The long
queries without an answer are the same cuts of descriptions of left-out products, if they name the left-out kind, and
foreign kinds with several words.

right: share of the queries with a right product among the first five: of the category (and colour) that is asked
for, or, for words of a description, with all of them in its texts. flagged_right: share that is flagged among these.
low and high: 95 % interval of the share of flagged queries, over 1,000 resamples of the texts of all seeds. The rows of
the label in the CSV file are replaced.
"""
import argparse
import re
from pathlib import Path

import numpy as np
import pandas as pd
from common import RESULTS, silent

from clip_ft.core import Paths
from clip_ft.data import duplicate_groups, load_split
from clip_ft.embeddings_file import load_embeddings
from clip_ft.encode import embed_texts
from clip_ft.images import ImageError, open_image
from clip_ft.match_fit import Examples, MatchScale, fit_image_scale, fit_match_scale
from clip_ft.match_scale import TEXT_FEATURES, match_note, product_words, query_words, word_columns
from clip_ft.search import Searcher
from clip_ft.texts import category_words, example_queries
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
LONG_FOREIGN = [
    'wooden garden table with four chairs', 'stainless steel kettle with a glass lid',
    'bathroom mirror with led lights', 'cordless electric drill with two batteries',
    'large leather sofa for the living room', 'wall clock made of bamboo',
    'folding mountain bicycle with disc brakes', 'digital piano with weighted keys',
    'quiet dishwasher for small kitchens', 'laptop with backlit keyboard and fast processor',
    'fresh banana bread with walnuts', 'solar lamp for garden paths', 'cast iron frying pan with wooden handle',
    'double bed with storage drawers', 'ceramic plant pot for the balcony', 'hedge trimmer with telescopic handle',
    'wireless printer with scanner and fax', 'car tyres for icy winter roads',
    'memory foam mattress for side sleepers', 'scented candle in a glass jar',
    'light aluminium ladder with nine steps', 'robot vacuum cleaner for pet hair',
    'acoustic guitar for beginners with tuner', 'dry cat food with salmon and rice',
    'garden hose with adjustable spray nozzle', 'inflatable canoe for two people',
    'office chair with adjustable armrests', 'bread toaster with removable crumb tray',
    'oak bookshelf with five adjustable shelves', 'fish tank with filter pump', 'microwave oven with grill function',
    'baby stroller with rain cover', 'espresso machine with milk frother', 'camping tent for four persons',
    'set of kitchen knives in a wooden block', 'paint roller for very smooth walls',
    'electric lawnmower with grass collector', 'trampoline with safety net for children',
    'patio heater with gas bottle', 'ergonomic computer mouse with usb cable', 'curtain rod in brushed nickel',
    'chess board made of walnut wood', 'telescope for watching planets and stars', 'wheelbarrow with pneumatic tyre',
    'blender for smoothies and soups', 'cheese from the alps aged twelve months', 'motor oil for diesel engines',
    'picture frame for large posters',
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
COLUMNS = ['project', 'group', 'seeds', 'queries', 'flagged', 'low', 'high', 'right', 'flagged_right']
PHRASES = 'first words of a description', 'words of a description', 'kind with words of a description'


def half(values: list, part: str) -> list:
    "A random half of some values, for choosing features or for reporting."
    order = np.random.default_rng(5).permutation(len(values))
    return [values[place] for place in np.sort(order[part == 'choose'::2])]


def with_words(products: pd.DataFrame, texts: list[str]) -> np.ndarray:
    "Whether each product has all words of one of the texts in its name, category or attributes."
    asked = [set(query_words(text)) for text in texts]
    return np.array([any(words >= each for each in asked) for words in product_words(products, word_columns(products))])


def searcher_of(
    paths: Paths, data: dict, kept: np.ndarray, fitted: set[str], seed: int, texts: bool = True
) -> Searcher:
    "Search some products, with scales of queries by text (or by image) that are fitted to the images in `fitted`."
    part = data | dict(embeddings=data['embeddings'][kept], image_names=data['image_names'][kept], match_scale=None,
                       dataframe=data['dataframe'][kept].reset_index(drop=True))
    searcher = Searcher(*load_project_model(paths), part, image_dir=images_of(paths, data))
    products, index = searcher.dataframe, searcher.index
    main = np.arange(len(index)) if index.owners is None else np.unique(index.owners, return_index=True)[1]
    rows, vectors = np.flatnonzero(products['image'].isin(fitted)), index.embeddings[main].astype(np.float32)

    def embed(asked: list[str]) -> np.ndarray:
        return embed_texts(searcher.inference, searcher.processor, asked)

    if texts:
        searcher.match_scale = fit_match_scale(vectors, products, rows, embed, WordIndex(products).scores, {}, seed)
    else:
        examples = Examples(vectors, products, embed)
        image = fit_image_scale(examples, rows, seed)
        searcher.match_scale = MatchScale({}, len(products), examples.columns, {}, examples.kinds,
                                          examples.kind_vectors, None, None, image)
    return searcher


def load_project_model(paths: Paths) -> tuple:
    from clip_ft.model import load_model
    return load_model(paths.best_model, verbose=False)


def images_of(paths: Paths, data: dict) -> Path:
    from clip_ft.data import catalogue_folder, image_folder
    return image_folder(catalogue_folder(paths), data['dataframe'])


def measure_texts(searcher: Searcher, queries: pd.DataFrame) -> list[dict]:
    "One row per query: whether it is flagged, and answered right."
    columns = [*word_columns(searcher.dataframe), 'description']
    results = searcher.search_many(queries['text'], SEARCHED)
    found = []
    for query, shown in zip(queries.itertuples(), results):
        first, right = shown.head(5), []
        if query.category:
            right = np.array(first['category'] == query.category, dtype=bool)
            if query.colour:
                right &= np.array(first['colour'] == query.colour, dtype=bool)
            if query.group.endswith(PHRASES):
                asked = set(query_words(query.text))
                right |= np.array([words >= asked for words in product_words(first, columns)], bool)
        found.append(dict(group=query.group, text=query.text, flagged=bool(match_note(shown)),
                          right=bool(np.any(right)), answerable=bool(query.category)))
    return found


def interval(each: pd.DataFrame) -> tuple[float, float]:
    "95 % interval of the share of flagged queries, by resampling their texts."
    texts = each.groupby('text')['flagged'].agg(['sum', 'size']).to_numpy()
    drawn = texts[np.random.default_rng(0).integers(len(texts), size=(1000, len(texts)))].sum(axis=1)
    return tuple(np.quantile(drawn[:, 0]/drawn[:, 1], (.025, .975)))


def summary(found: pd.DataFrame) -> list[dict]:
    "One row per group of queries."
    rows = []
    for group, each in found.groupby('group', sort=False):
        low, high = interval(each)
        row = dict(group=group, seeds=each['seed'].nunique(), queries=len(each), flagged=each['flagged'].mean(),
                   low=low, high=high)
        if each['answerable'].all():
            row |= dict(right=each['right'].mean(), flagged_right=each.loc[each['right'], 'flagged'].mean())
        rows.append(row)
    return rows


def phrases(products: pd.DataFrame, how: str, rng: np.random.Generator) -> pd.DataFrame:
    "One text per product with a description of at least four words: its category, and words of the description."
    kinds, found = category_words(products['category']), []
    for kind, category, description in zip(kinds, products['category'], products['description']):
        sentences = [each.split() for each in re.split(r'[.!?;:\n]', description) if len(each.split()) >= 4]
        if not sentences:
            continue
        words = sentences[0 if how != PHRASES[1] else rng.integers(len(sentences))]
        count = {PHRASES[0]: 8, PHRASES[1]: rng.integers(4, 13), PHRASES[2]: rng.integers(3, 8)}[how]
        start = 0 if how == PHRASES[0] else rng.integers(max(1, len(words) - count + 1))
        text = ' '.join(words[start:start + count])
        found.append((f'{kind} with {text}' if how == PHRASES[2] else text, category))
    return pd.DataFrame(found, columns=['text', 'category'])


def text_queries(
    products: pd.DataFrame, rows: np.ndarray, left_out: pd.DataFrame, part: str, limit: int, seed: int
) -> pd.DataFrame:
    "Texts with the category and colour that are asked for; empty for texts without an answer."
    rng, kinds = np.random.default_rng([9, seed]), sorted(set(left_out['category']))
    found = example_queries(products, rows, rng)
    found = found[found['source'] != 'description']
    groups = [found.assign(group='answerable: ' + found['source'])]

    def add(group: str, texts: list[str], category: str | list[str] = '') -> None:
        groups.append(pd.DataFrame(dict(text=texts, category=category, colour='', group=group)))

    for how in PHRASES:
        asked = phrases(products.iloc[rng.permutation(rows)[:limit]], how, rng)
        add(f'answerable: {how}', asked['text'], asked['category'])
    present = set(products['category'])
    pairs = [(text, kind) for kind, texts in SYNONYMS.items() if kind in present for text in texts.split()]
    add('answerable: synonym of a category', [text for text, _ in pairs], [kind for _, kind in pairs])
    words = [word for word in half(FOREIGN, part) if not with_words(products, [word]).any()]
    for name, absent in (('left-out', kinds), ('foreign', words)):
        add(f'{name} kind', [kind.lower() for kind in absent])
        add(f'colour and {name} kind', [f'{colour} {kind.lower()}' for kind in absent for colour in COLOURS])
    add('nonsense', half(NONSENSE, part))
    add('foreign kind, long', half(LONG_FOREIGN, part))
    for how in PHRASES if len(kinds) else ():
        asked = phrases(left_out.iloc[rng.permutation(len(left_out))], how, rng)
        pairs = zip(asked['text'], asked['category'])
        names = [set(query_words(text)) >= set(query_words(kind)) for text, kind in pairs]
        add(f'left-out product: {how}', asked.loc[names, 'text'])
    sampled = [group.sample(min(limit, len(group)), random_state=seed) for group in
               (each for table in groups for _, each in table.groupby('group', sort=False))]
    return pd.concat(sampled, ignore_index=True)


def readable(path: Path) -> bool:
    "Whether an image can be decoded; the demo has a few damaged ones."
    try:
        open_image(path)
    except ImageError:
        return False
    return True


def measure_images(searcher: Searcher, asked: pd.DataFrame, left_out: pd.DataFrame) -> list[dict]:
    "Photos of products that are not in the catalogue, of its kinds and of others."
    found = []
    groups = (('answerable: photo', asked, True), ('photo of a left-out kind', left_out, False))
    for group, photos, answerable in groups:
        for image, category in zip(photos['image'], photos['category']):
            shown = searcher.search(image=searcher.image_dir/image, top_k=SEARCHED)
            found.append(dict(group=group, text=image, flagged=bool(match_note(shown)), answerable=answerable,
                              right=category in set(shown['category'].head(5))))
    return found


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


def measure(paths: Paths, left_out: pd.DataFrame, part: str, limit: int, photos: int, seed: int) -> list[dict]:
    "One row per query of a seed."
    data, test = load_embeddings(paths.embeddings), load_split(paths)[1]['image']
    products, rng = data['dataframe'], np.random.default_rng([1, seed])
    kinds = half(sorted(set(left_out['category'])), part)
    left_out = left_out[left_out['category'].isin(kinds)]
    tested = np.flatnonzero(products['image'].isin(set(test)))
    fitted, asked = (tested[::4], tested[2::4]) if part == 'choose' else (tested[::2], tested[1::2])
    fit_images = set(products['image'].iloc[fitted])
    named = with_words(products, kinds) if kinds else np.zeros(len(products), bool)
    searcher = searcher_of(paths, data, ~named, fit_images, seed)
    queried = np.flatnonzero(searcher.dataframe['image'].isin(set(products['image'].iloc[asked])))
    found = measure_texts(searcher, text_queries(searcher.dataframe, queried, left_out, part, limit, seed))
    print(f'{len(searcher):,} products; without {", ".join(kinds)}')
    for name in ('short', 'long'):
        scale = getattr(searcher.match_scale, name)
        weights = dict(zip(TEXT_FEATURES, scale.weights.round(2).tolist()))
        print(name, weights, 'knots', scale.knots.round(2), flush=True)
    shown = rng.permutation(asked)[:photos]
    groups = duplicate_groups(products)
    without = searcher_of(paths, data, ~(np.isin(groups, groups[shown]) | named), fit_images, seed, texts=False)
    absent = left_out.iloc[rng.permutation(len(left_out))[:photos]]
    absent = absent[[readable(without.image_dir/name) for name in absent.get('image', ())]]
    return [row | dict(seed=seed) for row in found + measure_images(without, products.iloc[shown], absent)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('project', type=Path)
    parser.add_argument('--label', required=True)
    parser.add_argument('--left-out', type=Path)
    parser.add_argument('--demo', action='store_true')
    parser.add_argument('--half', choices=('choose', 'report'), default='report')
    parser.add_argument('--photos', type=int, default=60)
    parser.add_argument('--queries', type=int, default=100, help='most queries per group and seed')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--csv', type=Path, default=Path(RESULTS)/'no_match.csv')
    args = parser.parse_args()
    found = []
    for seed in args.seeds:
        root = args.project/str(seed) if args.demo else args.project
        path = make_demo(root, seed) if args.demo else args.left_out
        left_out = pd.read_csv(path, dtype=str, keep_default_na=False) if path else pd.DataFrame(columns=['category'])
        found += measure(Paths(root), left_out, args.half, args.queries, args.photos, seed)
    table = pd.DataFrame(summary(pd.DataFrame(found)), columns=COLUMNS).assign(project=args.label).round(3)
    print(table.to_string(index=False))
    if args.half == 'report':
        if args.csv.exists():
            old = pd.read_csv(args.csv)
            table = pd.concat([old[old['project'] != args.label], table], ignore_index=True)
        table.to_csv(args.csv, index=False)


if __name__ == '__main__':
    main()
