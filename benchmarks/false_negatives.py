"""How often products of a cluster agree in colour and category, for each skip and margin, with a trained model.

    python benchmarks/false_negatives.py ROOT NAME [--model FOLDER] [--only home] [--csv benchmarks/results/...csv]

ROOT is a project that is split; its training products have a column of colours. --only home keeps the categories that
training_quality.py calls home. Of the pairs within a cluster of 8 that are no duplicates, the table gives the share
that agree in colour and category (same), of those that a margin leaves in the loss, and the share that it leaves out.
The rows with a measure and no skip give the area under the ROC curve with which a similarity finds the pairs that agree
(auc), in the clusters without skip. --csv adds the rows to a file, in place of those with the same name.
"""
from pathlib import Path

import numpy as np
import pandas as pd
from common import benchmark_parser, cluster_pairs, colour_kinds, load_parts

SKIPS, MARGINS = (0, 1, 3, 7, 15, 31), (0, .1, .2, .3, .4)


def roc_area(scores: np.ndarray, right: np.ndarray) -> float:
    "Probability that a right pair has a higher score than a wrong one."
    ranks, count = pd.Series(scores).rank().to_numpy(), right.sum()
    return (ranks[right].mean()-(count+1)/2)/(len(right)-count)


def measure(images: np.ndarray, texts: np.ndarray, groups: np.ndarray, kinds: np.ndarray):
    "Rows of the table."
    from clip_ft.hard_negatives import hard_negative_batches
    products = (images+texts)/2
    guide = products-products.mean(0)
    guide /= np.linalg.norm(guide, axis=1, keepdims=True)
    for skip in SKIPS:
        order = hard_negative_batches(products, groups, 64, seed=1, cluster_size=8, skip=skip)
        pairs = [(rows[i], rows[j], alike) for rows in order for i, j, alike in [cluster_pairs(rows, groups, kinds, 8)]]
        a, b, same = map(np.concatenate, zip(*pairs))
        cosines = np.vecdot(guide[a], guide[b])
        for margin in MARGINS:
            left = cosines <= 1-margin if margin else np.ones(len(same), bool)
            yield dict(skip=skip, margin=margin, same=100*same[left].mean(), left_out=100*(1-left.mean()))
        if skip == 0:
            own = np.vecdot(images, texts)
            across = np.vecdot(images[a], texts[b])
            for name, scores in dict(products=cosines, image_text=across, relative=across/own[a]).items():
                yield dict(measure=name, auc=roc_area(scores, same))


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('root', type=Path)
    parser.add_argument('name', help='name of the catalogue in the table')
    parser.add_argument('--model', type=Path, help='default: the best model of the project')
    parser.add_argument('--only', choices=('home',))
    parser.add_argument('--csv', type=Path)
    args = parser.parse_args()
    from training_quality import HOME

    from clip_ft.data import duplicate_groups, image_paths
    from clip_ft.encode import embed_images, embed_texts
    from clip_ft.model import load_model
    paths, products, _, folder = load_parts(args.root)
    if args.only:
        products = products[products['category'].isin(HOME)].reset_index(drop=True)
    model, processor = load_model(args.model or paths.best_model, verbose=False)
    images = embed_images(model, processor, image_paths(products, folder), progress=False)
    texts = embed_texts(model, processor, products['full_text'])
    table = pd.DataFrame(measure(images, texts, duplicate_groups(products), colour_kinds(products)))
    table.insert(0, 'catalogue', args.name)
    print(table.to_string())
    if args.csv:
        old = pd.read_csv(args.csv) if args.csv.exists() else table[:0]
        table = pd.concat([old[old['catalogue'] != args.name], table], ignore_index=True)
        table.round(3).to_csv(args.csv, index=False)


if __name__ == '__main__':
    main()
