"""What clip_ft_tune gains and costs: its result and the default settings, on the test products of real photos.

    python benchmarks/training_quality.py CATALOGUE --root ROOT --out OUT --only before --seeds 1   # pretrains a base
    python benchmarks/tune.py CATALOGUE --root FOLDER --model ROOT/elsewhere [--minutes 4] [--seeds 0 1 2]
        [--csv benchmarks/results/tune.csv]

CATALOGUE is a folder, as for training_quality.py. The base is the model of 16 M parameters that training_quality.py
pretrains on the products called "elsewhere"; both runs start from it, on the products called "home". As it is small,
its default settings are --lr 1e-4 and --batch-size 64 instead of those for ViT-B/32; tune() multiplies them. For each
seed, tune() searches for --minutes, and train() runs once with the default settings and as many epochs. Names of the
test products are searched among all home products. Differences are paired by query, whose value is the mean of the
seeds, with 95 % bootstrap intervals; products with the same name, description or image count as one. The cost is the
time of the search, in runs with the default settings.
"""
import time
from argparse import Namespace
from pathlib import Path

import pandas as pd
from common import Results, benchmark_parser, load_parts, prepare_split, silent
from training_quality import HOME

METRICS = ['hit_rate@1', 'hit_rate@5', 'hit_rate@10', 'mrr']


def home_catalogue(args: Namespace) -> Path:
    "A catalogue with the home products, whose images are those of the original one."
    folder = args.root/'home'
    if not folder.exists():
        folder.mkdir(parents=True)
        table = pd.read_csv(args.catalogue/'data.csv', dtype=str, keep_default_na=False)
        table[table['category'].isin(HOME)].to_csv(folder/'data.csv', index=False)
        for name in ('data', 'styles.csv'):
            (folder/name).symlink_to((args.catalogue/name).resolve())
    return folder


def tuned(args: Namespace, paths, config, seed: int) -> dict:
    "Search; the best model of the project is the result."
    from clip_ft.tune import tune
    table = tune(paths, [str(args.model)], args.minutes, config, seed=seed)
    last = table[table['epochs'] == config.epochs]
    return dict(trials=len(table), options=last.loc[last['score'].idxmax(), 'options'].split(' ', 2)[-1])


def default(args: Namespace, paths, config) -> dict:
    "Train with the default settings."
    from clip_ft.model import load_model
    from clip_ft.training import train
    _, products, test_products, image_dir = load_parts(paths.root)
    train(*load_model(args.model, verbose=False), products, test_products, image_dir, paths, config, fresh=True)
    return {}


def evaluate(paths):
    "Search the names of the test products among all products of the project."
    from clip_ft.evaluation import evaluate
    from clip_ft.model import load_model
    _, products, test_products, image_dir = load_parts(paths.root)
    model, processor = load_model(paths.best_model, verbose=False)
    return evaluate(model, processor, test_products, image_dir, products)


def compare(args: Namespace, results: Results) -> pd.DataFrame:
    "Run both for each seed, and compare them."
    from clip_ft.intervals import bootstrap
    from clip_ft.settings import TrainConfig
    config = dict(lr=args.lr, batch_size=args.batch_size, epochs=args.epochs, patience=args.epochs)
    values, seconds, groups = {}, {}, None
    for seed in args.seeds:
        for name in ('default', 'tuned'):
            root = args.root/f'{name}-{seed}'
            paths = prepare_split(root, home_catalogue(args), 1500 if args.tiny else None)
            start = time.perf_counter()
            with silent():
                settings = TrainConfig(**config, seed=42+seed)
                found = tuned(args, paths, settings, seed) if name == 'tuned' else default(args, paths, settings)
            seconds[name, seed] = time.perf_counter()-start
            evaluation = evaluate(paths)
            values[name, seed], groups = evaluation.metrics('name')[METRICS], evaluation.query_sets['name'].groups
            results.add(variant=name, seed=seed, seconds=seconds[name, seed], **found, **values[name, seed].mean())
    means = {name: sum(values[name, seed] for seed in args.seeds)/len(args.seeds) for name in ('default', 'tuned')}
    change = means['tuned']-means['default']
    samples = bootstrap(change.assign(rank=1.), groups)[METRICS].quantile([.025, .975])
    cost = pd.Series(seconds).unstack(0).mean()
    table = pd.DataFrame(dict(default=means['default'].mean(), tuned=means['tuned'].mean(), difference=change.mean(),
                              low=samples.iloc[0], high=samples.iloc[1])).mul(100).round(2)
    seeds = ', '.join(map(str, args.seeds))
    return table.assign(queries=len(change), seeds=seeds, cost=round(cost['tuned']/cost['default'], 1))


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('catalogue', type=Path)
    parser.add_argument('--root', type=Path, required=True, help='folder of the projects')
    parser.add_argument('--model', type=Path, required=True, help='folder of the base')
    parser.add_argument('--minutes', type=float, default=4.)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--lr', type=float, default=1e-4)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--csv', type=Path, help='file for the table')
    parser.add_argument('--tiny', action='store_true', help='1,500 products, for a trial')
    args = parser.parse_args()
    with Results(args) as results:
        table = compare(args, results)
    print(table.to_string())
    if args.csv:
        table.rename_axis('metric').to_csv(args.csv)


if __name__ == '__main__':
    main()
