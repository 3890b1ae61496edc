"""Zero-shot attributes: how often are colour, gender and season of test products named right?

    python benchmarks/tags.py PROJECT [--csv benchmarks/results/tags.csv] [--label NAME]

The labels are all values of the column. Half of the products of the test set, by duplicate groups, are used to
calibrate, the other half to measure, and then the other way round. One row per column: accuracy of the zero-shot
classification without and with calibration, its 95 % interval (bootstrap of duplicate groups), the base rate (the most
frequent value of the calibrating half is the answer), and the expected calibration error before and after. One row
more per value with at least 20 products: the share of its products that are named right.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from clip_ft.cleaning import as_texts
from clip_ft.core import Paths
from clip_ft.data import load_split
from clip_ft.embeddings_file import load_embeddings
from clip_ft.intervals import bootstrap, interval
from clip_ft.model import load_model
from clip_ft.splits import duplicate_groups
from clip_ft.tags import calibrate_tags, calibration_error, tag_products


def measured(right, groups):
    "Mean and 95 % interval."
    metrics = pd.DataFrame({'accuracy': right.astype(float), 'rank': np.nan})
    bounds = interval(bootstrap(metrics, groups), {'accuracy': right.mean()}, groups).loc['accuracy']
    return dict(accuracy=right.mean(), low=bounds['low'], high=bounds['high'])


def rows_of(column, products, vectors, model, processor):
    "Measure one column."
    values = as_texts(products[column])
    kept = (values != '').to_numpy()
    products, vectors, values = products[kept].reset_index(drop=True), vectors[kept], values[kept].to_numpy(object)
    groups, labels = duplicate_groups(products), sorted(set(values))
    side = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % 2
    raw = tag_products(model, processor, vectors, labels).to_numpy()
    calibrated, frequent = np.zeros_like(raw), np.empty(len(values), object)
    for half in (0, 1):
        known = side != half
        fit = calibrate_tags(model, processor, vectors[known], values[known], labels)
        calibrated[~known] = tag_products(model, processor, vectors[~known], labels, calibrate=fit).to_numpy()
        frequent[~known] = pd.Series(values[known]).mode()[0]
    codes = pd.Index(labels).get_indexer(values)
    right = calibrated.argmax(axis=1) == codes
    common = dict(column=column, products=len(values), labels=len(labels))
    yield common | dict(value='', uncalibrated=(raw.argmax(axis=1) == codes).mean(), **measured(right, groups),
                        base_rate=(frequent == values).mean(), error_before=calibration_error(raw, codes),
                        error_after=calibration_error(calibrated, codes))
    for code, label in enumerate(labels):
        own = codes == code
        if own.sum() >= 20:
            yield common | dict(value=label, products=own.sum(), **measured(right[own], groups[own]),
                                uncalibrated=(raw[own].argmax(axis=1) == code).mean(), base_rate=own.mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('project', type=Path)
    parser.add_argument('--csv', type=Path, default=Path('benchmarks/results/tags.csv'))
    parser.add_argument('--label', default='')
    args = parser.parse_args()
    paths = Paths(args.project)
    model, processor = load_model(paths.best_model, verbose=False)
    data = load_embeddings(paths.embeddings)
    row_of = {str(name): row for row, name in enumerate(data['image_names'])}
    test = load_split(paths)[1]
    vectors = data['embeddings'][[row_of[name] for name in test['image']]].astype(np.float32)
    columns = ('colour', 'gender', 'season')
    rows = [row for column in columns for row in rows_of(column, test, vectors, model, processor)]
    order = ['data', 'column', 'value', 'products', 'labels', 'uncalibrated', 'accuracy', 'low', 'high', 'base_rate',
             'error_before', 'error_after']
    table = pd.DataFrame(rows).assign(data=args.label or args.project.name)[order].round(3)
    print(table.to_string(index=False))
    table.to_csv(args.csv, mode='a', header=not args.csv.exists(), index=False)


if __name__ == '__main__':
    main()
