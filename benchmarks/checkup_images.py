"""Recall and precision of the checks of images, with faults planted into images of a catalogue.

    python benchmarks/checkup_images.py NAME FOLDER [--csv benchmarks/results/checkup_images.csv]

FOLDER contains data.csv and data/. For each seed, 2,000 images (or all, if there are fewer) are drawn, and 50 of them
for each kind get a fault of that kind. Seed 0 served to choose the limits; seeds 1 to 3 are written to the CSV file.
Precision counts findings of a kind on images without that fault as wrong, unless the image has a planted fault of a
kind in RELATED, whose images really have the other fault as well. Findings on untouched images count as wrong, even if
they are right. With --odd, only images whose name has an odd CRC-32 are used, because others trained the network for
watermarks. The seconds for all images of the folder are printed.
"""
import argparse
import os
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from clip_ft.image_quality import image_measures, image_quality_findings
from clip_ft.images import open_image

PLANTED = 50
TEXTS = ['SAMPLE', 'fotoshop24.example', '© PHOTO STOCK', 'www.my-shop.example']
RELATED = {'washed out': ['dark'], 'blurred': ['tiny']}


def background(image):
    "Median colour of the border."
    pixels = np.asarray(image)
    return tuple(int(v) for v in np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), 0))


def blur(image, rng, _):
    radius = float(rng.choice([1.5, 2, 3, 5]))*max(image.size)/256
    return image.filter(ImageFilter.GaussianBlur(radius))


def darken(image, rng, _):
    factor = rng.uniform(.15, .45)
    return image.point(lambda value: int(value*factor))


def wash_out(image, rng, _):
    contrast, base = rng.uniform(.15, .35), rng.choice([255, 235, 200])
    return image.point(lambda value: int(base + contrast*(value - base)))


def shrink(image, rng, _):
    edge = int(rng.integers(20, 80))
    image = image.copy()
    image.thumbnail((edge, edge))
    return image


def strip(image, rng, _):
    "Cut out or squeeze to a strip."
    factor = rng.uniform(2.2, 5)
    wide = rng.random() < .5
    width, height = (image.width, int(image.height/factor)) if wide else (int(image.width/factor), image.height)
    if rng.random() < .5:
        return image.resize((width, height))
    left, top = (image.width - width)//2, (image.height - height)//2
    return image.crop((left, top, left + width, top + height))


def empty(image, rng, _):
    "Only background, or the product at 4 to 8 % of its size."
    canvas, factor = Image.new('RGB', image.size, background(image)), rng.choice([0, .04, .06, .08])
    if factor:
        small = image.resize((max(2, int(image.width*factor)), max(2, int(image.height*factor))))
        left, top = rng.integers(0, image.width - small.width), rng.integers(0, image.height - small.height)
        canvas.paste(small, (int(left), int(top)))
    return canvas


def watermark(image, rng, _):
    "Semi-transparent grey text: one large line, or repeated over the whole image."
    text, opacity, grey = str(rng.choice(TEXTS)), rng.uniform(.2, .45), int(rng.choice([64, 128, 160]))
    edge = int(1.6*np.hypot(*image.size))
    layer = Image.new('L', (edge, edge), 0)
    draw = ImageDraw.Draw(layer)
    if rng.random() < .5:
        font = ImageFont.load_default(max(9, image.width//int(rng.integers(10, 16))))
        width, height = draw.textbbox((0, 0), text, font=font)[2:]
        for i, y in enumerate(range(0, edge, int(height*3))):
            for x in range(-(i % 2)*int(width)//2, edge, int(width*1.4)):
                draw.text((x, y), text, 255, font=font)
    else:
        size = 10*image.width*rng.uniform(.7, .95)/draw.textlength(text, font=ImageFont.load_default(10))
        draw.text((edge/2, edge/2), text, 255, font=ImageFont.load_default(max(10, int(size))), anchor='mm')
    layer = layer.rotate(float(rng.choice([0, 30, 45])), Image.Resampling.BICUBIC)
    left, top = (edge - image.width)//2, (edge - image.height)//2
    mask = layer.crop((left, top, left + image.width, top + image.height)).point(lambda value: int(value*opacity))
    image = image.copy()
    image.paste((grey,)*3, (0, 0), mask)
    return image


def panels(width, height, count, rng):
    "Boxes of two to four panels."
    x, y = width//2, height//2
    if count == 4:
        return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    if count == 3:
        if rng.random() < .5:
            return [(i*width//3, 0, (i + 1)*width//3, height) for i in range(3)]
        return [(0, 0, x, height), (x, 0, width, y), (x, y, width, height)]
    beside, below = [(0, 0, x, height), (x, 0, width, height)], [(0, 0, width, y), (0, y, width, height)]
    return beside if rng.random() < .5 else below


def collage(image, rng, others):
    "Two to four photos, cut or shrunk to panels."
    count, gap = int(rng.integers(2, 5)), int(rng.choice([0, 2, 4]))
    canvas = Image.new('RGB', image.size, background(image) if rng.random() < .5 else (255, 255, 255))
    is_cut = rng.random() < .5
    for photo, (left, top, right, bottom) in zip([image, *others], panels(*image.size, count, rng)):
        width, height = right - left - gap, bottom - top - gap
        ratios = width/photo.width, height/photo.height
        scale = max(ratios) if is_cut else min(ratios)
        photo = photo.resize((max(1, round(photo.width*scale)), max(1, round(photo.height*scale))))
        x, y = (photo.width - width)//2, (photo.height - height)//2
        part = photo.crop((max(x, 0), max(y, 0), photo.width - max(x, 0), photo.height - max(y, 0)))
        canvas.paste(part, (left + max(-x, 0), top + max(-y, 0)))
    return canvas


FAULTS = {
    'blurred': blur, 'dark': darken, 'washed out': wash_out, 'tiny': shrink, 'odd aspect': strip, 'nearly empty': empty,
    'watermark': watermark, 'collage': collage,
}


def plant(names, folder, target, rng):
    "Write images with faults into a folder; returns their names and kinds."
    drawn = rng.permutation(names)[:PLANTED*len(FAULTS)]
    planted = {}
    for i, name in enumerate(drawn):
        kind = list(FAULTS)[i // PLANTED]
        others = [open_image(folder/other) for other in rng.choice(names, 3)] if kind == 'collage' else []
        FAULTS[kind](open_image(folder/name), rng, others).save(target/name, format='JPEG', quality=88)
        planted[name] = kind
    return planted


def rates(measures, planted):
    "Planted, found and right findings, recall and precision of each kind."
    findings = image_quality_findings(pd.DataFrame({'image': measures['image']}), measures)
    kinds = findings['image'].map(planted).fillna('')
    for kind in FAULTS:
        found = findings['kind'] == kind
        right = found & (kinds == kind)
        wrong = found & ~right & ~kinds.isin(RELATED.get(kind, []))
        yield dict(kind=kind, planted=sum(each == kind for each in planted.values()), found=int((right | wrong).sum()),
                   right=int(right.sum()), recall=round(right.sum()/PLANTED, 3),
                   precision=round(right.sum()/max(1, (right | wrong).sum()), 3))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name')
    parser.add_argument('folder', type=Path)
    parser.add_argument('--csv', type=Path, default=Path('benchmarks/results/checkup_images.csv'))
    parser.add_argument('--seeds', type=int, nargs='*', default=[1, 2, 3])
    parser.add_argument('--odd', action='store_true')
    args = parser.parse_args()
    folder = args.folder/'data'
    start = time.perf_counter()
    names = [name for name in sorted(os.listdir(folder)) if not args.odd or zlib.crc32(name.encode()) % 2]
    measures = image_measures(names, folder)
    print(f'{len(measures):,} images measured in {time.perf_counter() - start:.0f} s', flush=True)
    measures = measures[measures['problem'] == ''].reset_index(drop=True)
    rows = []
    for seed in args.seeds:
        rng = np.random.default_rng(seed)
        sample = measures.iloc[rng.permutation(len(measures))[:2000]]
        with tempfile.TemporaryDirectory() as target:
            planted = plant(sample['image'].tolist(), folder, Path(target), rng)
            faulty = image_measures(list(planted), target)
        untouched = sample[~sample['image'].isin(list(planted))]
        for row in rates(pd.concat([untouched, faulty], ignore_index=True), planted):
            rows.append(dict(data=args.name, seed=seed) | row)
            print(rows[-1], flush=True)
    if 0 not in args.seeds:
        old = [pd.read_csv(args.csv).query('data != @args.name')] if args.csv.exists() else []
        pd.concat([*old, pd.DataFrame(rows)]).to_csv(args.csv, index=False)


if __name__ == '__main__':
    main()
