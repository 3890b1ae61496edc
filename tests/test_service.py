"""The search service as other programs use it: clip_ft_serve as a process, over the network and over standard input.

The answers have the digits of Searcher, hostile requests get a status of 400 to 499 and one sentence, and searches go
on while the embeddings are replaced.
"""
import asyncio
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from conftest import free_port, jpeg
from PIL import Image

from clip_ft.commands import serve_main
from clip_ft.core import Paths
from clip_ft.embeddings_file import load_embeddings, save_embeddings
from clip_ft.search import Searcher
from clip_ft.views import product_table
from clip_ft.where import Contains

pytest.importorskip('fastapi')
pytest.importorskip('mcp')
COMMAND = [sys.executable, '-W', 'ignore', '-c', 'from clip_ft.commands import serve_main; serve_main()']
KEY = 'a key of the tests, which is long'


class Service:
    "A running clip_ft_serve."

    def __init__(self, root, log, *options):
        self.log, self.port, self.headers = log, free_port(), {}
        command = [*COMMAND, '--root', root, '--port', self.port, '--processes', 2, *options]
        command = list(map(str, command))
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log.open('w'), text=True)
        assert 'are served at' in self.process.stdout.readline(), log.read_text()

    def ask(self, path, method='GET', body=None, **headers):
        "Status, headers and body of an answer; JSON is parsed. A header of None is left out."
        headers = {name.replace('_', '-'): value for name, value in (self.headers | headers).items()
                   if value is not None}
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        kind = answer.headers['content-type'] or ''
        return answer.status, answer.headers, json.loads(data) if kind.startswith('application/json') else data

    def search(self, **options):
        status, _, found = self.ask('/search', 'POST', json.dumps(options))
        assert status == 200, found
        return found['products']

    def generation(self):
        return self.ask('/health')[2]['generation']

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope='module')
def live_root(shop, tmp_path_factory):
    "A copy of the shop whose embeddings are replaced."
    return Path(shutil.copytree(shop[0], tmp_path_factory.mktemp('live')/'shop'))


@pytest.fixture(scope='module')
def service(live_root, tmp_path_factory):
    "Other computers reach it, so it asks for a key."
    folder = tmp_path_factory.mktemp('service')
    (folder/'key').write_text(KEY + '\n')
    running = Service(live_root, folder/'log', '--timeout', 60, '--host', '0.0.0.0', '--api-key-file', folder/'key',
                      '--name', 'shop.example.com')
    running.headers = dict(Authorization=f'Bearer {KEY}')
    yield running
    assert running.end() in (0, -signal.SIGTERM)
    assert 'Traceback' not in running.log.read_text()


@pytest.fixture(scope='module')
def searcher(shop):
    return Searcher.load(Paths(shop[0]), 'cpu')


def same(products, expected):
    "Check that answers have the products and the digits of a table."
    assert [product['image'] for product in products] == expected['image'].tolist()
    assert [np.float32(product['clip_score']) for product in products] == expected['clip_score'].tolist()
    assert [product['rank'] for product in products] == expected['rank'].tolist()


def queries(searcher, count):
    "Texts of one to seven words of the catalogue."
    words = sorted({word for name in searcher.dataframe['display name'] for word in name.split()})
    rng = np.random.default_rng(0)
    return [' '.join(rng.choice(words, 1 + number % 7)) for number in range(count)]


def test_same_digits_as_searcher(service, searcher):
    texts, image = queries(searcher, 60), searcher.dataframe['image'][3]
    with ThreadPoolExecutor(8) as threads:  # so that several are encoded in one pass
        found = list(threads.map(lambda text: service.search(query=text, top_k=7), texts))
    for text, products in zip(texts, found):
        same(products, searcher.search(text, 7))
    category = searcher.dataframe['category'][0]
    for given, options in (
            (dict(query='red', offset=5), {}), (dict(query='red shoes', words=False), dict(hybrid=False)),
            (dict(query='red', without='leather'), {}), (dict(like=image), {}),
            (dict(query='blue', like=image, image_weight=.3), {}), (dict(query='red', collapse=True), {}),
            (dict(query='red', where={'category': category}), {}),
            (dict(query='red', where={'display name': {'contains': 'a'}}), dict(where={'display name': Contains('a')})),
            (dict(query='red', where={'category': [category, 'Tops']}, offset=3, top_k=50), {})):
        asked = {name: value for name, value in given.items() if name != 'words'}
        same(service.search(**dict(top_k=7) | given), searcher.search(**dict(top_k=7) | asked | options))
    same(service.ask('/like/'+quote(image)+'?top_k=4')[2]['products'], searcher.search(like=image, top_k=4))
    parameters = urlencode(dict(query='red', top_k=6, where=f'category={category}'))
    same(service.ask('/search?'+parameters)[2]['products'], searcher.search('red', 6, where={'category': category}))


def test_search_by_an_uploaded_image(service, searcher):
    photo = jpeg(5, (300, 200))
    for path, options in (('/search/image?top_k=6', {}), ('/search/image?top_k=6&query=red', dict(query='red'))):
        status, _, found = service.ask(path, 'POST', photo)
        assert status == 200
        same(found['products'], searcher.search(top_k=6, image=photo, **options))


def test_products_filters_and_images(service, searcher):
    products = searcher.dataframe
    image, category = products['image'][0], products['category'][0]
    assert service.ask('/products/'+quote(image))[2]['display name'] == products['display name'][0]
    found = service.ask('/filters?'+urlencode(dict(where=f'category={category}')))[2]
    assert found['products'] == (products['category'] == category).sum()
    counts = {one['value']: one['count'] for one in found['filters'][0]['values']}
    assert counts == products['category'].value_counts().to_dict()
    status, headers, data = service.ask('/images/'+quote(image))
    assert (status, data) == (200, (Path(searcher.image_dir)/image).read_bytes())
    assert headers['content-type'].startswith('image/') and headers['x-content-type-options'] == 'nosniff'
    status, headers, data = service.ask(f'/images/{quote(image)}?size=64')
    assert max(Image.open(io.BytesIO(data)).size) <= 64 and 'max-age' in headers['cache-control']
    assert service.ask(f'/images/{quote(image)}?size=64', If_None_Match=headers['etag'])[0] == 304
    paths = service.ask('/openapi.json')[2]['paths']
    assert {'/search', '/search/image', '/filters', '/health', '/images/{name}'} <= paths.keys()


def bomb(mode='1', size=(20_000, 20_000)):
    "A small file of very many pixels."
    out = io.BytesIO()
    Image.new(mode, size).save(out, 'PNG')
    return out.getvalue()


HOSTILE = [
    ('/search', None), ('/search?query=', None), ('/search?query=' + 'x'*2000, None),
    ('/search?query=a&top_k=999999', None), ('/search?query=a&top_k=0', None), ('/search?query=a&top_k=1e3', None),
    ('/search?query=a&offset=-1', None), ('/search?query=a&image_weight=nan', None),
    ('/search?query=a&image_weight=inf', None), ('/search?query=a&b=c', None),
    ('/search?query=a&where=nothing', None), ('/search?query=a&where=no=x', None),
    ('/search?query=a&where=image>=1', None), ('/search?query=a&where=image>=nan', None),
    ('/search?like=missing.jpg', None), ('/search?query=a&collapse=maybe', None),
    ('/like/..%2f..%2fetc%2fpasswd', None), ('/products/nothing', None), ('/images/../../../etc/passwd', None),
    ('/images/%2e%2e/%2e%2e/etc/passwd', None), ('/images//etc/passwd', None), ('/images/%00', None),
    ('/images/', None), ('/images/..%5c..%5cx', None), ('/images/%ff%fe', None), ('/images/0.jpg?size=5000', None),
    ('/filters?where=x', None), ('/nothing', None), ('/search', b''), ('/search', b'{'), ('/search', b'[]'),
    ('/search', b'null'), ('/search', b'"x"'), ('/search', b'\xff\xfe{}'), ('/search', b'{"query": NaN}'),
    ('/search', b'{"query": "a", "top_k": NaN}'), ('/search', b'{"query": "a", "top_k": "5"}'),
    ('/search', b'{"query": "a", "top_k": true}'), ('/search', b'{"query": "a", "top_k": 1' + b'0'*5000 + b'}'),
    ('/search', b'{"query": 5}'), ('/search', b'{"query": null}'), ('/search', b'{"query": "\\ud800"}'),
    ('/search', b'{"query": "a", "where": {"category": {"min": Infinity}}}'),
    ('/search', b'{"query": "a", "where": {"category": {"min": "x"}}}'), ('/search', b'{"query": "a", "where": []}'),
    ('/search', b'{"query": "a", "where": {"category": {}}}'), ('/search', b'{"query": "a", "image_weight": 2}'),
    ('/search', b'{"query": "a", "where": {"category": [[1]]}}'), ('/search', b'{"query": "a", "__class__": "x"}'),
    ('/search', b'['*50_000), ('/search', b'{"a":'*15_000), ('/search', b'{"query": "' + b'x'*99_000 + b'"}'),
    ('/search', b' '*200_000), ('/filters', b'{"category": {"min": "x"}}'), ('/search/image', b''),
    ('/search/image', b'<svg xmlns="http://www.w3.org/2000/svg"/>'), ('/search/image', b'GIF89a'),
    ('/search/image', bomb()), ('/search/image', jpeg(1)[:200]), ('/search/image', bytes(10_000_001)),
    ('/health', b'x'), ('/openapi.json', b'x'),
]


def test_hostile_requests_get_one_sentence(service):
    for path, body in HOSTILE:
        status, _, answer = service.ask(path, 'GET' if body is None else 'POST', body)
        assert 400 <= status < 500, (path, body and body[:60], status)
        assert list(answer) == ['error'], (path, answer)
        message = answer['error']
        assert re.fullmatch(r'(?s)["A-Z].{10,600}[.?!]', message), (path, message)
        assert str(service.log.parent) not in message, (path, message)
        assert 'Traceback' not in message and 'pydantic' not in message, (path, message)
    assert service.ask('/search', 'DELETE')[0] == service.ask('/health', 'PUT')[0] == 405
    assert len(service.search(query='red', top_k=3)) == 3  # it still answers


def raw(port, data):
    "The answer to bytes that are no request of a library."
    with socket.create_connection(('127.0.0.1', port), timeout=30) as connection:
        connection.sendall(data)
        return connection.makefile('rb').readline()


def test_hosts(service):
    for host in ('localhost', '127.0.0.1:9', '[::1]:80', 'LOCALHOST.'):
        assert service.ask('/health', Host=host)[0] == 200, host
    for host in ('evil.example', 'localhost.evil.example', '', 'a b', 'localhost:x', '@localhost', '[::1'):
        assert service.ask('/health', Host=host)[0] in (400, 421), host
    assert b' 400 ' in raw(service.port, b'GET /health HTTP/1.1\r\n\r\n')
    assert b' 400 ' in raw(service.port, b'nonsense\r\n\r\n')
    assert b' 4' in raw(service.port, b'GET /health HTTP/1.1\r\nHost: localhost\r\nX: ' + b'x'*200_000 + b'\r\n\r\n')


def test_swap_while_searching(service, live_root, searcher):
    path, answers, stop = Paths(live_root).embeddings, Counter(), threading.Event()
    data, good = load_embeddings(path), path.read_bytes()
    few, first = len(product_table(data['dataframe'][:50])), service.generation()

    def search(number):
        while not stop.wait(.05):
            products = service.search(query=f'red {number}', top_k=200)
            answers[len(products)] += 1

    def wait(generation):
        end = time.time()+60
        while service.generation() < generation and time.time() < end:
            time.sleep(.1)
        assert service.generation() == generation

    def wait_for_refusals(number):
        end = time.time()+60
        while refusals() < number and time.time() < end:
            time.sleep(.1)
        assert refusals() == number and service.generation() == first + 1

    def refusals():
        return service.log.read_text().count('ERROR The new embeddings are not served')

    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(search, number) for number in range(4)]
        try:
            save_embeddings(path, data['embeddings'][:50], data['image_names'][:50], data['dataframe'].iloc[:50],
                            data['weights_hash'])
            wait(first + 1)
            path.write_bytes(good[:len(good)//2])  # damaged: the old ones are kept
            wait_for_refusals(1)
            assert len(service.search(query='red', top_k=200)) == few
            save_embeddings(path, data['embeddings'], data['image_names'], data['dataframe'], 'another model')
            wait_for_refusals(2)
            path.write_bytes(good)
            wait(first + 2)
        finally:
            stop.set()
    for each in running:
        each.result()  # raises what a client has seen
    assert set(answers) == {few, min(200, len(searcher))} and answers.total() > 20
    assert refusals() == 2 and 'another model' in service.log.read_text()
    same(service.search(query='red shoes', top_k=9), searcher.search('red shoes', 9))


def test_key(service):
    for headers in ({}, dict(Authorization='Bearer wrong'), dict(Authorization=f'Basic {KEY}'),
                    dict(X_API_Key=KEY[:-1])):
        for path in ('/search?query=red', '/openapi.json', '/images/x', '/filters', '/nothing'):
            status, answered, body = service.ask(path, **(dict(Authorization=None) | headers))
            assert (status, list(body)) == (401, ['error']) and answered['www-authenticate'] == 'Bearer'
    for headers in (dict(Authorization=None, X_API_Key=KEY), dict(Authorization=f'bearer {KEY}')):
        assert service.ask('/search?query=red', Host='shop.example.com', **headers)[0] == 200
    assert service.ask('/health', Authorization=None)[0] == 200
    assert service.ask('/health', Host='other.example.com')[0] == 421


def test_refusals_at_the_start(run, shop, tmp_path, monkeypatch):
    monkeypatch.delenv('CLIP_FT_API_KEY', raising=False)
    root, short = ('--root', shop[0]), tmp_path/'short'
    short.write_text('short')
    assert 'API key is required' in run(serve_main, *root, '--host', '0.0.0.0', refused=True)
    assert 'API key is required' in run(serve_main, *root, '--host', '192.0.2.1', refused=True)
    assert 'at least 16' in run(serve_main, *root, '--api-key-file', short, refused=True)
    assert 'clip_ft_embed' in run(serve_main, '--root', tmp_path, refused=True)
    long = tmp_path/'long'
    long.write_text(KEY)
    assert 'Cannot listen' in run(serve_main, *root, '--host', '192.0.2.1', '--api-key-file', long, refused=True)
    for option in (('--port', '99999'), ('--timeout', 'nan'), ('--processes', '0'), ('--name', 'A B')):
        run(serve_main, *root, *option, refused=True)
    monkeypatch.setattr('clip_ft.commands.find_spec', lambda _name: None)
    assert "pip install 'clip_ft[serve]'" in run(serve_main, *root, refused=True)


def test_mcp_over_standard_input(shop, searcher, tmp_path):
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client

    async def assistant():
        parameters = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], '--root', str(shop[0]), '--mcp',
                                                                     '--processes', '1'], env=dict(os.environ))
        with (tmp_path/'log').open('w') as log:
            async with Client(stdio_client(parameters, log)) as client:
                tools = [tool.name for tool in (await client.list_tools()).tools]
                options = dict(query='red shoes', top_k=4, where=dict(category=searcher.dataframe['category'][0]))
                found = await client.call_tool('search', options)
                image = found.structured_content['products'][0]['image']
                shown = await client.call_tool('show', dict(image=image))
                wrong = [await client.call_tool(*each) for each in (
                    ('show', dict(image='../../etc/passwd')), ('search', dict(query='')),
                    ('search', dict(query='x'*2000)), ('search', dict(query='x', top_k=10**6)),
                    ('search', dict(query='x', where=dict(a=[[]]))))]
                return tools, options, found, shown, wrong
    tools, options, found, shown, wrong = asyncio.run(assistant())
    assert tools == ['search', 'show']
    same(found.structured_content['products'], searcher.search(**options))
    text, image = shown.content
    assert json.loads(text.text)['image'] == found.structured_content['products'][0]['image']
    assert Image.open(io.BytesIO(b64decode(image.data))).format == 'JPEG'
    assert all(answer.is_error and 'Traceback' not in answer.content[0].text for answer in wrong)
