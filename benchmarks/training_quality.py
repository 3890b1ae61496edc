"""What helps when a CLIP is fine-tuned on real products: the recipe, each addition alone, all that help together, and WiSE-FT.

    python benchmarks/training_quality.py CATALOGUE --out FOLDER [--workers 5] [--seeds 3] [--only recipe twins combined] [--seconds 240]

CATALOGUE is an archive or a folder with data.csv, pictures, and styles.csv, whose column baseColour is needed. Pretrained
weights aren't: the script makes the situation of somebody who fine-tunes. The categories are divided. "elsewhere" (shoes,
watches, bags, shirts, underwear, cosmetics ...) is the world that a mid-size CLIP (16 M parameters, pictures of 64 x 64) is
pretrained on, from random weights. "home" (HOME below: T-shirts, tops, dresses, skirts, trousers ...) is the shop that it is then
fine-tuned for. Both times by clip_ft's train(). The split is that of clip_ft_preprocess; results are on its test part, with
all test products of both worlds in the gallery.

recipe: full texts only, batches at random, twins not known as twins, AdamW, cosine, augmentation, the epoch with the lowest
validation loss. To keep it short it runs --epochs 3 with --batch-size 64, and because the model is small, at --lr 1e-4; the
recipe's own 5 epochs, 32 and 5e-6 are for ViT-B/32. Each addition alone is the recipe with one thing changed:
    twins           products with the same name, description or picture are right answers for each other
    texts           TrainConfig's mix of names, sentences, full texts and short phrases
    hard_negatives  batches of clusters of 8 that the model confuses (with twins unknown, twins are among them)
    batch           --big-batch 256 products, the rate times the square root of the ratio
    layer_decay     0.8
    freeze_vision   the first 2 of the 6 layers of the vision tower
    ema             0.99
    lora            rank 8, at ten times the rate: corrections start at zero
    weight_decay    0.1
    plain_pictures  pictures shown as they are, without augmentation
combined is the recipe with all of --combine; combined-X is that without X. before is the pretrained model. Every variant runs
with --seeds seeds, which decide batches, augmentation and the validation part; train and test are the same for all.

Queries: names (display names) and full texts, where the product and its twins are right; and short ones, "blue jeans": every
combination of colour and category that occurs, every product that has both is right. hit_rate@k is the share of queries with
a right answer among the first k; precision@5 is the share of right ones among the first 5, or of as many as there are if
fewer. confusion: of the first 5 answers to "red dresses", how many are nightdresses, and so on for PAIRS, both ways.
Queries count as home or elsewhere by their product. Intervals: 95 %, bootstrap over queries, each the mean of its seeds;
differences are paired, query by query. They say nothing about how another training would turn out; the seeds' own spread is
in the JSON (sd).

WiSE-FT: weights between those before and after fine-tuning, alpha from 0 to 1, of recipe and combined. alpha is chosen on
products that train() set aside, by the mean of the Recall@5 of home's and elsewhere's names; the test part is only shown.

Each run prints a line of JSON when it ends, in the order of seeds, so that a run cut short is complete for some seeds; after
--seconds no new run begins. Tables in Markdown come last, and OUT gets them too (quality.md), with the curve (wise_ft.png,
wise_ft.json) and the figures of each query (runs/); --table makes them again from what is in OUT. Results of other variants that OUT holds already are in the tables too: a second
call with --only adds to the first, if it has the same --root, and so the same pretrained model.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

HOME = ("Tshirts", "Lounge Tshirts", "Tops", "Camisoles", "Tunics", "Kurtas", "Kurtis", "Dresses", "Nightdress", "Night suits", "Baby Dolls", "Jumpsuit", "Rompers",
    "Skirts", "Shorts", "Lounge Shorts", "Capris", "Jeans", "Jeggings", "Leggings", "Tights", "Trousers", "Track Pants", "Lounge Pants", "Tracksuits",
    "Sweatshirts", "Sweaters", "Jackets", "Shrug")
PAIRS = (("Dresses", "Nightdress"), ("Skirts", "Shorts"), ("Tops", "Tunics"))
ADDITIONS = ("twins", "texts", "hard_negatives", "batch", "layer_decay", "freeze_vision", "ema", "lora", "weight_decay", "plain_pictures")
CURVES = ("recipe", "combined")     # whose weights are mixed with those before
ALPHAS = [round(.1*o, 1) for o in range(11)]


# ---- the two worlds, and the model that knows one of them

class Worlds:
    "The products of both worlds, split."
    def __init__(self, root):
        from clip_ft.core import Paths
        from clip_ft.data import catalogue_folder, image_folder, load_split
        self.paths = Paths(root)
        products, self.test = load_split(self.paths)
        self.images = image_folder(catalogue_folder(self.paths), self.test)
        home = products["category"].isin(HOME)
        self.home, self.elsewhere = (o.reset_index(drop=True) for o in (products[home], products[~home]))
        self.few = self.test.head(64)      # what train() measures by itself; the whole test part is measured here


class Gallery:
    "Pictures that are searched, and what is right for each name."
    def __init__(self, worlds, products, processor, device):
        from clip_ft.data import duplicate_groups
        from clip_ft.dataset import PixelCache, ResizeSpec, to_device
        from clip_ft.metrics import relevant_rows
        from clip_ft.data import image_paths
        self.products, self.home = products.reset_index(drop=True), products["category"].isin(HOME).to_numpy()
        cache = PixelCache.build(image_paths(products, worlds.images), ResizeSpec.from_processor(processor), worlds.paths.pixels)
        self.pixels, self.relevant = to_device(cache.pixels, device), relevant_rows(duplicate_groups(self.products))


def make_model(texts, args):
    "A CLIP with random weights and its processor, as `tiny_model` makes one, but larger."
    import torch
    from clip_ft.model import _tiny_tokenizer, tiny_model
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor
    if args.tiny: return tiny_model(texts)
    tokenizer = _tiny_tokenizer(texts, 8000)
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    tower = lambda width, layers: dict(hidden_size=width, intermediate_size=4*width, num_hidden_layers=layers, num_attention_heads=width//64, projection_dim=256)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(projection_dim=256, text_config=dict(tower(256, 4), vocab_size=len(tokenizer), **ids), vision_config=dict(tower(384, 6), image_size=64, patch_size=8)))
    model.name_or_path = "pretrained elsewhere"
    return model.eval(), CLIPProcessor(image_processor=CLIPImageProcessor(size=dict(shortest_edge=64), crop_size=dict(height=64, width=64)), tokenizer=tokenizer)


def lighter_train():
    "train() without what only an interrupted run or a person who watches needs; and no text is tokenized twice by a process, which has one tokenizer."
    from clip_ft import dataset, model, training
    bar, make, known = training.tqdm, dataset.Tokens, {}
    quiet = lambda *args, **options: bar(*args, **options | dict(disable=True))

    def tokens(processor, texts, **options):
        key = hash(tuple(texts)), len(texts), str(options)
        if key not in known: known[key] = make(processor, texts, **options)
        return known[key]

    dataset.Tokens = training.Tokens = tokens     # what train() makes; model.py needs the class itself
    training.tqdm = model.tqdm = quiet
    training.save_history = lambda *_: None
    training.Loop.snapshot = lambda _: None


@contextmanager
def twins_unknown(hide=True):
    "Inside, train() takes each product for one of a kind: in the loss, in the choice of batches and in what it measures. What is set aside is still cut between twins."
    from clip_ft import trainer, training
    groups, loss = training.duplicate_groups, trainer.model_loss
    if hide:
        trainer.duplicate_groups = training.duplicate_groups = lambda products: np.arange(len(products), dtype=np.int64)
        trainer.model_loss = lambda model, image_embeds, text_embeds, _=None, rows=slice(None): loss(model, image_embeds, text_embeds, None, rows)
    try: yield
    finally: trainer.duplicate_groups, training.duplicate_groups, trainer.model_loss = groups, groups, loss


def fit(model, processor, products, worlds, config):
    "train() on these products; checkpoints go to a folder that is removed, pixels to the one that all runs share."
    from clip_ft.core import Paths
    from clip_ft.training import train
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(folder)
        paths.pixels = worlds.paths.pixels
        return train(model, processor, products, worlds.few, worlds.images, paths, config, fresh=True)


def pretrain_config(args):
    from clip_ft.training import TrainConfig
    return TrainConfig(epochs=args.pretrain_epochs, patience=args.pretrain_epochs, batch_size=args.pretrain_batch, lr=args.pretrain_lr)


def prepare(args):
    "Bring in and split the catalogue, pretrain, and decode every picture that the runs will want, where that isn't done yet."
    from clip_ft.core import Paths
    from clip_ft.data import preprocess
    from clip_ft.sources import get_data
    from clip_ft.model import default_device, load_model, save_model
    start, paths = time.perf_counter(), Paths(args.root)
    get_data(args.catalogue, paths, 1500 if args.tiny else None)
    if not paths.train_csv.exists(): preprocess(paths)
    worlds = Worlds(args.root)
    say(event="split", home=len(worlds.home), elsewhere=len(worlds.elsewhere), test=len(worlds.test), test_home=int(worlds.test["category"].isin(HOME).sum()), seconds=since(start))
    if not (args.model/"config.json").exists():
        start = time.perf_counter()
        model, processor = make_model(pd.concat([worlds.elsewhere, worlds.home])["full_text"], args)
        history = fit(model.to(default_device()), processor, worlds.elsewhere, worlds, pretrain_config(args))
        save_model(args.model, model, processor)
        say(event="pretrained", parameters=sum(p.numel() for p in model.parameters()), seconds=since(start), **history[history.kept].iloc[0].filter(like="val_").astype(float).round(4))
    start = time.perf_counter()
    model, processor = load_model(args.model, "cpu")
    for products in (worlds.home, worlds.few, worlds.test, *curve_parts(worlds, args).values()): Gallery(worlds, products, processor, "cpu")
    say(event="decoded", seconds=since(start))


# ---- the runs

def variants(args):
    "Name -> (settings of TrainConfig, whether twins are known); None for the pretrained model itself."
    from clip_ft.training import TrainConfig
    recipe = dict(texts=dict(full_text=1), epochs=args.epochs, batch_size=args.batch_size, lr=args.lr)
    changes = dict(twins={}, texts=dict(texts=TrainConfig().texts), hard_negatives=dict(hard_negatives=8), batch=dict(batch_size=args.big_batch, lr=args.lr*math.sqrt(args.big_batch/args.batch_size)),
        layer_decay=dict(layer_decay=.8), freeze_vision=dict(freeze_vision=2), ema=dict(ema=.99), lora=dict(lora=8, lr=10*args.lr), weight_decay=dict(weight_decay=.1), plain_pictures=dict(augment=False))
    several = lambda names: ({k: v for o in [recipe, *(changes[o] for o in names)] for k, v in o.items()}, "twins" in names)
    found = dict(before=None, recipe=several([])) | {o: several([o]) for o in ADDITIONS} | dict(combined=several(args.combine))
    return found | {f"combined-{o}": several([p for p in args.combine if p != o]) for o in args.combine}


def runs(args):
    "(variant, seed) of everything to do, the first seed of all before the second of any."
    names = args.only or list(variants(args))
    return [(o, seed) for seed in range(args.seeds) for o in names if seed == 0 or o != "before"]


def work(args):
    "Take one run after the other that nobody has taken yet."
    import torch
    from clip_ft.model import load_model
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    lighter_train()
    worlds, table = Worlds(args.root), variants(args)
    model, processor = load_model(args.model)
    test = Gallery(worlds, worlds.test, processor, next(model.parameters()).device)
    short = short_queries(test)
    for number, (name, seed) in enumerate(runs(args)):
        if time.time() > args.until: return
        try: (args.out/"runs"/f"{number}.taken").touch(exist_ok=False)
        except FileExistsError: continue
        try: run(args, worlds, test, short, name, seed, table[name])
        except Exception as e:
            say(variant=name, seed=seed, error=f"{type(e).__name__}: {e}")
            if "CUDA" in str(e): raise       # this process can't go on; the other processes do


def run(args, worlds, test, short, name, seed, settings):
    "Fine-tune, measure, write down."
    from clip_ft.model import load_model, save_model
    from clip_ft.training import TrainConfig
    start = time.perf_counter()
    model, processor = load_model(args.model)
    base, notes = {k: v.clone() for k, v in model.state_dict().items()}, {}
    if settings:
        config = TrainConfig(seed=42+seed, **settings[0])
        with twins_unknown(not settings[1]): history = fit(model, processor, worlds.home, worlds, config)
        notes = dict(train_seconds=since(start), steps=int(history.step.max()), kept=int(history.epoch[history.kept].iloc[0]))
    if (name, seed) == ("combined", 0): save_model(args.out/"combined", model, processor)
    values = evaluate(model, processor, test, short)
    np.savez(args.out/"runs"/f"{name}.{seed}.npz", **values)
    say(variant=name, seed=seed, seconds=since(start), **notes, **{k: round(float(v.mean()), 4) for k, v in values.items()})
    if name not in CURVES: return
    points = curve(model, processor, base, dict(test=test) | {k: Gallery(worlds, o, processor, test.pixels.device) for k, o in curve_parts(worlds, args, seed).items()})
    (args.out/"runs"/f"{name}.{seed}.json").write_text(json.dumps(points))
    say(curve=name, seed=seed, seconds=since(start), points=points)


# ---- what is measured

def short_queries(gallery):
    "(texts, the rows that are right, category of each): every combination of colour and category in the gallery."
    from clip_ft.texts import attribute_phrases
    products = gallery.products
    phrases = attribute_phrases(products)["colour"][~products["baseColour"].str.strip().isin(["", "NA"])]
    found = phrases.groupby(phrases).indices
    rows = [phrases.index.to_numpy()[o] for o in found.values()]
    return list(found), rows, products["category"].to_numpy()[[o[0] for o in rows]]


def with_ranks(kind, home, ranks):
    "The figures of each query, home's and elsewhere's apart."
    figures = {f"hit_rate@{k}": ranks <= k for k in (1, 5, 10)} | dict(mrr=1/ranks)
    return {f"{kind} {side} {k}": v[mine].astype(np.float32) for side, mine in (("home", home), ("elsewhere", ~home)) for k, v in figures.items()}


def evaluate(model, processor, test, short):
    "Name of a figure -> its value for each query."
    from clip_ft.metrics import rank_relevant
    from clip_ft.encode import embed_images, embed_texts
    images, values = embed_images(model, processor, test.pixels, progress=False), {}
    for kind, column in (("names", "display name"), ("full texts", "full_text")):
        values |= with_ranks(kind, test.home, rank_relevant(embed_texts(model, processor, test.products[column]), images, test.relevant).best)
    texts, relevant, categories = short
    queries, home = embed_texts(model, processor, texts), np.isin(categories, HOME)
    values |= with_ranks("short", home, rank_relevant(queries, images, relevant).best)
    top = np.argsort(-(queries @ images.T), axis=1, kind="stable")[:, :5]
    precision = np.array([np.isin(t, r).sum()/min(5, len(r)) for t, r in zip(top, relevant)], np.float32)
    values |= {"short home precision@5": precision[home], "short elsewhere precision@5": precision[~home]}
    shown, other = test.products["category"].to_numpy()[top], {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
    confused = (shown == np.array([other.get(o, "") for o in categories], object)[:, None]).mean(1).astype(np.float32)
    for pair in PAIRS: values["confusion "+"/".join(pair)] = confused[np.isin(categories, pair)]
    values["confusion all"] = confused[np.isin(categories, list(other))]
    return {k: v for k, v in values.items() if len(v)}


def curve_parts(worlds, args, seed=0):
    "What alpha is chosen on: products of both worlds that no training step has seen."
    from clip_ft.data import split_products
    from clip_ft.training import TrainConfig
    config, first = TrainConfig(seed=42+seed), pretrain_config(args)
    parts = split_products(worlds.home, config.val_size, config.seed)[1], split_products(worlds.elsewhere, first.val_size, first.seed)[1]
    return dict(validation=pd.concat(parts, ignore_index=True))


def curve(model, processor, base, parts):
    "Recall@5 of names at each alpha, a dict a point; the model has its own weights again afterwards."
    from clip_ft.metrics import rank_relevant
    from clip_ft.checkpoints import interpolate_weights
    from clip_ft.encode import embed_images, embed_texts
    tuned, points = {k: v.clone() for k, v in model.state_dict().items()}, []
    for alpha in ALPHAS:
        model.load_state_dict(interpolate_weights(base, tuned, alpha))
        point = dict(alpha=alpha)
        for part, gallery in parts.items():
            hits = rank_relevant(embed_texts(model, processor, gallery.products["display name"]), embed_images(model, processor, gallery.pixels, progress=False), gallery.relevant).best <= 5
            point |= {f"{part} home": round(float(hits[gallery.home].mean()), 4), f"{part} elsewhere": round(float(hits[~gallery.home].mean()), 4)}
        points.append(point)
    model.load_state_dict(tuned)
    return points


# ---- tables and pictures

@lru_cache(None)
def weights(n, draws=1000):
    "How often each of `n` queries is drawn, in `draws` bootstrap samples, as shares."
    return (np.random.default_rng(0).multinomial(n, np.full(n, 1/n), draws)/n).astype(np.float32)


def interval(x): return np.percentile(weights(len(x)) @ x, [2.5, 97.5])


def results(args):
    "Variant -> figure -> [seeds, queries], in the order of the tables."
    found = {}
    for name in variants(args):
        files = [np.load(o) for o in sorted((args.out/"runs").glob(f"{name}.*.npz"))]
        if files: found[name] = {k: np.stack([o[k] for o in files]) for k in files[0]}
    return found


def markdown(rows, head):
    line = lambda cells: "| "+" | ".join(cells)+" |"
    return "\n".join([line(head), line(["---"]*len(head)), *map(line, rows)])


def tables(found):
    "Everything in Markdown, in per cent: a table of differences, then one for each kind of query."
    percent = lambda x: f"{100*x.mean():.1f} ({' to '.join(f'{100*o:.1f}' for o in interval(x))})"
    change = lambda x: f"{100*x.mean():+.1f} ({' to '.join(f'{100*o:+.1f}' for o in interval(x))})"
    keys = list(next(iter(found.values())))
    chosen = [o for o in ("names home hit_rate@5", "full texts home hit_rate@5", "short home hit_rate@5", "short home precision@5", "names elsewhere hit_rate@5", "short elsewhere hit_rate@5", "confusion all") if o in keys]
    rows = []
    for name, values in found.items():
        against = "combined" if name.startswith("combined-") else "recipe"
        if name != against and against in found: rows.append([name, against, *(change(values[k].mean(0)-found[against][k].mean(0)) for k in chosen)])
    parts = ["Difference to the row named second, in points; 95 % interval, paired by query:", markdown(rows, ["variant", "against", *chosen])] if rows else []
    groups = {f"{kind}, {side}": [o for o in keys if o.startswith(f"{kind} {side} ")] for kind in ("names", "full texts", "short") for side in ("home", "elsewhere")}
    for title, mine in (groups | dict(confusion=[o for o in keys if o.startswith("confusion")])).items():
        if not mine: continue
        head = ["variant", "seeds", *(o.split(" ")[-1] for o in mine)]
        n = len(next(iter(found.values()))[mine[-1]][0])
        parts += [f"{title[0].upper()}{title[1:]} ({n:,} queries), per cent and 95 % interval:", markdown([[name, str(len(v[mine[0]])), *(percent(v[k].mean(0)) for k in mine)] for name, v in found.items()], head)]
    return "\n\n".join(parts)


def curves(args):
    "Variant -> its points, mean of the seeds, and the alpha that the validation part chooses."
    found = {}
    for name in CURVES:
        files = [json.loads(o.read_text()) for o in sorted((args.out/"runs").glob(f"{name}.*.json"))]
        if not files: continue
        points = [{k: round(float(np.mean([o[i][k] for o in files])), 4) for k in files[0][i]} for i in range(len(files[0]))]
        found[name] = dict(seeds=len(files), alpha=max(points, key=lambda o: o["validation home"]+o["validation elsewhere"])["alpha"], points=points)
    return found


def draw(found, path):
    "Home against elsewhere, a line a variant, alphas written beside, the chosen one ringed."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(5.2, 4), layout="constrained")
    ax = fig.subplots()
    for (name, o), colour, beside in zip(found.items(), ("tab:gray", "tab:blue"), ((-15, -10), (4, 3))):
        x, y = ([100*p[f"test {side}"] for p in o["points"]] for side in ("elsewhere", "home"))
        ax.plot(x, y, ".-", color=colour, label=name)
        for p, a, b in zip(o["points"], x, y): ax.annotate(f"{p['alpha']:g}", (a, b), xytext=beside, textcoords="offset points", fontsize=7, color=colour)
        i = ALPHAS.index(o["alpha"])
        ax.plot(x[i], y[i], "o", color=colour, fillstyle="none", markersize=12)
    ax.set(xlabel="elsewhere: Recall@5 of names, %", ylabel="home: Recall@5 of names, %", title="Weights between before (0) and after (1) fine-tuning")
    ax.title.set_fontsize(10)
    ax.grid(alpha=.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    fig.savefig(path, dpi=120)


def report(args):
    found, bent = results(args), curves(args)
    if not found: sys.exit("There are no results.")
    for name, values in found.items():
        say(summary=name, seeds=len(next(iter(values.values()))), **{k: dict(mean=round(float(v.mean()), 4), interval=interval(v.mean(0)).round(4).tolist(), sd=round(float(v.mean(1).std(ddof=1)), 4) if len(v) > 1 else None) for k, v in values.items()})
    if bent:
        for name, o in bent.items(): say(wise_ft=name, **o)
        (args.out/"wise_ft.json").write_text(json.dumps(bent, indent=1))
        draw(bent, args.out/"wise_ft.png")
    text = tables(found)
    (args.out/"quality.md").write_text(text+"\n")
    print("\n"+text, flush=True)


# ---- the frame

def since(start): return round(time.perf_counter()-start, 1)


def say(**what):
    "One line of JSON, in one write: several processes share the output."
    sys.stdout.write(json.dumps(what)+"\n")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--out", type=Path, help="where tables, curve and figures go; a temporary folder if not given")
    parser.add_argument("--root", type=Path, help="where data, pixels and the pretrained model go, to be found again; a temporary folder if not given")
    parser.add_argument("--model", type=Path, help="folder of the pretrained model; made if it isn't there; below --root if not given")
    parser.add_argument("--workers", type=int, default=1, help="processes that train side by side on the same device")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no run later than this, counted from the start")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these variants: before, recipe, combined, an addition, or combined-ADDITION")
    parser.add_argument("--combine", nargs="+", choices=ADDITIONS, metavar="ADDITION", default=["twins", "texts", "hard_negatives", "batch"], help="what `combined` adds to the recipe")
    parser.add_argument("--pretrain-epochs", type=int, default=40)
    parser.add_argument("--pretrain-batch", type=int, default=256)
    parser.add_argument("--pretrain-lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--big-batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--tiny", action="store_true", help="1,500 products and a tiny model, to try the script out")
    parser.add_argument("--table", action="store_true", help="run nothing, only make the tables from what is in --out")
    parser.add_argument("--how", choices=("work",), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=math.inf, help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.only or ())-set(variants(args))
    if unknown: parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(variants(args))}")
    if args.table and not args.out: parser.error("--table needs --out")
    if args.table: return report(args)
    threads = str(max(1, (os.cpu_count() or 1)//args.workers))
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="true", TQDM_DISABLE="1")
    if args.how: return work(args)
    until = time.time()+args.seconds
    with tempfile.TemporaryDirectory() as folder:
        args.root = args.root or Path(folder)
        args.model, args.out = args.model or args.root/"elsewhere", args.out or Path(folder)/"out"
        (args.out/"runs").mkdir(parents=True, exist_ok=True)
        for old in ["*.taken", *(f"{name}.{seed}.*" for name, seed in runs(args))]:
            for o in (args.out/"runs").glob(old): o.unlink()
        lighter_train()
        prepare(args)
        options = [*sys.argv[1:], "--root", args.root, "--model", args.model, "--out", args.out, "--until", until, "--how", "work"]
        environ = os.environ | {o: os.environ.get(o, threads) for o in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
        workers = [subprocess.Popen([sys.executable, __file__, *map(str, options)], env=environ) for _ in range(args.workers)]
        failed = [o for o in workers if o.wait()]
        if failed: say(event="workers failed", count=len(failed))
        report(args)


if __name__ == "__main__": main()
