"""What hard negatives and short texts bring on the demo catalogue: the tiny CLIP trained with and without, measured on products that were drawn anew.

    python benchmarks/demo_ablation.py [--root FOLDER] [--out FOLDER] [--seeds 2] [--only demo hard_negatives full_text]

demo is `demo_config()`; hard_negatives fills its batches with clusters of 8 products that the model confuses; full_text shows
full texts only, as the recipe does. The gallery is a second demo catalogue of 1,500 products with another seed, of which no
model has seen anything. Queries are "blue dresses": every combination of colour and category in it; every product that has
both is right. precision@5: right ones among the first 5 (or among as many as there are); type@5: those of the right category.
confusion: of the first 5 answers for a category of PAIRS, how many are of the other category of the pair. Means over queries
with 95 % bootstrap intervals; a query's value is the mean of its seeds. A run prints a line of JSON; a finished run in --out is
not run again.
"""
import argparse
import json
import os
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

PAIRS = (("Dresses", "Nightdress"), ("Skirts", "Shorts"))
VARIANTS = dict(demo={}, hard_negatives=dict(hard_negatives=8), full_text=dict(texts=dict(full_text=1)))


def fresh_gallery(folder):
    "A second catalogue: (products, folder of pictures)."
    from clip_ft.data import clean_products, image_folder, read_products
    from clip_ft.demo import draw_catalogue
    if not (folder/"data.csv").exists(): draw_catalogue(folder, n=1500, seed=1234)
    images = image_folder(folder)
    return clean_products(read_products(folder), images)[0], images


def measure(model, processor, products, images):
    "Name of a figure -> its value for each query that it is about."
    from clip_ft.evaluation import attribute_queries
    from clip_ft.model import embed_images, embed_texts
    from clip_ft.training import image_paths
    asked = attribute_queries(products, "colour")
    categories = products["category"].to_numpy()[asked.rows]
    scores = embed_texts(model, processor, asked.texts) @ embed_images(model, processor, image_paths(products, images), progress=False).T
    top = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    shown = products["category"].to_numpy()[top]
    other = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
    confused = (shown == np.array([other.get(o, "") for o in categories], object)[:, None]).mean(1)
    right = np.array([np.isin(t, r).sum()/min(5, len(r)) for t, r in zip(top, asked.relevant)])
    figures = {"precision@5": right, "type@5": (shown == categories[:, None]).mean(1)}
    return figures | {f"confusion {'/'.join(pair)}": confused[np.isin(categories, pair)] for pair in PAIRS}


def run(name, seed, root, out):
    "Train, measure, write down."
    from clip_ft.data import Paths, get_data, image_folder, load_split, preprocess
    from clip_ft.model import tiny_model
    from clip_ft.training import demo_config, train
    file = out/f"{name}.{seed}.npz"
    if file.exists(): return
    paths = Paths(root/"shop")
    with redirect_stdout(StringIO()):
        folder = get_data("demo", paths)
        if not paths.train_csv.exists(): preprocess(paths)
        fit, test = load_split(paths)
        model, processor = tiny_model(fit["full_text"])
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as d:
            here = Paths(d)
            here.pixels = paths.pixels
            history = train(model, processor, fit, test, image_folder(folder), here, demo_config(seed=42+seed, **VARIANTS[name]))
        seconds = time.perf_counter()-start
        figures = measure(model, processor, *fresh_gallery(root/"fresh"))
    np.savez(file, **figures)
    print(json.dumps(dict(variant=name, seed=seed, train_seconds=round(seconds), epochs=int(history.epoch.max()), test_recall5=round(float(history[history.kept]["test_recall@5"].iloc[0]), 4), **{k: round(float(v.mean()), 4) for k, v in figures.items()})), flush=True)


def table(out, names):
    "Variant x figure, in per cent, with intervals."
    rng, rows = np.random.default_rng(0), {}
    for name in names:
        files = [np.load(o) for o in sorted(out.glob(f"{name}.*.npz"))]
        if not files: continue
        values = {k: np.mean([o[k] for o in files], 0) for k in files[0]}
        draws = {k: np.percentile(v[rng.integers(0, len(v), (2000, len(v)))].mean(1), [2.5, 97.5]) for k, v in values.items()}
        rows[f"{name} ({len(files)} seeds)"] = {k: f"{100*v.mean():.1f} ({100*draws[k][0]:.1f} to {100*draws[k][1]:.1f})" for k, v in values.items()}
    return pd.DataFrame(rows).T


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a temporary folder if not given")
    parser.add_argument("--out", type=Path, help="where results are kept; below --root if not given")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = args.root or Path(folder)
        out = args.out or root/"results"
        out.mkdir(parents=True, exist_ok=True)
        for seed in range(args.seeds):
            for name in args.only: run(name, seed, root, out)
        print(table(out, args.only).to_string())


if __name__ == "__main__": main()
