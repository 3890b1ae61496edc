"""Images embedded per second: embed_images of clip_ft, and encode of sentence-transformers.

    python benchmarks/embedding_speed.py CATALOGUE --root FOLDER --model FOLDER [--many 1000000] [--peer 4096]

CATALOGUE, --root and --model are as in training_speed.py; --root and --model are created if they do not exist. The
benchmark prints one record for each source of images: the cache file (each training image once), pixels on the
device, the cache file until --many images are embedded, and JPEG files. sentence-transformers decodes and embeds the
first --peer files. Warm-up runs are not timed.
"""
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import device_use, forward_flops, load_parts, model_parser, now, prepare_model, prepared, print_record


def time_embedding(name: str, count: int, config: Any, tflops: float, embed: Callable[[], Any]):
    "Time a call that embeds `count` images, and print the record."
    import torch
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = now()
    embed()
    seconds = now()-start
    use = device_use(count/seconds*forward_flops(config, 0), tflops)
    print_record(name=name, images=count, seconds=seconds, images_per_second=count/seconds, **use)


def training_images(root: Path) -> tuple:
    "Paths of the project, and the files of its training images."
    from clip_ft.data import image_paths
    paths, products, _, image_dir = load_parts(root)
    return paths, image_paths(products, image_dir)


def measure_clip_ft(args: Namespace):
    "Time embed_images on each source of images."
    from clip_ft.dataset import PixelCache, ResizeSpec, to_device
    from clip_ft.encode import embed_images
    from clip_ft.model import load_model, model_device
    paths, files = training_images(args.root)
    model, processor = load_model(args.model)
    cache = PixelCache.build(files, ResizeSpec.from_processor(processor), paths.pixels)

    def embed(images, rows=None):
        return embed_images(model, processor, images, progress=False, rows=rows)

    def measure(name, count, images, rows=None):
        time_embedding(f'clip_ft, {name}', count, model.config, args.tflops, lambda: embed(images, rows))

    embed(cache, np.arange(min(2048, len(cache))))
    measure('cache file', len(cache), cache)
    measure('pixels on the device', len(cache), to_device(cache.pixels, model_device(model)))
    if args.many:
        measure('cache file, many', args.many, cache, np.arange(args.many) % len(cache))
    measure('JPEG files', min(len(files), args.peer), files[:args.peer])


def measure_sentence_transformers(args: Namespace):
    "Time SentenceTransformer.encode on files."
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoConfig
    cuda = torch.cuda.is_available()
    files = [str(path) for path in training_images(args.root)[1][:args.peer]]
    dtype = dict(dtype=torch.float16 if cuda else torch.float32)
    model = SentenceTransformer(str(args.model), device='cuda' if cuda else 'cpu', model_kwargs=dtype)

    def embed(files):
        batch_size = 1024 if cuda else 64
        return model.encode(files, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)

    embed(files[:256])
    config = AutoConfig.from_pretrained(args.model)
    time_embedding('sentence-transformers, JPEG files', len(files), config, args.tflops, lambda: embed(files))


STEPS = {'prepare': prepare_model, 'clip_ft': measure_clip_ft, 'sentence-transformers': measure_sentence_transformers}


def main():
    parser = model_parser(__doc__, STEPS)
    parser.add_argument('--root', type=Path, help='folder of data and pixel cache; default: a temporary folder')
    parser.add_argument('--many', type=int, default=0, help='number of images of the long run; default: no long run')
    parser.add_argument('--peer', type=int, default=4096, help='number of JPEG files')
    args = parser.parse_args()
    if args.how:
        STEPS[args.how](args)
        return
    with prepared(args, 'sentence-transformers') as (results, _, places):
        for how in ('clip_ft', 'sentence-transformers'):
            results.measure(*places, '--how', how)


if __name__ == '__main__':
    main()
