"""Queries such as "like this, but red": how many of the first five results have the right kind and colour?

    python benchmarks/like_but.py PROJECT [--csv benchmarks/results/like_but.csv] [--label NAME]

60 queries: a product of one colour, and another colour that at least five products of its kind have. "before" adds
the vectors of image and text; "after" also uses the values of the catalogue. Kind and colour are those of the columns
category and colour, which "after" reads as well. One row per method and kind of image is added to the CSV file.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from clip_ft.core import Paths
from clip_ft.match_scale import column_values
from clip_ft.search import Searcher


def queries_of(products, count=60):
    "Row of the product, its kind and the wanted colour."
    rng = np.random.default_rng(0)
    colours = column_values(products, 'colour')[:12]
    sizes = products[products['colour'].isin(colours)].value_counts(['category', 'colour'])
    pairs = sizes[sizes >= 5].index.to_frame(index=False)
    kinds = [kind for kind, each in pairs.groupby('category') if len(each) > 1]
    for _ in range(count):
        kind = rng.choice(kinds)
        own, wanted = rng.choice(pairs.loc[pairs['category'] == kind, 'colour'], 2, replace=False)
        rows = np.flatnonzero((products['category'] == kind) & (products['colour'] == own))
        yield rng.choice(rows), kind, wanted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('project', type=Path)
    parser.add_argument('--csv', type=Path, default=Path('benchmarks/results/like_but.csv'))
    parser.add_argument('--label', default='')
    args = parser.parse_args()
    searcher = Searcher.load(Paths(args.project))
    products, values, rows = searcher.dataframe, searcher.values, []
    for method, known in (('before', {}), ('after', values)):
        searcher.values = known
        for source in ('like', 'image'):
            found = []
            for row, kind, colour in queries_of(products):
                name = products['image'].iloc[row]
                options = dict(like=name) if source == 'like' else dict(image=searcher.image_dir/name)
                shown = searcher.search(colour.lower(), 5, **options)
                found.append([(shown['category'] == kind).mean(), (shown['colour'] == colour).mean(),
                              ((shown['category'] == kind) & (shown['colour'] == colour)).mean()])
            kind, colour, both = np.round(np.mean(found, axis=0), 3)
            rows.append(dict(project=args.label or args.project.name, method=method, image=source, queries=len(found),
                             kind=kind, colour=colour, both=both))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    table.to_csv(args.csv, mode='a', header=not args.csv.exists(), index=False)


if __name__ == '__main__':
    main()
