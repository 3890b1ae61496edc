"Damaged, malicious and unusual images raise a clear error or give the right pixels."

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import add_rows, jpeg, reasons, snapshot
from PIL import Image

from clip_ft.data import clean_products, read_products
from clip_ft.images import ImageError, check_images, open_image


@pytest.mark.parametrize('name', [
    '../../etc/passwd', '/etc/passwd', '..\\secret.jpg', 'C:\\x.jpg', 'a/../../x.jpg', '~/x.jpg', '..', 'x\x00.jpg',
])
def test_names_outside_the_folder(catalogue, name):
    before = snapshot(catalogue)
    products = read_products(catalogue)
    products.loc[4, 'image'] = name
    kept, rejects = clean_products(products, catalogue/'data')
    assert rejects['reason'].tolist() == ['image is outside the folder'] and rejects['row'].tolist() == [6]
    assert len(kept) == 19 and snapshot(catalogue) == before


def test_missing_empty_and_overlong_names(catalogue):
    add_rows(catalogue, '404.jpg,some text,A,Hats', '.,some other text,B,Hats', f'{"x"*5000},more text,C,Hats',
             ',text again,D,Hats')
    assert list(reasons(catalogue).values()) == ['image is missing']*3 + ['image name is empty']


def test_links_to_the_outside_of_the_folder(catalogue, tmp_path):
    (tmp_path/'secret.jpg').write_bytes(jpeg(99))
    (tmp_path/'private').mkdir()
    (tmp_path/'private/p.jpg').write_bytes(jpeg(98))
    (catalogue/'data/link.jpg').symlink_to(tmp_path/'secret.jpg')
    (catalogue/'data/inside.jpg').symlink_to(catalogue/'data/1.jpg')
    (catalogue/'data/sub').symlink_to(tmp_path/'private')
    (catalogue/'data/loop.jpg').symlink_to('loop.jpg')
    add_rows(catalogue, 'link.jpg,words one,A,Hats', 'inside.jpg,words two,B,Hats', 'sub/p.jpg,words three,C,Hats',
             'loop.jpg,words four,D,Hats')
    outside = 'image is outside the folder'
    assert reasons(catalogue) == {'link.jpg': outside, 'sub/p.jpg': outside, 'loop.jpg': 'image is missing'}


def huge_png(width=30_000, height=30_000):
    "Return a complete one-bit PNG of 900 million white pixels, in about 110 kB."
    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    line = zlib.compressobj(9)
    hundred_rows = (b'\0' + b'\xff'*((width + 7)//8))*100
    pixels = b''.join(line.compress(hundred_rows) for _ in range(height//100)) + line.flush()
    header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def bad_images(folder):
    good = jpeg(1, (200, 200))
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(png, 'PNG')
    tiff = io.BytesIO()
    Image.new('RGB', (8, 8)).save(tiff, 'TIFF')
    files = {
        'truncated.jpg': good[:len(good)//2],
        'header.jpg': good[:300],
        'text.jpg': b'<html>not found</html>',
        'empty.jpg': b'',
        'huge.png': huge_png(),
        'large.png': huge_png(12_000, 8_400),
        'cut.png': png.getvalue()[:3000],
        'tiff.jpg': tiff.getvalue(),
        'flipped.png': png.getvalue()[:2000] + b'\0'*50 + png.getvalue()[2050:],
    }
    for name, content in files.items():
        (folder/name).write_bytes(content)
    return files


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')  # pytest resets the filter of clip_ft.images
def test_bad_images_are_rejected_with_a_reason(catalogue):
    files = bad_images(catalogue/'data')
    add_rows(catalogue, *(f'{name},text on {name},Name {name},Hats' for name in files))
    before = snapshot(catalogue)
    found = reasons(catalogue)
    assert found.keys() == files.keys()
    assert found['huge.png'].startswith('image is too large')
    assert found['large.png'] == 'image is too large: 12000 x 8400 pixels, over 100,000,000'
    for name in ('text.jpg', 'tiff.jpg', 'empty.jpg'):
        assert found[name] == 'not an image: supported formats are JPEG, PNG, WEBP, GIF, BMP'
    for name in ('truncated.jpg', 'cut.png', 'flipped.png'):
        assert found[name].startswith('image cannot be decoded: ')
    assert snapshot(catalogue) == before


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_open_image_names_the_file_and_closes_it(tmp_path):
    has_proc = os.path.isdir('/proc/self/fd')
    open_before = len(os.listdir('/proc/self/fd')) if has_proc else 0
    for name in bad_images(tmp_path):
        with pytest.raises(ImageError, match=name):
            open_image(tmp_path/name)
        with pytest.raises(ImageError, match=name):
            open_image(tmp_path/name, size=32)
    if has_proc:
        assert len(os.listdir('/proc/self/fd')) == open_before
    with pytest.raises(ImageError, match='missing'):
        open_image(tmp_path)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I', 'I;16', 'F'])
def test_every_mode_becomes_rgb(mode):
    assert open_image(Image.new(mode, (3, 5))).mode == 'RGB' and open_image(Image.new(mode, (3, 5))).size == (3, 5)


def test_palette_with_transparency_is_on_white(tmp_path):
    image = Image.new('P', (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    for name in ('a.png', 'a.gif'):
        image.save(tmp_path/name, transparency=0)
        assert [open_image(tmp_path/name).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_all_eight_orientations(tmp_path):
    upright = Image.new('RGB', (40, 20), 'white')
    upright.paste('black', (0, 0, 20, 10))  # top left
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation to the transposition that it undoes
    for code, transposition in undo.items():
        stored = upright if transposition is None else upright.transpose(transposition)
        exif = Image.Exif()
        exif[0x0112] = code
        stored.save(tmp_path/'x.png', exif=exif)
        assert np.array_equal(np.asarray(open_image(tmp_path/'x.png')), np.asarray(upright)), code


def test_image_with_invalid_exif_is_opened(tmp_path):
    whole = jpeg()
    (tmp_path/'x.jpg').write_bytes(whole[:2] + b'\xff\xe1\x00\x10Exif\0\0XX*\0\0\0\0\0' + whole[2:])
    assert open_image(tmp_path/'x.jpg').size == (24, 32)


def test_draft_keeps_twice_the_size(tmp_path):
    (tmp_path/'x.jpg').write_bytes(jpeg(0, (1024, 640)))
    for size in (10, 40, 41, 80, 81, 160, 161, 300, 1000):
        assert min(open_image(tmp_path/'x.jpg', size).size) >= min(2*size, 640)
    assert open_image(tmp_path/'x.jpg', 40).size == (128, 80)


def test_check_images_in_threads(catalogue):
    alone = check_images(catalogue/'data', [f'{i}.jpg' for i in range(20)], workers=1)
    many = check_images(catalogue/'data', [f'{i % 20}.jpg' for i in range(400)], workers=16)
    assert many['pixel_id'].tolist() == alone['pixel_id'].tolist()*20 and alone['pixel_id'].nunique() == 20


def test_pixel_id_depends_on_pixels_and_shape_only(tmp_path):
    white = Image.new('RGB', (4, 6), 'white')
    white.save(tmp_path/'a.png')
    white.save(tmp_path/'b.bmp')
    white.resize((6, 4)).save(tmp_path/'c.png')
    a, b, c = check_images(tmp_path, ['a.png', 'b.bmp', 'c.png'])['pixel_id']
    assert a == b != c and len(a) == 16


PEAK = """
import re, sys
from pathlib import Path
from clip_ft.images import ImageError, _pixel_id, open_image
for name in sys.argv[1:]:
    try:
        _pixel_id(open_image(name))
    except ImageError as error:
        assert 'too large' in error.reason, error
print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has /proc')
def test_large_images_take_bounded_memory(tmp_path):
    "Images of 96 megapixels, and the largest that are accepted."
    grey = Image.new('L', (12_000, 8000), 200)
    files = {'grey.png': grey, 'grey.gif': grey, 'colour.jpg': grey.convert('RGB'), 'alpha.png': grey.convert('LA'),
             'colour.webp': Image.new('RGB', (6000, 4000)), 'smaller.png': Image.new('RGBA', (7000, 5000), '#80808080')}
    for name, image in files.items():
        image.save(tmp_path/name, **dict(compress_level=1) if name.endswith('png') else dict(method=0))
    run = subprocess.run([sys.executable, '-c', PEAK, *(str(tmp_path/name) for name in files)], check=True,
                         capture_output=True, text=True)
    assert int(run.stdout) < 550_000  # kB
