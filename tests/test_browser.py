"""The search page in a real browser: as a notebook in JupyterLab, and as a web page with Voila. Both show app.ipynb as it is.

Needs Chromium (Debian: apt-get install chromium); without it all is skipped. Screenshots go to runs/screenshots.
"""
import io
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image

from clip_ft.core import Paths
from clip_ft.data import catalogue_folder, image_folder
from clip_ft.embedding import load_embeddings, save_embeddings
from conftest import BIN

ROOT = Path(__file__).resolve().parent.parent
SCREENSHOTS = ROOT/'runs'/'screenshots'
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
HOSTILE = '''"><img src=x onerror="window.hacked=1"><script>window.hacked=2</script> <b>'co'</b> & ${1} '''
FILE = '"><img src=x onerror=window.hacked=3> \'&.jpg'
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium here: the search page was not tested in a browser (apt-get install chromium)')


@pytest.fixture(scope='module')
def hostile_shop(shop, tmp_path_factory):
    "The shop, with prices, and with a product whose name, category and file name are an attack."
    paths = Paths(Path(shutil.copytree(shop[0], tmp_path_factory.mktemp('browser')/'shop')))
    data = load_embeddings(paths.embeddings)
    table, folder = data['dataframe'].copy(), image_folder(catalogue_folder(paths), data['dataframe'])
    names = [str(o) for o in data['image_names']]
    shutil.copy(folder/names[0], folder/FILE)
    (folder/names[1]).write_bytes(b'this is no picture any more')
    names[0] = FILE
    table['price'] = [str(5+i % 90) for i in range(len(table))]
    table.loc[0, ['image', 'display name', 'description', 'category', 'colour']] = [FILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE]
    save_embeddings(paths.embeddings, data['embeddings'].copy(), names, table, data['weights_hash'])
    return paths


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def serve(folder, root, *command):
    "Start a server, wait until it answers: the process and its log."
    port, log = free_port(), folder/'server.log'
    env = os.environ | {o: str(folder/o) for o in ('JUPYTER_CONFIG_DIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR')}
    env |= {'CLIP_FT_ROOT': str(root), 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen([BIN/command[0], *map(str, command[1:]), '--no-browser', f'--port={port}'], env=env, cwd=folder, stdout=log.open('w'), stderr=subprocess.STDOUT)
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try: socket.create_connection(('127.0.0.1', port), .1).close(); break
        except OSError: time.sleep(.1)
    return process, f'http://127.0.0.1:{port}', log


def server(kind, folder, root):
    shutil.copy(ROOT/'nbs'/'app.ipynb', folder/'app.ipynb')
    if kind == 'voila':
        nb = nbformat.read(folder/'app.ipynb', as_version=4)   # below the page, something that keeps Python busy for a while
        nb.cells.append(nbformat.v4.new_code_cell('import time\nimport ipywidgets as W\nbusy = W.Button(description="train")\nbusy.on_click(lambda _: time.sleep(4))\nbusy'))
        nbformat.write(nb, folder/'app.ipynb')
        return serve(folder, root, 'voila', 'app.ipynb', '--Voila.ip=127.0.0.1')
    nb = nbformat.read(folder/'app.ipynb', as_version=4)
    nb.cells.append(nbformat.v4.new_code_cell('import time; time.sleep(4); print("slept", "well")'))
    nbformat.write(nb, folder/'app.ipynb')
    settings = folder/'JUPYTERLAB_SETTINGS_DIR'/'@jupyterlab'/'apputils-extension'
    settings.mkdir(parents=True)
    (settings/'notification.jupyterlab-settings').write_text('{"fetchNews": "false"}')
    return serve(folder, root, 'jupyter', 'lab', '--ip=127.0.0.1', '--IdentityProvider.token=', '--allow-root', f'--ServerApp.root_dir={folder}', '--LabApp.expose_app_in_browser=True')


def run_cell(page, i):
    "Run a cell of the notebook; a notebook that has only just appeared may not hear it the first time."
    cell = page.locator('.jp-CodeCell').nth(i)
    for _ in range(20):
        cell.locator('.jp-InputArea-editor').click()
        page.keyboard.press('Control+Enter')
        page.wait_for_timeout(300)
        if cell.locator('.jp-InputPrompt').first.inner_text().strip() != '[ ]:': return
    raise AssertionError(f'cell {i} does not run')


@pytest.fixture(scope='module')
def browser():
    sync_api = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed: pip install -e .[dev]')
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture(scope='module', params=['lab', 'voila'])
def site(request, browser, hostile_shop, tmp_path_factory):
    "The search page, open in the browser, for all tests of this file."
    folder = tmp_path_factory.mktemp(request.param)
    process, url, log = server(request.param, folder, hostile_shop.root)
    page = browser.new_page(viewport=dict(width=1600, height=1000))
    page.kind, page.folder, page.problems, page.log = request.param, folder, [], log
    page.on('pageerror', lambda e: page.problems.append(str(e)))
    page.on('console', lambda m: page.problems.append(m.text) if m.type == 'error' and 'Failed to load resource' not in m.text else None)
    page.on('dialog', lambda o: (page.problems.append(f'a dialog: {o.message}'), o.dismiss()))
    try:
        if request.param == 'voila': page.goto(url)
        else:
            page.goto(f'{url}/lab/tree/app.ipynb')
            page.wait_for_selector('text=Kernel status: Idle', state='attached', timeout=60000)
            for i in (0, 1): run_cell(page, i)
        page.wait_for_selector('.cf-card', timeout=60000)
        yield page
        assert not page.problems, page.problems
        assert 'Traceback' not in log.read_text(), log.read_text()[-3000:]
    finally:
        process.terminate()
        process.wait(20)


def box(page): return page.get_by_placeholder('What are you looking for?')

def answered(page, words): page.wait_for_selector(f'.cf-grid[data-words="{words}"]', timeout=15000)

def ask(page, words):
    box(page).fill(words)
    answered(page, words)

def names(page): return page.locator('.cf-name').all_inner_texts()

def shoot(page, name): page.screenshot(path=SCREENSHOTS/f'{page.kind}-{name}.png')

@pytest.fixture(autouse=True)
def start_again(site):
    "Every test begins with an empty page."
    yield
    site.keyboard.press('Escape')
    if site.locator('.cf-chip:has-text("Clear all")').count(): site.locator('.cf-chip:has-text("Clear all")').click()
    elif site.locator('.cf-button:has-text("Start again")').count(): site.locator('.cf-button:has-text("Start again")').click()
    box(site).fill('')
    site.wait_for_selector('.cf-examples:has-text("Try")')


def test_before_anything_is_typed(site):
    assert len(names(site)) == 24
    example = site.locator('.cf-examples .cf-chip').first
    words = example.inner_text()
    example.click()
    answered(site, words)
    assert box(site).input_value() == words


def test_typing(site):
    box(site).press_sequentially('blue jeans', delay=20)
    answered(site, 'blue jeans')
    scores = [float(o) for o in site.locator('.cf-score b').all_inner_texts()]
    assert len(scores) == 24 and scores == sorted(scores, reverse=True)
    assert 'of 200 products' in site.locator('.cf-status').inner_text() or re.search(r'24 of \d+ products', site.locator('.cf-status').inner_text())
    box(site).fill('red dress')
    box(site).press('Enter')
    answered(site, 'red dress')
    shoot(site, 'typed')
    site.locator('.cf-not input').fill('summer')
    site.wait_for_selector('.cf-chip:has-text("not summer")')
    site.locator('.cf-not input').fill('')
    site.wait_for_selector('.cf-chip:has-text("not summer")', state='detached')


def test_filters(site):
    ask(site, 'blue')
    facet = site.locator('.cf-facet').first
    value = facet.locator('.widget-label-basic').nth(1).inner_text()
    count = int(facet.locator('.cf-counts div div').nth(1).inner_text())
    facet.locator('input[type=checkbox]').nth(1).focus()
    site.keyboard.press('Space')                              # the keyboard ticks it
    site.wait_for_selector(f'.cf-chip:has-text("Category: {value}")')
    assert site.locator('.cf-card .cf-soft').all_inner_texts() == [value]*min(24, count)
    shoot(site, 'filtered')
    site.locator('.cf-chip:has-text("Category")').click()      # a press on the chip takes it away
    site.wait_for_selector('.cf-chip:has-text("Category")', state='detached')


def test_too_strict_filters(site):
    colour = site.locator('.cf-facet').nth(1)
    colour.get_by_placeholder('Find colour').fill('img')      # one product has this colour, and a category of its own
    colour.locator('label:has-text("img")').click()
    site.wait_for_selector('.cf-chip:has-text("Colour: ")')
    handle = site.locator('.cf-facet .noUi-handle').first     # and its price is the lowest
    handle.focus()
    for _ in range(3): site.keyboard.press('ArrowRight')
    site.wait_for_selector('text=No product passes all filters')
    shoot(site, 'too-strict')
    site.locator('.cf-chip:has-text("Without the filter Price")').click()
    site.wait_for_selector('text=No product passes all filters', state='detached')
    assert len(names(site)) == 1
    colour.get_by_placeholder('Find colour').fill('')


def test_details_by_keyboard(site):
    ask(site, 'jeans')
    site.locator('.cf-open').first.focus()
    site.keyboard.press('Enter')
    dialog = site.locator('.cf-dialog[open]')
    dialog.wait_for()
    assert names(site)[0] in dialog.inner_text() and 'Price' in dialog.inner_text() and 'CLIP score' in dialog.inner_text()
    shoot(site, 'details')
    site.keyboard.press('Escape')
    dialog.wait_for(state='detached')
    assert site.evaluate('document.activeElement.className') == 'cf-open'


def test_more_like_this_then_back(site):
    ask(site, 'jeans')
    first = names(site)[0]
    site.locator('.cf-card').first.hover()
    site.locator('.cf-like').first.click()
    site.wait_for_selector('.cf-chip:has-text("Like")')
    assert box(site).input_value() == '' and len(names(site)) == 24
    ask(site, 'red')
    assert site.locator('.cf-mix').first.is_visible()         # the slider between words and picture
    shoot(site, 'like')
    back = site.locator('.jupyter-button.cf-round').first
    back.click()
    site.wait_for_selector('.cf-grid[data-words=""]')
    back.click()
    answered(site, 'jeans')
    assert names(site)[0] == first


def test_upload(site, tmp_path):
    def choose(path):
        with site.expect_file_chooser() as chooser: site.locator('.widget-upload').click()
        chooser.value.set_files(path)
    Image.new('RGB', (300, 400), 'crimson').save(tmp_path/'photo.png')
    choose(tmp_path/'photo.png')
    site.wait_for_selector('.cf-chip:has-text("Your picture")')
    assert len(names(site)) == 24
    shoot(site, 'upload')
    (tmp_path/'broken.png').write_bytes(b'\x89PNG but not really')
    choose(tmp_path/'broken.png')
    site.wait_for_selector("text=This upload can't be read")
    shoot(site, 'unreadable-upload')


def test_export(site):
    ask(site, 'blue jeans')
    shown = names(site)
    for label, file in (('CSV', 'blue-jeans.csv'), ('Contact sheet', 'blue-jeans.png')):
        site.locator(f'.cf-tools .jupyter-button:has-text("{label}")').click()
        site.wait_for_selector(f'.cf-chip:has-text("{file}")', timeout=20000)
        assert file in site.locator('.cf-saved').inner_text()
        with site.expect_download() as download: site.locator(f'.cf-chip:has-text("{file}")').click()
        data = Path(download.value.path()).read_bytes()
        if label == 'CSV': assert [' '.join(o.split()) for o in pd.read_csv(io.BytesIO(data))['display name']] == [' '.join(o.split()) for o in shown]
        else: assert Image.open(io.BytesIO(data)).size[0] > 600


def test_hostile_text_is_text(site):
    ask(site, HOSTILE.replace('"', "'"))
    ask(site, 'socks')
    site.locator('.cf-facet').first.get_by_placeholder('Find category').fill('onerror')
    site.locator('.cf-facet').first.locator('label:has-text("onerror")').click()
    site.wait_for_selector('.cf-chip:has-text("Category: ")')
    assert [o.strip() for o in names(site)] == [HOSTILE.strip()]
    assert site.locator('.cf-card img').count() == 1
    site.locator('.cf-open').click()
    site.locator('.cf-dialog[open]').wait_for()
    assert HOSTILE.strip() in site.locator('.cf-dialog').inner_text() and FILE in site.locator('.cf-dialog').inner_text()
    shoot(site, 'hostile')
    site.keyboard.press('Escape')
    assert site.evaluate('window.hacked') is None
    site.locator('.cf-facet').first.get_by_placeholder('Find category').fill('')


def test_a_broken_picture_says_so(site):
    site.locator('.cf-tools select').nth(1).select_option(label='Show 96')
    site.wait_for_selector('.cf-broken')
    site.locator('.cf-card:has(.cf-broken) .cf-open').click()
    site.wait_for_selector('.cf-dialog[open] >> text=Put the file back')
    shoot(site, 'broken-picture')
    site.keyboard.press('Escape')
    site.locator('.cf-tools select').nth(1).select_option(label='Show 24')


def test_a_hundred_fast_searches(site):
    colours, kinds = 'red blue green white black pink teal navy grey brown'.split(), 'jeans shirt dress watch socks heels cap bag shorts top'.split()
    queries = [f'{a} {b}' for a in colours for b in kinds]
    start = time.monotonic()
    for o in queries: box(site).fill(o)
    answered(site, queries[-1])
    assert time.monotonic()-start < 20
    site.wait_for_timeout(500)
    assert site.locator(f'.cf-grid[data-words="{queries[-1]}"]').count() == 1     # and nothing older came after it
    assert not site.locator('.cf-message').count() and not site.problems


def test_a_busy_kernel(site):
    if site.kind == 'voila':                                  # the page itself must say that Python doesn't answer
        site.get_by_role('button', name='train').click()
        box(site).fill('white socks')
        site.wait_for_selector('text=Python is busy')
        shoot(site, 'busy')
        answered(site, 'white socks')                         # nothing that was typed is lost
        site.wait_for_selector('text=Python is busy', state='hidden')
        return
    run_cell(site, 2)
    box(site).fill('white socks')
    answered(site, 'white socks')                             # JupyterLab sends widgets' messages past a running cell
    assert 'slept well' not in site.locator('.jp-CodeCell').nth(2).inner_text()
    site.wait_for_selector('text=slept well', timeout=20000)


CONTRAST = '''() => { const lum = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v/12.92 : ((v+.055)/1.055)**2.4; }); return .2126*r + .7152*g + .0722*b; };
  const parse = s => s.match(/[\\d.]+/g).map(Number), found = {};
  for (const o of ['.cf-name', '.cf-card .cf-soft', '.cf-status', '.cf-counts div', '.cf-ticks span', '.cf-score b', '.cf-chip', '.cf-tools .jupyter-button']) {
    const e = document.querySelector(o); if (!e) continue;
    let back = e; while (back && (parse(getComputedStyle(back).backgroundColor)[3] ?? 1) < .5) back = back.parentElement;
    const bg = back ? parse(getComputedStyle(back).backgroundColor) : [255, 255, 255];
    const [r, g, b, a = 1] = parse(getComputedStyle(e).color), fg = [r, g, b].map((v, i) => v*a + bg[i]*(1-a));
    const [x, y] = [lum(fg), lum(bg)].sort((p, q) => q-p); found[o] = (x+.05)/(y+.05); }
  return found; }'''

def test_widths_and_themes(site):
    ask(site, 'red dress')
    for theme in ('light', 'dark') if site.kind == 'lab' else ('light',):
        if theme == 'dark':
            site.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
            site.wait_for_selector('body[data-jp-theme-light=false]', state='attached')
            site.wait_for_timeout(500)
        poor = {k: round(v, 1) for k, v in site.evaluate(CONTRAST).items() if v < 4.5}
        assert not poor, f'{theme}: too little contrast: {poor}'
        for width in (1000, 1600):
            site.set_viewport_size(dict(width=width, height=1000))
            site.wait_for_timeout(400)
            page = site.locator('.cf-page').bounding_box()
            inside = site.evaluate("[...document.querySelectorAll('.cf-card, .cf-tools, .cf-query')].map(o => o.getBoundingClientRect().right)")
            assert max(inside) <= page['x']+page['width']+1, (theme, width)
            shoot(site, f'{theme}-{width}')
