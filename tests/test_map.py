"""The map of a catalogue: the command, and in a real browser as one HTML file and as a widget on a page of Voila.

The tests in the browser need Chromium (Debian: apt-get install chromium); without it they are skipped.
"""
import json
import re
import shutil

import nbformat
import pytest
from test_browser import CHROMIUM, START, browser, serve, watch  # noqa: F401  (a fixture)

from clip_ft.commands import map_main
from clip_ft.core import Paths
from clip_ft.embeddings_file import load_embeddings

WIDGET = '''from clip_ft.catalogue_map import load_map
from clip_ft.core import Paths
load_map(Paths({root!r}), 'category', before=True)'''


@pytest.fixture(scope='module')
def mapped_shop(shop, tmp_path_factory):
    "A copy of the shop, in which maps are stored."
    return shutil.copytree(shop[0], tmp_path_factory.mktemp('map')/'shop')


def test_the_command(mapped_shop, tmp_path, run):
    out = tmp_path/'map.html'
    assert re.fullmatch(r'Map: .*map.html, \d\.\d MB\n', run(map_main, '--root', mapped_shop, '--out', out))
    page = out.read_text(encoding='utf-8')
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    products = load_embeddings(Paths(mapped_shop).embeddings)['dataframe']
    assert [product[0] for product in data['products']] == products['display name'].tolist()
    assert '://' not in re.sub(r'id="data">.*?</script>', '', page, flags=re.DOTALL)  # nothing is loaded
    assert 'no column' in run(map_main, '--root', mapped_shop, '--out', out, '--color', 'shoe size', refused=True)
    assert 'ends in .html' in run(map_main, '--root', mapped_shop, '--out', tmp_path/'map.png', refused=True)
    assert 'clip_ft_embed' in run(map_main, '--root', tmp_path, '--out', out, refused=True)


@pytest.fixture(scope='module')
def browser_or_skip(request):
    if CHROMIUM is None:
        pytest.skip('Chromium is not installed: the map was not tested in a browser (apt-get install chromium)')
    return request.getfixturevalue('browser')


@pytest.fixture(scope='module', params=['file', 'voila'])
def page(request, browser_or_skip, mapped_shop, tmp_path_factory):
    "Two maps of the shop side by side, open in the browser."
    folder = tmp_path_factory.mktemp(request.param)
    page = browser_or_skip.new_page(viewport=dict(width=1200, height=900))
    problems = watch(page)
    process = None
    if request.param == 'file':
        map_main(['--root', str(mapped_shop), '--before', '--color', 'category', '--out', str(folder/'map.html')])
        url = f'file://{folder}/map.html'
    else:
        cell = nbformat.v4.new_code_cell(WIDGET.format(root=str(mapped_shop)))
        kernel = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={'kernelspec': kernel})
        nbformat.write(notebook, folder/'map.ipynb')
        process, url, _ = serve(folder, mapped_shop, 'voila', 'map.ipynb')
    try:
        page.goto(url, timeout=START)
        page.wait_for_selector('.cf-map-legend button', timeout=START)
        yield page
        assert not problems, problems
    finally:
        page.close()
        if process:
            process.terminate()
            process.wait(20)


def said(page, pattern):
    "Wait until the status says something; returns the match."
    page.wait_for_function('pattern => new RegExp(pattern).test(document.querySelector(".cf-map-status").textContent)',
                           arg=pattern, timeout=30_000)
    return re.search(pattern, page.locator('.cf-map-status').inner_text())


SELECTED = r'^([1-9]\d*) of (\d+) products are selected'


def test_keyboard(page):
    "Arrow keys describe products; Enter starts and ends a rectangle; Escape clears."
    canvas = page.locator('canvas[tabindex]').first
    canvas.focus()
    page.keyboard.press('ArrowRight')
    page.wait_for_selector('.cf-map-card:visible img')
    said(page, ', ')  # the name and the values
    page.keyboard.press('Enter')
    said(page, 'rectangle starts here')
    for key in ['ArrowRight', 'ArrowDown']*6:
        page.keyboard.press(key)
    page.keyboard.press('Enter')
    assert int(said(page, SELECTED)[1]) >= 2
    page.keyboard.press('Escape')
    said(page, '^0 of')


def test_lasso_and_hover(page):
    "A lasso around everything selects all products, on both maps; the pointer on a point shows its product."
    box = page.locator('canvas[tabindex]').nth(1).bounding_box()
    left, top = box['x'], box['y']
    page.click('[data-do=lasso]')
    page.mouse.move(left + 2, top + 2)
    page.mouse.down()
    for x, y in ((box['width'] - 2, 2), (box['width'] - 2, box['height'] - 2), (2, box['height'] - 2)):
        page.mouse.move(left + x, top + y, steps=4)
    page.mouse.up()
    chosen, total = map(int, said(page, SELECTED).groups())
    assert chosen == total > 100
    page.click('[data-do=lasso]')
    page.locator('.cf-map-selected summary').click()
    assert page.locator('.cf-map-selected li').count() == min(total, 100) + (total > 100)
    page.click('[data-do=clear]')
    said(page, '^0 of')
    for step in range(60):  # across the middle of the map, until the pointer meets a product
        page.mouse.move(left + box['width']*step/60, top + box['height']/2)
        page.wait_for_timeout(60)
        if page.locator('.cf-map-card').is_visible():
            break
    assert page.locator('.cf-map-card').inner_text().strip()


def test_legend_and_colours(page):
    "A value of the legend selects its products; another column has another legend."
    page.locator('.cf-map-legend button').first.click()
    assert 0 < int(said(page, SELECTED)[1]) < 200
    before = page.locator('.cf-map-legend').inner_text()
    page.locator('.cf-map select').select_option('Colour')
    assert page.locator('.cf-map-legend').inner_text() != before

