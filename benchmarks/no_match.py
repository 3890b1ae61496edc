"""Share of queries that a search flags with "No good match", for queries with and without right products.

    python benchmarks/no_match.py PROJECT [--left-out KIND ...] [--csv benchmarks/results/no_match.csv] [--label NAME]

PROJECT has a model and embeddings from clip_ft_embed. KIND is a category that is neither in its catalogue nor in the
training of its model. The scale of matches is the stored one. The names are those of every second test product,
shortened and reordered too; for the numbers in benchmarks/results, the scale was fitted to the names of the others. A
kind counts as left out only if no product has its words. One row per group of queries is added to the CSV file.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from clip_ft.core import Paths
from clip_ft.data import load_split
from clip_ft.match_fit import example_queries
from clip_ft.match_scale import match_note, product_words, query_words, word_columns
from clip_ft.search import Searcher

COLOURS = ('red', 'black', 'blue')
FOREIGN = [
    'tractor', 'sofa', 'lawnmower', 'fridge', 'piano', 'bicycle', 'dishwasher', 'drill', 'hammer', 'laptop',
    'printer', 'banana', 'cheese', 'carrot', 'violin', 'canoe', 'mattress', 'curtain', 'teapot', 'toaster',
    'microwave', 'candle', 'ladder', 'shovel', 'kettle', 'wardrobe', 'armchair', 'aquarium',
]
NONSENSE = [
    'qwrtz', 'asdfgh', 'zzxxy', 'blorf', 'fnarg', 'plugh', 'wibble', 'snorg', 'kjhgf', 'vxcmnb', 'uiopq', 'grtlx',
    'drooble', 'quzzle', 'krandl',
]


def queries_of(searcher, paths, left_out):
    "Texts by group."
    products = searcher.dataframe
    rows = np.flatnonzero(products['image'].isin(set(load_split(paths)[1]['image'])))[1::2]
    answerable = example_queries(products, rows, np.random.default_rng(9))
    groups = {f'answerable: {source}': list(texts) for source, texts in answerable.groupby('source')['text']}
    words = product_words(products, word_columns(products))
    absent = [kind.lower() for kind in left_out if not any(each.issuperset(query_words(kind)) for each in words)]
    groups['left-out kind'] = absent
    groups['colour and left-out kind'] = [f'{colour} {kind}' for kind in absent for colour in COLOURS]
    foreign = [word for word in FOREIGN if not any(each.issuperset(query_words(word)) for each in words)]
    groups['foreign kind'] = foreign
    groups['colour and foreign kind'] = [f'{COLOURS[i % 3]} {word}' for i, word in enumerate(foreign)]
    groups['nonsense'] = NONSENSE
    return groups


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('project', type=Path)
    parser.add_argument('--left-out', nargs='*', default=[])
    parser.add_argument('--csv', type=Path, default=Path('benchmarks/results/no_match.csv'))
    parser.add_argument('--label', default='')
    args = parser.parse_args()
    paths = Paths(args.project)
    searcher = Searcher.load(paths)
    rows = []
    for group, texts in queries_of(searcher, paths, args.left_out).items():
        flags = [bool(match_note(found)) for found in searcher.search_many(texts, 10)] if texts else []
        rows.append(dict(project=args.label or args.project.name, group=group, queries=len(texts),
                         flagged=round(float(np.mean(flags)), 3) if flags else ''))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    table.to_csv(args.csv, mode='a', header=not args.csv.exists(), index=False)


if __name__ == '__main__':
    main()
