"Every address ends in a file or a reason, nothing is requested twice, and private networks are not reached."

import gzip
import json
import os
import signal
import socket
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
from conftest import jpeg

from clip_ft import download
from clip_ft.download import DownloadSettings, download_catalogue, download_images

IMAGE = jpeg()
BOMB = gzip.compress(bytes(20*2**20))
QUICK = DownloadSettings(allow_private=True, max_bytes=200_000, seconds=1.5, retries=2, backoff=.05, max_wait=2)


class Shop(BaseHTTPRequestHandler):
    "Answers by the first part of the path; `requests` counts the paths."
    protocol_version = 'HTTP/1.1'
    requests, agents, delay = Counter(), set(), 0

    def do_GET(self):
        kind = self.path.split('/')[1]
        self.requests[self.path] += 1
        self.agents.add((self.headers['User-Agent'], self.headers['Cookie'], self.headers['Authorization']))
        try:
            getattr(self, f'answer_{kind}')()
        except ConnectionError:
            self.close_connection = True

    def answer(self, body=b'', status=200, **headers):
        self.send_response(status)
        for name, value in {'Content_Length': len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def answer_image(self):
        time.sleep(self.delay)
        self.answer(IMAGE, Set_Cookie='a=b')

    def answer_photo(self): self.answer(jpeg(zlib.crc32(self.path.encode())))
    def answer_gone(self): self.answer(status=404)
    def answer_page(self): self.answer(b'<html>Not here</html>', Content_Type='text/html')
    def answer_zipped(self): self.answer(gzip.compress(IMAGE), Content_Encoding='gzip')
    def answer_bomb(self): self.answer(BOMB, Content_Encoding='gzip')
    def answer_cut(self): self.answer(gzip.compress(IMAGE)[:-20], Content_Encoding='gzip')
    def answer_brotli(self): self.answer(IMAGE, Content_Encoding='br')
    def answer_noai(self): self.answer(IMAGE, X_Robots_Tag='noindex, noai')
    def answer_large(self): self.answer(IMAGE, Content_Length=10**9)
    def answer_empty(self): self.answer()
    def answer_failing(self): self.answer(status=503)
    def answer_later(self): self.answer(status=429, Retry_After=3600)
    def answer_private(self): self.answer(status=302, Location='http://127.0.0.2:9/a.jpg')
    def answer_metadata(self): self.answer(status=302, Location='//169.254.169.254/latest')
    def answer_file(self): self.answer(status=302, Location='file:///etc/passwd')
    def answer_moved(self): self.answer(status=301, Location='../image/moved.jpg')
    def answer_loop(self): self.answer(status=302, Location=self.path)

    def answer_endless(self):
        self.answer(Content_Length=None, Connection='close')
        while True:
            self.wfile.write(bytes(2**14))

    def answer_slow(self):
        self.answer(IMAGE[:10], Content_Length=len(IMAGE))
        for byte in IMAGE[10:60]:
            time.sleep(.1)
            self.wfile.write(bytes([byte]))

    def answer_headers(self):
        self.wfile.write(b'HTTP/1.1 200 OK\r\nX-Long: ')
        for _ in range(50):
            time.sleep(.1)
            self.wfile.write(b'x')

    def answer_busy(self):
        first = self.requests[self.path] < 2
        self.answer(b'' if first else IMAGE, 429 if first else 200, **({'Retry_After': 1} if first else {}))

    def answer_broken(self):
        if self.requests[self.path] < 2:
            self.answer(IMAGE[:50], Content_Length=len(IMAGE))
            self.close_connection = True
        else:
            self.answer(IMAGE)

    def log_message(self, *args): pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100

    def handle_error(self, request, client_address): pass


@pytest.fixture
def shop():
    "The address of a shop's server; what it counts starts at zero."
    Shop.requests.clear()
    Shop.agents.clear()
    Shop.delay = 0
    server = Server(('127.0.0.1', 0), Shop)
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': .05}, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


REASONS = {
    'image': '', 'zipped': '', 'moved': '', 'busy': '', 'broken': '',
    'gone': 'image address answers with status 404',
    'page': 'image address leads to no image',
    'empty': 'image address leads to no image',
    'bomb': 'image file is too large, over 0.2 MB',
    'endless': 'image file is too large, over 0.2 MB',
    'large': 'image file is too large, over 0.2 MB',
    'cut': 'image file is incomplete',
    'brotli': "image file has the unknown encoding 'br'",
    'noai': 'image server forbids training (X-Robots-Tag)',
    'failing': 'image address answers with status 503',
    'later': 'image address answers with status 429',
    'private': 'image address is in a private network',
    'metadata': 'image address is in a private network',
    'file': 'image address is not http or https',
    'loop': 'image address has over 5 redirects',
    'slow': 'image download took over 1.5 s',
    'headers': 'image download took over 1.5 s',
}
ADDRESSES = {
    'http://127.0.0.1:9/a.jpg': 'image server cannot be reached, or the connection broke',
    'http://no-such-host.invalid/a.jpg': 'image server does not exist or cannot be resolved',
    'ftp://127.0.0.1/a.jpg': 'image address is not http or https',
    'http://user:secret@127.0.0.1/a.jpg': 'image address contains a password',
    'http://[::1/a.jpg': 'image address is invalid',
    'https:///a.jpg': 'image address is not http or https',
}


def test_every_address_ends_in_a_file_or_a_reason(shop, tmp_path):
    expected = {f'{shop}/{kind}/a.jpg': reason for kind, reason in REASONS.items()} | ADDRESSES
    found = download_images(expected, tmp_path/'images', QUICK)
    assert found['problem'].to_dict() == expected
    assert ((found['name'] == '') == (found['problem'] != '')).all()
    files = {path.name: path.read_bytes() for path in (tmp_path/'images').iterdir() if path.name[0] != '.'}
    assert files == dict.fromkeys(found['name'][found['name'] != ''], IMAGE)
    assert Shop.agents == {('clip_ft (+https://github.com/clip-ft/clip_ft)', None, None)}
    assert Shop.requests['/failing/a.jpg'] == 3 and Shop.requests['/later/a.jpg'] == 1
    assert [path.name for path in (tmp_path/'images').glob('.*')] == ['.failures.jsonl']
    before = Shop.requests.copy()
    again = download_images(expected, tmp_path/'images', QUICK)  # only what may have been repaired in the meantime
    assert again.equals(found)
    assert {path.split('/')[1] for path in Shop.requests - before} == {'failing', 'later', 'cut', 'slow', 'headers'}


def test_nothing_of_a_private_network_is_reached(shop, tmp_path):
    port = shop.rpartition(':')[2]
    hosts = ('127.0.0.1', 'localhost', '127.1', '2130706433', '0x7f000001', '[::ffff:127.0.0.1]', '0.0.0.0', '[::1]')
    addresses = [f'http://{host}:{port}/image/a.jpg' for host in hosts]
    found = download_images(addresses, tmp_path, DownloadSettings(retries=0))
    assert set(found['problem']) <= {'image address is in a private network', 'image address is invalid'}
    assert not Shop.requests


def test_a_name_that_changes_its_address(shop, tmp_path):
    "The address of the connection is checked, not one that was looked up before."
    answers = ['1.1.1.1', '127.0.0.1']

    async def resolve(host, port, **options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (answers.pop(), port))]

    port = shop.rpartition(':')[2]
    with patch.object(download.anyio, 'getaddrinfo', resolve):
        found = download_images([f'http://rebind.example:{port}/image/a.jpg'], tmp_path, DownloadSettings(retries=0))
    assert found['problem'].to_list() == ['image address is in a private network'] and answers == ['1.1.1.1']
    assert not Shop.requests


def _download(addresses, folder):
    download_images(addresses, folder, QUICK)


def test_a_killed_download_continues_and_requests_nothing_twice(shop, tmp_path, fork):
    addresses = [f'{shop}/{"gone" if i % 20 == 0 else "image"}/{i}.jpg' for i in range(120)]
    Shop.delay = .05
    process = fork(_download, addresses, tmp_path/'images', log=tmp_path/'log')
    while sum(Shop.requests.values()) < 40:
        time.sleep(.01)
        assert process.is_alive()
    process.kill()
    process.join()
    time.sleep(.2)  # until the server has seen that
    Shop.delay = 0
    complete = {path.stem for path in (tmp_path/'images').iterdir() if path.name[0] != '.'}
    failed = {json.loads(line)[0] for line in (tmp_path/'images/.failures.jsonl').read_text().splitlines()}
    done = [address for address in addresses if download._stem(address) in complete or address in failed]
    assert 20 < len(done) < 120
    found = download_images(addresses, tmp_path/'images', QUICK)
    assert (found['problem'] == '').sum() == 114 and (found['problem'] != '').sum() == 6
    assert {Shop.requests[address.removeprefix(shop)] for address in done} == {1}
    assert sum(Shop.requests.values()) <= 120 + QUICK.per_host  # those that were under way when it was killed


def test_ctrl_c_ends_the_download(shop, tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores the signal
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    Shop.delay = .05
    addresses = [f'{shop}/image/{i}.jpg' for i in range(100)]

    def interrupt():
        while sum(Shop.requests.values()) < 20:
            time.sleep(.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        download_images(addresses, tmp_path, QUICK)
    assert all(path.name == '.failures.jsonl' or path.read_bytes() == IMAGE for path in Path(tmp_path).iterdir())
    assert 10 < len(list(tmp_path.iterdir())) < 60
    Shop.delay = 0
    assert (download_images(addresses, tmp_path, QUICK)['problem'] == '').all()


def test_a_full_disk_is_not_a_problem_of_an_image(shop, tmp_path):
    with patch.object(download.os, 'replace', side_effect=OSError(28, 'No space left on device', 'x')), \
            pytest.raises(OSError, match='No space left'):
        download_images([f'{shop}/image/{i}.jpg' for i in range(9)], tmp_path, QUICK)


def test_a_product_has_an_image_or_a_reason(shop, tmp_path):
    a, b, gone = (f'{shop}/{name}' for name in ('image/a.jpg', 'image/b.jpg', 'gone/c.jpg'))
    images = [a, f'{a}, {b}', f'{gone} {b}', gone, '', 'd.jpg', None]
    products = pd.DataFrame({'image': images}, index=[3, 3, 4, 5, 6, 7, 8])
    table = download_catalogue(products, tmp_path, QUICK)
    names = {address: download_images([address], tmp_path, QUICK)['name'].iloc[0] for address in (a, b)}
    assert table['image'].to_list() == [names[a], names[a], names[b], gone, '', 'd.jpg', '']
    assert table['images'].to_list() == [names[a], f'{names[a]} | {names[b]}', names[b], '', '', '', '']
    assert table['image problem'].to_list() == ['']*3 + [REASONS['gone']] + ['image address is missing']*3


def test_addresses_as_tables_write_them(shop, tmp_path):
    cells = [f'{shop}/image/a b.jpg', f'{shop}/image/c.jpg?d=1&amp;e=2', f'<img src="{shop}/image/f.jpg" alt="x">',
             f'["{shop}/image/g.jpg", "{shop}/image/h.jpg"]', f"['{shop}/image/i.jpg', '{shop}/image/women's.jpg']"]
    table = download_catalogue(pd.DataFrame({'image': cells}), tmp_path, QUICK)
    assert (table['image problem'] == '').all()
    assert {path.removeprefix('/image/') for path in Shop.requests} == {
        'a%20b.jpg', 'c.jpg?d=1&e=2', 'f.jpg', 'g.jpg', 'h.jpg', 'i.jpg', "women's.jpg"}
