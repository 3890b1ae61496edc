"""The map of a catalogue: time to compute it, share of the neighbours that it keeps, and time until it is painted.

    python benchmarks/map.py --root shop [--products 8000] [--peers umap pacmap openTSNE] [--save]

The embeddings are those of a project. Each step runs in its own process, so that compilation counts (umap and
pacmap are compiled when they are first used); `again` is the second map of the same process. Opening is measured in
headless Chromium: from the navigation to the second frame after the points are drawn, for a page from clip_ft_map;
`load_s` is the time to make the widget from a stored map, `write_s` that to write the page. Peers are measured if they
are installed.
"""
import shutil
import tempfile
import time
from argparse import SUPPRESS
from pathlib import Path

import numpy as np
import torch
from common import Results, benchmark_parser, peak_gb, print_record

PAINTED = '''() => new Promise(done => {
  const look = () => {
    const canvas = document.querySelector('.cf-map canvas');
    const ready = document.querySelector('.cf-map-legend')?.children.length && canvas.width > 300;
    if (ready) requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));
    else requestAnimationFrame(look);
  };
  look();
})'''
REDRAWN = '''async () => { // milliseconds per frame while the map moves
  const canvas = document.querySelector('.cf-map canvas[tabindex]');
  const start = performance.now();
  for (let i = 0; i < 20; i++) {
    canvas.dispatchEvent(new KeyboardEvent('keydown', { key: i % 2 ? 'ArrowLeft' : 'ArrowRight', shiftKey: true }));
    await new Promise(requestAnimationFrame);
  }
  return (performance.now() - start) / 20;
}'''


def kept(places, vectors, k=15, sample=1000):
    "Share of the neighbours on the map that are neighbours of the vectors, for some products."
    rows = np.random.default_rng(1).permutation(len(vectors))[:sample]
    own = (torch.arange(len(rows)), torch.from_numpy(rows))
    distances = torch.cdist(torch.as_tensor(places[rows]), torch.as_tensor(places))
    cosines = torch.from_numpy(vectors[rows] @ vectors.T)
    distances[own], cosines[own] = torch.inf, -2
    pairs = zip(distances.topk(k, largest=False).indices.numpy(), cosines.topk(k).indices.numpy())
    return float(np.mean([len(np.intersect1d(a, b))/k for a, b in pairs]))


def mapper(name):
    "The function that makes a map from vectors."
    if name == 'clip_ft':
        from clip_ft.catalogue_map import map_coordinates
        return map_coordinates
    if name == 'umap':
        from umap import UMAP
        return lambda vectors: UMAP(n_neighbors=15, metric='cosine', random_state=0).fit_transform(vectors)
    if name == 'pacmap':
        from pacmap import PaCMAP
        return lambda vectors: PaCMAP(random_state=0).fit_transform(vectors)
    from openTSNE import TSNE
    return lambda vectors: np.array(TSNE(metric='cosine', random_state=0, n_jobs=2).fit(vectors), dtype=np.float32)


def part_of(root, products):
    "Products and vectors of a project, or of a sample of it."
    from clip_ft.core import Paths
    from clip_ft.embeddings_file import load_embeddings
    data = load_embeddings(Paths(root).embeddings)
    rows = np.sort(np.random.default_rng(0).permutation(len(data['embeddings']))[:products])
    vectors = np.ascontiguousarray(data['embeddings'][rows], dtype=np.float32)
    return data['dataframe'].iloc[rows].reset_index(drop=True), vectors


def folder_of(root, products):
    "The folder of the images of a project."
    from clip_ft.core import Paths
    from clip_ft.data import catalogue_folder, image_folder
    return image_folder(catalogue_folder(Paths(root)), products)


def compute(args):
    "Time of the first and the second map of a process."
    _, vectors = part_of(args.root, args.products)
    begun = time.perf_counter()
    make = mapper(args.how)
    record = dict(step=args.how, products=len(vectors), import_s=time.perf_counter() - begun)
    for key in ('first', 'again'):
        begun, used = time.perf_counter(), time.process_time()
        places = make(vectors)
        record |= {f'{key}_s': time.perf_counter() - begun, f'{key}_cpu_s': time.process_time() - used}
        if key == 'first':
            first = places
        if len(vectors) > 20_000:
            break
    if 'again_s' in record:
        record['same'] = bool(np.array_equal(first, places))
    print_record(**record, kept=kept(places, vectors), peak_GB=peak_gb())


def open_page(args):
    "Time until the widget is made from a stored map, and until a page is painted."
    from playwright.sync_api import sync_playwright

    from clip_ft.catalogue_map import CatalogueMap, stored_map, write_map
    products, vectors = part_of(args.root, args.products)
    with tempfile.TemporaryDirectory() as folder:
        stored_map(f'{folder}/map.npz', vectors)
        begun = time.perf_counter()
        page = CatalogueMap(stored_map(f'{folder}/map.npz', vectors), products, folder_of(args.root, products))
        load = time.perf_counter() - begun
        begun = time.perf_counter()
        size = write_map(Path(folder)/'map.html', page)
        write = time.perf_counter() - begun
        with sync_playwright() as playwright:
            chromium = shutil.which('chromium') or shutil.which('google-chrome')
            browser = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
            times, frames = [], []
            for _ in range(5):
                tab = browser.new_page(viewport=dict(width=1400, height=900))
                tab.goto(f'file://{folder}/map.html')
                times.append(tab.evaluate(PAINTED)/1000)
                frames.append(tab.evaluate(REDRAWN))
                tab.close()
            browser.close()
    print_record(step='open', products=len(products), page_MB=size/1e6, load_s=load, write_s=write,
                 open_s=float(np.median(times)), longest_open_s=max(times), frame_ms=float(np.median(frames)))


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('--root', type=Path, required=True)
    parser.add_argument('--products', type=int, nargs='+', default=[8000, 50_000])
    parser.add_argument('--peers', nargs='*', default=[], choices=['umap', 'pacmap', 'openTSNE'])
    parser.add_argument('--how', help=SUPPRESS)
    args = parser.parse_args()
    if args.how:
        args.products = args.products[-1]
        (open_page if args.how == 'open' else compute)(args)
        return
    with Results(args, 'umap-learn', 'pacmap', 'openTSNE') as results:
        for products in args.products:
            for how in ('clip_ft', 'open', *args.peers):
                results.measure('--how', how, '--products', products)


if __name__ == '__main__':
    main()
