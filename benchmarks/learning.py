"""What a tiny CLIP learns and forgets: the figures of the tutorial "How training works".

    python benchmarks/learning.py rates --csv benchmarks/results/learning_rates.csv
    python benchmarks/learning.py epochs --csv benchmarks/results/learning_epochs.csv

rates: a sweep over the learning rate of fine-tuning. A demo catalogue of --products products is divided into two
shops. In place of pretraining, a tiny CLIP is trained from random weights on the old shop (all categories but four) for
--before epochs. It is then fine-tuned on the new shop (dresses, nightdresses, skirts, shorts) for --after epochs with
each learning rate. Half of the new and a quarter of the old products are held out; they are searched together, by
their full texts. hit_rate@5 is measured for the texts of each shop, with the fine-tuned weights (alpha 1) and with the
average of the weights before and after (alpha 0.5). The seeds choose the random weights and the batches; the split is
the same. Means are over the seeds, intervals are 95 % bootstrap intervals over queries, whose value is the mean of the
seeds; lowest and highest are those of single seeds.

epochs: the demo is trained as by `make demo`. After some epochs, the catalogue is searched for a few queries; the
table has the images of the first results. precision@5 is the share of right products among the first five, for all
queries of a colour and a category.
"""
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from common import benchmark_parser, bootstrap_interval, prepare_split, print_record, silent

NEW = ['Dresses', 'Nightdress', 'Skirts', 'Shorts']
RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
EPOCHS = [0, 1, 5, 20, 40]
QUERIES = ['red dress', 'blue jeans', 'black handbag']
SHOWN = 6  # results per query


def hits(model, processor, products: pd.DataFrame, image_dir: Path) -> np.ndarray:
    "Whether the text of each product finds the product, or a duplicate, among the first five."
    from clip_ft.data import duplicate_groups, image_paths
    from clip_ft.encode import embed_images, embed_texts
    from clip_ft.metrics import query_metrics, rank_relevant, relevant_rows
    images = embed_images(model, processor, image_paths(products, image_dir), progress=False)
    texts = embed_texts(model, processor, products['full_text'])
    ranking = rank_relevant(texts, images, relevant_rows(duplicate_groups(products)))
    return query_metrics(ranking)['hit_rate@5'].to_numpy()


def fit(model, processor, parts: tuple, image_dir: Path, paths, **settings):
    "Train a model in place; the last epoch is kept."
    from clip_ft.core import Paths
    from clip_ft.settings import demo_config
    from clip_ft.training import train
    with tempfile.TemporaryDirectory() as folder, silent():
        own = Paths(folder)
        own.pixels = paths.pixels
        config = demo_config(val_size=0, interpolate=False, compile=False, **settings)
        train(model, processor, *parts, image_dir, own, config)


def sweep(paths, args) -> pd.DataFrame:
    "One row per seed, learning rate and alpha, with an array of hits for each shop."
    from clip_ft.checkpoints import interpolate_weights
    from clip_ft.data import catalogue_folder, image_folder, load_split
    from clip_ft.model import tiny_model
    from clip_ft.splits import split_products
    products, image_dir = pd.concat(load_split(paths), ignore_index=True), image_folder(catalogue_folder(paths))
    is_new = products['category'].isin(NEW)
    old = split_products(products[~is_new].reset_index(drop=True), .25)
    new = split_products(products[is_new].reset_index(drop=True), .5)
    held_out = pd.concat([old[1], new[1]], ignore_index=True)
    rows = []

    def add(seed, rate, alpha):
        found = hits(model, processor, held_out, image_dir)
        rows.append(dict(seed=seed, rate=rate, alpha=alpha, old=found[:len(old[1])], new=found[len(old[1]):]))
        print_record(seed=seed, rate=rate, alpha=alpha, old=rows[-1]['old'].mean(), new=rows[-1]['new'].mean())

    print_record(old=len(old[0]), new=len(new[0]), old_held_out=len(old[1]), new_held_out=len(new[1]))
    for seed in args.seeds:
        model, processor = tiny_model(products['full_text'], seed=seed)
        fit(model, processor, old, image_dir, paths, epochs=args.before, seed=seed)
        base = {name: value.clone() for name, value in model.state_dict().items()}
        add(seed, 0, 0)
        for rate in args.rates:
            model.load_state_dict(base)
            fit(model, processor, new, image_dir, paths, epochs=args.after, lr=rate, seed=seed, batch_size=16)
            tuned = {name: value.clone() for name, value in model.state_dict().items()}
            for alpha in (1, .5):
                model.load_state_dict(interpolate_weights(base, tuned, alpha))
                add(seed, rate, alpha)
    return pd.DataFrame(rows)


def summarize(runs: pd.DataFrame):
    "One row per learning rate, alpha and shop: mean, interval over queries, lowest and highest seed, in per cent."
    for (rate, alpha), found in runs.groupby(['rate', 'alpha'], sort=True):
        for shop in ('old', 'new'):
            values = 100*np.stack(found[shop])
            low, high = bootstrap_interval(values.mean(0))
            seeds = values.mean(1)
            yield dict(rate=rate, alpha=alpha, shop=shop, seeds=len(values), queries=values.shape[1],
                       mean=values.mean(), low=low, high=high, lowest=seeds.min(), highest=seeds.max())


def first_results(model, processor, products: pd.DataFrame, image_dir: Path, epoch: int):
    "One row per query and result, and the mean precision@5."
    from clip_ft.data import image_paths
    from clip_ft.encode import embed_images, embed_texts
    images = embed_images(model, processor, image_paths(products, image_dir), progress=False)
    pairs = {pair: rows for pair, rows in products.groupby(['colour', 'category']).indices.items() if len(rows) >= 5}
    scores = embed_texts(model, processor, [f'{colour} {kind.lower()}' for colour, kind in pairs]) @ images.T
    top = np.argsort(-scores, axis=1)[:, :5]
    precision = np.mean([np.isin(found, rows).mean() for found, rows in zip(top, pairs.values())])
    for query, scores in zip(QUERIES, embed_texts(model, processor, QUERIES) @ images.T):
        for rank, row in enumerate(np.argsort(-scores)[:SHOWN], 1):
            yield dict(epoch=epoch, query=query, rank=rank, image=products['image'][row], score=100*scores[row],
                       precision=100*precision)


def follow(paths) -> pd.DataFrame:
    "The first results after each of the epochs, while the demo is trained."
    from clip_ft.data import catalogue_folder, image_folder, load_split
    from clip_ft.model import tiny_model
    from clip_ft.settings import demo_config
    from clip_ft.training import Trainer, train
    parts, image_dir = load_split(paths), image_folder(catalogue_folder(paths))
    products, rows = pd.concat(parts, ignore_index=True), []
    model, processor = tiny_model(parts[0]['full_text'])
    measure = Trainer.measure_epoch

    def measure_and_search(trainer, epoch, metrics):
        measure(trainer, epoch, metrics)
        if epoch in EPOCHS:
            rows.extend(first_results(model, processor, products, image_dir, epoch))

    Trainer.measure_epoch = measure_and_search
    with silent():
        train(model, processor, *parts, image_dir, paths, demo_config(compile=False))
    return pd.DataFrame(rows)


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('part', choices=['rates', 'epochs'])
    parser.add_argument('--products', type=int, default=4000, help='size of the catalogue of the sweep')
    parser.add_argument('--seeds', type=int, nargs='*', default=[0, 1, 2])
    parser.add_argument('--rates', type=float, nargs='*', default=RATES)
    parser.add_argument('--before', type=int, default=15, help='epochs on the old shop')
    parser.add_argument('--after', type=int, default=15, help='epochs on the new shop')
    parser.add_argument('--csv', type=Path, help='file to write the table to')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with silent():
            paths = prepare_split(Path(folder), 'demo', args.products if args.part == 'rates' else None)
        found = pd.DataFrame(summarize(sweep(paths, args))) if args.part == 'rates' else follow(paths)
    found = found.round(dict.fromkeys(['mean', 'low', 'high', 'lowest', 'highest', 'score', 'precision'], 1))
    if args.csv:
        found.to_csv(args.csv, index=False)
    print(found.to_string(index=False))


if __name__ == '__main__':
    main()
