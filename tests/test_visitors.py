"""The search page as visitors get it from clip_ft_app, in a real browser.

Needs Chromium (Debian: apt-get install chromium), and Linux, where kernels are forked; without them, it is skipped.
"""
import os
import re
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pandas as pd
import psutil
import pytest
from PIL import Image
from test_browser import CHROMIUM, PLACEHOLDER, START, serve, watch

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason='Chromium is not installed: visitors were not tested'),
    pytest.mark.skipif(sys.platform != 'linux', reason='kernels are forked on Linux only')]
COMMAND = 'from clip_ft.commands import app_main; app_main()'


class Server:
    "A running clip_ft_app, and the browser of its visitors."

    def __init__(self, process, url, browser):
        self.process, self.url, self.browser = process, url, browser
        self.requests, self.frames, self.problems = [], [], []

    def visit(self):
        "Open the page as a new visitor."
        page = self.browser.new_context().new_page()
        page.on('request', lambda request: self.requests.append(request.url))
        page.on('websocket', lambda socket: socket.on('framereceived', lambda frame: self.frames.append(frame)))
        self.problems.append(watch(page))
        page.goto(self.url, timeout=START)
        page.wait_for_selector('.cf-card', timeout=START)
        return page

    def kernels(self):
        "The processes of the kernels: children of the warm process, which is a child of the server."
        return [kernel for warm in psutil.Process(self.process.pid).children() for kernel in warm.children()]

    def wait_for_kernels(self, number):
        end = time.monotonic() + 20
        while len(self.kernels()) != number:
            assert time.monotonic() < end, self.kernels()
            time.sleep(.1)


@pytest.fixture(scope='module')
def server(shop, tmp_path_factory):
    sync_api = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed: pip install -e .[dev]')
    process, url, log = serve(tmp_path_factory.mktemp('app'), shop[0], 'python', '-c', COMMAND, '--root', shop[0])
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
            yield Server(process, url, browser)
            browser.close()
        assert 'Traceback' not in log.read_text(), log.read_text()[-3000:]
    finally:
        process.terminate()
        process.wait(20)


def export(page, label):
    page.locator(f'.cf-tools .jupyter-button:has-text("{label}")').click()
    page.wait_for_selector('.cf-chip:has-text("Download blue-jeans")', timeout=20000)


def download(page):
    with page.expect_download() as started:
        page.locator('.cf-chip:has-text("Download blue-jeans")').click()
    return pd.read_csv(started.value.path())


def test_two_visitors(server, shop):
    pages = [server.visit(), server.visit()]
    for page, text in zip(pages, ('blue jeans', 'Blue  jeans'), strict=True):
        page.get_by_placeholder(PLACEHOLDER).fill(text)
        page.wait_for_selector(f'.cf-grid[data-query="{text}"]')
    pages[1].locator('.cf-tools select').nth(1).select_option(label='Show 12')
    pages[1].wait_for_selector('.cf-status:has-text("12 of")')
    for page in pages:
        export(page, 'CSV')
    assert [len(download(page)) for page in pages] == [24, 12]
    memory = [kernel.memory_full_info() for kernel in server.kernels()]
    assert len(memory) == 2 and all(kernel.uss < .5*kernel.rss for kernel in memory), memory  # the model is shared

    hidden = [str(shop[0]), str(Path.home()), sys.prefix, 'Traceback']
    frames = [frame if isinstance(frame, bytes) else frame.encode() for frame in server.frames]
    for text in hidden:
        assert not any(text in page.content() for page in pages), text
        assert not any(text.encode() in frame for frame in frames), text
    own = (server.url, server.url.replace('http', 'ws'), 'data:', 'blob:')
    assert not [url for url in server.requests if not url.startswith(own)]     # nothing is loaded from elsewhere
    assert not (shop[0]/'exports').exists()
    assert not any(server.problems), server.problems
    for page in pages:
        page.goto('about:blank')
    server.wait_for_kernels(0)


def test_large_uploads(server, tmp_path):
    page = server.visit()

    def choose(path):
        with page.expect_file_chooser() as chooser:
            page.locator('.widget-upload').click()
        chooser.value.set_files(path)

    turned = Image.Exif()
    turned[274] = 6                                                             # the camera was held upright
    photo = Image.effect_noise((4000, 3000), 90)
    photo.save(tmp_path/'photo.jpg', quality=95, exif=turned)
    assert (tmp_path/'photo.jpg').stat().st_size > 10_000_000
    choose(tmp_path/'photo.jpg')
    page.wait_for_selector('.cf-chip:has-text("Your image")', timeout=20000)
    width, height = page.evaluate("(image => [image.naturalWidth, image.naturalHeight])"
                                  "(document.querySelector('.cf-chip img'))")
    assert width < height, (width, height)
    (tmp_path/'photo.heic').write_bytes(os.urandom(12_600_000))
    choose(tmp_path/'photo.heic')
    page.wait_for_selector('text=The file has 12.6 MB; at most 10 MB are possible')
    page.get_by_placeholder(PLACEHOLDER).fill('red shirt')
    page.wait_for_selector('.cf-grid[data-query="red shirt"]')                  # the connection is still open
    page.goto('about:blank')


def handshake(server, kernel, protocol):
    "Status of the answer to a request for a WebSocket."
    connection = HTTPConnection(server.url.removeprefix('http://'), timeout=20)
    headers = {'Connection': 'Upgrade', 'Upgrade': 'websocket', 'Sec-WebSocket-Version': '13',
               'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ==', 'Origin': server.url} | protocol
    connection.request('GET', f'/api/kernels/{kernel}/channels?session_id=1', headers=headers)
    return connection.getresponse().status


def test_only_the_protocol_of_the_page(server):
    page = server.visit()
    kernel = re.search(r'"kernelId": ?"([^"]+)"', page.content())[1]
    assert handshake(server, kernel, {}) == 400
    assert handshake(server, kernel, {'Sec-WebSocket-Protocol': 'v0, other'}) == 400
    page.goto('about:blank')


@pytest.mark.parametrize('path', ['/', '/api/kernels/00000000-0000-0000-0000-000000000000'])
@pytest.mark.parametrize('host', ['evil.example', 'localhost.evil.example', '10.1.2.3'])
def test_other_host_names(server, host, path):
    connection = HTTPConnection(server.url.removeprefix('http://'), timeout=20)
    connection.request('GET', path, headers={'Host': f'{host}:{connection.port}'})
    assert connection.getresponse().status == 403


def test_error_pages(server):
    paths = '/missing', '/voila/files/search.ipynb', '/voila/static/missing', '/voila/templates/clip_ft/static/missing'
    for path in paths:
        connection = HTTPConnection(server.url.removeprefix('http://'), timeout=20)
        connection.request('GET', path)
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status >= 300 and 'Traceback' not in text and sys.prefix not in text and '/tmp' not in text, path
