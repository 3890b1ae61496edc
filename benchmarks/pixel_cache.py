"""Speed and peak memory of building a PixelCache, beside the plain way: transformers' image processor, picture by picture.

    python benchmarks/pixel_cache.py FOLDER [--size 224] [--pictures 8000]

FOLDER holds JPEGs. Each measurement runs in a process of its own, after one that reads every file once, so that all find the
files in the page cache. "decoding alone" throws the pixels away: in a process a core it is what the cores can do, in threads it
is what Python's lock lets through. Memory is the highest resident set of the process above what it was before the work began; the part
of it that is a file's pages (RssFile) can be dropped by the system at any time.
"""
import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

CORES = len(os.sched_getaffinity(0))      # that this program may use


def memory():
    "Resident memory of this process in MB: (anonymous, peak of all)."
    lines = dict(o.split(":", 1) for o in Path("/proc/self/status").read_text().splitlines() if ":" in o)
    return int(lines["RssAnon"].split()[0])/1e3, int(lines["VmHWM"].split()[0])/1e3


def work(how, photos, size, folder):
    "The work to measure; returns how many pictures were done."
    import numpy as np
    from clip_ft.dataset import PixelCache, ResizeSpec, read_pixels
    if how == "PixelCache.build": return len(PixelCache.build(photos, size, folder))
    if how == "PixelCache.build again": return len(PixelCache.build(photos, size, folder))
    if how == "PixelCache.build, one thread": return len(PixelCache.build(photos, size, Path(folder)/"one", workers=1))
    if how == "decoding alone, all threads":
        with ThreadPoolExecutor(CORES) as pool: return sum(1 for _ in pool.map(lambda p: read_pixels(p, ResizeSpec(size)), photos))
    if how == "decoding alone, a process a core":
        with multiprocessing.Pool(CORES) as pool: return sum(pool.imap_unordered(partial(decode, size), [photos[i:i+32] for i in range(0, len(photos), 32)]))
    from PIL import Image
    from transformers import CLIPImageProcessor
    processor = CLIPImageProcessor(size=dict(shortest_edge=size), crop_size=dict(height=size, width=size))
    def one(path):
        with Image.open(path) as im: return processor(im, return_tensors="np")["pixel_values"][0]
    if how == "transformers' processor, one thread": return sum(1 for p in photos if one(p) is not None)
    with ThreadPoolExecutor(CORES) as pool: return sum(1 for _ in pool.map(one, photos))


def decode(size, photos):
    from clip_ft.dataset import ResizeSpec, read_pixels
    return sum(read_pixels(o, ResizeSpec(size)) is not None for o in photos)


def measure(how, photos, size, folder):
    import clip_ft.dataset, transformers  # noqa: F401  imported before the clock starts
    before = memory()[0]
    start = time.perf_counter()
    n = work(how, photos, size, folder)
    seconds = time.perf_counter()-start
    return dict(how=how, pictures=n, seconds=round(seconds, 2), per_second=round(n/seconds), peak_MB_above_start=round(memory()[1]-before))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    args = parser.parse_args()
    photos = sorted(args.folder.glob("*.jpg"))[:args.pictures]
    if not photos: sys.exit(f"{args.folder} holds no .jpg files")
    if args.how: return print(json.dumps(measure(args.how, photos, args.size, args.cache)))
    print(json.dumps(dict(machine=platform.processor() or platform.machine(), cores=CORES, python=platform.python_version(), size=args.size, mean_kB=round(sum(p.stat().st_size for p in photos)/len(photos)/1e3, 1))))
    for p in photos: p.read_bytes()
    with tempfile.TemporaryDirectory() as cache:
        for how in ("decoding alone, a process a core", "decoding alone, all threads", "PixelCache.build", "PixelCache.build again", "PixelCache.build, one thread",
                    "transformers' processor, one thread", "transformers' processor, all threads"):
            out = subprocess.run([sys.executable, "-W", "ignore", __file__, str(args.folder), "--size", str(args.size), "--pictures", str(args.pictures), "--how", how, "--cache", cache],
                capture_output=True, text=True)
            print(out.stdout.strip() or out.stderr[-2000:], flush=True)


if __name__ == "__main__": main()
