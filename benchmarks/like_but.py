"""Queries such as "like this, but red": how many of the first five results have the right kind and colour?

    python benchmarks/like_but.py PROJECT [--csv benchmarks/results/like_but.csv] [--label NAME]

60 queries per seed: a product of one colour, and another colour that at least five products of its kind have. The image
is one of the catalogue ("like"), or a photo of a product that was taken out of the catalogue ("upload"). "before" adds
the vectors of image and text; "after" also uses the values of the catalogue. Kind and colour are those of the columns
category and colour, which "after" reads as well. "right_kind" is the share of the queries whose kind is that of the
first result.

Rows with the image "without" are queries by text: the categories of the same 60 products, "before" as they are, "after"
with the option "without" and the most frequent colour among their first five results. "colour" is then the share of
results of other colours.

One row per method and kind of image is added to the CSV file, with the standard deviation over the seeds.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from clip_ft.core import Paths
from clip_ft.embeddings_file import load_embeddings
from clip_ft.match_scale import column_values
from clip_ft.search import Searcher
from clip_ft.splits import duplicate_groups
from clip_ft.texts import category_words


def queries_of(products, seed, count=60):
    "Row of the product, its kind and the wanted colour."
    rng = np.random.default_rng(seed)
    colours = column_values(products, 'colour')[:12]
    sizes = products[products['colour'].isin(colours)].value_counts(['category', 'colour'])
    pairs = sizes[sizes >= 5].index.to_frame(index=False)
    kinds = [kind for kind, each in pairs.groupby('category') if len(each) > 1]
    for _ in range(count):
        kind = rng.choice(kinds)
        own, wanted = rng.choice(pairs.loc[pairs['category'] == kind, 'colour'], 2, replace=False)
        rows = np.flatnonzero((products['category'] == kind) & (products['colour'] == own))
        yield rng.choice(rows), kind, wanted


def searcher_without(searcher, data, names):
    "A searcher of the catalogue without the products of some images, and without their duplicates."
    groups = duplicate_groups(data['dataframe'])
    taken = np.isin(groups, groups[np.isin(data['image_names'], names)])
    rest = data | dict(embeddings=data['embeddings'][~taken], image_names=data['image_names'][~taken],
                       dataframe=data['dataframe'][~taken].reset_index(drop=True))
    return Searcher(searcher.model, searcher.processor, rest, searcher.image_dir)


def measure(searcher, whole, queries, source):
    "Mean shares of the right kind, colour and both, and of the queries whose first result has the right kind."
    found = []
    for row, kind, colour in queries:
        name = whole['image'].iloc[row]
        options = dict(like=name) if source == 'like' else dict(image=searcher.image_dir/name)
        shown = searcher.search(colour.lower(), 5, **options)
        right = (shown['category'] == kind), (shown['colour'] == colour)
        found.append([right[0].mean(), right[1].mean(), (right[0] & right[1]).mean(), right[0].iloc[0]])
    return np.mean(found, axis=0)


def common_colours(searcher, queries):
    "The queries with the most frequent colour among the first five results of their kind instead of the wanted one."
    for row, kind, _ in queries:
        yield row, kind, searcher.search(category_words(pd.Series([kind]))[0], 5)['colour'].mode()[0]


def measure_without(searcher, queries, excluded):
    "Mean shares of the right kind, of other colours than the excluded one, and of both, among the first five results."
    found = []
    for _, kind, colour in queries:
        options = dict(without=colour.lower()) if excluded else {}
        shown = searcher.search(category_words(pd.Series([kind]))[0], 5, **options)
        right = (shown['category'] == kind), (shown['colour'] != colour)
        found.append([right[0].mean(), right[1].mean(), (right[0] & right[1]).mean(), right[0].iloc[0]])
    return np.mean(found, axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('project', type=Path)
    parser.add_argument('--csv', type=Path, default=Path('benchmarks/results/like_but.csv'))
    parser.add_argument('--label', default='')
    parser.add_argument('--seeds', type=int, default=3)
    args = parser.parse_args()
    paths = Paths(args.project)
    whole, data, rows = Searcher.load(paths), load_embeddings(paths.embeddings), []
    products, results = whole.dataframe, {}
    for seed in range(args.seeds):
        queries = list(queries_of(products, seed))
        rest = searcher_without(whole, data, [products['image'].iloc[row] for row, *_ in queries])
        for source, searcher in (('like', whole), ('upload', rest)):
            values = searcher.values
            for method, known in (('before', {}), ('after', values)):
                searcher.values = known
                results.setdefault((method, source), []).append(measure(searcher, products, queries, source))
        queries = list(common_colours(whole, queries))
        for method in ('before', 'after'):
            found = measure_without(whole, queries, method == 'after')
            results.setdefault((method, 'without'), []).append(found)
    for (method, source), found in results.items():
        means, deviations = np.mean(found, axis=0).round(3), np.std(found, axis=0, ddof=1).round(3)
        rows.append(dict(project=args.label or args.project.name, method=method, image=source, seeds=args.seeds,
                         queries=60*args.seeds, kind=means[0], colour=means[1], both=means[2], both_sd=deviations[2],
                         right_kind=means[3]))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    table.to_csv(args.csv, mode='a', header=not args.csv.exists(), index=False)


if __name__ == '__main__':
    main()
