"clip_ft_export --web: the search page as files, in a browser that reads them from a server of static files."
import json
import random
import threading
import urllib.request
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from test_browser import HOSTILE, browser, hostile_shop, watch  # noqa: F401  (fixtures)
from test_families import FAMILIES

from clip_ft.commands import export_main
from clip_ft.core import InputError, Paths
from clip_ft.embedding import learn_matches
from clip_ft.embeddings_file import load_embeddings
from clip_ft.encode import embed_texts
from clip_ft.match_scale import invented_words, match_note
from clip_ft.model import load_model
from clip_ft.search import Searcher
from clip_ft.texts import Tokens
from clip_ft.web_page import save_text_tower, write_web

QUERY = '[data-setting=text]'
IN_BROWSER = '''async ([texts, queries]) => {
  const web = await import('./web.js');
  const { tower, catalogue } = await web.ready;
  const query = { without: '', like: '', count: 10, where: {}, words: '1' };
  const find = text => web.find({ ...query, text }).map(found => found.row);
  return { tokens: texts.map(text => tower.tokenizer.tokens(text)), found: queries.map(find),
    vectors: queries.slice(0, 20).map(text => Array.from(tower.embed(text))) };
}'''

JUDGED = '''async cases => {
  const web = await import('./web.js');
  const { catalogue } = await web.ready;
  const query = { text: '', without: '', like: '', count: 24, where: {}, words: '1' };
  return cases.map(each => {
    const found = web.find({ ...query, ...each });
    const better = catalogue.suggest(each.text ?? '');
    return { scores: found.map(({ match }) => match), fails: catalogue.scale.fails(found), better };
  });
}'''


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder):
    "The address of a server of static files."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope='module')
def written(hostile_shop, tmp_path_factory):  # noqa: F811
    folder, paths = tmp_path_factory.mktemp('web')/'page', Paths(hostile_shop.root)
    model, processor = load_model(paths.best_model, 'cpu', verbose=False)
    learn_matches(model, processor, paths.embeddings, load_embeddings(paths.embeddings)['image_names'])
    export_main(['--root', str(hostile_shop.root), '--web', str(folder)])
    return folder, Searcher.load(paths, 'cpu')


@pytest.fixture(scope='module')
def page(browser, written):  # noqa: F811
    page = browser.new_page(viewport=dict(width=1280, height=900))
    problems = watch(page)
    with served(written[0]) as url:
        page.goto(url)
        page.wait_for_selector('.cf-card')
        yield page
    assert not problems and page.evaluate('window.hacked') is None


def ask(page, text):
    page.fill(QUERY, text)
    page.wait_for_selector(f'.cf-grid[data-query="{text}"]')
    return page.locator('.cf-name').all_inner_texts()


def sample_texts(names, count):
    "Names, and random texts of many scripts; no signs that were added after the tables of the tokenizers package."
    rng = random.Random(0)
    blocks = [(32, 127), (160, 592), (880, 1280), (0x5d0, 0x5eb), (0x620, 0x6d4), (0x900, 0x980), (0x1e00, 0x2100),
              (0x3040, 0x3100), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0x1f300, 0x1f6ff), (0x300, 0x370), (0, 33)]
    others = ["'s", "'RE", '  ', '\u3000', '\x85', '\ufeff', 'e\u0301', 'ΟΔΟΣ', 'İ', '½', '<|endoftext|>', ' 12 ']
    texts = list(names)
    while len(texts) < count:
        block = rng.choice(blocks)
        size = rng.randint(1, 90)
        letters = (chr(rng.randrange(*block)) if rng.random() < .8 else rng.choice(others) for _ in range(size))
        texts.append(''.join(letters))
    return texts


def plain_vectors(browser, url, texts):  # noqa: F811
    "Embeddings from a browser without WebAssembly."
    page = browser.new_page()
    page.add_init_script('delete globalThis.WebAssembly')
    page.goto(url)
    vectors = page.evaluate(IN_BROWSER, [[], texts])['vectors']
    page.close()
    return vectors


def test_same_tokens_vectors_and_products_as_in_python(browser, page, written):  # noqa: F811
    searcher = written[1]
    names = searcher.dataframe['display name'].tolist()
    texts, queries = sample_texts(names[:200], 1000), [' '.join(name.lower().split()[-2:]) for name in names[1:101]]
    found = page.evaluate(IN_BROWSER, [texts, queries])
    tokens = Tokens(searcher.processor, texts)
    expected = [tokens.ids[start:start + length].tolist() for start, length in zip(tokens.starts, tokens.lengths)]
    assert found['tokens'] == expected
    vectors = embed_texts(searcher.model, searcher.processor, queries[:20])
    assert (vectors*np.array(found['vectors'])).sum(1).min() > .99999
    images = searcher.index.table['image']
    assert plain_vectors(browser, page.url, queries[:20]) == found['vectors']  # the same digits without WebAssembly
    same = [set(images.iloc[rows]) == set(searcher.search(query, 10)['image'])
            for query, rows in zip(queries, found['found'])]
    assert np.mean(same) >= .95


def misspelled(text, rng):
    "A text with a letter removed, doubled, replaced or swapped in each long word."
    words = []
    for word in text.split():
        i = rng.randrange(1, max(2, len(word) - 1))
        changed = word[:i] + rng.choice(['', word[i:i + 1]*2, 'x', word[i:i + 2][::-1]]) + word[i + 1:]
        words.append(changed if len(word) > 3 else word)
    return ' '.join(words)


def test_judges_and_corrects_as_in_python(page, written):
    searcher, rng = written[1], random.Random(0)
    products, images = searcher.dataframe, searcher.index.table['image'].tolist()
    names = products['display name'].str.lower().tolist()[1:61]
    texts = [*names, *(misspelled(name, rng) for name in names), *products['description'][1:31].str[:60].str.strip()]
    texts += [*invented_words(20, np.random.default_rng(0)), 'red tractor', 'the', 'Wood-burning stove', 'jeens',
              "women's T-shirts", 'warmly lined jackets', 'trimming', 'красное платье', '红色连衣裙',
              'Schuhe für Damen', 'sofa']
    cases = [dict(text=text) for text in texts] + [dict(text=text, without='red') for text in texts[::6]]
    cases += [dict(text=text, where=dict(category=['Jeans'])) for text in texts[::6]]
    likes = [*range(2, 60, 3)]
    cases += [dict(like=str(row)) for row in likes] + [dict(like=str(row), without='blue') for row in likes[:5]]
    expected = []
    for case in cases:
        like = dict(like=images[int(case['like'])]) if 'like' in case else {}
        others = {name: case[name] for name in ('where', 'without') if name in case}
        expected.append(searcher.search(case.get('text', ''), 24, **like, **others))
    found = page.evaluate(JUDGED, cases)
    for case, each, table in zip(cases, found, expected):
        assert each['better'] == (searcher.suggest(case.get('text', '')) or ''), case
        np.testing.assert_allclose(sorted(each['scores']), sorted(table['match_score']), atol=.02, err_msg=str(case))
    fails = [bool(match_note(table)) for table in expected]
    assert np.mean([each['fails'] == fail for each, fail in zip(found, fails)]) > .98 and .1 < np.mean(fails) < .9
    assert sum(bool(each['better']) for each in found) > 20


def test_says_that_nothing_fits_and_corrects(page):
    ask(page, 'red tractor')
    assert page.inner_text('.cf-status') == 'No good match; showing the nearest'
    ask(page, 'blue jeens')
    page.click('.cf-examples:has-text("Did you mean") >> text=blue jeans')
    page.wait_for_selector('.cf-grid[data-query="blue jeans"]')
    assert 'by CLIP score' in page.inner_text('.cf-status') and not page.locator('text=Did you mean').count()


def test_search_filter_and_open(page):
    names = ask(page, 'blue jeans')
    assert len(names) == 24 and 'by CLIP score and words' in page.inner_text('.cf-status')
    facet = page.locator('.cf-facet').first
    value = facet.locator('.widget-label-basic').nth(1).inner_text()
    facet.locator('input[type=checkbox]').nth(1).focus()
    page.keyboard.press('Space')
    page.wait_for_selector(f'.cf-chip:has-text("Category: {value}")')
    assert set(page.locator('.cf-card .cf-soft').all_inner_texts()) == {value}
    page.locator('.cf-chip:has-text("Category")').click()
    page.locator('.cf-open').first.focus()
    page.keyboard.press('Enter')
    page.wait_for_selector('.cf-dialog[open] dl')
    assert 'CLIP score' in page.inner_text('.cf-dialog') and names[0] in page.inner_text('.cf-dialog')
    page.keyboard.press('Escape')
    page.locator('.cf-like').first.click()
    page.wait_for_selector('.cf-chip:has-text("Like")')
    assert page.locator('.cf-card').count() == 24
    page.go_back()
    page.wait_for_selector('.cf-grid[data-query="blue jeans"]')


def test_hostile_texts_and_a_phone(page):
    page.set_viewport_size(dict(width=390, height=800))
    ask(page, 'img')
    page.click('.cf-toggle-filters')
    colour = page.locator('.cf-facet:has-text("Colour")')
    colour.locator('input[type=text]').fill('img')
    colour.locator('label:has-text("img")').click()
    page.wait_for_selector('.cf-chip:has-text("onerror")')
    assert page.locator('.cf-name').all_inner_texts() == [' '.join(HOSTILE.split())]
    page.locator('.cf-open').first.click()
    page.wait_for_selector('.cf-dialog[open] dl')
    assert page.evaluate('document.documentElement.scrollWidth') == 390
    page.keyboard.press('Escape')
    page.click('.cf-chip:has-text("Clear all")')


def test_says_what_is_missing(browser, written, tmp_path):  # noqa: F811
    page = browser.new_page()
    page.goto(f'file://{written[0]}/index.html')
    assert 'python -m http.server' in page.inner_text('[role=alert]')
    with served(written[0]) as url:
        page.route('**/text_tower.safetensors', lambda route: route.abort())
        page.goto(url)
        page.wait_for_selector('[role=alert]:has-text("text_tower.safetensors could not be loaded")')
        assert page.locator('.cf-card').count() == 24  # the catalogue can be looked at
    page.close()


def test_refusals(written, tmp_path, capsys):
    (tmp_path/'photos').mkdir()
    (tmp_path/'photos'/'a.jpg').write_text('x')
    with pytest.raises(InputError, match='name another folder'):
        write_web(tmp_path/'photos', written[1])
    with pytest.raises(SystemExit):
        export_main(['--web', str(tmp_path/'page'), '--int8'])
    assert '--int8 does not apply to --web' in capsys.readouterr().err
    torch.manual_seed(0)
    model, processor = FAMILIES['SigLIP'][0](['jeans'], tmp_path)
    with pytest.raises(InputError, match='serve the page with clip_ft_app'):
        save_text_tower(tmp_path/'tower', model, processor)


def test_the_folder(written):
    "Everything is readable for the user of a web server, and nothing is loaded from elsewhere."
    folder = written[0]
    assert all(path.stat().st_mode & 0o044 for path in folder.rglob('*') if path.is_file())
    assert 'http' not in (folder/'index.html').read_text().replace('http-equiv', '').replace('http.server', '')
    assert json.loads((folder/'clip_ft.json').read_text()) == {'format': 'web'}
    with served(folder) as url, urllib.request.urlopen(f'{url}/images/0/0.webp') as response:
        assert response.read(4) == b'RIFF'
