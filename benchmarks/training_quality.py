"""What improves fine-tuning on real products: the recipe, each addition alone, additions together, and WiSE-FT.

    python benchmarks/training_quality.py CATALOGUE --out FOLDER [--workers 5] [--seeds 3] [--seconds 240]
        [--only recipe duplicates combined]

CATALOGUE is an archive or a folder with data.csv, images, and styles.csv with the column baseColour. Instead of
loading pretrained weights, the script creates the situation of fine-tuning. The categories are divided in two: a
CLIP of 16 M parameters (images of 64 x 64 pixels) is pretrained on the categories called "elsewhere" (shoes,
watches, bags, shirts, underwear, cosmetics ...), from random weights, and fine-tuned on those called "home" (HOME
below: T-shirts, tops, dresses, skirts, trousers ...); both with train() of clip_ft. The split is that of
clip_ft_preprocess. Metrics are measured on its test products, with those of both parts in the gallery.

recipe: full texts only, random batches, duplicates not treated as duplicates, AdamW, cosine schedule, augmentation,
the epoch with the lowest validation loss. To save time it runs --epochs 3 with --batch-size 64, and because the
model is small, with --lr 1e-4; the 5 epochs, 32 and 5e-6 of the published recipe are meant for ViT-B/32. Each
addition changes one thing:

    duplicates      products with the same name, description or image are right answers for each other
    texts           the mix of names, sentences, full texts and short phrases that is the default of TrainConfig
    hard_negatives  batches of clusters of 8 similar products (duplicates among them, unless they are treated as such)
    skipS           with hard_negatives: the S nearest products of each are kept out of its cluster
    marginM         false negatives are left out of the loss: products with a cosine above 1-M, in per cent
    batch           --big-batch 256 products, learning rate times the square root of the ratio
    layer_decay     0.8
    freeze_vision   the first 2 of the 6 layers of the vision tower
    ema             0.99
    lora            rank 8, at ten times the learning rate, because corrections start at zero
    weight_decay    0.1
    plain_images    no augmentation
    distillW        distillation of the image tower with the weight W
    distill_texts   with distillW: distillation of the text tower as well (not an option of train; not with two_texts)
    long            --long-epochs with --long-lr; after each epoch, all metrics that could choose one are measured, and
                    the test products
    two_texts       with texts: a short and a long text of each product in every step
    epochsN         N epochs, for comparisons at equal time: a step with two texts takes longer
    few             a shop with --few products

defaults is the recipe with duplicates and texts, as in train(); combined is the recipe with all of --combine;
combined-X is that without X. before is the pretrained model. Names can be joined, such as defaults+distill3. Every
variant runs with --seeds seeds, which determine batches, augmentation and validation products; training and test
products are the same for all.

Queries are names (display names) and full texts, for which a product and its duplicates are right, and short phrases
such as "blue jeans": every combination of colour and category, for which every product that has both is right.
precision@5 is the share of right answers among the first 5, or among as many as there are. confusion: the share of
the first 5 answers to "red dresses" that are nightdresses, and so on for PAIRS, in both directions. A query belongs
to home or elsewhere by its product. Intervals are 95 % bootstrap intervals over queries, whose value is the mean of
the seeds; differences are paired by query. They do not cover the variation between trainings; the standard deviation
over seeds is in the records (sd).

WiSE-FT: the weights between those before (alpha 0) and after fine-tuning (alpha 1), for the variants in --curves,
measured on the test products, on the products that train() set aside, and by the agreement with the pretrained model
on images and texts of several origins: products set aside, everyday things, drawn products. choose_weights() chooses
alpha by the products of home that train() set aside and by everyday texts; it sees neither test products nor products
of elsewhere.

negatives: of the pairs within a cluster (of all pairs of a batch, with random batches) that are no duplicates, the
share that agree in colour and category, of all such pairs and of those that are not left out of the loss, and the
share that is left out; means of the epochs. Duplicates are those of the catalogue, also where they are ignored.

Each run prints a record when it ends. Runs go by seed, so that a call that is cut short is complete for some seeds;
after --seconds no new run starts. Tables in Markdown follow, which are also written to --out (quality.md), with the
curve (wise_ft.png, wise_ft.json), the tables that the notebooks draw (quality.csv, curves.csv, agreements.csv,
monitors.csv, times.csv) and the values of each query (runs/). With several --workers, which share the device, the times
are those of a busy device. --table only prints the tables again. Results
of other variants in --out are included: a second call with --only adds to the first, if it has the same --root and
so the same pretrained model.
"""
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from common import (
    OFFLINE,
    Results,
    benchmark_parser,
    bootstrap_interval,
    load_parts,
    measuring_negatives,
    prepare_split,
    print_record,
    random_model,
    rounded,
    silent,
)

HOME = (
    'Tshirts', 'Lounge Tshirts', 'Tops', 'Camisoles', 'Tunics', 'Kurtas', 'Kurtis', 'Dresses', 'Nightdress',
    'Night suits', 'Baby Dolls', 'Jumpsuit', 'Rompers', 'Skirts', 'Shorts', 'Lounge Shorts', 'Capris', 'Jeans',
    'Jeggings', 'Leggings', 'Tights', 'Trousers', 'Track Pants', 'Lounge Pants', 'Tracksuits', 'Sweatshirts',
    'Sweaters', 'Jackets', 'Shrug')
PAIRS = (('Dresses', 'Nightdress'), ('Skirts', 'Shorts'), ('Tops', 'Tunics'))
OTHER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
DISTILL = (1, 3, 5, 10, 30)  # weights of the distillation
SKIPS, MARGINS = (1, 3, 7, 15, 31), (10, 20, 30, 40, 50, 60)  # of hard negatives
ADDITIONS = ('duplicates', 'texts', 'hard_negatives', 'batch', 'layer_decay', 'freeze_vision', 'ema', 'lora',
             'weight_decay', 'plain_images', *(f'distill{weight}' for weight in DISTILL), 'distill_texts', 'long',
             'two_texts', *(f'skip{skip}' for skip in SKIPS), *(f'margin{margin}' for margin in MARGINS))
KINDS = ('names', 'full texts', 'short')
SIDES = ('home', 'elsewhere')
MODIFIERS = ('distill_texts', 'long', 'few', 'two_texts',  # additions that are only used together with others
             *(f'skip{skip}' for skip in SKIPS), *(f'margin{margin}' for margin in MARGINS))
DEFAULTS = ('duplicates', 'texts')  # additions that are defaults of train()
CURVES = ('recipe', 'defaults', 'combined')  # variants whose weights are interpolated
ALPHAS = [round(.1*i, 1) for i in range(11)]


def seconds_since(start: float) -> float:
    return time.perf_counter()-start


# ---- data and the pretrained model

class Parts:
    "The products of both parts, split."

    def __init__(self, root: Path):
        self.paths, products, self.test, self.image_dir = load_parts(root)
        home = products['category'].isin(HOME)
        self.home, self.elsewhere = (products[rows].reset_index(drop=True) for rows in (home, ~home))
        self.few = self.test.head(64)  # what train() measures; all test products are measured here


class TestGallery:
    "The images of a gallery, and the right answers for the name of each product."

    def __init__(self, parts: Parts, products: pd.DataFrame, processor, device):
        from clip_ft.data import duplicate_groups, image_paths
        from clip_ft.dataset import PixelCache, ResizeSpec, to_device
        from clip_ft.queries import short_queries
        self.products = products.reset_index(drop=True)
        self.home = self.products['category'].isin(HOME).to_numpy()
        files, spec = image_paths(self.products, parts.image_dir), ResizeSpec.from_processor(processor)
        self.pixels = to_device(PixelCache.build(files, spec, parts.paths.pixels).pixels, device)
        self.groups = duplicate_groups(self.products)
        self.short = short_queries(self.products, 'colour', limit=len(self.products))


@contextmanager
def ignoring_duplicates() -> Iterator[None]:
    "Inside the with block, train() treats no products as duplicates, except where it sets validation products aside."
    from clip_ft import batches, metrics, steps

    def all_different(products):
        return np.arange(len(products), dtype=np.int64)

    def loss_without_groups(model, image_embeds, text_embeds, **options):
        return model_loss(model, image_embeds, text_embeds, **options | dict(groups=None))

    model_loss = steps.model_loss
    with ExitStack() as stack:
        for module in (batches, metrics):
            stack.enter_context(patch.object(module, 'duplicate_groups', all_different))
        stack.enter_context(patch.object(steps, 'model_loss', loss_without_groups))
        yield


@contextmanager
def distilling_texts(base, processor) -> Iterator[None]:
    "Inside the with block, train() also distills the text tower of the model before training."
    import torch

    from clip_ft.batches import TrainingBatches
    from clip_ft.encode import embed_texts
    from clip_ft.losses import distillation_loss
    from clip_ft.training import Trainer
    embeds, make_batch, image_loss = {}, TrainingBatches.batch, Trainer.loss

    def batch_with_texts(self, rows, step):
        tokens, text_ids = self.texts.draw(rows, torch.Generator().manual_seed(self.seed*1_000_003+step))
        if id(tokens) not in embeds:
            embeds[id(tokens)] = torch.from_numpy(embed_texts(base, processor, tokens)).to(self.device)
        return make_batch(self, rows, step) | dict(base_texts=embeds[id(tokens)][text_ids.to(self.device)])

    def loss(self, batch, image_embeds, text_embeds, rows=slice(None)):
        of_texts = distillation_loss(text_embeds, batch['base_texts'], rows)
        return image_loss(self, batch, image_embeds, text_embeds, rows=rows)+self.config.distill*of_texts

    with patch.object(TrainingBatches, 'batch', batch_with_texts), patch.object(Trainer, 'loss', loss):
        yield


def fit(model, processor, products: pd.DataFrame, parts: Parts, config, monitor=None) -> tuple[pd.DataFrame, list]:
    """Run train() without snapshots, with checkpoints in a temporary folder and the shared pixel cache.

    monitor is called with the model after each epoch. Returns the history and the seconds of each epoch's training.
    """
    from clip_ft.core import Paths
    from clip_ft.training import Trainer, train
    seconds, measure_epoch, train_epoch = [], Trainer.measure_epoch, Trainer.train_epoch

    def timed_epoch(trainer, epoch):
        start = time.perf_counter()
        means = train_epoch(trainer, epoch)
        seconds.append(seconds_since(start))
        return means

    def monitored_epoch(trainer, epoch, means):
        measure_epoch(trainer, epoch, means)
        if monitor:
            with trainer.optimizer.averaged(), torch.compiler.set_stance('force_eager'):
                monitor(trainer.model)

    import torch
    patches = dict(save_snapshot=lambda *_, **__: None, train_epoch=timed_epoch, measure_epoch=monitored_epoch)
    with tempfile.TemporaryDirectory() as folder, patch.multiple(Trainer, **patches), silent():
        paths = Paths(folder)
        paths.pixels = parts.paths.pixels
        history = train(model, processor, products, parts.few, parts.image_dir, paths, config, fresh=True)
    return history, seconds


def pretrain_config(args: Namespace):
    from clip_ft.settings import TrainConfig
    epochs = args.pretrain_epochs
    return TrainConfig(epochs=epochs, patience=epochs, batch_size=args.pretrain_batch, lr=args.pretrain_lr,
                       augment=True, interpolate=False)


def pretrain(args: Namespace, parts: Parts, results: Results):
    "Train a model on the elsewhere part, and save it."
    from clip_ft.model import default_device, save_model
    start = time.perf_counter()
    texts = pd.concat([parts.elsewhere, parts.home])['full_text']
    model, processor = random_model(texts, 'tiny' if args.tiny else 'small-images')
    history, _ = fit(model.to(default_device()), processor, parts.elsewhere, parts, pretrain_config(args))
    save_model(args.model, model, processor)
    kept = history[history.kept].iloc[0].filter(like='val_').astype(float)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    results.add(event='pretrained', parameters=parameters, seconds=seconds_since(start), **kept)


def prepare(args: Namespace, results: Results):
    "Split the catalogue, pretrain, and decode the images of all runs, unless that is done."
    from clip_ft.model import load_model
    start = time.perf_counter()
    prepare_split(args.root, args.catalogue, 1500 if args.tiny else None)
    parts = Parts(args.root)
    sizes = dict(home=len(parts.home), elsewhere=len(parts.elsewhere), test=len(parts.test))
    results.add(event='split', **sizes, test_home=parts.test['category'].isin(HOME).sum(), seconds=seconds_since(start))
    if not (args.model/'config.json').exists():
        pretrain(args, parts, results)
    start = time.perf_counter()
    processor = load_model(args.model, 'cpu', verbose=False)[1]
    for products in (parts.home, parts.few, parts.test):
        TestGallery(parts, products, processor, 'cpu')
    for seed in range(args.first_seed, args.first_seed+args.seeds):
        for products in (alpha_products(parts, args, seed), home_products(parts.home, args, seed)[0]):
            TestGallery(parts, products, processor, 'cpu')
    draw_demo(args.root/'drawn', processor)
    results.add(event='decoded', seconds=seconds_since(start))


# ---- the runs

def changes(args: Namespace) -> dict[str, dict]:
    "Addition -> settings of TrainConfig that it changes."
    from clip_ft.settings import TrainConfig
    return dict(
        duplicates={}, distill_texts={}, few={}, texts=dict(texts=TrainConfig().texts),
        hard_negatives=dict(hard_negative_size=8),
        batch=dict(batch_size=args.big_batch, lr=args.lr*math.sqrt(args.big_batch/args.batch_size)),
        layer_decay=dict(layer_decay=.8), freeze_vision=dict(freeze_vision=2), ema=dict(ema=.99),
        lora=dict(lora=8, lr=10*args.lr), weight_decay=dict(weight_decay=.1), plain_images=dict(augment=False),
        long=dict(epochs=args.long_epochs, patience=args.long_epochs, lr=args.long_lr), two_texts=dict(two_texts=True),
        **{f'distill{weight}': dict(distill=float(weight)) for weight in DISTILL},
        **{f'skip{skip}': dict(hard_negative_skip=skip) for skip in SKIPS},
        **{f'margin{margin}': dict(false_negative_margin=margin/100) for margin in MARGINS})


def epochs_of(addition: str) -> int:
    "The number of epochs of an addition such as epochs6; 0 for other additions."
    found = re.fullmatch('epochs([1-9][0-9]*)', addition)
    return int(found[1]) if found else 0


def variants(args: Namespace) -> dict[str, tuple | None]:
    "Name -> additions; None for the pretrained model. Those of --only and of the results may be joined by +."
    found = dict(before=None, recipe=()) | {name: (name,) for name in ADDITIONS if name not in MODIFIERS}
    found |= dict(defaults=DEFAULTS, combined=tuple(args.combine))
    for left_out in args.combine:
        found[f'combined-{left_out}'] = tuple(name for name in args.combine if name != left_out)
    known = found | {name: (name,) for name in MODIFIERS}
    results = (path.name.split('.')[0] for path in sorted((args.out/'runs').glob('*.npz'))) if args.out else ()
    for name in (*(args.only or ()), *results):
        parts = name.split('+')
        known |= {part: (part,) for part in parts if epochs_of(part)}
        if name not in found and all(known.get(part) is not None for part in parts):
            found[name] = tuple(dict.fromkeys(addition for part in parts for addition in known[part]))
    return found


def config_of(additions: tuple, seed: int, args: Namespace):
    "The TrainConfig of a variant."
    from clip_ft.settings import TrainConfig
    settings = dict(texts=dict(full_text=1), epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, seed=42+seed,
                    augment=True, interpolate=False)
    for name in additions:
        epochs = epochs_of(name)
        settings |= dict(epochs=epochs, patience=epochs) if epochs else changes(args)[name]
    return TrainConfig(**settings)


def runs(args: Namespace) -> list[tuple[str, int]]:
    "Variant and seed of all runs, the first seed of all variants before the second of any."
    names = args.only or list(variants(args))
    first = args.first_seed
    return [(name, seed) for seed in range(first, first+args.seeds) for name in names
            if seed == first or name != 'before']


def claim(path: Path) -> bool:
    "Create a file; False if another process has created it."
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def work(args: Namespace):
    "Run all variants and seeds that no other process has claimed."
    import torch

    from clip_ft.model import load_model, model_device
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    parts = Parts(args.root)
    model, processor = load_model(args.model, verbose=False)
    test = TestGallery(parts, parts.test, processor, model_device(model))
    for number, (name, seed) in enumerate(runs(args)):
        if time.time() > args.until:
            return
        if not claim(args.out/'runs'/f'{number}.taken'):
            continue
        try:
            run(args, parts, test, name, seed)
        except Exception as error:
            print_record(variant=name, seed=seed, error=f'{type(error).__name__}: {error}')
            if 'CUDA' in str(error):
                raise  # this process cannot continue; the others can


def run(args: Namespace, parts: Parts, test: TestGallery, name: str, seed: int):
    "Fine-tune, measure, and write the results."
    from clip_ft.model import load_model, save_model
    start, notes, additions = time.perf_counter(), {}, variants(args)[name]
    model, processor = load_model(args.model, verbose=False)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    home = few_products(parts, args) if 'few' in (additions or ()) else parts.home
    monitor = Monitor(args, parts, home, test, processor, seed) if 'long' in (additions or ()) else None
    if additions is not None:
        with ExitStack() as stack:
            if 'duplicates' not in additions:
                stack.enter_context(ignoring_duplicates())
            if 'distill_texts' in additions:
                stack.enter_context(distilling_texts(load_model(args.model, verbose=False)[0], processor))
            negatives = stack.enter_context(measuring_negatives())
            history, seconds = fit(model, processor, home, parts, config_of(additions, seed, args), monitor)
        kept = history.epoch[history.kept].iloc[0]
        notes = dict(train_seconds=seconds_since(start), epoch_seconds=min(seconds), steps=history.step.max(),
                     kept=kept, negatives=pd.DataFrame(negatives).mean().to_dict())
        times = [dict(epochs=len(seconds), steps=int(history.step.max()), epoch_seconds=min(seconds))]
        (args.out/'runs'/f'{name}.{seed}.time.json').write_text(json.dumps(rounded(times)))
    if (name, seed) == ('combined', 0):
        save_model(args.out/'combined', model, processor)
    values = evaluate(model, processor, test)
    np.savez(args.out/'runs'/f'{name}.{seed}.npz', **values)
    means = {metric: each.mean() for metric, each in values.items()}
    print_record(variant=name, seed=seed, seconds=seconds_since(start), **notes, **means)
    if monitor:
        history = history.set_index('epoch').drop(columns='kept').astype(float)
        rows = [history.loc[epoch].to_dict() | row | dict(epoch=epoch) for epoch, row in enumerate(monitor.rows)]
        (args.out/'runs'/f'{name}.{seed}.monitor.json').write_text(json.dumps(rounded(rows)))
        print_record(monitor=name, seed=seed, seconds=seconds_since(start))
    elif name in args.curves:
        points, hits, chosen = curve(model, processor, base, args, parts, test, seed)
        (args.out/'runs'/f'{name}.{seed}.curve.json').write_text(json.dumps(rounded(points)))
        np.savez_compressed(args.out/'runs'/f'{name}.{seed}.hits', hits=hits, home=test.home)
        print_record(curve=name, seed=seed, seconds=seconds_since(start), points=points[::5], chosen=chosen)


# ---- metrics

def by_side(kind: str, home: np.ndarray, **metrics: np.ndarray) -> dict[str, np.ndarray]:
    "The metrics of each query, separately for home and elsewhere."
    values = {}
    for side, rows in zip(SIDES, (home, ~home)):
        values |= {f'{kind} {side} {name}': each[rows].astype(np.float32) for name, each in metrics.items()}
    return values


def rank_values(best: np.ndarray) -> dict[str, np.ndarray]:
    "Metrics of each query from the rank of its best right answer."
    return {f'hit_rate@{k}': best <= k for k in (1, 5, 10)} | dict(mrr=1/best)


def evaluate(model, processor, test: TestGallery) -> dict[str, np.ndarray]:
    "Metric -> its value for each query."
    from clip_ft.encode import embed_images, embed_texts
    from clip_ft.metrics import rank_relevant
    image_embeds, values = embed_images(model, processor, test.pixels, progress=False), {}
    for kind, column in zip(KINDS, ('display name', 'full_text')):
        text_embeds = embed_texts(model, processor, test.products[column])
        ranks = best_ranks(text_embeds, image_embeds, test.groups, test.pixels.device)
        values |= by_side(kind, test.home, **rank_values(ranks))
    short, categories = test.short, test.products['category'].to_numpy()
    ranking = rank_relevant(embed_texts(model, processor, short.texts), image_embeds, short.relevant, top_k=5)
    right = [np.isin(rows, relevant).sum()/min(5, len(relevant)) for rows, relevant in zip(ranking.top, short.relevant)]
    asked = categories[short.rows]
    metrics = rank_values(ranking.best) | {'precision@5': np.array(right)}
    values |= by_side('short', np.isin(asked, HOME), **metrics)
    other = np.array([OTHER.get(category, '') for category in asked])
    confused = (categories[ranking.top] == other[:, None]).mean(1).astype(np.float32)
    groups = {'/'.join(pair): pair for pair in PAIRS} | dict(all=tuple(OTHER))
    values |= {f'confusion {name}': confused[np.isin(asked, group)] for name, group in groups.items()}
    return {name: each for name, each in values.items() if len(each)}


def alpha_products(parts: Parts, args: Namespace, seed: int = 0) -> pd.DataFrame:
    "The products of both parts that train() sets aside, on which alpha is chosen."
    from clip_ft.data import split_products
    first, config = pretrain_config(args), config_of((), seed, args)
    home = split_products(parts.home, config.val_size, config.seed, purpose='validation')[1]
    elsewhere = split_products(parts.elsewhere, first.val_size, first.seed, purpose='validation')[1]
    return pd.concat([home, elsewhere], ignore_index=True)


def best_ranks(query_embeds: np.ndarray, image_embeds: np.ndarray, groups: np.ndarray, device) -> np.ndarray:
    "Rank of the best right answer of each query, an image of its group; as rank_relevant, but on the device."
    import torch
    queries, images, groups = (torch.from_numpy(x).to(device) for x in (query_embeds, image_embeds, groups))
    scores, right = queries @ images.T, groups[:len(queries), None] == groups[:len(images)]
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return 1+((scores >= best) & ~right).sum(1).cpu().numpy()


def few_products(parts: Parts, args: Namespace) -> pd.DataFrame:
    "A small shop: --few products of home."
    return parts.home.sample(min(args.few, len(parts.home)), random_state=0).reset_index(drop=True)


def home_products(products: pd.DataFrame, args: Namespace, seed: int) -> tuple[pd.DataFrame, int]:
    "At most 10,000 of the products, those that train() sets aside first, and the number of these."
    from clip_ft.data import split_products
    config = config_of((), seed, args)
    train, validation = split_products(products, config.val_size, config.seed, purpose='validation')
    return pd.concat([validation, train], ignore_index=True).head(10_000), len(validation)


class Monitor:
    "Measures what could choose an epoch, and the test products, after each epoch."

    def __init__(self, args: Namespace, parts: Parts, products: pd.DataFrame, test: TestGallery, processor, seed: int):
        products, self.count = home_products(products, args, seed)
        self.test, self.processor, self.rows = test, processor, []
        self.all = TestGallery(parts, products, processor, test.pixels.device)

    def __call__(self, model):
        from clip_ft.encode import embed_images, embed_texts
        from clip_ft.metrics import batch_metrics
        image_embeds, row = embed_images(model, self.processor, self.all.pixels, progress=False), {}
        for kind, column in (('full', 'full_text'), ('name', 'display name')):
            texts = embed_texts(model, self.processor, self.all.products[column].head(self.count))
            groups = self.all.groups[:self.count]
            row[f'val {kind} loss'] = batch_metrics(model, image_embeds[:self.count], texts, groups)['loss']
            for among, size in dict(val=self.count, all=len(image_embeds)).items():
                best = best_ranks(texts, image_embeds[:size], self.all.groups, self.all.pixels.device)
                row |= {f'{among} {kind} {name}': each.mean() for name, each in rank_values(best).items()}
        values = evaluate(model, self.processor, self.test)
        row |= {f'test {name}': each.mean() for name, each in values.items() if name.endswith(('hit_rate@5', 'mrr'))}
        self.rows.append(row)


# ---- weights between before and after

def draw_demo(folder: Path, processor) -> tuple[np.ndarray, list[str]]:
    "Draw products of many kinds, unless that is done; returns their pixels and names."
    from clip_ft.data import clean_products, image_folder, image_paths, read_products
    from clip_ft.dataset import PixelCache, ResizeSpec
    from clip_ft.demo import draw_catalogue
    if not (folder/'data.csv').exists():
        draw_catalogue(folder, 400, seed=5)
    with silent():
        products = clean_products(read_products(folder), image_folder(folder))[0].drop_duplicates('display name')
        files, spec = image_paths(products, image_folder(folder)), ResizeSpec.from_processor(processor)
        cache = PixelCache.build(files, spec, folder)
    return cache.pixels, products['display name'].tolist()


class Agreement:
    "How much a model agrees with the one before, on images and texts that need no right answers."

    def __init__(self, args: Namespace, processor, validation: TestGallery):
        from clip_ft.dataset import to_device
        from clip_ft.wise_ft import EVERYDAY_TEXTS
        drawn, names = draw_demo(args.root/'drawn', processor)
        home = np.flatnonzero(validation.home)[:1000]
        self.processor, self.before, self.device = processor, None, validation.pixels.device
        self.images = dict(home=validation.pixels[home], drawn=to_device(drawn, validation.pixels.device))
        home_names = list(validation.products['display name'].iloc[home])
        self.texts = dict(home=home_names, everyday=EVERYDAY_TEXTS, drawn=names)

    def __call__(self, model) -> dict[str, float]:
        "Agreement with the model of the first call."
        import torch

        from clip_ft.encode import embed_images, embed_texts
        now = {f'{name} images': embed_images(model, self.processor, images, progress=False)
               for name, images in self.images.items()}
        now |= {f'{name} texts': embed_texts(model, self.processor, texts) for name, texts in self.texts.items()}
        self.before = before = self.before or now
        found = {f'{name} cosine': (now[name]*before[name]).sum(1).mean() for name in now}
        for a, b in product(now, now):
            pairs = ([torch.from_numpy(x[name]).to(self.device) for name in (a, b)] for x in (before, now))
            old, new = (rows @ columns.T for rows, columns in pairs)
            if a == b:  # nothing is its own neighbour
                old, new = (scores.fill_diagonal_(-1) for scores in (old, new))
            found |= {f'{a} > {b} {name}': value for name, value in agreement(old, new).items()}
        return found


def agreement(old, new) -> dict[str, float]:
    "Agreement of two matrices of scores, of the same queries (rows) and candidates (columns)."
    import torch
    ranks = new.argsort(dim=1, descending=True).argsort(dim=1).gather(1, old.topk(min(10, old.shape[1])).indices)
    first = ranks[:, 0]
    correlation = torch.cosine_similarity(*(scores-scores.mean(1, keepdim=True) for scores in (old, new)))
    found = {'first@1': first < 1, 'first@5': first < 5, 'overlap@10': ranks < 10, 'mrr': 1/(1+first),
             'correlation': correlation}
    return {name: values.float().mean().item() for name, values in found.items()}


def curve(model, processor, base: dict, args: Namespace, parts: Parts, test: TestGallery, seed: int) -> tuple:
    "Metrics and agreement with before at each alpha, and which names of the test products find their product."
    from clip_ft.checkpoints import interpolate_weights
    from clip_ft.encode import embed_images, embed_texts
    from clip_ft.metrics import Gallery, measure
    from clip_ft.wise_ft import choose_weights
    validation = TestGallery(parts, alpha_products(parts, args, seed), processor, test.pixels.device)
    home_rows = np.flatnonzero(validation.home)
    home = validation.products.iloc[home_rows].reset_index(drop=True)
    home_gallery = Gallery(processor, validation.pixels[home_rows], home)
    agree, tuned = Agreement(args, processor, validation), {k: v.clone() for k, v in model.state_dict().items()}
    points, hits, galleries = [], [], dict(test=test, validation=validation)
    for alpha in ALPHAS:
        model.load_state_dict(interpolate_weights(base, tuned, alpha))
        point = dict(alpha=alpha)
        for name, gallery in galleries.items():  # validation comes last; its embeddings are used again below
            text_embeds = embed_texts(model, processor, gallery.products['display name'])
            image_embeds = embed_images(model, processor, gallery.pixels, progress=False)
            found = best_ranks(text_embeds, image_embeds, gallery.groups, gallery.pixels.device) <= 5
            for side, rows in zip(SIDES, (gallery.home, ~gallery.home)):
                point[f'{name} {side}'] = float(found[rows].mean())
            if gallery is test:
                hits.append(found)
        point |= {f'val {name}': value for name, value in measure(model, processor, home_gallery).items()}
        names = best_ranks(text_embeds[home_rows], image_embeds[home_rows], home_gallery.groups, test.pixels.device)
        point |= {f'val name {name}': value.mean() for name, value in rank_values(names).items()}
        points.append(point | {f'agree {name}': value for name, value in agree(model).items()})
    model.load_state_dict(tuned)
    chosen, chosen_curve = choose_weights(model, processor, base, tuned, home_gallery)
    agreements = dict(zip(chosen_curve.alpha, chosen_curve.agreement))
    for point in points:
        point['agreement'] = agreements.get(point['alpha'], math.nan)
    return points, np.stack(hits), chosen


# ---- tables and the plot

def read_results(args: Namespace) -> dict[str, dict[str, np.ndarray]]:
    "Variant -> metric -> values [seeds, queries], in the order of the tables."
    found = {}
    for name in variants(args):
        paths = sorted((args.out/'runs').glob(f'{name}.*.npz'))
        files = [np.load(path) for path in paths if not path.name.endswith('.hits.npz')]
        if files:
            found[name] = {metric: np.stack([file[metric] for file in files]) for metric in files[0]}
    return found


def markdown(head: list[str], rows: list[list[str]]) -> str:
    "A table in Markdown."
    lines = [head, ['---']*len(head), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def cell(values: np.ndarray, sign: str = '') -> str:
    "Mean and interval of the values of the queries, in per cent."
    low, high = bootstrap_interval(values)
    return f'{100*values.mean():{sign}.1f} ({100*low:{sign}.1f} to {100*high:{sign}.1f})'


def difference_table(found: dict) -> list[str]:
    "The difference of each variant to the recipe, or to combined."
    metrics = ['names home hit_rate@5', 'full texts home hit_rate@5', 'short home hit_rate@5', 'short home precision@5',
               'names elsewhere hit_rate@5', 'short elsewhere hit_rate@5', 'confusion all']
    metrics = [metric for metric in metrics if metric in next(iter(found.values()))]
    rows = []
    for name, values in found.items():
        against = 'combined' if name.startswith('combined-') else 'recipe'
        if name != against and against in found:
            pairs = [(values[metric].mean(0), found[against][metric].mean(0)) for metric in metrics]
            rows.append([name, against, *(cell(value-other, '+') for value, other in pairs)])
    title = 'Difference to the second variant, in points; 95 % interval, paired by query:'
    return [title, markdown(['variant', 'against', *metrics], rows)] if rows else []


def tables(found: dict) -> str:
    "All results in Markdown, in per cent: differences, then one table per kind of query."
    first = next(iter(found.values()))
    groups = {f'{kind}, {side}': f'{kind} {side} ' for kind in KINDS for side in SIDES} | dict(confusion='confusion')
    parts = difference_table(found)
    for title, prefix in groups.items():
        metrics = [metric for metric in first if metric.startswith(prefix)]
        if not metrics:
            continue
        rows = [[name, str(len(values[metrics[0]])), *(cell(values[metric].mean(0)) for metric in metrics)]
                for name, values in found.items()]
        head = ['variant', 'seeds', *(metric.split(' ')[-1] for metric in metrics)]
        count = first[metrics[-1]].shape[1]
        parts += [f'{title.capitalize()} ({count:,} queries), per cent and 95 % interval:', markdown(head, rows)]
    return '\n\n'.join(parts)


def read_curves(args: Namespace) -> dict[str, dict]:
    "Variant -> points, means over seeds, and the alpha chosen on the validation products."
    found = {}
    for name in variants(args):
        files = [json.loads(path.read_text()) for path in sorted((args.out/'runs').glob(f'{name}.*.curve.json'))]
        if not files:
            continue
        points = pd.DataFrame(np.mean([pd.DataFrame(file) for file in files], axis=0), columns=files[0][0])
        best = (points['validation home']+points['validation elsewhere']).idxmax()
        found[name] = dict(seeds=len(files), alpha=ALPHAS[best], points=points.round(4).to_dict('records'))
    return found


def plot_curves(curves: dict[str, dict], path: Path):
    "Home against elsewhere, one line per variant, alphas beside it, the chosen one ringed."
    from matplotlib.figure import Figure
    figure = Figure(figsize=(5.2, 4), layout='constrained')
    ax = figure.subplots()
    styles = zip(('tab:gray', 'tab:blue'), ((-15, -10), (4, 3)))
    shown = [(name, found) for name, found in curves.items() if name in ('recipe', 'defaults')]
    for (name, found), (colour, offset) in zip(shown, styles):
        points = 100*pd.DataFrame(found['points'])
        x, y = points['test elsewhere'], points['test home']
        ax.plot(x, y, '.-', color=colour, label=name)
        for alpha, *place in zip(ALPHAS, x, y):
            ax.annotate(f'{alpha:g}', place, xytext=offset, textcoords='offset points', fontsize=7, color=colour)
        chosen = ALPHAS.index(found['alpha'])
        ax.plot(x[chosen], y[chosen], 'o', color=colour, fillstyle='none', markersize=12)
    ax.set(xlabel='elsewhere: hit_rate@5 of names, %', ylabel='home: hit_rate@5 of names, %')
    ax.set_title('Weights between before (0) and after (1) fine-tuning', fontsize=10)
    ax.grid(alpha=.3)
    ax.spines[['top', 'right']].set_visible(False)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=120)


def summary(values: np.ndarray) -> dict:
    "Mean, interval and standard deviation over seeds."
    sd = values.mean(1).std(ddof=1) if len(values) > 1 else None
    return dict(mean=values.mean(), interval=bootstrap_interval(values.mean(0)).tolist(), sd=sd)


def read_runs(args: Namespace, kind: str) -> pd.DataFrame:
    "The points of all curves, or the epochs of all monitored runs, with columns base, variant and seed."
    tables = []
    for path in sorted((args.out/'runs').glob(f'*.{kind}.json')):
        name, seed, *_ = path.name.split('.')
        table = pd.DataFrame(json.loads(path.read_text()))
        tables.append(pd.concat([pd.DataFrame(dict(base=args.base, variant=name, seed=int(seed)), table.index), table],
                                axis=1))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def is_rival(name: str, other: str) -> bool:
    "Whether a variant with two texts is to be compared with another one: the same with one text, for any time."
    parts, others = ([part for part in each.split('+') if not epochs_of(part)] for each in (name, other))
    return 'two_texts' in parts and [part for part in parts if part != 'two_texts'] == others


def metric_rows(args: Namespace, found: dict) -> Iterator[dict]:
    "Mean and interval of each metric, and of its difference to another variant, in per cent and points."
    for name, values in found.items():
        others = [other for other in ('recipe', 'defaults', 'plain_images', 'defaults+plain_images')
                  if other in found and other != name
                  and (other == 'recipe' or name.startswith((f'{other}+', f'{other},')))]
        parts = [part for part in name.split('+') if part != 'plain_images']
        augmented = '+'.join(parts if parts[:1] == ['defaults'] else ['recipe', *parts])
        others += [augmented] if 'long' in parts and augmented in found and augmented != name else []
        others += [other for other in found if is_rival(name, other)]
        for metric in values:
            if not metric.endswith(('hit_rate@5', 'mrr', 'confusion all')):
                continue
            for against in ('', *others):
                both = values[metric] if not against else values[metric].mean(0)-found[against][metric].mean(0)
                each = np.atleast_2d(both).mean(0)
                low, high = bootstrap_interval(each)
                yield dict(base=args.base, variant=name, against=against, metric=metric, seeds=len(values[metric]),
                           mean=100*each.mean(), low=100*low, high=100*high)


def chosen_rows(curves: pd.DataFrame) -> np.ndarray:
    "Whether a point of a curve has the alpha that choose_weights() chooses."
    from clip_ft.wise_ft import balance_alpha
    curves, chosen = curves.rename(columns={'val mrr': 'mrr'}), np.zeros(len(curves), bool)
    for _, rows in curves.groupby(['variant', 'seed']):
        chosen[rows.index] = rows.alpha == balance_alpha(rows.reset_index(drop=True))
    return chosen


def add_chosen(args: Namespace, found: dict, curves: pd.DataFrame):
    "Add the variants with the weights of the chosen alpha: hit_rate@5 of names."
    for name, rows in curves[curves.chosen].groupby('variant'):
        values = []
        for seed, alpha in zip(rows.seed, rows.alpha):
            file = np.load(args.out/'runs'/f'{name}.{seed}.hits.npz')
            values.append(by_side('names', file['home'], **{'hit_rate@5': file['hits'][ALPHAS.index(alpha)]}))
        found[f'{name}, chosen alpha'] = {metric: np.stack([each[metric] for each in values]) for metric in values[0]}


def write_tables(args: Namespace, found: dict):
    "Write quality.csv, curves.csv, agreements.csv, times.csv and monitors.csv."
    curves, found = read_runs(args, 'curve'), dict(found)
    if len(curves):
        curves['agreement'] = curves['agree everyday texts > home images correlation']
        curves['chosen'] = chosen_rows(curves)
        add_chosen(args, found, curves)
        kept = ['base', 'variant', 'seed', 'alpha', 'test home', 'test elsewhere', 'val hit_rate@5', 'val mrr',
                'val name mrr', 'agreement', 'chosen']
        curves[kept].round(4).to_csv(args.out/'curves.csv', index=False)
        proxies = [name for name in curves if name.startswith('agree ')]
        after, ranks = curves[curves.alpha == 1], curves[[*proxies, 'test elsewhere']].rank()
        pd.DataFrame([dict(base=args.base, agreement=name.removeprefix('agree '), runs=len(after),
                           rank_correlation=ranks[name].corr(ranks['test elsewhere']),
                           correlation_after=after[name].corr(after['test elsewhere'])) for name in proxies]
                     ).round(3).to_csv(args.out/'agreements.csv', index=False)
    pd.DataFrame(metric_rows(args, found)).round(2).to_csv(args.out/'quality.csv', index=False)
    times = read_runs(args, 'time')
    if len(times):
        times.to_csv(args.out/'times.csv', index=False)
    monitors = read_runs(args, 'monitor')
    if len(monitors):
        kept = [name for name in monitors if name in ('base', 'variant', 'seed', 'epoch', 'val_loss', 'val name loss')
                or (name.endswith(('hit_rate@5', 'mrr')) and ' ' in name and 'elsewhere' not in name)]
        monitors[kept].round(4).to_csv(args.out/'monitors.csv', index=False)


def report(args: Namespace, results: Results):
    "Add the summaries to the records; print and write the tables and the plot."
    found, curves = read_results(args), read_curves(args)
    if not found:
        sys.exit(f'There are no results in {args.out}.')
    for name, values in found.items():
        summaries = {metric: summary(each) for metric, each in values.items()}
        results.add(summary=name, seeds=len(next(iter(values.values()))), **summaries)
    for name, points in curves.items():
        results.add(wise_ft=name, **points)
    if curves:
        (args.out/'wise_ft.json').write_text(json.dumps(curves, indent=1))
        plot_curves(curves, args.out/'wise_ft.png')
    write_tables(args, found)
    text = tables(found)
    (args.out/'quality.md').write_text(text+'\n')
    print('\n'+text, flush=True)


# ---- command line

def benchmark(args: Namespace, results: Results):
    "Prepare, run all variants in several processes, report."
    until = time.time()+args.seconds
    folder = args.out/'runs'
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ['*.taken', *(f'{name}.{seed}.*' for name, seed in runs(args))]:
        for old in folder.glob(pattern):
            old.unlink()
    prepare(args, results)
    places = ['--root', args.root, '--model', args.model, '--out', args.out]
    command = [sys.executable, *sys.argv, *map(str, places), '--until', str(until), '--how', 'work']
    threads = str(max(1, (os.cpu_count() or 1)//args.workers))
    environment = {name: os.environ.get(name, threads) for name in ('OMP_NUM_THREADS', 'RAYON_NUM_THREADS')}
    workers = [subprocess.Popen(command, env=os.environ | environment) for _ in range(args.workers)]
    failed = sum(worker.wait() != 0 for worker in workers)
    if failed:
        results.add(event='workers failed', count=failed)
    report(args, results)


def make_parser():
    parser = benchmark_parser(__doc__)
    parser.add_argument('catalogue', type=Path)
    parser.add_argument('--out', type=Path, help='folder of tables, curve and results; default: a temporary folder')
    parser.add_argument('--root', type=Path, help='folder of data, pixels and model; default: a temporary one')
    parser.add_argument('--model', type=Path, help='folder of the pretrained model; default: below --root')
    parser.add_argument('--workers', type=int, default=1, help='number of processes that train on the same device')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--first-seed', type=int, default=0)
    parser.add_argument('--base', default='1', help='name of the pretrained model in the tables')
    parser.add_argument('--curves', nargs='*', metavar='NAME', default=CURVES, help='variants whose weights are '
                        'interpolated with those before')
    parser.add_argument('--seconds', type=float, default=math.inf, help='start no run after this time')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='only these variants: before, recipe, defaults, '
                        'combined, an addition, combined-ADDITION, or several joined by +, such as recipe+long')
    parser.add_argument('--combine', nargs='+', choices=ADDITIONS, metavar='ADDITION', help='additions of combined',
                        default=['duplicates', 'texts', 'hard_negatives', 'batch'])
    parser.add_argument('--pretrain-epochs', type=int, default=40)
    parser.add_argument('--pretrain-batch', type=int, default=256)
    parser.add_argument('--pretrain-lr', type=float, default=1e-3)
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--big-batch', type=int, default=256)
    parser.add_argument('--long-epochs', type=int, default=12)
    parser.add_argument('--long-lr', type=float, default=3e-4)
    parser.add_argument('--few', type=int, default=2000, help='number of products of few')
    parser.add_argument('--lr', type=float, default=1e-4)
    parser.add_argument('--tiny', action='store_true', help='1,500 products and a tiny model, for a trial')
    parser.add_argument('--table', action='store_true', help='only make the tables from the results in --out')
    parser.add_argument('--how', choices=('work',), help=SUPPRESS)
    parser.add_argument('--until', type=float, help=SUPPRESS)
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    unknown = sorted(set(args.only or ())-set(variants(args)))
    if unknown:
        parser.error(f'--only: {", ".join(unknown)} is none of {", ".join(variants(args))}')
    if args.table and not args.out:
        parser.error('--table needs --out')
    os.environ.update(OFFLINE, TOKENIZERS_PARALLELISM='true', TQDM_DISABLE='1')
    if args.how:
        work(args)
        return
    with tempfile.TemporaryDirectory() as folder, Results(args) as results:
        if args.table:
            report(args, results)
            return
        args.root, args.out = args.root or Path(folder), args.out or Path(folder)/'out'
        args.model = args.model or args.root/'elsewhere'
        benchmark(args, results)


if __name__ == '__main__':
    main()
