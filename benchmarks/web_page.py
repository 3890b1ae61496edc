"""The search page without a server: size, first and later answers, memory of the browser.

    python benchmarks/web_page.py runs/notebooks    # a project as it is
    python benchmarks/web_page.py my_shop --vit     # its products, with a text tower of the size of ViT-B/32

With --vit, the weights are random and the embeddings are random directions, which changes neither sizes nor times.
A local server sends the files; the browser starts without a cache. Writes benchmarks/results/web_page.json.
"""
import argparse
import json
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
from playwright.sync_api import sync_playwright
from transformers import CLIPConfig, CLIPModel

from clip_ft.checkpoints import weights_hash
from clip_ft.core import Paths
from clip_ft.data import catalogue_folder, image_folder
from clip_ft.embeddings_file import load_embeddings
from clip_ft.model import load_model
from clip_ft.search import Searcher
from clip_ft.web_page import write_web

RESULTS = Path(__file__).parent/'results'/'web_page.json'
LATER = '''async queries => {
  const web = await import('./web.js');
  const { tower, catalogue } = await web.ready;
  const times = { tower: [], ranking: [] };
  for (const text of queries) {
    const start = performance.now();
    const vector = tower.embed(text);
    const middle = performance.now();
    catalogue.nearest(vector, { count: 24, text });
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
    data = {name: value for name, value in data.items() if name != 'match_scale'}
    data |= dict(embeddings=vectors, weights_hash=weights_hash(model))
    return Searcher(model, processor, data, image_folder(catalogue_folder(paths), data['dataframe']))


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root')
    parser.add_argument('--vit', action='store_true')
    parser.add_argument('--label', default='demo')
    args = parser.parse_args()
    paths = Paths(args.root)
    searcher = vit_searcher(paths) if args.vit else Searcher.load(paths, 'cpu')
    queries = searcher.dataframe['display name'].sample(60, random_state=0).str.lower().str.replace('"', '').tolist()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)/'page'
        start = time.perf_counter()
        total = write_web(folder, searcher)
        record = dict(products=len(searcher), export_s=time.perf_counter() - start, total_mb=total/1e6,
                      load_average=psutil.getloadavg()[0])
        record['files_mb'] = {path.name: size(path)/1e6 for path in folder.iterdir()}
        record |= measure(folder, queries)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | {args.label: record}, indent=1) + '\n')
    print(json.dumps(record, indent=1))


if __name__ == '__main__':
    main()
