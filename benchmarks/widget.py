"""The search page in a real browser: time from the last key to the drawn results, and time until a new page answers.

    python benchmarks/widget.py [--queries 60] [--products 50000]
    python benchmarks/widget.py --root my_shop [--out benchmarks/results/widget.json]

With --root, the page of that project as clip_ft_app serves it is measured instead. A new visitor whose connection
transfers 1.5 Mbit/s opens it and types a query as soon as there is a search box; the time runs until its results are
drawn.

The peer is a fixed pool of 24 cards, each a box, an image, a text and a button of ipywidgets, which hold_sync refills
for each query: same search, same thumbnails, same delay after typing. Voila serves both to headless Chromium, with the
demo catalogue and with a synthetic one (random vectors, the images of the demo under many names).

The time runs from the `input` event of the last key to the second frame after the results are in the page, so it
includes the delay. Also reported: the widget state that a saved notebook keeps.
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
from contextlib import contextmanager
from html import escape
from pathlib import Path

import ipywidgets as widgets
import nbformat
import numpy as np

from clip_ft.cards import Thumbnails
from clip_ft.checkpoints import weights_hash
from clip_ft.core import Paths
from clip_ft.embedding import embed_catalogue
from clip_ft.embeddings_file import load_embeddings, products_of
from clip_ft.facets import Facets
from clip_ft.model import embedding_size, load_model
from clip_ft.page import Debouncer, Query, find_products
from clip_ft.search import Searcher
from clip_ft.train_command import demo_run
from clip_ft.widget import SearchWidget

HERE = Path(__file__).resolve().parent
CARDS = 24
TIMED = '''text => new Promise(done => {
  const start = performance.now();
  const input = document.querySelector('input[placeholder="What are you looking for?"]');
  const twoFrames = work => requestAnimationFrame(() => requestAnimationFrame(work));
  const look = () => {
    if (document.querySelector(`[data-query="${text}"]`)) twoFrames(() => done(performance.now() - start));
    else requestAnimationFrame(look);
  };
  input.value = text;
  input.dispatchEvent(new Event('input', { bubbles: true }));
  look();
})'''


class Card(widgets.VBox):
    "A card of ipywidgets."

    def __init__(self):
        size = widgets.Layout(width='160px', height='160px', object_fit='contain')
        self.image = widgets.Image(format='jpeg', layout=size)
        self.text = widgets.HTML()
        more = widgets.Button(description='More like this')
        super().__init__([self.image, self.text, more], layout=widgets.Layout(width='172px'))

    def fill(self, row, jpeg):
        "Show a product."
        with self.image.hold_sync():
            self.image.value = jpeg or b''
        with self.text.hold_sync():
            category, name = escape(row['category']), escape(row['display name'])
            self.text.value = f'<b>{row["clip_score"]:.1f}</b> {category}<br>{name}'


class Pool(widgets.VBox):
    "A search page of plain ipywidgets, with cards that are reused for each query."

    def __init__(self, searcher, pause=.06):
        self.searcher = searcher
        self.pause = pause
        self.facets = Facets(searcher.dataframe)
        self.thumbnails = Thumbnails(searcher.image_dir)
        self.debouncer = Debouncer()
        self.query = widgets.Text(placeholder='What are you looking for?')
        self.status = widgets.HTML()
        self.cards = [Card() for _ in range(CARDS)]
        rows = widgets.Box(self.cards, layout=widgets.Layout(flex_flow='row wrap'))
        super().__init__([self.query, self.status, rows])
        self.query.observe(self.notify, 'value')
        self.debouncer.submit(self.update)

    def notify(self, _change):
        self.debouncer.submit(self.update, self.pause)

    def update(self, is_outdated):
        query = Query(self.query.value)
        found = find_products(self.searcher, self.facets, query)
        if is_outdated():
            return
        for card, row, jpeg in zip(self.cards, found.to_dict('records'), self.thumbnails(found['image'])):
            card.fill(row, jpeg)
        self.status.value = f'<div data-query="{escape(query.text)}" class="cf-card">{len(found)} products</div>'


def demo():
    "The searcher of the demo catalogue."
    paths = Paths(HERE.parent/'runs'/'notebooks')
    model, processor = demo_run(paths)
    if not paths.embeddings.exists():
        embed_catalogue(model, processor, paths)
    return Searcher.load(paths)


def large(number, folder):
    "A searcher of a large catalogue: the products of the demo, repeated under other names, with random vectors."
    small = demo()
    folder = Path(folder)
    rows = np.arange(number) % len(small)
    table = small.dataframe.iloc[rows].drop(columns=['images', 'pixel_ids'], errors='ignore').reset_index(drop=True)
    names = [f'product-{i}.jpg' for i in range(number)]
    for old in set(table['image']):
        shutil.copy(small.image_dir/old, folder/f'original-{old}')
    for name, old in zip(names, table['image']):
        os.link(folder/f'original-{old}', folder/name)
    model, processor = load_model(Paths(HERE.parent/'runs'/'notebooks').best_model)
    vectors = np.random.default_rng(0).standard_normal((number, embedding_size(model)), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    data = dict(
        embeddings=vectors, image_names=np.array(names), dataframe=table.assign(image=names),
        weights_hash=weights_hash(model), image_set='')
    return Searcher(model, processor, data, folder)


def time_queries(url, queries):
    "Milliseconds per query on the page at a URL."
    from playwright.sync_api import sync_playwright
    times = []
    with sync_playwright() as playwright:
        chromium = shutil.which('chromium') or shutil.which('google-chrome')
        browser = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.goto(url, timeout=120000)
        page.wait_for_selector('.cf-card', timeout=120000)
        page.wait_for_timeout(1500)
        for query in queries:
            times.append(page.evaluate(TIMED, query))
            page.wait_for_timeout(250)
        browser.close()
    return np.array(times)


def in_browser(expression, queries):
    "Milliseconds per query on a page that shows the value of a Python expression."
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        port = sock.getsockname()[1]
    code = f'import sys\nsys.path.insert(0, {str(HERE)!r})\nfrom widget import *\n{expression}'
    kernel = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={'kernelspec': kernel})
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(notebook, Path(folder)/'page.ipynb')
        command = [Path(sys.executable).parent/'voila', 'page.ipynb', '--no-browser', f'--port={port}']
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while socket.socket().connect_ex(('127.0.0.1', port)):
                time.sleep(.2)
            return time_queries(f'http://127.0.0.1:{port}', queries)
        finally:
            server.terminate()
            server.wait()


@contextmanager
def app(root):
    "The address of clip_ft_app."
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        port = sock.getsockname()[1]
    command = [sys.executable, '-c', 'from clip_ft.commands import app_main; app_main()', '--root', str(root)]
    with tempfile.TemporaryDirectory() as folder:
        output = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        server = subprocess.Popen([*command, '--no-browser', f'--port={port}'], cwd=folder, **output)
        try:
            while socket.socket().connect_ex(('127.0.0.1', port)):
                time.sleep(.2)
                if server.poll() is not None:
                    raise SystemExit(f'clip_ft_app --root {root} does not start.')
            yield f'http://127.0.0.1:{port}'
        finally:
            server.terminate()
            server.wait()


def first_load(url, text='blue jeans', megabits=1.5):
    "Seconds until a new visitor sees products and gets the first answer; kilobytes and number of requests."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = shutil.which('chromium') or shutil.which('google-chrome')
        browser = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1366, height=768))
        network = page.context.new_cdp_session(page)
        network.send('Network.enable')
        speed = megabits*1e6/8
        limits = dict(offline=False, latency=0, downloadThroughput=speed, uploadThroughput=speed)
        network.send('Network.emulateNetworkConditions', limits)
        sizes = []
        network.on('Network.loadingFinished', lambda event: sizes.append(event['encodedDataLength']))
        start = time.monotonic()
        page.goto(url, wait_until='commit', timeout=120000)
        page.wait_for_selector('.cf-card', timeout=120000)
        seen = time.monotonic() - start
        page.locator('.cf-query input').first.fill(text)
        page.wait_for_selector(f'[data-query="{text}"]', timeout=120000)
        answered = time.monotonic() - start
        browser.close()
    transferred = [size for size in sizes if size]
    return dict(products_s=round(seen, 2), answer_s=round(answered, 2), kilobytes=round(sum(transferred)/1e3),
                requests=len(transferred), load=round(os.getloadavg()[0], 1))


def measure_app(root, queries):
    "Everything about the page of a project, for a file."
    with app(root) as url:
        first_load(url, megabits=1000)  # the first visitor of a server
        loads = [first_load(url) for _ in range(3)]
        loaded = os.getloadavg()[0]
        times = time_queries(url, queries)
    median, high = np.percentile(times, [50, 95])
    typed = dict(median_ms=round(median), p95_ms=round(high), longest_ms=round(times.max()), queries=len(queries),
                 load=round((loaded + os.getloadavg()[0])/2, 1))
    answers = sorted(load['answer_s'] for load in loads)
    products = len(products_of(load_embeddings(Paths(root).embeddings)))
    return dict(machine='two cores of a Xeon', products=products, megabits=1.5, first_answer_s=answers[1],
                first_loads=loads, typed_query=typed)


def report(name, times):
    median, high = np.percentile(times, [50, 95])
    print(f'{name:52} median {median:4.0f} ms   p95 {high:4.0f} ms   longest {times.max():4.0f} ms', flush=True)


def report_saved_state(searcher):
    "The widget state that a saved notebook keeps."
    widgets.Widget.close_all()
    page = SearchWidget(searcher)
    page.query.value = 'blue jeans'
    page.debouncer.wait()
    state = len(json.dumps(widgets.Widget.get_manager_state()))/1e6
    cards = len(page.pane.html)/1e6
    number = page.pane.html.count('<article')
    print(f'a saved notebook with {number} cards keeps {state:.2f} MB of widget state, {cards:.2f} MB of it cards')


def main():
    import anywidget
    import voila
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--queries', type=int, default=60)
    parser.add_argument('--products', type=int, default=50000)
    parser.add_argument('--root', help='measure clip_ft_app with this project')
    parser.add_argument('--out', help='JSON file for the results of --root')
    args = parser.parse_args()
    colours = ['blue', 'red', 'green', 'white', 'black', 'pink']
    categories = ['jeans', 'shirt', 'dress', 'watch', 'socks', 'heels', 'cap', 'bag', 'shorts', 'top']
    queries = [f'{colour} {category}' for category in categories for colour in colours][:args.queries]
    if args.root:
        measured = json.dumps(measure_app(Path(args.root).resolve(), queries), indent=1)
        print(measured)
        if args.out:
            Path(args.out).write_text(f'{measured}\n')
        return
    searcher = demo()
    versions = f'ipywidgets {widgets.__version__}, anywidget {anywidget.__version__}, voila {voila.__version__}'
    machine = f'{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}'
    print(f'{machine}; {versions}, Python {platform.python_version()}')
    report(f'the page, {len(searcher):,} products', in_browser('SearchWidget(demo())', queries))
    report(f'{CARDS} cards of plain ipywidgets, {len(searcher):,} products', in_browser('Pool(demo())', queries))
    with tempfile.TemporaryDirectory(dir=HERE.parent/'runs') as folder:
        expression = f'SearchWidget(large({args.products}, {folder!r}))'
        report(f'the page, {args.products:,} products', in_browser(expression, queries))
    report_saved_state(searcher)


if __name__ == '__main__':
    main()
