"""The map of a catalogue: the command, and in a real browser as one HTML file and as a widget.

The tests in the browser need Chromium (Debian: apt-get install chromium); without it they are skipped. Messages of the
widget reach Python without a kernel: that Jupyter carries them is tested in test_browser.
"""
import json
import re
from base64 import b64decode, b64encode

import pytest
from test_browser import browser, watch  # noqa: F401  (a fixture)

from clip_ft import CatalogueMap, Paths, load_embeddings
from clip_ft.catalogue_map import write_map
from clip_ft.commands import map_main
from clip_ft.data import catalogue_folder, image_folder

WIDGET = '''
const decoded = text => new DataView(Uint8Array.from(atob(text), byte => byte.charCodeAt(0)).buffer);
const listeners = [];
const traits = TRAITS;
for (const name of ['points', 'codes']) traits[name] = decoded(traits[name]);
const model = {
  get: name => traits[name],
  on: (_, listener) => listeners.push(listener),
  off: () => {},
  send: async (content, _, buffers = []) => {
    const texts = buffers.map(each => btoa(String.fromCharCode(...new Uint8Array(each))));
    for (const [answer, parts] of await python(content, texts)) {
      for (const listener of listeners) listener(answer, parts.map(decoded));
    }
  },
};
const el = document.createElement('div');
render({ model, el });
document.body.append(el); // later, as in JupyterLab
'''


def test_the_command(copied_shop, tmp_path, run):
    out, embeddings = tmp_path/'map.html', Paths(copied_shop).embeddings
    assert re.fullmatch(r'Map: .*map.html, \d\.\d MB\n', run(map_main, '--root', copied_shop, '--out', out))
    page = out.read_text(encoding='utf-8')
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    products = load_embeddings(embeddings)['dataframe']
    assert [product[0] for product in data['products']] == products['display name'].tolist()
    assert '://' not in re.sub(r'id="data">.*?</script>', '', page, flags=re.DOTALL)  # nothing is loaded
    assert 'no column' in run(map_main, '--root', copied_shop, '--out', out, '--color', 'shoe size', refused=True)
    assert 'ends in .html' in run(map_main, '--root', copied_shop, '--out', tmp_path/'map.png', refused=True)
    assert 'clip_ft_embed' in run(map_main, '--root', tmp_path, '--out', out, refused=True)


@pytest.fixture(scope='module')
def shown(shop):
    "Two maps of the shop: the first components of its vectors."
    paths = Paths(shop[0])
    data = load_embeddings(paths.embeddings)
    products, vectors = data['dataframe'], data['embeddings']
    maps = {'one': vectors[:, :2], 'other': vectors[:, 2:4]}
    return CatalogueMap(maps, products, image_folder(catalogue_folder(paths), products), 'category')


def open_widget(page, shown):
    "Show a widget; Python answers the questions of its script."
    answers = []
    shown.send = lambda content, buffers=(): answers.append((content, [b64encode(each).decode() for each in buffers]))

    def python(content, texts):
        answers.clear()
        shown.handle_message(shown, content, [memoryview(b64decode(text)) for text in texts])
        return answers

    page.expose_function('python', python)
    state = shown.get_state(['points', 'codes', 'count', 'columns', 'column', 'titles', 'texts'])
    traits = json.dumps(state, default=lambda part: b64encode(part).decode())
    page.add_style_tag(content=str(shown._css))
    page.add_script_tag(content=str(shown._esm) + WIDGET.replace('TRAITS', traits), type='module')


@pytest.fixture(scope='module', params=['file', 'widget'])
def page(request, browser, shown, tmp_path_factory):  # noqa: F811
    "The maps, open in the browser."
    page = browser.new_page(viewport=dict(width=1200, height=900), has_touch=True)
    problems = watch(page)
    if request.param == 'file':
        path = tmp_path_factory.mktemp('map')/'map.html'
        write_map(path, shown)
        page.goto(path.as_uri())
    else:
        open_widget(page, shown)
    page.wait_for_selector('.cf-map-legend button')
    yield page
    assert not problems, problems
    page.close()


@pytest.fixture(autouse=True)
def clear(request):
    "Clear the selection after each test in the browser."
    yield
    if 'page' in request.fixturenames:
        request.getfixturevalue('page').click('[data-do=clear]')


def said(page, pattern):
    "Wait until the status, which screen readers announce, says something; returns the match."
    page.get_by_role('status').filter(has_text=re.compile(pattern)).wait_for(state='attached')
    return re.search(pattern, page.get_by_role('status').inner_text())


def canvas(page, title):
    "The canvas of a map, by what screen readers call it."
    return page.get_by_role('application', name=re.compile(rf'^{title}. Map of [\d,]+ products'))


def selected(page):
    "The numbers of selected products and of all."
    return [int(number.replace(',', '')) for number in said(page, r'^([1-9][\d,]*) of ([\d,]+) products are').groups()]


def test_keyboard(page):
    "Arrow keys describe products; Enter starts and ends a rectangle; Escape clears."
    canvas(page, 'one').focus()
    page.keyboard.press('ArrowRight')
    page.wait_for_selector('.cf-map-card:visible img')
    said(page, ', ')  # the name and the values
    page.keyboard.press('Enter')
    said(page, 'rectangle starts here')
    for key in ['ArrowRight', 'ArrowDown']*6:
        page.keyboard.press(key)
    page.keyboard.press('Enter')
    assert selected(page)[0] >= 2
    page.keyboard.press('Escape')
    said(page, '^0 of')


def test_lasso_and_hover(page, shown):
    "A lasso around everything selects all products, on both maps; the pointer on a point shows its product."
    box = canvas(page, 'other').bounding_box()
    left, top = box['x'], box['y']
    page.get_by_role('button', name='Lasso').click()
    page.mouse.move(left + 2, top + 2)
    page.mouse.down()
    for x, y in ((box['width'] - 2, 2), (box['width'] - 2, box['height'] - 2), (2, box['height'] - 2)):
        page.mouse.move(left + x, top + y, steps=4)
    page.mouse.up()
    chosen, total = selected(page)
    assert chosen == total == len(shown.products)
    page.get_by_role('button', name='Lasso').click()
    page.locator('.cf-map-selected summary').click()
    assert page.locator('.cf-map-selected li').count() == min(total, 100) + (total > 100)
    page.click('[data-do=clear]')
    said(page, '^0 of')
    for step in range(60):  # across the middle of the map, until the pointer meets a product
        page.mouse.move(left + box['width']*step/60, top + box['height']/2)
        page.wait_for_timeout(20)
        if page.locator('.cf-map-card').is_visible():
            break
    assert page.locator('.cf-map-card').inner_text().strip()


def test_a_product_in_the_address(page, shown):
    "The address of a page may name a product, as the report of a check-up does."
    if not page.url.startswith('file:'):
        pytest.skip('a widget has no address')
    card = page.locator('.cf-map-card')
    for row in (5, 9):
        page.evaluate(f'location.hash = "product={row}"')
        card.filter(has_text=shown.describe([row])[0][0]).filter(visible=True).wait_for()
    for wrong in ('99999', '-1', 'x', '<b>'):
        page.evaluate(f'location.hash = "product={wrong}"')
    page.click('[data-do=whole]')


def test_touch(page):
    "A tap shows a product, one finger moves the map, and two zoom it."
    client = page.context.new_cdp_session(page)
    box = canvas(page, 'one').bounding_box()
    x, y = box['x'] + box['width']/2, box['y'] + box['height']/2

    def touch(kind, *places):
        points = [dict(x=x + dx, y=y + dy, id=i) for i, (dx, dy) in enumerate(places)]
        client.send('Input.dispatchTouchEvent', dict(type=kind, touchPoints=points))

    def drawn():
        page.evaluate('() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')
        return page.evaluate('() => document.querySelector(".cf-map canvas").toDataURL()')

    for step in range(0, 200, 10):
        page.touchscreen.tap(x + step, y)
        page.wait_for_timeout(20)
        if page.locator('.cf-map-card').is_visible():
            break
    assert page.locator('.cf-map-card').inner_text().strip()
    whole = drawn()
    for start, end in (([(0, 0)], [(60, 30)]), ([(-20, 0), (20, 0)], [(-80, 0), (80, 0)])):
        touch('touchStart', *start)
        touch('touchMove', *end)
        touch('touchEnd')
        assert drawn() != whole
        page.click('[data-do=whole]')
        assert drawn() == whole


def test_legend_and_colours(page, shown):
    "A value of the legend selects its products; another column has another legend."
    colour = page.locator('.cf-map-legend i').first.evaluate('dot => getComputedStyle(dot).backgroundColor')
    assert colour == 'rgb(204, 102, 119)'  # the first one of PALETTE
    page.locator('.cf-map-legend button').first.click()
    assert selected(page)[0] == shown.products['category'].value_counts().iloc[0]
    before = page.locator('.cf-map-legend').inner_text()
    page.get_by_label('Colour by').select_option('Colour')
    assert page.locator('.cf-map-legend').inner_text() != before
    page.get_by_label('Colour by').select_option('Category')
