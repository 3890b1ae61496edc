"""Pictures a second through the vision tower: clip_ft's embed_images, and sentence-transformers' encode.

    python benchmarks/embedding_speed.py CATALOGUE --root FOLDER --model FOLDER [--many 1000000] [--peer 4096]

CATALOGUE, --root and --model are as for training_speed.py, and are made by it if they aren't there. One line of JSON each:
from the cache file (each picture of the training part once), from pixels on the device, from the cache file again and again
until --many pictures are embedded, from the JPEG files; and the first --peer files by sentence-transformers, which decodes
them too. The warm-up is a call with 2,048 pictures, outside the clock.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from training_peers import child, device_report, forward_flops
from training_speed import prepare


def timed(name, count, config, tflops, work):
    "Run `work` and print what it did in a second."
    import torch
    if torch.cuda.is_available(): torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter()-start
    vision = forward_flops(config, 0)
    print(json.dumps(dict(name=name, pictures=count, seconds=round(seconds, 2), pictures_per_second=round(count/seconds, 1), **device_report(count/seconds*vision, tflops))), flush=True)


def ours(args):
    from clip_ft.core import Paths
    from clip_ft.data import catalogue_folder, image_folder, load_split
    from clip_ft.dataset import PixelCache, ResizeSpec, to_device
    from clip_ft.encode import embed_images
    from clip_ft.model import load_model, model_device
    from clip_ft.data import image_paths
    paths = Paths(args.root)
    products = load_split(paths)[0]
    files = image_paths(products, image_folder(catalogue_folder(paths), products))
    model, processor = load_model(args.model)
    cache = PixelCache.build(files, ResizeSpec.from_processor(processor), paths.pixels)
    embed = lambda images, rows=None: embed_images(model, processor, images, progress=False, rows=rows)
    embed(cache, np.arange(min(2048, len(cache))))
    run = lambda name, count, work: timed(f"clip_ft, {name}", count, model.config, args.tflops, work)
    run("cache file", len(cache), lambda: embed(cache))
    pixels = to_device(cache.pixels, model_device(model))
    run("pixels on the device", len(cache), lambda: embed(pixels))
    del pixels
    if args.many: run("cache file, many", args.many, lambda: embed(cache, np.arange(args.many) % len(cache)))
    run("JPEG files", min(len(files), args.peer), lambda: embed(files[:args.peer]))


def sentence_transformers(args):
    import torch
    from clip_ft.core import Paths
    from clip_ft.data import catalogue_folder, image_folder, load_split
    from clip_ft.data import image_paths
    from sentence_transformers import SentenceTransformer
    from transformers import AutoConfig
    paths = Paths(args.root)
    products = load_split(paths)[0]
    files = [str(o) for o in image_paths(products, image_folder(catalogue_folder(paths), products))][:args.peer]
    cuda = torch.cuda.is_available()
    model = SentenceTransformer(str(args.model), device="cuda" if cuda else "cpu", model_kwargs=dict(dtype=torch.float16 if cuda else torch.float32))
    encode = lambda files: model.encode(files, batch_size=1024 if cuda else 64, normalize_embeddings=True, show_progress_bar=False)
    encode(files[:256])
    timed("sentence-transformers, JPEG files", len(files), AutoConfig.from_pretrained(args.model), args.tflops, lambda: encode(files))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--root", type=Path, help="a temporary folder if not given")
    parser.add_argument("--model", type=Path, help="made if it isn't there")
    parser.add_argument("--many", type=int, default=0)
    parser.add_argument("--peer", type=int, default=4096)
    parser.add_argument("--tiny", action="store_true", help="make a tiny model instead of ViT-B/32, to try the script out")
    parser.add_argument("--tflops", type=float, default=790, help="what the device reaches in 16 bits, in TFLOP/s")
    parser.add_argument("--how", choices=("prepare", "ours", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1")
    if args.how: return dict(prepare=prepare, ours=ours, peer=sentence_transformers)[args.how](args)
    with tempfile.TemporaryDirectory() as folder:
        args.root, args.model = args.root or Path(folder), args.model or Path(folder)/"model"
        options = [args.catalogue, "--root", args.root, "--model", args.model, "--many", args.many, "--peer", args.peer, "--tflops", args.tflops] + ["--tiny"]*args.tiny
        if not child(__file__, *options, "--how", "prepare"): sys.exit(1)
        for how in ("ours", "peer"): child(__file__, *options, "--how", how)


if __name__ == "__main__": main()
