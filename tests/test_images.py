"Damaged, malicious and unusual images raise a clear error or give the right pixels."

import importlib.util
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import add_rows, jpeg, reasons, snapshot
from PIL import Image, PngImagePlugin

from clip_ft import images
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
        'tiff.jpg': tiff.getvalue()[:40],
        'photo.heic': b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(100),
        'drawing.jpg': b'<?xml version="1.0"?>\n<!-- x --><svg></svg>',
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
    for name in ('text.jpg', 'empty.jpg'):
        assert found[name] == 'not an image: supported formats are JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF'
    if importlib.util.find_spec('pillow_heif') is None:
        assert 'HEIC' in found['photo.heic'] and 'clip_ft[heic]' in found['photo.heic']
    assert found['drawing.jpg'] == 'image format is not supported: SVG'
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


@pytest.mark.parametrize('name', ['x.avif', 'x.tif'])
def test_further_formats(tmp_path, name):
    upright = Image.new('RGB', (64, 32), 'white')
    upright.paste('black', (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path/name, exif=exif)
    opened = open_image(tmp_path/name)
    assert opened.size == (64, 32) and abs(np.asarray(opened).astype(int) - np.asarray(upright)).mean() < 2
    for options in ({'compression': 'tiff_lzw'}, {'compression': 'jpeg'}) if name == 'x.tif' else ():
        upright.save(tmp_path/'y.tif', **options)
        assert abs(np.asarray(open_image(tmp_path/'y.tif')).astype(int) - np.asarray(upright)).mean() < 2


@pytest.mark.parametrize('compressed', [True, False])
def test_png_with_long_texts(tmp_path, compressed):
    texts = PngImagePlugin.PngInfo()
    texts.add_text('XML:com.adobe.xmp', 'x'*3_000_000, zip=compressed)
    texts.add_itxt('Comment', 'y'*3_000_000, zip=compressed)
    Image.new('RGB', (4, 3), 'red').save(tmp_path/'x.png', pnginfo=texts)
    assert open_image(tmp_path/'x.png').getpixel((3, 2)) == (255, 0, 0)


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'restart_marker_rows': 1}, {'subsampling': 0}])
def test_jpeg_that_lacks_its_end(tmp_path, options):
    "Only the end mark may be missing: any other byte is a part of the pixels."
    pixels = np.random.default_rng(0).integers(0, 255, (61, 93, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(pixels).save(whole, 'JPEG', **options)
    data = whole.getvalue()
    expected = np.asarray(open_image(whole))
    for missing in (1, 2):
        (tmp_path/'x.jpg').write_bytes(data[:-missing])
        assert np.array_equal(np.asarray(open_image(tmp_path/'x.jpg')), expected)
    for missing in (3, 4, 9, 100, 2000, len(data) - data.rfind(b'\xff\xda')):
        with pytest.raises(ImageError, match='cannot be decoded'):
            open_image(io.BytesIO(data[:-missing]))


@pytest.mark.parametrize('start', [b'\r\n', b'\n\n', b'\xef\xbb\xbf'])
def test_images_behind_line_ends(start):
    assert open_image(io.BytesIO(start + jpeg())).size == (24, 32)


def fixed(*numbers):
    "Numbers with 16 binary digits after the point, as ICC profiles store them."
    return b''.join(struct.pack('>i', round(number*65536)) for number in numbers)


def icc_profile(space, connection, tags):
    "An ICC profile of version 2 with these tags."
    offset, table, body = 132 + 12*len(tags), b'', b''
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack('>II', offset + len(body), len(content))
        body += content
    header = bytes(8) + b'\2\x10\0\0' + b'mntr' + space + connection + bytes(12) + b'acsp' + bytes(28)
    header += fixed(.9642, 1, .8249)
    header = struct.pack('>I', offset + len(body)) + header[4:]
    return header + bytes(128 - len(header)) + struct.pack('>I', len(tags)) + table + body


def text_tag(text):
    return b'desc' + bytes(4) + struct.pack('>I', len(text) + 1) + text + bytes(79)


# Colours of the primaries, relative to D50, and the power of the tone curve
ADOBE_RGB = np.array([[.60974, .20528, .14919], [.31111, .62567, .06322], [.01947, .06087, .74457]]), 2.2
DISPLAY_P3 = np.array([[.51512, .29198, .15710], [.24120, .69225, .06657], [-.00105, .04189, .78407]]), 2.2
SRGB = np.array([[.43607, .38515, .14307], [.22249, .71687, .06061], [.01392, .09708, .71410]])


def rgb_profile(primaries, power):
    curve = b'curv' + bytes(4) + struct.pack('>IH', 1, round(power*256))
    tags = {b'desc': text_tag(b'test'), b'wtpt': b'XYZ ' + bytes(4) + fixed(.9642, 1, .8249)}
    for column, name in enumerate((b'r', b'g', b'b')):
        tags[name + b'XYZ'] = b'XYZ ' + bytes(4) + fixed(*primaries[:, column])
        tags[name + b'TRC'] = curve
    return icc_profile(b'RGB ', b'XYZ ', tags)


def cmyk_profile():
    "A CMYK profile in which all inks are grey: they are converted to a lightness of (1-C)(1-M)(1-Y)(1-K)."
    corners = [255*(0 in corner and all(ink == 0 for ink in corner)) for corner in np.ndindex(2, 2, 2, 2)]
    grid = bytes(value for lightness in corners for value in (lightness, 128, 128))
    straight = bytes(range(256))
    header = b'mft1' + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    content = header + straight*4 + grid + straight*3
    tags = {b'desc': text_tag(b'test'), b'wtpt': b'XYZ ' + bytes(4) + fixed(.9642, 1, .8249), b'A2B0': content}
    return icc_profile(b'CMYK', b'Lab ', tags)


def in_srgb(colour, primaries, power):
    "Convert a colour by the definition of the colour spaces."
    linear = np.linalg.solve(SRGB, primaries @ (np.array(colour)/255)**power).clip(0, 1)
    return 255*np.where(linear <= .0031308, 12.92*linear, 1.055*linear**(1/2.4) - .055)


@pytest.mark.parametrize('space', [ADOBE_RGB, DISPLAY_P3])
def test_wide_gamuts_become_srgb(tmp_path, space):
    profile = rgb_profile(*space)
    for colour in [(200, 30, 30), (30, 200, 60), (20, 40, 180), (120, 120, 120), (250, 240, 200)]:
        expected = in_srgb(colour, *space)
        Image.new('RGB', (9, 8), colour).save(tmp_path/'x.png', icc_profile=profile)
        Image.new('RGB', (9, 8), colour).save(tmp_path/'x.jpg', icc_profile=profile, quality=100, subsampling=0)
        Image.new('RGB', (9, 8), colour).save(tmp_path/'x.webp', icc_profile=profile, lossless=True)
        Image.new('RGB', (9, 8), colour).save(tmp_path/'x.tif', icc_profile=profile)
        Image.new('RGB', (9, 8), colour).quantize().save(tmp_path/'p.png', icc_profile=profile)
        Image.new('RGBA', (9, 8), (*colour, 255)).save(tmp_path/'a.png', icc_profile=profile)
        for name in ('x.png', 'x.jpg', 'x.webp', 'x.tif', 'p.png', 'a.png'):
            found = np.array(open_image(tmp_path/name).getpixel((4, 4)))
            assert abs(found - expected).max() <= 3, (name, colour, found, expected)
    assert abs(in_srgb((200, 30, 30), *space) - (200, 30, 30)).max() > 10  # without the conversion, it would fail
    Image.new('RGBA', (9, 8), (200, 30, 30, 0)).save(tmp_path/'a.png', icc_profile=profile)
    assert open_image(tmp_path/'a.png').getpixel((4, 4)) == (255, 255, 255)


def test_cmyk_profile(tmp_path):
    Image.new('CMYK', (16, 16), (0, 0, 0, 0)).save(tmp_path/'white.jpg', icc_profile=cmyk_profile())
    Image.new('CMYK', (16, 16), (255, 0, 0, 0)).save(tmp_path/'ink.jpg', icc_profile=cmyk_profile())
    assert min(open_image(tmp_path/'white.jpg').getpixel((5, 5))) > 250
    assert max(open_image(tmp_path/'ink.jpg').getpixel((5, 5))) < 20  # without the profile, it would be cyan


def test_large_images_are_converted_in_tiles(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1100, 1300, 3), dtype=np.uint8))
    noise.save(tmp_path/'x.png', icc_profile=rgb_profile(*ADOBE_RGB), compress_level=1)
    opened, corner = np.asarray(open_image(tmp_path/'x.png')), noise.crop((1000, 1000, 1300, 1100))
    corner.save(tmp_path/'y.png', icc_profile=rgb_profile(*ADOBE_RGB))
    assert np.array_equal(opened[1000:, 1000:], np.asarray(open_image(tmp_path/'y.png')))


def test_profiles_that_change_nothing(tmp_path):
    "sRGB under any name, damaged profiles, and profiles for another mode leave the pixels as they are."
    srgb = images.ImageCms.ImageCmsProfile(images.ImageCms.createProfile('sRGB')).tobytes()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    images._profile_to_srgb.cache_clear()
    for profile in (b'damaged', cmyk_profile(), b''):
        image.save(tmp_path/'x.png', icc_profile=profile)
        assert np.array_equal(np.asarray(open_image(tmp_path/'x.png')), np.asarray(image))
    image.save(tmp_path/'x.png', icc_profile=srgb)
    assert np.array_equal(np.asarray(open_image(tmp_path/'x.png')), np.asarray(image))
    assert images._to_srgb(Image.open(tmp_path/'x.png')) is None


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
