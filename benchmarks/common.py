"""What the benchmarks share: command line, result files, timing, the machine, models with random weights, and data.

Each benchmark prints one JSON record per measurement. With --save it also writes them to
benchmarks/results/SCRIPT-MACHINE.json, or SCRIPT-SIZE-MACHINE.json if --size is not the default, together with the
date, the machine, the versions and the settings.
"""
import argparse
import json
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent/'results'
PACKAGES = ('clip_ft', 'numpy', 'torch', 'transformers')
OFFLINE = dict(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1')


# ---- the machine

def cpu_name() -> str:
    "Name of the processor."
    info = Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*:\s*(.+)', info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    "Names of the NVIDIA devices, from nvidia-smi, which does not initialize CUDA in this process."
    if not shutil.which('nvidia-smi'):
        return []
    command = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
    return subprocess.run(command, capture_output=True, text=True).stdout.split('\n')[:-1]


def usable_cores() -> int:
    "Number of cores that this process may use."
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def versions(packages: Iterable[str]) -> dict[str, str]:
    "Versions of the packages that are installed."
    found = dict(python=platform.python_version())
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# ---- records

def rounded(value: Any) -> Any:
    "Convert a value to JSON types: floats with five significant digits, None for NaN and infinity."
    if isinstance(value, dict):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(f'{value:.5g}') if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def print_record(**record):
    "Print a record as a line of JSON, with one call of write, because several processes may share the output."
    sys.stdout.write(json.dumps(rounded(record))+'\n')
    sys.stdout.flush()


@contextmanager
def silent() -> Iterator[None]:
    "Discard progress bars and messages inside the with block."
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def benchmark_parser(doc: str) -> argparse.ArgumentParser:
    "A parser whose help is the docstring of the script, with the option --save."
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = 'benchmarks/results/SCRIPT-MACHINE.json'
    parser.add_argument('--save', action='store_true', help=f'write the records to {target}')
    return parser


def model_parser(doc: str, steps: Iterable[str]) -> argparse.ArgumentParser:
    "The parser of a benchmark whose steps, each in its own process, use a catalogue and a model and no network."
    parser = benchmark_parser(doc)
    parser.add_argument('catalogue', type=Path)
    parser.add_argument('--model', type=Path, help='folder of the model; created if it does not exist')
    parser.add_argument('--size', choices=['tiny', *SIZES], default='vit-b-32', help='shape of the model to create')
    parser.add_argument('--tiny', dest='size', action='store_const', const='tiny', help='--size tiny, for a trial')
    parser.add_argument('--tflops', type=float, default=790, help='16-bit speed that the device reaches, in TFLOP/s')
    parser.add_argument('--how', choices=list(steps), help=SUPPRESS)
    os.environ.update(OFFLINE)
    return parser


class Results:
    "Prints the records of a benchmark and, with --save, writes them at the end of the with block."

    def __init__(self, args: argparse.Namespace, *packages: str):
        machine = dict(cpu=cpu_name(), cores=usable_cores(), gpus=gpu_names(), load=os.getloadavg()[0])
        given = {name: value for name, value in vars(args).items() if value is not None and name != 'save'}
        settings = {name: self._setting(value) for name, value in given.items()}
        self.args, self.records = args, []
        self.about = dict(name=Path(sys.argv[0]).stem, date=date.today().isoformat(), machine=machine,
                          versions=versions([*PACKAGES, *packages]), settings=settings)
        print_record(**self.about)

    @staticmethod
    def _setting(value: Any) -> Any:
        "A setting; of a path only the name, without the folders of this machine."
        return value.name if isinstance(value, Path) else value

    def add(self, **record):
        "Print a record and keep it."
        print_record(**record)
        self.records.append(rounded(record))

    def measure(self, *options: object, required: bool = False, processes: int = 1, **environment: str) -> list[dict]:
        "Run this script in processes of its own, with additional options; returns the records that it prints."
        records = []
        launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)]
        command = [sys.executable, '-W', 'ignore', *(launcher if processes > 1 else []),
                   sys.argv[0], *sys.argv[1:], *map(str, options)]
        with tempfile.TemporaryFile('w+') as errors:
            options_of_child = dict(stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment)
            child = subprocess.Popen(command, **options_of_child)
            for line in child.stdout:
                if line.startswith('{"'):
                    records.append(json.loads(line))
                    self.add(**records[-1])
            if child.wait():
                errors.seek(0)
                print(f'failed: {" ".join(map(str, options))}\n{errors.read()[-3000:]}', flush=True)
                if required:
                    sys.exit(1)
        return records

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error or not self.args.save:
            return
        machine = self.about['machine']
        device = re.sub(r'\W+', '-', (machine['gpus'] or [machine['cpu']])[0].lower()).strip('-')
        RESULTS.mkdir(exist_ok=True)
        size = getattr(self.args, 'size', 'vit-b-32')
        name = self.about['name'] + (f'-{size}' if size != 'vit-b-32' else '')
        path = RESULTS/f'{name}-{device}.json'
        path.write_text(json.dumps(rounded(self.about | dict(records=self.records)), indent=1)+'\n')
        print(f'saved {path}', flush=True)


# ---- time and memory

def now() -> float:
    "Seconds, after the device has finished its work."
    import torch
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_each(work: Callable[[Any], Any], items: Iterable) -> list[float]:
    "Seconds that a function takes for each item."
    seconds = []
    for item in items:
        start = time.perf_counter()
        work(item)
        seconds.append(time.perf_counter()-start)
    return seconds


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    "Median and 95th percentile, in milliseconds."
    median, high = 1000*np.percentile(seconds, [50, 95])
    return dict(p50_ms=median, p95_ms=high)


def peak_gb() -> float:
    "Peak resident memory of this process, in GB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6


def memory_mb(name: str) -> float:
    "An entry of /proc/self/status in MB, such as VmRSS, the resident memory, or VmHWM, its peak."
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'{name}:'))/1e3


def forward_flops(config: Any, tokens: float) -> float:
    "Floating-point operations of a CLIP or SigLIP for one image and one text of `tokens` tokens; a multiply-add is 2."
    vision = config.vision_config
    projection = getattr(config, 'projection_dim', vision.hidden_size)

    def tower(tower_config, length):
        width, inner = tower_config.hidden_size, tower_config.intermediate_size
        layer = length*(8*width**2 + 4*length*width + 4*width*inner)
        return tower_config.num_hidden_layers*layer + 2*width*projection

    patches = (vision.image_size//vision.patch_size)**2
    flops = tower(config.text_config, tokens) + 2*patches*3*vision.patch_size**2*vision.hidden_size
    if config.model_type == 'siglip':  # attention pools the patches: one query, keys and values of all patches
        return flops + tower(vision, patches) + 4*patches*vision.hidden_size**2
    return flops + tower(vision, patches+1)


def device_use(flops_per_second: float, tflops: float) -> dict:
    "TFLOP/s of the model, their share of the speed that the device reaches, and the peak memory of the device."
    import torch
    achieved = flops_per_second/1e12
    if not torch.cuda.is_available():
        return dict(model_tflops=achieved, device='cpu')
    return dict(model_tflops=achieved, utilisation=achieved/tflops, device=torch.cuda.get_device_name(),
                peak_GB_allocated=torch.cuda.max_memory_allocated()/1e9,
                peak_GB_reserved=torch.cuda.max_memory_reserved()/1e9)


# ---- statistics

@lru_cache
def bootstrap_weights(count: int, draws: int = 1000) -> np.ndarray:
    "Weight of each value in each bootstrap sample, float32 [draws, count]."
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1/count), draws)
    return (drawn/count).astype(np.float32)


def bootstrap_interval(values: np.ndarray) -> np.ndarray:
    "95 % bootstrap interval of the mean: low, high."
    return np.percentile(bootstrap_weights(len(values)) @ values, [2.5, 97.5])


# ---- models

@dataclass(frozen=True)
class Size:
    "Dimensions of a CLIP or SigLIP; a tower is its width and its number of layers."
    image: int
    patch: int
    vision: tuple[int, int]
    text: tuple[int, int]
    projection: int
    vocabulary: int
    siglip: bool = False


SIZES = {
    'small-images': Size(64, 8, (384, 6), (256, 4), 256, 8_000),
    'mid': Size(128, 16, (384, 6), (256, 4), 256, 8_000),
    'vit-b-32': Size(224, 32, (768, 12), (512, 8), 512, 49_408),
    'siglip-tiny': Size(64, 16, (128, 2), (128, 2), 128, 2_000, siglip=True),
    'siglip-b-16': Size(224, 16, (768, 12), (768, 12), 768, 32_000, siglip=True),
}


def random_model(texts: Iterable[str], size: str) -> tuple:
    "A model with random weights, tiny or of a size in SIZES, and its processor, whose tokenizer is learned from texts."
    import torch
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    from clip_ft.model import tiny_model
    texts = list(texts)
    tiny, processor = tiny_model(texts)
    if size == 'tiny':
        return tiny, processor
    shape = SIZES[size]
    tokenizer = processor.tokenizer.train_new_from_iterator(texts, shape.vocabulary, show_progress=False)
    tokenizer = with_unused_tokens(tokenizer, shape.vocabulary)
    special = {name: getattr(tokenizer, name) for name in ('bos_token_id', 'eos_token_id', 'pad_token_id')}
    projection = {} if shape.siglip else dict(projection_dim=shape.projection)

    def tower(width, layers):
        return dict(hidden_size=width, intermediate_size=4*width, num_hidden_layers=layers,
                    num_attention_heads=width//64, **projection)

    make_config, make_model = (SiglipConfig, SiglipModel) if shape.siglip else (CLIPConfig, CLIPModel)
    config = make_config(
        text_config=dict(tower(*shape.text), vocab_size=shape.vocabulary, **special),
        vision_config=dict(tower(*shape.vision), image_size=shape.image, patch_size=shape.patch), **projection)
    torch.manual_seed(0)
    model = make_model(config).eval()
    model.name_or_path = size
    return model, shape_processor(shape, tokenizer)


def with_unused_tokens(tokenizer: Any, size: int) -> Any:
    "A tokenizer whose vocabulary is filled up to a size with tokens that no text has."
    from transformers import CLIPTokenizer
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())['model']
    vocabulary = bpe['vocab'] | {f'<unused {i}>': i for i in range(len(bpe['vocab']), size)}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in bpe['merges']], model_max_length=77)


def shape_processor(shape: Size, tokenizer: Any) -> Any:
    "The processor of a CLIP, or of a SigLIP, which distorts images and reads texts of 64 tokens."
    from transformers import CLIPImageProcessor, CLIPProcessor, SiglipImageProcessor, SiglipProcessor
    square = dict(height=shape.image, width=shape.image)
    if shape.siglip:
        tokenizer.model_max_length = 64
        return SiglipProcessor(image_processor=SiglipImageProcessor(size=square), tokenizer=tokenizer)
    images = CLIPImageProcessor(size=dict(shortest_edge=shape.image), crop_size=square)
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def save_random_model(folder: Path, texts: Iterable[str], size: str):
    "Save a model with random weights, unless the folder holds one."
    from clip_ft.model import save_model
    if not (folder/'config.json').exists():
        save_model(folder, *random_model(texts, size))


# ---- data

def read_catalogue(folder: Path) -> tuple[list[str], list[str]]:
    "Image paths and texts of the products in a folder with data.csv and data/."
    import pandas as pd
    table = pd.read_csv(folder/'data.csv', dtype=str, keep_default_na=False)
    paths = [str(folder/'data'/name) for name in table['image']]
    texts = table['display name']+'. '+table['category']+'. '+table['description']
    pairs = [(path, text) for path, text in zip(paths, texts) if os.path.isfile(path)]
    return [path for path, _ in pairs], [text for _, text in pairs]


def prepare_split(root: Path, catalogue: str | Path, limit: int | None = None) -> Any:
    "Get a catalogue and split it below root, unless that is done; returns its Paths."
    from clip_ft.core import Paths
    from clip_ft.data import preprocess
    from clip_ft.sources import get_data
    paths = Paths(root)
    get_data(str(catalogue), paths, limit=limit)
    if not paths.train_csv.exists():
        preprocess(paths)
    return paths


def prepare_model(args: argparse.Namespace):
    "Split the catalogue below args.root and save the model into args.model, unless that is done."
    save_random_model(args.model, read_catalogue(args.catalogue)[1], args.size)
    prepare_split(args.root, args.catalogue)


@contextmanager
def prepared(args: argparse.Namespace, *packages: str) -> Iterator[tuple[Results, Path, tuple]]:
    "Results, root, and the options --root and --model of the steps; both folders are temporary by default."
    with tempfile.TemporaryDirectory() as folder, Results(args, *packages) as results:
        root = args.root or Path(folder)
        places = ('--root', root, '--model', args.model or Path(folder)/'model')
        results.measure(*places, '--how', 'prepare', required=True)
        yield results, root, places


def load_parts(root: Path) -> tuple:
    "Paths, training products, test products and the folder of the images of a split catalogue."
    from clip_ft.core import Paths
    from clip_ft.data import catalogue_folder, image_folder, load_split
    paths = Paths(root)
    train_products, test_products = load_split(paths)
    return paths, train_products, test_products, image_folder(catalogue_folder(paths), train_products)


# ---- negatives

def colour_kinds(products: Any) -> np.ndarray:
    "Colour and category of each product; empty without a colour."
    from clip_ft.texts import ATTRIBUTES
    colours = products[next(name for name in ATTRIBUTES['colour'] if name in products)].str.strip()
    return np.where(colours == '', '', colours+' '+products['category'])


def cluster_pairs(rows: np.ndarray, groups: np.ndarray, kinds: np.ndarray, length: int):
    "The pairs of a batch that are in one cluster and no duplicates: two positions, and whether both are of one kind."
    i, j = np.triu_indices(len(rows), 1)
    negative = (i//length == j//length) & (groups[rows[i]] != groups[rows[j]])
    i, j = i[negative], j[negative]
    return i, j, (kinds[rows[i]] == kinds[rows[j]]) & (kinds[rows[i]] != '')


def count_negatives(trainer: Any, order: Any) -> dict[str, float]:
    "Of the pairs of a cluster that are no duplicates: shares that agree in colour and category, and that are left out."
    import torch

    from clip_ft.data import duplicate_groups
    from clip_ft.hard_negatives import false_negatives
    config, products = trainer.config, trainer.products.drop(index=trainer.val_rows).reset_index(drop=True)
    kinds, groups, size = colour_kinds(products), duplicate_groups(products), order.shape[1]
    length = config.hard_negative_size if config.hard_negative_size > 1 else size
    pairs = same = left_out = same_left_out = 0
    for rows in order:
        i, j, alike = cluster_pairs(rows, groups, kinds, length)
        gone = np.zeros(len(i), bool)
        if config.false_negative_margin:
            guide = trainer.guide(torch.as_tensor(rows).to(trainer.device))
            gone = false_negatives(guide, config.false_negative_margin).cpu().numpy()[i, j]
        pairs, same = pairs+len(i), same+alike.sum()
        left_out, same_left_out = left_out+gone.sum(), same_left_out+(alike & gone).sum()
    return dict(same=same/pairs, same_not_left_out=(same-same_left_out)/max(1, pairs-left_out), left_out=left_out/pairs)


@contextmanager
def measuring_negatives() -> Iterator[list[dict]]:
    "Inside the with block, count_negatives is appended to the list before each epoch of a training."
    from unittest.mock import patch

    from clip_ft.steps import TrainingSteps
    found, epoch_batches = [], TrainingSteps.epoch_batches

    def measured(trainer, epoch):
        order = epoch_batches(trainer, epoch)
        found.append(count_negatives(trainer, order.numpy()))
        return order

    with patch.object(TrainingSteps, 'epoch_batches', measured):
        yield found
