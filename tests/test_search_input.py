"Odd queries, wrong models and hostile files: the commands print one clear line."

import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import snapshot
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from clip_ft import images
from clip_ft.checkpoints import Snapshots
from clip_ft.commands import embed_main, evaluate_main, search_main
from clip_ft.core import Paths
from clip_ft.data import load_split
from clip_ft.embeddings_file import load_embeddings, save_embeddings
from clip_ft.images import ImageError
from clip_ft.model import save_model, tiny_model
from clip_ft.plots import plot_results
from clip_ft.search import Searcher


class Bomb:
    "Writes a file when it is unpickled."
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.write_text, (Path(self.path), 'this ran')


# Queries

ODD_QUERIES = ['shoes '*500, '👗👠', '<script>alert(1)</script>', "'; DROP TABLE products; --", '$\\frac{',
               'ünï\x00cödé\n', 'x'*20_000]


@pytest.mark.parametrize('query', ODD_QUERIES)
def test_odd_queries_are_answered(shop, run, tmp_path, query):
    grid = tmp_path/'grid.png'
    out = run(search_main, query, '--root', shop[0], '--top-k', 3, '--save-grid', grid)
    assert out.count('.jpg') == 3 and grid.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('args, message', [
    (('  \n ',), 'empty'),
    (('',), 'empty'),
    (('jeans', '--top-k', '0'), 'at least 1'),
    (('jeans', '--top-k', '-3'), 'at least 1'),
    (('jeans', '--top-k', 'all'), 'must be a whole number'),
    (('--save-grid', 'x.png'), 'require a query'),
    (('jeans', '--model', 'no/such/folder'), 'no/such/folder'),
])
def test_wrong_arguments_are_refused(shop, run, args, message):
    before = snapshot(shop[0])
    assert message in run(search_main, '--root', shop[0], *args, refused=True)
    assert snapshot(shop[0]) == before


def test_top_k_above_the_catalogue_gives_all(shop, run):
    count = sum(map(len, load_split(Paths(shop[0]))))
    assert run(search_main, 'jeans', '--root', shop[0], '--top-k', 10**9).count('.jpg') == count


@pytest.mark.parametrize('args, message', [
    (('--where', "category' OR '1'='1=x"), 'no column'),
    (('--where', '__class__=x'), 'no column'),
    (('--where', 'category>=1); DROP TABLE products'), 'is not a number'),
    (('--like', '../split/train.csv'), 'no image'),
    (('--image', '/etc/passwd'), 'not an image'),
    (('--image', '.'), 'missing'),
])
def test_hostile_conditions_and_images_are_refused(shop, run, args, message):
    before = snapshot(shop[0])
    assert message in run(search_main, 'jeans', '--root', shop[0], *args, refused=True)
    assert snapshot(shop[0]) == before


@pytest.mark.parametrize('condition', ["category=x' OR '1'='1", 'category~.*'])
def test_a_hostile_value_matches_nothing(shop, run, condition):
    assert 'No product has' in run(search_main, 'jeans', '--root', shop[0], '--where', condition, refused=True)


# Images

def test_query_images_are_checked(shop, run, tmp_path):
    image = next((shop[0]/'data/extracted/data').glob('*.jpg')).read_bytes()
    (tmp_path/'cut.jpg').write_bytes(image[:len(image)//2])
    Image.new('1', (20_000, 20_000)).save(tmp_path/'large.png')
    for name, message in (('cut.jpg', 'cannot be decoded'), ('large.png', 'too large')):
        assert message in run(search_main, '--image', tmp_path/name, '--root', shop[0], refused=True)


def test_a_missing_image_is_shown_as_a_note(copied_shop, run):
    shown = run(search_main, 'jeans', '--root', copied_shop)
    name = next(word for word in shown.split() if word.endswith('.jpg'))
    (copied_shop/'data/extracted/data'/name).unlink()
    again = run(search_main, 'jeans', '--root', copied_shop, '--save-grid', copied_shop/'grid.png')
    assert again.startswith(shown.split('\n\n')[0])
    assert (copied_shop/'grid.png').read_bytes().startswith(b'\x89PNG')


def test_images_stay_inside_the_folder(copied_shop, run):
    "Images outside the folder that an embeddings file names are not opened."
    paths = Paths(copied_shop)
    data = load_embeddings(paths.embeddings)
    Image.new('RGB', (50, 50)).save(copied_shop/'secret.png')
    names = ['../../../secret.png', str(copied_shop/'secret.png'), *data['image_names'][2:]]
    products = data['dataframe'].drop(columns=['images', 'pixel_ids']).assign(image=names)
    save_embeddings(paths.embeddings, data['embeddings'], names, products, data['weights_hash'])
    assert 'secret.png' in run(search_main, 'jeans', '--root', copied_shop, '--top-k', 1000)
    results = products.head(3).assign(clip_score=1.)
    axes = plot_results(results, copied_shop/'data/extracted/data').axes
    assert [len(ax.images) for ax in axes[:3]] == [0, 0, 1]


# Models

def other_architecture(folder):
    "Save a model whose weights have the same names but other shapes."
    _, processor = tiny_model(['blue jeans'])
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(text_config=dict(tower, vocab_size=len(processor.tokenizer)),
                        vision_config=dict(tower, image_size=96, patch_size=32), projection_dim=16)
    save_model(folder, CLIPModel(config), processor)


def test_a_model_of_another_architecture(copied_shop, run, tmp_path):
    paths, weights = Paths(copied_shop), 'model.safetensors'
    other_architecture(tmp_path/'other')
    before = snapshot(copied_shop)
    refusal = run(search_main, 'jeans', '--root', copied_shop, '--model', tmp_path/'other', refused=True)
    assert 'another model' in refusal
    shutil.copy(tmp_path/'other'/weights, paths.best_model/weights)  # its weights in our folder
    for main, *args in ((search_main, 'jeans'), (embed_main,), (evaluate_main,)):
        assert 'best_model' in run(main, *args, '--root', copied_shop, refused=True)
    after = snapshot(copied_shop)
    assert after.keys() == before.keys()
    assert {path for path in before if after[path] != before[path]} == {f'checkpoints/best_model/{weights}'}


@pytest.mark.parametrize('write', [
    lambda path, bomb: torch.save({'model_state_dict': bomb}, path),
    lambda path, bomb: path.write_bytes(pickle.dumps(bomb)),
], ids=['torch.save', 'pickle'])
def test_a_pickle_bomb_as_a_checkpoint(copied_shop, run, tmp_path, write):
    paths = Paths(copied_shop)
    write(paths.best_checkpoint, Bomb(tmp_path/'ran'))
    before = paths.embeddings.read_bytes()
    assert 'best_model.pt' in run(evaluate_main, '--root', copied_shop, refused=True)
    (paths.best_model/'model.safetensors').unlink()
    write(paths.best_model/'pytorch_model.bin', Bomb(tmp_path/'ran'))
    for main, *args in ((search_main, 'jeans'), (embed_main,)):
        assert 'best_model' in run(main, *args, '--root', copied_shop, refused=True)
    assert not (tmp_path/'ran').exists() and paths.embeddings.read_bytes() == before


# Embeddings files

def pickled_names(path, arrays, bomb):
    np.savez(path, **arrays | {'image_names': np.array([bomb]*len(arrays['embeddings']), dtype=object)})


def zip_bomb(path, arrays, _bomb):
    np.savez_compressed(path, **arrays | {'embeddings': np.zeros((20_000_000, 1), np.float32)})


def packed_again(path, method, bomb=None):
    "Write a zip file again with another compression, and optionally a bomb in place of the largest member."
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    largest = max(members, key=lambda name: len(members[name]))
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, content in members.items():
            archive.writestr(name, bomb if bomb and name == largest else content)


def cut_in_half(path, _arrays, _bomb):
    path.write_bytes(path.read_bytes()[:5000])


def larger_shape(path, _arrays, _bomb):
    path.write_bytes(path.read_bytes().replace(b"'shape': (", b"'shape': (9", 1))


def huge_shape(path, arrays, _bomb):
    "A header that declares a shape far larger than the data, in a valid archive."
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    count, dimension = arrays['embeddings'].shape
    shape = f'({count}, {dimension})'.encode()
    declared = b'(999999999999, 99999)'
    header = members['embeddings.npy']
    start = header.index(shape)
    padding = len(declared)-len(shape)
    line_end = header.index(b'\n')
    members['embeddings.npy'] = header[:start]+declared+header[start+len(shape):line_end-padding]+header[line_end:]
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize('spoil', [
    pickled_names, zip_bomb, cut_in_half, larger_shape, huge_shape,
    lambda path, _arrays, _bomb: packed_again(path, zipfile.ZIP_BZIP2),
    lambda path, _arrays, _bomb: packed_again(path, zipfile.ZIP_LZMA),
    lambda path, _arrays, _bomb: path.write_text('hello'),
    lambda path, _arrays, _bomb: path.write_bytes(b''),
    lambda path, _arrays, _bomb: np.savez(path, vectors=np.eye(3)),
], ids=['pickled names', 'zip bomb', 'half', 'larger shape', 'huge shape', 'bzip2', 'lzma', 'text', 'empty', 'foreign'])
def test_bad_embeddings_files_are_refused(copied_shop, run, tmp_path, spoil):
    path = Paths(copied_shop).embeddings
    with np.load(path) as file:
        arrays = dict(file)
    spoil(path, arrays, Bomb(tmp_path/'ran'))
    before = snapshot(copied_shop)
    assert 'image_embeddings.npz' in run(search_main, 'jeans', '--root', copied_shop, refused=True)
    assert snapshot(copied_shop) == before and not (tmp_path/'ran').exists()


@pytest.mark.parametrize('method, bomb, message', [
    (zipfile.ZIP_LZMA, None, 'compressed with lzma'), (zipfile.ZIP_BZIP2, None, 'compressed with bzip2'),
    (zipfile.ZIP_DEFLATED, bytes(30*2**20), 'unpacks to over 200 times'),
])
def test_a_packed_checkpoint_is_refused(copied_shop, run, method, bomb, message):
    packed_again(Paths(copied_shop).best_checkpoint, method, bomb)
    assert message in run(evaluate_main, '--root', copied_shop, refused=True)


def test_a_packed_snapshot_is_not_opened(tmp_path, capsys):
    snapshots = Snapshots(tmp_path)
    for step in (1, 2):
        torch.save({'step': step, 'values': torch.arange(2000.)}, tmp_path/f'step-{step:010}.pt')
    packed_again(tmp_path/'step-0000000002.pt', zipfile.ZIP_LZMA)
    assert snapshots.load()['step'] == 1 and 'compressed with lzma' in capsys.readouterr().out


def test_a_query_image_is_decoded_within_limits(shop, tmp_path, monkeypatch):
    searcher = Searcher.load(Paths(shop[0]), 'cpu')
    for name, size in (('narrow.png', (1, 30_000)), ('large.png', (600, 600))):
        Image.new('RGB', size, 'red').save(tmp_path/name)
    monkeypatch.setattr(images, 'MAX_DECODING_BYTES', 1_000_000)
    assert len(searcher.search(image=(tmp_path/'narrow.png').read_bytes())) == 5
    for image in (tmp_path/'large.png', (tmp_path/'large.png').read_bytes()):
        with pytest.raises(ImageError, match='to decode, over 1 MB'):
            searcher.search(image=image)


def test_an_extra_member_is_never_opened(copied_shop, run, tmp_path):
    with zipfile.ZipFile(Paths(copied_shop).embeddings, 'a') as archive:
        archive.writestr('extra.npy', pickle.dumps(Bomb(tmp_path/'ran')))
    assert '.jpg' in run(search_main, 'jeans', '--root', copied_shop)
    assert not (tmp_path/'ran').exists()
