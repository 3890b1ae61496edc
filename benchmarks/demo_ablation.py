"""What hard negatives and short texts bring on the demo catalogue: the tiny CLIP trained with and without, measured on products that were drawn anew.

    python benchmarks/demo_ablation.py [--root FOLDER] [--out FOLDER] [--seeds 0 1] [--only demo hard_negatives ...] [--products 2000] [--epochs 20] [--more 20]

demo is `demo_config()`; hard_negatives fills its batches with clusters of 8 products that the model confuses; full_text shows
full texts only, as the recipe does. These begin with random weights. again goes on from the demo model of the same seed for
--more epochs at half the rate, and again_hard does so with hard negatives: what a trained model still confuses is worth more
than what an untrained one does. again_plain and again_plain_hard show the pictures as they are, without augmentation, and plain
does so from the start. All that go on keep their last epoch. The gallery is a second demo catalogue of 3,000 products with
another seed, of which no model has seen anything. Queries are "blue dresses": every combination of colour and category in it;
every product that has both is right. precision@5: right ones among the first 5 (or among as many as there are); type@5: those
of the right category. mistaken: of the pictures of a pair of categories that are easily confused, how many fit the phrase with
the other category ("blue nightdress") better than their own ("blue dresses"); 50 % is guessing. confused: for the queries about
such a pair, how many of the first 5 are of the other category. Means over queries or pictures with 95 % bootstrap intervals; a
query's value is the mean of its seeds; differences are paired, and their seeds are given too. A run prints a line of JSON; a
finished run in --out is not run again, so that several processes may share the work, each with its own --seeds, once --seeds
without a number has drawn the catalogues.
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
OTHER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
AGAIN = dict(lr=2e-4, val_size=0.)
VARIANTS = dict(demo={}, hard_negatives=dict(hard_negatives=8), full_text=dict(texts=dict(full_text=1)), plain=dict(augment=False), again=AGAIN, again_hard=AGAIN | dict(hard_negatives=8),
    again_plain=AGAIN | dict(augment=False), again_plain_hard=AGAIN | dict(augment=False, hard_negatives=8))
BESIDE = dict(hard_negatives="demo", full_text="demo", plain="demo", again="demo", again_hard="again", again_plain="again", again_plain_hard="again_plain")     # what each is compared with


def fresh_gallery(folder):
    "A second catalogue: (products, folder of pictures)."
    from clip_ft.data import clean_products, image_folder, read_products
    from clip_ft.demo import draw_catalogue
    if not (folder/"data.csv").exists(): draw_catalogue(folder, n=3000, seed=1234)
    images = image_folder(folder)
    return clean_products(read_products(folder), images)[0], images


def measure(model, processor, products, images):
    "Name of a figure -> its value for each query or picture that it is about."
    from clip_ft.texts import attribute_phrases
    from clip_ft.queries import attribute_queries
    from clip_ft.encode import embed_images, embed_texts
    from clip_ft.data import image_paths
    asked, categories = attribute_queries(products, "colour"), products["category"].to_numpy()
    pictures = embed_images(model, processor, image_paths(products, images), progress=False)
    top = np.argsort(-(embed_texts(model, processor, asked.texts) @ pictures.T), axis=1, kind="stable")[:, :5]
    right = np.array([np.isin(t, r).sum()/min(5, len(r)) for t, r in zip(top, asked.relevant)])
    figures = {"precision@5": right, "type@5": (categories[top] == categories[asked.rows][:, None]).mean(1)}
    own, other = attribute_phrases(products)["colour"], attribute_phrases(products.assign(category=products["category"].map(OTHER).fillna("")))["colour"]
    for pair in PAIRS:
        mine = np.flatnonzero(np.isin(categories, pair))
        fit, unfit = ((pictures[mine]*embed_texts(model, processor, o.iloc[mine])).sum(1) for o in (own, other))
        figures[f"mistaken {'/'.join(pair)}"] = (fit < unfit).astype(float)
        about = np.flatnonzero(np.isin(categories[asked.rows], pair))
        figures[f"confused {'/'.join(pair)}"] = (categories[top[about]] == np.array([OTHER[o] for o in categories[asked.rows[about]]])[:, None]).mean(1)
    return figures


def prepare(root, products):
    "Draw and split the shop, draw the gallery: (paths, folder, gallery)."
    from clip_ft.core import Paths
    from clip_ft.data import preprocess
    from clip_ft.sources import get_data
    paths = Paths(root/"shop")
    folder = get_data("demo", paths, limit=products)
    if not paths.train_csv.exists(): preprocess(paths)
    return paths, folder, fresh_gallery(root/"fresh")


def run(name, seed, shop, out, epochs, more):
    "Train, measure, write down."
    from clip_ft.core import Paths
    from clip_ft.data import image_folder, load_split
    from clip_ft.checkpoints import load_checkpoint, save_checkpoint
    from clip_ft.train_command import demo_config, open_model
    from clip_ft.training import train
    file, again = out/f"{name}.{seed}.npz", name.startswith("again")
    if file.exists(): return
    paths, folder, gallery = shop
    with redirect_stdout(StringIO()):
        fit, test = load_split(paths)
        model, processor = open_model("tiny", fit["full_text"])
        if again: load_checkpoint(out/f"demo.{seed}.pt", model)
        config = demo_config(**dict(epochs=more if again else epochs, seed=(1042 if again else 42)+seed) | VARIANTS[name])
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as d:
            here = Paths(d)
            here.pixels = paths.pixels
            history = train(model, processor, fit, test, image_folder(folder), here, config)
        seconds = time.perf_counter()-start
        figures = measure(model, processor, *gallery)
        if name == "demo": save_checkpoint(out/f"demo.{seed}.pt", model)
    np.savez(file, **figures)
    print(json.dumps(dict(variant=name, seed=seed, train_seconds=round(seconds), epochs=int(history.epoch.max()), test_recall5=round(float(history[history.kept]["test_hit_rate@5"].iloc[0]), 4), **{k: round(float(v.mean()), 4) for k, v in figures.items()})), flush=True)


def table(out, names):
    "Variant x figure, in per cent, with intervals, and paired differences with the spread of their seeds."
    rng = np.random.default_rng(0)
    runs = {o: {f.name.split(".")[1]: dict(np.load(f)) for f in sorted(out.glob(f"{o}.*.npz"))} for o in names}
    def percent(values):
        v = np.mean(values, 0)
        low, high = np.percentile(v[rng.integers(0, len(v), (2000, len(v)))].mean(1), [2.5, 97.5])
        return f"{100*v.mean():.1f} ({100*low:.1f} to {100*high:.1f})"
    rows = {f"{o} ({len(seeds)} seeds)": {k: percent([f[k] for f in seeds.values()]) for k in next(iter(seeds.values()))} for o, seeds in runs.items() if seeds}
    for o, other in BESIDE.items():
        both = runs.get(o, {}).keys() & runs.get(other, {}).keys()
        if not both: continue
        changes = {k: [runs[o][s][k]-runs[other][s][k] for s in both] for k in runs[o][min(both)]}
        rows[f"{o} - {other}"] = {k: f"{percent(v)}, seeds {100*np.std([c.mean() for c in v], ddof=1) if len(v) > 1 else np.nan:.1f}" for k, v in changes.items()}
    return pd.DataFrame(rows).T


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a temporary folder if not given")
    parser.add_argument("--out", type=Path, help="where results are kept; below --root if not given")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--products", type=int, help="of the shop; the demo's 2,000 if not given")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--more", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = args.root or Path(folder)
        out = args.out or root/"results"
        out.mkdir(parents=True, exist_ok=True)
        with redirect_stdout(StringIO()): shop = prepare(root, args.products)
        for seed in args.seeds:
            for name in args.only: run(name, seed, shop, out, args.epochs, args.more)
        print(table(out, args.only).to_string())


if __name__ == "__main__": main()
