"""Planted faults of labels: texts of other products, wrong categories and colours, missing values.

    python benchmarks/checkup_labels.py PROJECT [--limit N] [--seeds 0 1 2] [--texts FILE] [--label NAME]
        [--csv benchmarks/results/checkup_labels.csv]

50 faults of each kind are planted into a copy of the products of an embedded project, with the project's best model:

- other category: the names and descriptions of 25 pairs of products of different categories are swapped
- same category: those of 25 pairs of products of the same category are swapped
- wrong category, wrong colour: the value is replaced by that of a random product that has another one
- missing category, missing colour: the value is removed; a finding is right if it suggests the removed value

Recall is the share of the planted faults that are found, precision the share of planted ones among the findings. The
catalogue has faults of its own, which count as wrong findings, so that precision is a lower bound. "restored" is the
share of the right findings that suggest the value that was replaced. Of missing values, only the planted ones count.
The thresholds are the defaults of clip_ft.label_checks, which were chosen with seed 10.
"""
import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from clip_ft.core import Paths
from clip_ft.embeddings_file import load_embeddings
from clip_ft.encode import embed_texts
from clip_ft.label_checks import (
    attribute_columns,
    misplaced_texts,
    missing_values,
    name_and_description,
    wrong_values,
)
from clip_ft.model import load_model
from clip_ft.splits import duplicate_groups
from clip_ft.tags import nearest_others, predict_values
from clip_ft.views import product_keys

PLANTED = 50


def swapped_pairs(products, groups, rng, same):
    "Rows of pairs of products, [PLANTED/2, 2]."
    categories, pairs, used = products['category'].to_numpy(object), [], set()
    for row in rng.permutation(len(products)):
        others = [other for other in rng.integers(len(products), size=500) if groups[other] != groups[row]
                  and (categories[other] == categories[row]) == same and other not in used]
        if row not in used and others:
            pairs.append((row, others[0]))
            used |= {row, others[0]}
        if 2*len(pairs) == PLANTED:
            break
    return np.array(pairs)


def record(kind, products, planted, findings, original=None):
    "Recall and precision of one kind."
    rows = pd.Index(products['image']).get_indexer(findings['image'])
    right = np.isin(rows, planted)
    restored = np.nan
    if original is not None and right.any():
        restored = (findings['suggestion'].to_numpy(object) == original[rows])[right].mean()
    return dict(kind=kind, planted=len(planted), found=len(rows), right=right.sum(), recall=right.sum()/len(planted),
                precision=right.sum()/max(1, len(rows)), restored=restored)


def measure_texts(products, images, texts, groups, near_image, seed):
    "Swap texts of products of different categories, then of the same."
    for same in (False, True):
        pairs = swapped_pairs(products, groups, np.random.default_rng([seed, same]), same)
        vectors = texts.copy()
        vectors[pairs.ravel()] = texts[pairs[:, ::-1].ravel()]
        faulty = products.copy()
        for column in ('display name', 'description'):
            values = products[column].to_numpy(object).copy()
            values[pairs.ravel()] = values[pairs[:, ::-1].ravel()]
            faulty[column] = values
        near = [near_image, nearest_others(vectors, duplicate_groups(faulty))]
        found = misplaced_texts(faulty, images, vectors, near=near)
        kind = 'text of another product, ' + ('same category' if same else 'other category')
        yield record(kind, products, pairs.ravel(), found)


def measure_values(products, images, texts, near, model, processor, role, seed):
    "Replace values of the column with a role, and remove others."
    column = next(name for name, other in attribute_columns(products).items() if other == role)
    rng = np.random.default_rng([seed, len(role)])
    original = products[column].to_numpy(object)
    rows = rng.permutation(np.flatnonzero(original != ''))
    replaced, removed = rows[:PLANTED], rows[PLANTED:2*PLANTED]
    values = original.copy()
    for row in replaced:
        values[row] = rng.choice(original[(original != original[row]) & (original != '')])
    values[removed] = ''
    faulty = products.assign(**{column: values})
    predicted = predict_values(faulty, column, images, model, processor, texts, near=near)
    yield record(f'wrong {role}', products, replaced, wrong_values(faulty, predicted, f'wrong {role}'), original)
    found = missing_values(faulty, predicted)
    found = found[found['image'].isin(products['image'].iloc[removed])]
    right = found['suggestion'] == found['image'].map(dict(zip(products['image'], original)))
    yield dict(kind=f'missing {role}', planted=PLANTED, found=len(found), right=right.sum(),
               recall=right.sum()/PLANTED, precision=right.mean(), restored=np.nan)


def load(args):
    "Products, one row each, with the vectors of their images and texts, and the model."
    paths = Paths(args.project)
    model, processor = load_model(paths.best_model, verbose=False)
    data = load_embeddings(paths.embeddings)
    rows = np.flatnonzero(~product_keys(data['dataframe']).duplicated())
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:args.limit])
    products, images = data['dataframe'].iloc[rows].reset_index(drop=True), data['embeddings'][rows].astype(np.float32)
    if args.texts and args.texts.exists():
        return products, images, np.load(args.texts)['texts'], model, processor
    texts = embed_texts(model, processor, name_and_description(products))
    if args.texts:
        np.savez(args.texts, texts=texts)
    return products, images, texts, model, processor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('project', type=Path)
    parser.add_argument('--limit', type=int, default=8000, help='number of products')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--texts', type=Path, help='file that keeps the embeddings of the texts between runs')
    parser.add_argument('--csv', type=Path, default=Path('benchmarks/results/checkup_labels.csv'))
    parser.add_argument('--label', default='')
    args = parser.parse_args()
    warnings.filterwarnings('default', message='Texts of other')
    products, images, texts, model, processor = load(args)
    groups, records = duplicate_groups(products), []
    near = [nearest_others(vectors, groups) for vectors in (images, texts)]
    for seed in args.seeds:
        found = [*measure_texts(products, images, texts, groups, near[0], seed)]
        for role in ('category', 'colour'):
            found += measure_values(products, images, texts, near, model, processor, role, seed)
        records += [dict(data=args.label or args.project.name, seed=seed) | each for each in found]
        print(pd.DataFrame(records[-len(found):]).round(2).to_string(index=False), flush=True)
    table = pd.DataFrame(records).round(3)
    table.to_csv(args.csv, mode='a', header=not args.csv.exists(), index=False)


if __name__ == '__main__':
    main()
