"""The search page in a real browser: how long from the last key to the painted grid?

    python benchmarks/widget.py [--queries 60] [--products 50000]

Beside it stands the plain way: a fixed pool of 24 cards, each a box, a picture, a text and a button of ipywidgets, refilled for each
query with hold_sync; the same search, the same thumbnails, the same pause for typing. Both are shown with Voila in headless Chromium,
on the demo catalogue and on a synthetic one (random vectors, the demo's pictures under many names). Also: what a saved notebook keeps.
The time runs from the `input` event of the last key to the second frame after the answer is in the page, so it includes the pause.
"""
import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

import ipywidgets as W
import nbformat
import numpy as np
import pandas as pd

from clip_ft.cards import Thumbnails
from clip_ft.core import Paths
from clip_ft.filters import Facets
from clip_ft.checkpoints import weights_hash
from clip_ft.model import embedding_size, load_model
from clip_ft.page import Latest, Query, find
from clip_ft.embedding import embed_catalogue
from clip_ft.search import Searcher
from clip_ft.train_command import demo_run
from clip_ft.widget import SearchWidget

HERE = Path(__file__).resolve().parent
TIMED = '''(words) => new Promise(done => {
  const start = performance.now(), input = document.querySelector('input[placeholder="What are you looking for?"]');
  const look = () => { if (document.querySelector(`[data-words="${words}"]`)) requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()-start))); else requestAnimationFrame(look); };
  input.value = words; input.dispatchEvent(new Event('input', {bubbles: true})); look(); })'''


class Pool(W.VBox):
    "The plain way: 24 cards of ipywidgets, used again for each query."
    def __init__(self, searcher, pause=.06):
        self.searcher, self.facets, self.thumbnails, self.latest = searcher, Facets(searcher.dataframe), Thumbnails(searcher.image_dir), Latest()
        self.query, self.status = W.Text(placeholder='What are you looking for?'), W.HTML()
        self.cards = [(W.Image(format='jpeg', layout=W.Layout(width='160px', height='160px', object_fit='contain')), W.HTML(), W.Button(description='More like this')) for _ in range(24)]
        boxes = [W.VBox(o, layout=W.Layout(width='172px')) for o in self.cards]
        super().__init__([self.query, self.status, W.Box(boxes, layout=W.Layout(flex_flow='row wrap'))])
        self.query.observe(lambda _: self.latest.submit(self.job, pause), 'value')
        self.latest.submit(self.job)

    def job(self, old):
        query = Query(self.query.value)
        found = find(self.searcher, self.facets, query)
        if old(): return
        for (image, text, _), row, jpeg in zip(self.cards, found.to_dict('records'), self.thumbnails(found['image'])):
            with image.hold_sync(): image.value = jpeg or b''
            with text.hold_sync(): text.value = f'<b>{row["clip_score"]:.1f}</b> {escape(row["category"])}<br>{escape(row["display name"])}'
        self.status.value = f'<div data-words="{escape(query.words)}" class="cf-card">{len(found)} products</div>'


def demo():
    paths = Paths(HERE.parent/'runs'/'notebooks')
    model, processor = demo_run(paths)
    if not paths.embeddings.exists(): embed_catalogue(model, processor, paths)
    return Searcher.load(paths)


def large(n, folder):
    "The demo's products again and again under other names, with random vectors."
    small, folder = demo(), Path(folder)
    rows = np.arange(n) % len(small)
    table = small.dataframe.iloc[rows].reset_index(drop=True)
    names = [f'product-{i}.jpg' for i in range(n)]
    for old in set(table['image']): shutil.copy(small.image_dir/old, folder/f'original-{old}')
    for name, old in zip(names, table['image']): os.link(folder/f'original-{old}', folder/name)
    vectors = np.random.default_rng(0).standard_normal((n, embedding_size(small.model)), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    data = dict(embeddings=vectors, image_names=np.array(names), dataframe=table.assign(image=names), weights_hash=weights_hash(small.model), picture_set='')
    return Searcher(small.model, small.processor, data, folder)


def in_browser(expression, queries):
    "Milliseconds of each query, on a page that shows the value of a Python expression."
    from playwright.sync_api import sync_playwright
    with tempfile.TemporaryDirectory() as folder, socket.socket() as s:
        s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]; s.close()
        code = f'import sys; sys.path.insert(0, {str(HERE)!r})\nfrom widget import *\n{expression}'
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}})
        nbformat.write(nb, Path(folder)/'page.ipynb')
        server = subprocess.Popen([Path(sys.executable).parent/'voila', 'page.ipynb', '--no-browser', f'--port={port}'], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while socket.socket().connect_ex(('127.0.0.1', port)): time.sleep(.2)
            with sync_playwright() as p:
                browser = p.chromium.launch(executable_path=shutil.which('chromium') or shutil.which('google-chrome'), args=['--no-sandbox'])
                page = browser.new_page(viewport=dict(width=1400, height=1000))
                page.goto(f'http://127.0.0.1:{port}', timeout=120000); page.wait_for_selector('.cf-card', timeout=120000); page.wait_for_timeout(1500)
                times = []
                for words in queries: times.append(page.evaluate(TIMED, words)); page.wait_for_timeout(250)
                browser.close()
        finally: server.terminate(); server.wait()
    return np.array(times)


def line(name, times): print(f'{name:52} median {np.median(times):4.0f} ms   p95 {np.percentile(times, 95):4.0f} ms   longest {times.max():4.0f} ms', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--queries', type=int, default=60)
    parser.add_argument('--products', type=int, default=50000)
    args = parser.parse_args()
    searcher = demo()
    import ipywidgets, anywidget, voila
    print(f'{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ipywidgets {ipywidgets.__version__}, anywidget {anywidget.__version__}, voila {voila.__version__}, Python {platform.python_version()}')
    queries = [f'{a} {b}' for b in 'jeans shirt dress watch socks heels cap bag shorts top'.split() for a in 'blue red green white black pink'.split()][:args.queries]
    line(f'the page, {len(searcher):,} products', in_browser('SearchWidget(demo())', queries))
    line(f'24 cards of plain ipywidgets, {len(searcher):,} products', in_browser('Pool(demo())', queries))
    with tempfile.TemporaryDirectory(dir=HERE.parent/'runs') as folder:
        line(f'the page, {args.products:,} products', in_browser(f'SearchWidget(large({args.products}, {folder!r}))', queries))
    W.Widget.close_all()
    page = SearchWidget(searcher)
    page.query.value = 'blue jeans'; page.latest.wait()
    state = json.dumps(W.Widget.get_manager_state())
    print(f'a saved notebook with {page.pane.html.count("<article")} cards keeps {len(state)/1e6:.2f} MB of widget state, {len(page.pane.html)/1e6:.2f} MB of it the grid')


if __name__ == '__main__': main()
