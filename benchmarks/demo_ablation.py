"""Effect of settings, texts, augmentation and shape of the tiny CLIP on the demo catalogue.

    python benchmarks/demo_ablation.py [--root FOLDER] [--out FOLDER] [--seeds 0 1] [--only demo hard_negatives ...]
        [--products 2000] [--epochs 40] [--more 20] [--workers 1] [--csv benchmarks/results/demo_ablation.csv]

Variants that start from random weights:

    demo                   demo_config() and tiny_model()
    hard_negatives         batches filled with clusters of 8 similar products
    full_text              full texts only, as in the recipe
    augmented              images with augmentation
    earlier                the settings and the model before this comparison: small_patches, wide_text, 20 epochs,
                           augmented, without bare categories
    earlier_unaugmented    earlier, without augmentation
    small_patches          patches of 16 pixels instead of 32, so 36 per image instead of 9
    wide_text              a text tower of the same width as the vision tower
    without_bare_category  without texts that name the category alone
    fewer_epochs           20 epochs instead of 40
    faster                 learning rate 8e-4
    large_batches          64 products per batch, learning rate 8e-4, 60 epochs

Variants that continue the demo model of the same seed for --more epochs at half the learning rate, and keep the last
epoch:

    again                 as demo
    again_hard            with hard negatives, chosen by a model that is already trained
    again_hard_X          with hard negatives and X: skipS, the S nearest products of each are kept out of its cluster;
                          marginM, products with a cosine above 1-M, in per cent, are left out of the loss; or both
    again_margin20        without hard negatives, with this margin
    again_augmented       with augmentation
    again_augmented_hard  with augmentation and hard negatives

There are two galleries. The first is a second demo catalogue of 3,000 products, drawn from another seed, which no
model has seen. Queries are all combinations of colour and category in it, such as "blue dresses"; every product that
has both is right. The second, for the metrics that start with "catalogue", is the whole catalogue of the demo, training
and test products, as shoppers search it: each category in the form of the catalogue ("watches") and of the names
("watch"), and each combination of colour and category with at least five products in both forms.

precision@5 is the share of right products among the first 5, or among as many as there are; type@5 the share of
those of the right category. "mistaken", for a pair of similar categories: the share of images that fit the phrase of
the other category ("blue nightdress") better than their own ("blue dresses"); 50 % is chance. "confused", for
queries of such a pair: the share of the first 5 that belong to the other category.

negatives, in the records: of the pairs within a cluster (of a batch, without clusters) that are no duplicates, the
share that agree in colour and category, of all such pairs and of those that are not left out of the loss, and the
share that is left out; means of the epochs.

The table at the end gives means over queries or images, in per cent, with 95 % bootstrap intervals; the value of a
query is the mean of its seeds. Differences are paired. --csv writes the same table, one row per metric, with the
standard deviation over seeds (spread). Each run prints one record. Runs that are finished in --out are not repeated.
--workers is the number of runs at the same time; on a GPU, which they share, eight keep 16 cores busy.
"""
import multiprocessing
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from common import Results, benchmark_parser, bootstrap_interval, measuring_negatives, prepare_split, silent

PAIRS = (('Dresses', 'Nightdress'), ('Skirts', 'Shorts'))
OTHER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
HARD = dict(hard_negative_size=8)
AUGMENTED = dict(augment=True)
AGAIN = dict(lr=2.5e-4, val_size=0.)
WITHOUT_BARE = dict(texts=dict(name=1, full_text=1, attributes=2))
SKIPS, MARGINS = (3, 7), (10, 20, 30)
SKIPPED = {f'skip{skip}': dict(hard_negative_skip=skip) for skip in SKIPS}
MASKED = {f'margin{margin}': dict(false_negative_margin=margin/100) for margin in MARGINS}
BOTH = {f'{a}_{b}': SKIPPED[a] | MASKED[b] for a in SKIPPED for b in MASKED}
EARLIER = WITHOUT_BARE | dict(epochs=20, lr=4e-4, patience=4)
VARIANTS = dict(
    demo={}, hard_negatives=HARD, full_text=dict(texts=dict(full_text=1)), augmented=AUGMENTED,
    earlier=EARLIER | AUGMENTED, earlier_unaugmented=EARLIER, small_patches={}, wide_text={},
    without_bare_category=WITHOUT_BARE, fewer_epochs=dict(epochs=20), faster=dict(lr=8e-4),
    large_batches=dict(batch_size=64, lr=8e-4, epochs=60),
    again=AGAIN, again_hard=AGAIN | HARD, again_augmented=AGAIN | AUGMENTED,
    again_augmented_hard=AGAIN | AUGMENTED | HARD, again_margin20=AGAIN | MASKED['margin20'],
    **{f'again_hard_{name}': AGAIN | HARD | changes for name, changes in (SKIPPED | MASKED | BOTH).items()})
SMALL_PATCHES, WIDE_TEXT = dict(patch_size=16), dict(hidden_size=128, intermediate_size=512)
SHAPES = dict(  # variant to changes of the vision tower and of the text tower
    earlier=(SMALL_PATCHES, WIDE_TEXT), earlier_unaugmented=(SMALL_PATCHES, WIDE_TEXT),
    small_patches=(SMALL_PATCHES, {}), wide_text=({}, WIDE_TEXT))
COMPARED_WITH = {name: 'demo' for name in VARIANTS if name != 'demo'} | {
    name: 'again' for name in VARIANTS if name.startswith(('again_hard_', 'again_margin'))} | dict(
    earlier_unaugmented='earlier', again_hard='again', again_augmented='again', again_augmented_hard='again_augmented')


def fresh_gallery(folder: Path) -> tuple[pd.DataFrame, Path]:
    "Products and image folder of a second demo catalogue."
    from clip_ft.data import clean_products, image_folder, read_products
    from clip_ft.demo import draw_catalogue
    if not (folder/'data.csv').exists():
        draw_catalogue(folder, n=3000, seed=1234)
    images = image_folder(folder)
    return clean_products(read_products(folder), images)[0], images


def measure(model, processor, products: pd.DataFrame, image_dir: Path) -> dict[str, np.ndarray]:
    "Metric -> its value for each query or image."
    from clip_ft.data import image_paths
    from clip_ft.encode import embed_images, embed_texts
    from clip_ft.metrics import rank_relevant
    from clip_ft.queries import short_queries
    from clip_ft.texts import attribute_phrases
    queries, categories = short_queries(products, 'colour', limit=len(products)), products['category'].to_numpy()
    image_embeds = embed_images(model, processor, image_paths(products, image_dir), progress=False)
    query_embeds = embed_texts(model, processor, queries.texts)
    top = rank_relevant(query_embeds, image_embeds, queries.relevant, top_k=5).top
    right = [np.isin(rows, relevant).sum()/min(5, len(relevant)) for rows, relevant in zip(top, queries.relevant)]
    asked = categories[queries.rows]
    values = {'precision@5': np.array(right), 'type@5': (categories[top] == asked[:, None]).mean(1)}
    swapped = products.assign(category=products['category'].map(OTHER).fillna(''))
    phrases = [attribute_phrases(table)['colour'] for table in (products, swapped)]
    other_category = np.array([OTHER.get(category, '') for category in asked])
    for pair in PAIRS:
        name, rows = '/'.join(pair), np.flatnonzero(np.isin(categories, pair))
        embeds = [embed_texts(model, processor, texts.iloc[rows]) for texts in phrases]
        own, other = (np.vecdot(image_embeds[rows], each) for each in embeds)
        values[f'mistaken {name}'] = (own < other).astype(float)
        about = np.isin(asked, pair)
        values[f'confused {name}'] = (categories[top[about]] == other_category[about, None]).mean(1)
    return values


def precision_at_5(model, processor, queries: list[str], image_embeds: np.ndarray, relevant: list) -> np.ndarray:
    "Share of right products among the first 5, or among as many as there are, for each query."
    from clip_ft.encode import embed_texts
    from clip_ft.metrics import rank_relevant
    top = rank_relevant(embed_texts(model, processor, queries), image_embeds, relevant, top_k=5).top
    return np.array([np.isin(rows, right).sum()/min(5, len(right)) for rows, right in zip(top, relevant)])


def measure_catalogue(model, processor, products: pd.DataFrame, image_dir: Path) -> dict[str, np.ndarray]:
    "Metric -> its value for each plain query, searched in the catalogue of the demo."
    from clip_ft.data import image_paths
    from clip_ft.demo import KINDS
    from clip_ft.encode import embed_images
    image_embeds = embed_images(model, processor, image_paths(products, image_dir), progress=False)
    kinds = products.groupby('category').indices
    pairs = products.groupby(['colour', 'category']).indices
    pairs = {pair: rows for pair, rows in pairs.items() if len(rows) >= 5}
    values = {}
    for form, words in dict(plural=str.lower, singular=lambda kind: KINDS[kind].noun.lower()).items():
        for name, found in dict(kinds=kinds, pairs=pairs).items():
            queries = [words(key) if name == 'kinds' else f'{key[0]} {words(key[1])}' for key in found]
            right = precision_at_5(model, processor, queries, image_embeds, list(found.values()))
            values[f'catalogue {name} {form}'] = right
    return values


def shaped(model, vision: dict, text: dict):
    "A model with random weights like tiny_model, with towers of another shape."
    import torch
    from transformers import CLIPModel
    config = model.config
    for tower, changes in ((config.vision_config, vision), (config.text_config, text)):
        for name, value in changes.items():
            setattr(tower, name, value)
    torch.manual_seed(0)
    return CLIPModel(config).eval()


def train_variant(name: str, seed: int, paths, args: Namespace) -> tuple:
    "Train one variant; returns model, processor and history. Checkpoints go to a temporary folder."
    from clip_ft.checkpoints import load_checkpoint
    from clip_ft.core import Paths
    from clip_ft.data import catalogue_folder, image_folder, load_split
    from clip_ft.train_command import demo_config, open_model
    from clip_ft.training import train
    products, test_products = load_split(paths)
    model, processor = open_model('tiny', products['full_text'])
    if name in SHAPES:
        model = shaped(model, *SHAPES[name])
    settings = dict(seed=42+seed) | (dict(epochs=args.epochs) if args.epochs else {})
    if name.startswith('again'):
        load_checkpoint(args.out/f'demo.{seed}.pt', model)
        settings = dict(epochs=args.more, seed=1042+seed)
    config = demo_config(**settings | VARIANTS[name], compile=False)  # compiling takes longer than these runs
    with tempfile.TemporaryDirectory() as folder:
        own = Paths(folder)
        own.pixels = paths.pixels
        history = train(model, processor, products, test_products, image_folder(catalogue_folder(paths)), own, config)
    return model, processor, history


def run(name: str, seed: int, paths, gallery: tuple, args: Namespace) -> dict | None:
    "Train and measure one variant with one seed; returns its record, or None if its results exist already."
    from clip_ft.checkpoints import save_checkpoint
    from clip_ft.data import catalogue_folder, image_folder, load_split
    file = args.out/f'{name}.{seed}.npz'
    if file.exists():
        return None
    start = time.perf_counter()
    with silent(), measuring_negatives() as negatives:
        model, processor, history = train_variant(name, seed, paths, args)
    seconds = time.perf_counter()-start
    products = pd.concat(load_split(paths), ignore_index=True)
    values = measure(model, processor, *gallery)
    values |= measure_catalogue(model, processor, products, image_folder(catalogue_folder(paths)))
    if name == 'demo':
        save_checkpoint(args.out/f'demo.{seed}.pt', model)
    np.savez(file, **values)
    means = {metric: each.mean() for metric, each in values.items()}
    means['test_hit_rate@5'] = history[history.kept]['test_hit_rate@5'].iloc[0]
    return dict(name=name, seed=seed, train_seconds=seconds, epochs=history.epoch.max(),
                negatives=pd.DataFrame(negatives).mean().to_dict(), **means)


def run_all(results: Results, paths, gallery: tuple, args: Namespace):
    "Run all variants, those that start from the demo model last."
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        for again in (False, True):
            names = [name for name in args.only if name.startswith('again') == again]
            jobs = [pool.submit(run, name, seed, paths, gallery, args) for seed in args.seeds for name in names]
            for job in jobs:
                record = job.result()
                if record:
                    results.add(**record)


def summary(values: list[np.ndarray]) -> dict:
    "Mean over seeds and queries, with its interval, and the standard deviation over seeds, in per cent."
    mean = np.mean(values, axis=0)
    low, high = bootstrap_interval(mean)
    spread = np.std([each.mean() for each in values], ddof=1) if len(values) > 1 else np.nan
    return dict(seeds=len(values)) | {name: 100*float(value) for name, value in dict(
        mean=mean.mean(), low=low, high=high, spread=spread).items()}


def table_rows(out: Path, names: list[str]) -> Iterator[dict]:
    "The metrics of each variant (against is empty), and its differences to the one that it is compared with."
    runs = {name: {path.name.split('.')[1]: dict(np.load(path)) for path in sorted(out.glob(f'{name}.*.npz'))}
            for name in names}
    for name, found in runs.items():
        for against in dict.fromkeys(['', COMPARED_WITH.get(name, '')]):
            seeds = found if not against else sorted(found.keys() & runs.get(against, {}).keys())
            for metric in next(iter(found.values())) if seeds else []:
                values = [found[seed][metric]-(runs[against][seed][metric] if against else 0) for seed in seeds]
                if len(values[0]):  # a small catalogue lacks some queries
                    yield dict(variant=name, against=against, metric=metric) | summary(values)


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('--root', type=Path, help='folder of the catalogues; default: a temporary folder')
    parser.add_argument('--out', type=Path, help='folder of the results; default: below --root')
    parser.add_argument('--seeds', type=int, nargs='*', default=[0, 1])
    parser.add_argument('--products', type=int, help='size of the demo catalogue; default: 2,000')
    parser.add_argument('--epochs', type=int, help='default: those of demo_config, or of the variant')
    parser.add_argument('--more', type=int, default=20, help='epochs of the variants that continue')
    parser.add_argument('--only', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument('--workers', type=int, default=1, help='number of runs at the same time')
    parser.add_argument('--csv', type=Path, help='file to write the table to')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Results(args) as results:
        root = args.root or Path(folder)
        args.out = args.out or root/'results'
        args.out.mkdir(parents=True, exist_ok=True)
        with silent():
            paths = prepare_split(root/'shop', 'demo', args.products)
        gallery = fresh_gallery(root/'fresh')
        run_all(results, paths, gallery, args)
        found = pd.DataFrame(table_rows(args.out, args.only)).round(2)
        if args.csv:
            found.to_csv(args.csv, index=False)
        cells = [f'{mean} ({low} to {high})' for mean, low, high in zip(found['mean'], found['low'], found['high'])]
        keys = ['variant', 'against', 'seeds']
        print(found.assign(cell=cells).pivot(index=keys, columns='metric', values='cell').to_string())


if __name__ == '__main__':
    main()
