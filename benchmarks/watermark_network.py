"""Train the network that recognizes watermarks (clip_ft/static/watermark.npz); a GPU is recommended.

    python benchmarks/watermark_network.py FOLDER [FOLDER ...] --fonts FOLDER [--out FILE]

FOLDERs contain images without watermarks; --fonts contains TrueType fonts, such as those of Matplotlib. Half of the
samples get a watermark. The shipped network was trained by a first version of this script on about 1,900 real photos,
half of those whose name has an even CRC-32, and 750 drawn products (70 and 30 % of the samples), with 19 fonts of
Matplotlib, 90,000 samples and 30 epochs (4 minutes on an H200). checkup_images.py measures it with another font, and
on photos whose name has an odd CRC-32.
"""
import argparse
import io
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from clip_ft.image_quality import small_pixels, split_background
from clip_ft.images import ImageError, open_image

HEIGHT, WIDTH = 256, 192  # of the samples; images are padded with background or cropped
CHANNELS = (3, 8, 12, 16, 16, 16, 1)
LAYERS = [  # kernel, stride, padding, dilation
    (5, 2, 2, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 1, 1), (3, 1, 2, 2), (1, 1, 0, 1)]
HIGHEST = (.01, .03, .1, .3)


class Network(nn.Module):
    "Six convolutions, and a logistic regression on the means of the highest estimates."
    def __init__(self):
        super().__init__()
        pairs = zip(CHANNELS, CHANNELS[1:], LAYERS)
        self.layers = nn.ModuleList(nn.Conv2d(before, after, *layer) for before, after, layer in pairs)
        self.head = nn.Linear(len(HIGHEST), 1)

    def forward(self, values):
        for layer in self.layers[:-1]:
            values = layer(values).relu()
        squares = self.layers[-1](values)[:, 0]
        highest = squares.sigmoid().flatten(1).sort(dim=1, descending=True).values
        means = [highest[:, :max(1, int(highest.shape[1]*share))].mean(1) for share in HIGHEST]
        return squares, self.head(4*torch.stack(means, 1))[:, 0]


def random_text(rng):
    "One to three words of random letters."
    words = [''.join(rng.choice(list('abcdefghijklmnopqrstuvwxyz'), rng.integers(3, 10)))
             for _ in range(rng.integers(1, 4))]
    text = str(rng.choice([' ', '.', '-', ''])).join(words)[:22]
    text = [text, text.upper(), text.title(), f'{text}{rng.integers(9999)}'][rng.integers(4)]
    return str(rng.choice(['', '', '', '© ', '® ', 'www.'])) + text


def text_layer(size, fonts, rng):
    "A square with text, once in the middle or repeated, and where its middle is placed in the image."
    width, height = size
    edge, text, path = int(1.5*np.hypot(width, height)), random_text(rng), str(fonts[rng.integers(len(fonts))])
    layer = Image.new('L', (edge, edge))
    draw = ImageDraw.Draw(layer)
    if rng.random() < .4:
        font = ImageFont.truetype(path, int(max(8, width/rng.uniform(9, 19))))
        text_width, text_height = draw.textbbox((0, 0), text, font=font)[2:]
        across, down, is_shifted = rng.uniform(1.15, 2), rng.uniform(1.8, 5), rng.random() < .5
        for i, y in enumerate(np.arange(0, edge, text_height*down)):
            for x in np.arange(-(i % 2)*is_shifted*text_width/2, edge, text_width*across):
                draw.text((x, y), text, 255, font=font)
        return layer, (0, 0)
    length = draw.textlength(text, font=ImageFont.truetype(path, 20))
    points = int(np.clip(20*width*rng.uniform(.35, 1)/max(1, length), 9, height/3))
    stroke = int(rng.random() < .1)
    draw.text((edge/2, edge/2), text, 255, ImageFont.truetype(path, points), anchor='mm', stroke_width=stroke)
    place = rng.normal(0, .04, 2) if rng.random() < .6 else rng.uniform(-.42, .42, 2)
    return layer, (int(place[0]*width/2), int(place[1]*height))


def mark(image, fonts, rng):
    "An image with a watermark, and which pixels it changes visibly."
    layer, (right, down) = text_layer(image.size, fonts, rng)
    angle = rng.choice([0, 0, 30, 45, -30, -45, 90, rng.uniform(-60, 60)])
    layer = layer.rotate(float(angle), Image.Resampling.BICUBIC)
    left, top = (layer.width - image.width)//2 - right, (layer.height - image.height)//2 - down
    opacity, grey = rng.uniform(.15, .5), rng.choice([0, 64, 100, 128, 160, 190, 255])
    colour = (int(grey),)*3 if rng.random() < .85 else tuple(int(value) for value in rng.integers(0, 256, 3))
    mask = layer.crop((left, top, left + image.width, top + image.height)).point(lambda value: int(value*opacity))
    marked = image.copy()
    marked.paste(colour, (0, 0), mask)
    return marked, np.abs(np.asarray(marked, int) - np.asarray(image, int)).max(2) > 8


def fitted(values):
    "Pad or crop around the middle."
    height, width = min(HEIGHT, values.shape[0]), min(WIDTH, values.shape[1])
    top, left = (values.shape[0] - height)//2, (values.shape[1] - width)//2
    result = np.zeros((HEIGHT, WIDTH, *values.shape[2:]), values.dtype)
    down, right = (HEIGHT - height)//2, (WIDTH - width)//2
    result[down:down + height, right:right + width] = values[top:top + height, left:left + width]
    return result


def sample(path, fonts, rng):
    "Pixels less the background in 1/127, the squares with a stroke, and whether there is a watermark."
    image = open_image(path, 512)
    if rng.random() < .5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < .3:
        scale = rng.uniform(.75, 1.6)
        image = image.resize(tuple(max(64, int(edge*scale)) for edge in image.size))
    strokes = np.zeros(image.size[::-1], bool)
    if rng.random() < .5:
        marked, changed = mark(image, fonts, rng)
        image, strokes = (marked, changed) if changed.mean() >= .002 else (image, strokes)
    if rng.random() < .7:
        file = io.BytesIO()
        image.save(file, 'JPEG', quality=int(rng.integers(75, 95)))
        image = open_image(file)
    pixels = small_pixels(image)
    reduced = Image.fromarray(strokes.astype(np.uint8)*255).resize(pixels.shape[1::-1], Image.Resampling.BOX)
    squares = fitted(np.asarray(reduced, np.float32)/255).reshape(HEIGHT//4, 4, WIDTH//4, 4).max((1, 3)) > .4
    values = fitted(pixels - split_background(pixels)[0].astype(np.float32)).transpose(2, 0, 1)
    return np.clip(np.round(values*127), -127, 127).astype(np.int8), squares, np.float32(strokes.any())


def samples(seed, paths, fonts, count):
    "Several samples, as arrays."
    rng, made = np.random.default_rng([9, seed]), []
    while len(made) < count:
        try:
            made.append(sample(paths[rng.integers(len(paths))], fonts, rng))
        except (ImageError, ValueError, OSError):  # a damaged image, or a font without one of the letters
            continue
    return [np.stack(part) for part in zip(*made)]


def fit(network, data, epochs, batch=64):
    "Train; the last twentieth of the samples is held out."
    values, squares, labels = data
    count = len(values) - len(values)//20
    steps = epochs*(count//batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    weight = torch.tensor(2., device=values.device)
    for _ in range(steps):
        rows = torch.randint(count, (batch,), device=values.device)
        stroke, label = squares[rows].float(), labels[rows]
        found, odds = network(values[rows].float()/127)
        beside = (F.max_pool2d(stroke[:, None], 3, 1, 1)[:, 0] > 0) & (stroke == 0)  # these may have a part of one
        loss = F.binary_cross_entropy_with_logits(found, stroke, torch.where(beside, .3, 1.), pos_weight=weight)
        loss = loss + .5*F.binary_cross_entropy_with_logits(odds, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        odds = torch.cat([network(part.float()/127)[1] for part in values[count:].split(256)])
    limit = odds[labels[count:] == 0].quantile(.995)
    print(f'recall {(odds[labels[count:] == 1] > limit).float().mean():.3f} at 0.5 % false positives')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', type=Path, nargs='+')
    parser.add_argument('--fonts', type=Path, required=True)
    parser.add_argument('--samples', type=int, default=90_000)
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--out', type=Path, default=Path('clip_ft/static/watermark.npz'))
    args = parser.parse_args()
    paths = [path for folder in args.folders for path in sorted(folder.iterdir())]
    make = partial(samples, paths=paths, fonts=sorted(args.fonts.glob('*.ttf')), count=100)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(make, range(args.samples//100)))
    data = [torch.from_numpy(np.concatenate(part)).to(device) for part in zip(*parts)]
    torch.manual_seed(0)
    network = Network().to(device)
    fit(network, data, args.epochs)
    weights = {name.removeprefix('layers.').replace('.', '_'): value.half().cpu().numpy()
               for name, value in network.state_dict().items()}
    np.savez_compressed(args.out, **weights)


if __name__ == '__main__':
    main()
