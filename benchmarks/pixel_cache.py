"""Speed and peak memory of PixelCache.build, compared with the image processor of transformers, called for each image.

    python benchmarks/pixel_cache.py FOLDER [--size 224] [--images 8000]

FOLDER holds JPEG files. Every file is read once before the first measurement, so that all of them find the files in
the page cache of the system; each measurement runs in a process of its own. "decoding alone" discards the pixels:
with one process per core it shows what the cores can do, with threads what Python's lock allows. Memory is the
largest resident set of the process, less what it held before the work began; the part of it that is mapped from
files can be dropped by the system.
"""
import multiprocessing
import sys
import tempfile
import time
from argparse import SUPPRESS
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path

from common import Results, benchmark_parser, memory_mb, print_record, usable_cores


def decode(size: int, paths: list[Path]) -> int:
    "Decode images and discard them; returns their number."
    from clip_ft.dataset import ResizeSpec, read_pixels
    return sum(read_pixels(path, ResizeSpec(size)) is not None for path in paths)


def decode_in_threads(paths: list[Path], size: int, _cache: Path) -> int:
    with ThreadPoolExecutor(usable_cores()) as pool:
        return sum(pool.map(lambda path: decode(size, [path]), paths))


def decode_in_processes(paths: list[Path], size: int, _cache: Path) -> int:
    blocks = [paths[start:start+32] for start in range(0, len(paths), 32)]
    with multiprocessing.Pool(usable_cores()) as pool:
        return sum(pool.imap_unordered(partial(decode, size), blocks))


def build(paths: list[Path], size: int, cache: Path) -> int:
    from clip_ft.dataset import PixelCache
    return len(PixelCache.build(paths, size, cache))


def build_in_one_thread(paths: list[Path], size: int, cache: Path) -> int:
    from clip_ft.dataset import PixelCache
    return len(PixelCache.build(paths, size, cache/'one', workers=1))


def process(paths: list[Path], size: int, _cache: Path, threads: int) -> int:
    "Call the image processor of transformers for each image; returns their number."
    from PIL import Image
    from transformers import CLIPImageProcessor
    processor = CLIPImageProcessor(size=dict(shortest_edge=size), crop_size=dict(height=size, width=size))

    def one(path):
        with Image.open(path) as image:
            return processor(image, return_tensors='np')['pixel_values'][0]

    with ThreadPoolExecutor(threads) as pool:
        return sum(1 for _ in pool.map(one, paths))


METHODS = {
    'decoding alone, one process per core': decode_in_processes,
    'decoding alone, all threads': decode_in_threads,
    'PixelCache.build': build,
    'PixelCache.build again': build,
    'PixelCache.build, one thread': build_in_one_thread,
    'transformers, one thread': partial(process, threads=1),
    'transformers, all threads': partial(process, threads=usable_cores()),
}


def measure(name: str, paths: list[Path], size: int, cache: Path):
    "Run one method here, and print its record."
    for module in ('clip_ft.dataset', 'transformers'):  # the imports are not timed
        import_module(module)
    before = memory_mb('VmRSS')
    start = time.perf_counter()
    count = METHODS[name](paths, size, cache)
    seconds = time.perf_counter()-start
    memory = memory_mb('VmHWM')-before
    print_record(name=name, images=count, seconds=seconds, per_second=count/seconds, peak_MB_above_start=memory)


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--size', type=int, default=224, help='edge of the cached images, in pixels')
    parser.add_argument('--images', type=int, default=8000, help='number of files')
    parser.add_argument('--how', choices=METHODS, help=SUPPRESS)
    parser.add_argument('--cache', type=Path, help=SUPPRESS)
    args = parser.parse_args()
    paths = sorted(args.folder.glob('*.jpg'))[:args.images]
    if not paths:
        sys.exit(f'There are no .jpg files in {args.folder}.')
    if args.how:
        measure(args.how, paths, args.size, args.cache)
        return
    with tempfile.TemporaryDirectory() as cache, Results(args, 'pillow') as results:
        size = sum(len(path.read_bytes()) for path in paths)
        results.add(name='files', images=len(paths), mean_kB=size/len(paths)/1e3)
        for name in METHODS:
            results.measure('--cache', cache, '--how', name)


if __name__ == '__main__':
    main()
