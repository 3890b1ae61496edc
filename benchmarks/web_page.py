"""The search page without a server: size, first and later answers, memory of the browser.

    python benchmarks/web_page.py runs/notebooks --shop my_shop --save

The first project is measured as it is. Of --shop, the products are used with a text tower of the size of ViT-B/32. Its
weights, its embeddings and the weights of the match scale are random, which changes neither sizes nor times.
A local server sends the files; the browser starts without a cache.
"""
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
from common import Results, benchmark_parser, usable_cores
from playwright.sync_api import sync_playwright
from transformers import CLIPConfig, CLIPModel

from clip_ft.checkpoints import weights_hash
from clip_ft.core import Paths
from clip_ft.data import catalogue_folder, image_folder
from clip_ft.embeddings_file import load_embeddings
from clip_ft.match_fit import MatchScale
from clip_ft.match_scale import Scale, product_words, rows_by_word, word_columns
from clip_ft.model import load_model
from clip_ft.search import Searcher
from clip_ft.web_page import write_web

LATER = '''async queries => {
  const web = await import('./web.js');
  const { tower, catalogue } = await web.ready;
  const times = { tower: [], ranking: [] };
  for (const text of queries) {
    const start = performance.now();
    const vector = tower.embed(text);
    const middle = performance.now();
    catalogue.search({ wanted: vector, text, words: true, count: 24, where: {} });
    times.tower.push(middle - start);
    times.ranking.push(performance.now() - middle);
  }
  return times;
}'''
TYPED = '''async text => {
  const box = document.querySelector('[data-setting=text]');
  const start = performance.now();
  box.value = text;
  box.dispatchEvent(new Event('input'));
  box.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' }));
  await new Promise(requestAnimationFrame);
  await new Promise(done => setTimeout(done));
  return document.querySelector('.cf-grid')?.dataset.query === text ? performance.now() - start : NaN;
}'''


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def vit_searcher(paths):
    "The products of a project with a text tower of the size of ViT-B/32."
    torch.manual_seed(0)
    _, processor = load_model(paths.best_model, 'cpu', verbose=False)
    ids = {f'{name}_token_id': getattr(processor.tokenizer, f'{name}_token_id') for name in ('bos', 'eos', 'pad')}
    model = CLIPModel(CLIPConfig(text_config=ids, vision_config=dict(num_hidden_layers=1))).eval()
    data = load_embeddings(paths.embeddings)
    vectors = np.random.default_rng(0).normal(size=(len(data['image_names']), 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    data |= dict(embeddings=vectors, weights_hash=weights_hash(model), match_scale=random_scale(data['dataframe']))
    return Searcher(model, processor, data, image_folder(catalogue_folder(paths), data['dataframe']))


def random_scale(products):
    "A match scale with the words of products, and random weights."
    columns, kinds = word_columns(products), sorted(set(products['category']))
    words = rows_by_word(product_words(products, [*columns, 'description']))
    vectors = np.random.default_rng(1).normal(size=(len(kinds), 512)).astype(np.float32)
    text, image = (Scale(np.zeros(count), np.ones(count), 0., np.array([-1., 0, 1])) for count in (7, 3))
    described = {word: len(rows) for word, rows in words.items()}
    return MatchScale({}, len(products), columns, described, kinds, vectors, text, text, image)


def size(path):
    "Bytes of a file, or of all files in a folder."
    return sum(file.stat().st_size for file in [path, *path.rglob('*')] if file.is_file())


def measure(folder, queries):
    "First and later answers in milliseconds, and the memory of the process that shows the page, in MB."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        first = []
        for query in queries[:3]:
            browser = playwright.chromium.launch(executable_path='/usr/bin/chromium', args=['--no-sandbox'])
            page = browser.new_page(viewport=dict(width=1280, height=900))
            start = time.perf_counter()
            page.goto(f'http://127.0.0.1:{server.server_port}/?q={query}', timeout=120_000)
            page.wait_for_selector(f'.cf-grid[data-query="{query}"]', timeout=120_000)
            first.append(1000*(time.perf_counter() - start))
            if len(first) < 3:
                browser.close()
        parts = page.evaluate(LATER, queries)
        typed = [page.evaluate(TYPED, query) for query in queries]
        page.wait_for_timeout(1000)
        renderers = [process.memory_info().rss for process in psutil.Process().children(recursive=True)
                     if '--type=renderer' in process.cmdline()]
        browser.close()
    server.shutdown()
    times = dict(tower=parts['tower'], ranking=parts['ranking'], from_key_to_cards=typed)
    return dict(first_answer_ms=float(np.median(first)), renderer_mb=max(renderers, default=0)/1e6,
                **{f'{name}_ms': dict(p50=float(np.nanmedian(each)), p95=float(np.nanquantile(each, .95)))
                   for name, each in times.items()})


def record(searcher):
    "The size of the page of a catalogue, and its times in a browser."
    names = searcher.dataframe['display name'].sample(60, random_state=0)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)/'page'
        start = time.perf_counter()
        total = write_web(folder, searcher)
        export = time.perf_counter() - start
        load = psutil.getloadavg()[0]
        times = measure(folder, names.str.lower().str.replace('"', '').tolist())
        files = {path.name: size(path)/1e6 for path in folder.iterdir()}
    return dict(products=len(searcher), total_mb=total/1e6, files_mb=files, export_s=export, load=load,
                cores=usable_cores(), **times)


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('root', type=Path)
    parser.add_argument('--shop', type=Path, help='project with more products')
    args = parser.parse_args()
    with Results(args, 'playwright') as results:
        results.add(step='as it is', **record(Searcher.load(Paths(args.root), 'cpu')))
        if args.shop:
            results.add(step='ViT-B/32', **record(vit_searcher(Paths(args.shop))))


if __name__ == '__main__':
    main()
