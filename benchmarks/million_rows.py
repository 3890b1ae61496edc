"""Time and memory of a table with a million rows: reading, cleaning, splitting and writing.

    python benchmarks/million_rows.py [--rows 1000000] [--folder FOLDER]

The table is generated: display names and descriptions of random words, 200 categories, and prices as shops write them.
Its images are a million names of 50,000 different JPEG files of 32 x 32 pixels (hard links), so decoding is as fast as
it can be; photos take longer, see benchmarks/pixel_cache.py. Half of the names are written without their extension, and
one in a thousand has no file. Memory is the largest resident set of this process during a stage. Writes
benchmarks/results/million_rows.json.
"""
import argparse
import io
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import PACKAGES, RESULTS, cpu_name, rounded, silent, usable_cores, versions
from PIL import Image

from clip_ft.core import Paths
from clip_ft.data import clean_products, read_products
from clip_ft.splits import read_split, split_products, write_split

FILES, CATEGORIES, PER_FOLDER = 50_000, 200, 1_000


def write_table(folder: Path, count: int) -> None:
    "Generate the table."
    rng = np.random.default_rng(0)
    words = np.array([''.join(rng.choice(list('abcdefghijklmnopqrstuvwxyz'), 6)) for _ in range(5_000)])
    numbers = np.arange(count)
    paths = pd.Series([f'{number//PER_FOLDER:04d}/{number:07d}' for number in numbers])
    suffix = np.where(numbers % 2 == 0, '.jpg', '')
    texts = [pd.Series(words[rng.integers(0, len(words), count)]) for _ in range(15)]
    pd.DataFrame({
        'image': paths + suffix,
        'description': texts[0].str.cat(texts[1:], sep=' '),
        'display name': texts[0].str.cat([texts[3], numbers.astype(str)], sep=' '),
        'category': 'category ' + pd.Series(numbers % CATEGORIES).astype(str),
        'price': [f'{price//100},{price % 100:02d} €' for price in rng.integers(500, 50_000, count).tolist()],
    }).to_csv(folder/'data.csv', index=False)


def write_images(folder: Path, count: int) -> None:
    "Write the different files, and further names for each of them."
    rng = np.random.default_rng(1)
    for number in range(count):
        target = folder/f'{number//PER_FOLDER:04d}/{number:07d}.jpg'
        if number % PER_FOLDER == 0:
            target.parent.mkdir(parents=True)
        elif number % PER_FOLDER == 1 and number > 1:
            continue  # one in a thousand is missing
        if number < FILES:
            colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            out = io.BytesIO()
            Image.fromarray(colours).resize((32, 32), Image.Resampling.NEAREST).save(out, 'JPEG')
            target.write_bytes(out.getvalue())
        else:
            first = number % FILES if number % FILES % PER_FOLDER != 1 else 0
            os.link(folder/f'{first//PER_FOLDER:04d}/{first:07d}.jpg', target)


def cpu_seconds() -> float:
    "Processor time of this process and of its children that have ended."
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_gb() -> float:
    "Largest resident set since the last reset."
    status = Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0])/1e6


def measure(stage: str, function: Callable[[], Any], records: list[dict]) -> Any:
    "Call a function; record its time and memory."
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    wall, cpu = time.perf_counter(), cpu_seconds()
    with silent():
        result = function()
    records.append(rounded({'stage': stage, 'seconds': time.perf_counter() - wall, 'cpu_seconds': cpu_seconds() - cpu,
                            'peak_gb': peak_gb()}))
    print(records[-1], flush=True)
    return result


def run(folder: Path, count: int) -> list[dict]:
    "Measure all stages."
    if not (folder/'shop/data.csv').exists():
        (folder/'shop').mkdir(parents=True)
        write_images(folder/'shop/images', count)
        write_table(folder/'shop', count)
    paths, records = Paths(folder/'root'), []
    products = measure('read_products', lambda: read_products(folder/'shop'), records)
    kept, rejects = measure('clean_products', lambda: clean_products(products, folder/'shop/images'), records)
    assert len(kept) + len(rejects) == len(products) == count
    train, test = measure('split_products', lambda: split_products(kept), records)
    measure('write_split', lambda: write_split(paths, train, test, rejects), records)
    measure('read_split', lambda: read_split(paths), records)
    return [*records, {'rows': count, 'kept': len(kept), 'train': len(train), 'test': len(test)}]


def main() -> None:
    "Measure, and write the results."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, default=1_000_000)
    parser.add_argument('--folder', type=Path, help='folder for the table and the images; kept')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        records = run(args.folder or Path(temporary), args.rows)
    about = {'date': date.today().isoformat(), 'cpu': cpu_name(), 'cores': usable_cores(),
             'load_before': os.getloadavg()[0], 'versions': versions(PACKAGES)}
    (RESULTS/'million_rows.json').write_text(json.dumps({**about, 'records': records}, indent=1) + '\n')


if __name__ == '__main__':
    main()
