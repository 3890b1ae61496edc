"""What a search log teaches: the tiny CLIP trained on the demo catalogue with and without simulated clicks.

    python benchmarks/query_log.py --out FILE.json [--products 2277] [--epochs 20] [--seeds 3] [--workers 8]
        [--searches 20000] [--only without log] [--root FOLDER]

Shoppers look for a kind of product with a colour, a pattern or both, such as "striped dresses". Each word is the
catalogue's or, with probability 1/2, one that the catalogue does not use (WORDS): "pinstripe gown". A random half of
the queries is known: the log contains searches for them. A quarter of the products is new: neither catalogue texts
nor clicks of these are trained on.

Clicks are simulated for the known queries and known products. A search engine ranks all known products by kind
(1 point), by the other words (1 point if all fit) and by noise of standard deviation 0.7, which is the same in all
searches for a query. A shopper looks at the result at rank r with probability 1/r, which is the position bias, and
clicks what he sees with a probability of 0.6 if kind and words fit, 0.15 if the kind fits, and 0.03 otherwise. The
number of searches for a query follows Zipf's law. The log has the columns query, image and clicks.

Variants, all with the same settings, seeds and number of steps:

    without       the catalogue's own texts
    log           query_share 0.25, the default
    log_half      query_share 0.5
    equal         query_share 0.25, without weights

The metric is nDCG@10 of four sets of queries, with the true gains 3 (kind and words fit) and 1 (the kind fits):

    new, known    new queries, searched among the known products
    known, new    known queries, searched among the new products
    new, new      new queries, searched among the new products
    known, known  for comparison: both were trained on

and the reciprocal rank of the names of the new products among these products (names). Differences to the variant
without the log are paired by query, whose value is the mean of the seeds; queries for the same kind, colour and
pattern count as one. Intervals are 95 % bootstrap intervals; the standard deviation of the difference over seeds is
given as well. Two processor cores need about 2 minutes for a run of 20 epochs.
"""
import json
import tempfile
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from common import Results, benchmark_parser, bootstrap_interval, load_parts, rounded, silent, usable_cores

KIND_WORDS = {
    'Tshirts': 'singlet', 'Shirts': 'oxford', 'Tops': 'blouse', 'Sweaters': 'cardigan', 'Sweatshirts': 'hoodie',
    'Jackets': 'coat', 'Dresses': 'gown', 'Nightdress': 'pyjamas', 'Skirts': 'kilt', 'Shorts': 'boardies',
    'Jeans': 'levis', 'Trousers': 'chinos', 'Track Pants': 'sweatpants', 'Socks': 'stockings',
    'Casual Shoes': 'kicks', 'Sports Shoes': 'gym footwear', 'Heels': 'pumps', 'Sandals': 'espadrilles',
    'Boots': 'wellies', 'Flip Flops': 'pool slides', 'Handbags': 'clutch', 'Backpacks': 'knapsack',
    'Wallets': 'cardholder', 'Watches': 'chronograph', 'Sunglasses': 'ray bans', 'Caps': 'headgear',
    'Scarves': 'shawl', 'Belts': 'waistband', 'Ties': 'cravat', 'Earrings': 'jewellery'}
COLOUR_WORDS = {
    'black': 'ebony', 'white': 'ivory', 'grey': 'charcoal', 'navy': 'midnight', 'blue': 'cobalt', 'red': 'crimson',
    'green': 'emerald', 'yellow': 'lemon', 'orange': 'tangerine', 'pink': 'fuchsia', 'purple': 'violet',
    'brown': 'mocha', 'beige': 'nude', 'teal': 'turquoise'}
PATTERN_WORDS = {
    'striped': 'pinstripe', 'checked': 'tartan', 'polka dot': 'spotty', 'floral': 'botanical', 'zigzag': 'wavy'}
WORDS = {name.lower(): word for words in (KIND_WORDS, COLOUR_WORDS, PATTERN_WORDS) for name, word in words.items()}
FIT, KIND, OTHER = .6, .15, .03  # probability of a click on a product that is looked at
GAINS = (3., 1.)  # kind and words fit, the kind fits
NOISE = .7  # standard deviation of the score of the search engine
VARIANTS = dict(without=None, log=dict(query_share=.25), log_half=dict(query_share=.5), equal=dict(query_share=.25))
SETS = ('new, known', 'known, new', 'new, new', 'known, known')


# ---- queries and clicks

@dataclass
class Shop:
    "The catalogue, split into known and new products, and the queries, split into known and new ones."
    paths: object
    known: pd.DataFrame
    new: pd.DataFrame
    image_dir: Path
    queries: pd.DataFrame  # text, colour, pattern (both may be empty), kind, is_known


def all_queries(products: pd.DataFrame, seed: int) -> pd.DataFrame:
    "Every combination of kind with colour, pattern or both that a product has, in all wordings; half are known."
    rng = np.random.default_rng(seed)
    asked = pd.concat([products[['colour', 'pattern', 'category']], products.assign(pattern='')[
        ['colour', 'pattern', 'category']], products.assign(colour='')[['colour', 'pattern', 'category']]])
    asked = asked[asked['pattern'] != 'solid'].drop_duplicates().sort_values(['category', 'colour', 'pattern'])
    rows = []
    for colour, pattern, kind in asked.itertuples(index=False):
        parts = [part for part in (colour, pattern, kind.lower()) if part]
        for words in product(*((part, WORDS[part]) for part in parts)):
            rows.append((' '.join(words), colour, pattern, kind))
    queries = pd.DataFrame(rows, columns=['text', 'colour', 'pattern', 'kind'])
    if len(queries) > 4000:
        queries = queries.sample(4000, random_state=seed).reset_index(drop=True)
    return queries.assign(is_known=rng.random(len(queries)) < .5)


def fits(queries: pd.DataFrame, products: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    "Whether kind and words of each query fit each product, and whether the kind does; bool [queries, products]."
    def equal(query, column):
        asked = queries[query].to_numpy(object)[:, None]
        return (asked == products[column].to_numpy(object)) | (asked == '')
    kind = equal('kind', 'category')
    return kind & equal('colour', 'colour') & equal('pattern', 'pattern'), kind


def simulate_clicks(queries: pd.DataFrame, products: pd.DataFrame, searches: int, seed: int) -> pd.DataFrame:
    "The log: query, image, clicks."
    rng = np.random.default_rng(seed)
    fit, kind = fits(queries, products)
    scores = kind + 1.*fit + rng.normal(0, NOISE, fit.shape)
    rank = scores.argsort(axis=1)[:, ::-1].argsort(axis=1) + 1
    popularity = 1/(1 + rng.permutation(len(queries)))
    counts = rng.multinomial(searches, popularity/popularity.sum())
    click = np.where(fit, FIT, np.where(kind, KIND, OTHER))/rank
    clicks = rng.binomial(counts[:, None], click*(rank <= 50))
    query, image = clicks.nonzero()
    return pd.DataFrame(dict(query=queries['text'].to_numpy()[query], image=products['image'].to_numpy()[image],
                             clicks=clicks[query, image]))


def open_shop(root: Path, limit: int | None) -> Shop:
    "Draw and split the demo, unless that is done, and compose the queries."
    from clip_ft.core import Paths
    from clip_ft.data import preprocess
    from clip_ft.sources import get_data
    paths = Paths(root)
    if not paths.train_csv.exists():
        get_data('demo', paths, limit=limit)
        preprocess(paths, test_size=.25)
    paths, known, new, image_dir = load_parts(root)
    return Shop(paths, known, new, image_dir, all_queries(pd.concat([known, new]), seed=0))


# ---- training and measuring

def train_variant(shop: Shop, variant: str, seed: int, epochs: int, log: pd.DataFrame) -> tuple:
    "Train one variant; returns model and processor."
    from clip_ft.core import Paths
    from clip_ft.train_command import demo_config, open_model
    from clip_ft.training import train
    model, processor = open_model('tiny', shop.known['full_text'])
    settings = dict(epochs=epochs, patience=epochs, augment=False, interpolate=False, compile=False, seed=42 + seed)
    config = demo_config(**settings | (VARIANTS[variant] or {}))
    queries = None if variant == 'without' else log.drop(columns='clicks') if variant == 'equal' else log
    with tempfile.TemporaryDirectory() as folder:
        own = Paths(folder)
        own.pixels = shop.paths.pixels
        train(model, processor, shop.known, shop.new.head(64), shop.image_dir, own, config, queries=queries)
    return model, processor


def measure(shop: Shop, model, processor) -> dict[str, pd.Series]:
    "Set of queries -> nDCG@10, or reciprocal rank, of each query; the index is the row of the query."
    from clip_ft.data import duplicate_groups
    from clip_ft.encode import embed_images, embed_texts
    from clip_ft.metrics import query_metrics, rank_relevant, relevant_rows
    from clip_ft.views import image_rows
    values, query_embeds = {}, embed_texts(model, processor, shop.queries['text'])
    for gallery, products in dict(known=shop.known, new=shop.new).items():
        images = image_rows(products)
        image_embeds = embed_images(model, processor, images.paths(shop.image_dir), progress=False)
        fit, kind = fits(shop.queries, products)
        for asked, chosen in dict(known=shop.queries['is_known'], new=~shop.queries['is_known']).items():
            rows = np.flatnonzero(chosen.to_numpy() & fit.any(axis=1))
            relevant = [np.flatnonzero(kind[row]) for row in rows]
            gains = [np.where(fit[row][found], *GAINS) for row, found in zip(rows, relevant)]
            ranking = rank_relevant(query_embeds[rows], image_embeds, relevant, gains, owners=images.owners)
            values[f'{asked}, {gallery}'] = pd.Series(query_metrics(ranking)['ndcg@10'].to_numpy(), rows)
    names = embed_texts(model, processor, products['display name'])
    ranking = rank_relevant(names, image_embeds, relevant_rows(duplicate_groups(products)), owners=images.owners)
    return values | dict(names=query_metrics(ranking)['mrr'])


def run(root: Path, variant: str, seed: int, threads: int, args: Namespace) -> tuple:
    "Train and measure in a process of its own."
    import torch
    torch.set_num_threads(threads)
    start = time.perf_counter()
    with silent():
        shop = open_shop(root, args.products)
        known = shop.queries[shop.queries['is_known']]
        log = simulate_clicks(known, shop.known, args.searches, seed)
        values = measure(shop, *train_variant(shop, variant, seed, args.epochs, log))
    return variant, seed, time.perf_counter() - start, len(log), values


def build_pixels(shop: Shop):
    "Decode the images once, before several processes need them."
    from clip_ft.dataset import PixelCache, ResizeSpec
    from clip_ft.train_command import open_model
    from clip_ft.views import image_rows
    spec = ResizeSpec.from_processor(open_model('tiny', shop.known['full_text'], 'cpu')[1])
    for products in (shop.known, shop.new.head(64)):
        PixelCache.build(image_rows(products).paths(shop.image_dir), spec, shop.paths.pixels)


# ---- results

def summary(shop: Shop, found: dict[tuple[str, int], dict]) -> list[dict]:
    "One record per variant and set of queries: the mean and, but for the first, the difference to the first."
    variants, records = [name for name in VARIANTS if any(name == variant for variant, _ in found)], []
    intent = shop.queries[['colour', 'pattern', 'kind']].agg('|'.join, axis=1)

    def by_intent(values, name):
        return values if name == 'names' else values.groupby(intent[values.index]).mean()

    for variant in variants:
        seeds = sorted(seed for name, seed in found if name == variant)
        for name in (*SETS, 'names'):
            values = [by_intent(found[variant, seed][name], name) for seed in seeds]
            record = dict(variant=variant, queries=name, n=len(found[variant, seeds[0]][name]), groups=len(values[0]),
                          seeds=len(seeds), value=np.mean(values))
            paired = [seed for seed in seeds if ('without', seed) in found]
            if variant != 'without' and paired:
                changes = [by_intent(found[variant, seed][name] - found['without', seed][name], name)
                           for seed in paired]
                low, high = bootstrap_interval(np.mean(changes, axis=0))
                spread = np.std([change.mean() for change in changes], ddof=1) if len(changes) > 1 else np.nan
                record |= dict(difference=np.mean(changes), low=low, high=high, sd_of_seeds=spread)
            records.append(record)
    return records


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('--out', type=Path, required=True, help='JSON file to write')
    parser.add_argument('--root', type=Path, help='folder of the catalogue; default: a temporary folder')
    parser.add_argument('--products', type=int, help='size of the demo catalogue; default: all of it')
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--searches', type=int, default=20_000)
    parser.add_argument('--workers', type=int, default=max(1, usable_cores()//2), help='runs at the same time')
    parser.add_argument('--only', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    threads, found = max(1, usable_cores()//args.workers), {}
    with tempfile.TemporaryDirectory() as folder, Results(args) as results:
        root = args.root or Path(folder)
        with silent():
            shop = open_shop(root, args.products)
            build_pixels(shop)
        results.add(known_products=len(shop.known), new_products=len(shop.new), queries=len(shop.queries),
                    known_queries=int(shop.queries['is_known'].sum()))
        with ProcessPoolExecutor(args.workers, get_context('spawn')) as pool:
            runs = [pool.submit(run, root, variant, seed, threads, args)
                    for seed in range(args.seeds) for variant in args.only]
            for finished in as_completed(runs):
                variant, seed, seconds, lines, values = finished.result()
                found[variant, seed] = values
                means = {name: each.mean() for name, each in values.items()}
                results.add(variant=variant, seed=seed, seconds=seconds, log_lines=lines, **means)
        table = summary(shop, found)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rounded(results.about | dict(records=results.records, summary=table)), indent=1))
        print(pd.DataFrame(table).to_string(index=False, float_format='{:.3f}'.format))


if __name__ == '__main__':
    main()
