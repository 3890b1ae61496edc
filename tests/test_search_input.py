"Odd queries, and models and files that do not match or are hostile: one clear error line, and nothing changes."

import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from clip_ft.core import Paths
from clip_ft.embedding import embed_main, load_embeddings, save_embeddings
from clip_ft.model import save_model, tiny_model
from clip_ft.report import evaluate_main
from clip_ft.search import plot_results
from clip_ft.search_command import search_main


class Bomb:
    "Unpickled, it writes a file."

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.write_text, (Path(self.path), 'this ran')


def files(root):
    return {o: o.read_bytes() for o in sorted(Path(root).rglob('*')) if o.is_file()}


@pytest.mark.parametrize(
    'query',
    [
        'shoes ' * 500,
        '👗👠',
        '<script>alert(1)</script>',
        "'; DROP TABLE products; --",
        '$\\frac{',
        'ünï\x00cödé\n',
        'x' * 20_000,
    ],
)
def test_odd_queries_are_answered(shop, run, tmp_path, query):
    out = run(search_main, query, '--root', shop[0], '--top-k', 3, '--save-grid', tmp_path / 'grid.png')
    assert out.count('.jpg') == 3 and (tmp_path / 'grid.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'args, message',
    [
        (('  \n ',), 'empty'),
        (('',), 'empty'),
        (('jeans', '--top-k', '0'), 'at least 1'),
        (('jeans', '--top-k', '-3'), 'at least 1'),
        (('jeans', '--top-k', 'all'), 'invalid int'),
        (('--save-grid', 'x.png'), 'need a query'),
        (('jeans', '--model', 'no/such/folder'), 'no/such/folder'),
    ],
)
def test_queries_that_are_none(shop, run, args, message):
    before = files(shop[0])
    assert message in run(search_main, '--root', shop[0], *args, refused=True)
    assert files(shop[0]) == before


def test_top_k_above_the_gallery_gives_all(shop, run):
    n = len(np.load(Paths(shop[0]).embeddings)['embeddings'])
    assert run(search_main, 'jeans', '--root', shop[0], '--top-k', 10**9).count('.jpg') == n


def test_a_picture_that_is_gone_is_a_note(copied_shop, run):
    shown = run(search_main, 'jeans', '--root', copied_shop)
    name = next(o for line in shown.splitlines() for o in line.split() if o.endswith('.jpg'))
    (copied_shop / 'data/extracted/data' / name).unlink()
    assert run(search_main, 'jeans', '--root', copied_shop, '--save-grid', copied_shop / 'grid.png').startswith(
        shown.split('\n\n')[0]
    )


def other_architecture(folder):
    "A model with the same names of weights and other shapes."
    _, processor = tiny_model(['blue jeans'])
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(
        text_config=dict(tower, vocab_size=len(processor.tokenizer)),
        vision_config=dict(tower, image_size=96, patch_size=32),
        projection_dim=16,
    )
    save_model(folder, CLIPModel(config), processor)


def test_a_model_of_another_architecture(copied_shop, run, tmp_path):
    paths = Paths(copied_shop)
    other_architecture(tmp_path / 'other')
    before = files(copied_shop)
    assert 'another model' in run(
        search_main, 'jeans', '--root', copied_shop, '--model', tmp_path / 'other', refused=True
    )
    shutil.copy(
        tmp_path / 'other' / 'model.safetensors', paths.best_model / 'model.safetensors'
    )  # its weights in our folder
    for main, *args in ((search_main, 'jeans'), (embed_main,), (evaluate_main,)):
        assert 'best_model' in run(main, *args, '--root', copied_shop, refused=True)
    assert {k: v for k, v in files(copied_shop).items() if k.name != 'model.safetensors'} == {
        k: v for k, v in before.items() if k.name != 'model.safetensors'
    }


@pytest.mark.parametrize(
    'write',
    [
        lambda path, bomb: torch.save({'model_state_dict': bomb}, path),
        lambda path, bomb: path.write_bytes(pickle.dumps(bomb)),
    ],
)
def test_a_pickle_bomb_as_a_checkpoint(copied_shop, run, tmp_path, write):
    paths = Paths(copied_shop)
    write(paths.best_checkpoint, Bomb(tmp_path / 'ran'))
    before = files(copied_shop)
    assert 'best_model.pt' in run(evaluate_main, '--root', copied_shop, refused=True)
    (paths.best_model / 'model.safetensors').unlink()
    write(paths.best_model / 'pytorch_model.bin', Bomb(tmp_path / 'ran'))
    for main, *args in ((search_main, 'jeans'), (embed_main,)):
        assert 'best_model' in run(main, *args, '--root', copied_shop, refused=True)
    assert not (tmp_path / 'ran').exists() and files(copied_shop)[paths.embeddings] == before[paths.embeddings]


@pytest.mark.parametrize(
    'kind', ['objects', 'bomb in a member', 'zip bomb', 'half', 'text', 'empty', 'beyond', 'foreign']
)
def test_embeddings_that_mean_harm_or_nothing(copied_shop, run, tmp_path, kind):
    path = Paths(copied_shop).embeddings
    with np.load(path) as f:
        arrays = dict(f)
    n = len(arrays['embeddings'])
    if kind == 'objects':
        np.savez(path, **arrays | {'image_names': np.array([Bomb(tmp_path / 'ran')] * n, dtype=object)})
    if kind == 'bomb in a member':
        with zipfile.ZipFile(path, 'a') as z:
            z.writestr('extra.npy', pickle.dumps(Bomb(tmp_path / 'ran')))
    if kind == 'zip bomb':
        np.savez_compressed(path, **arrays | {'embeddings': np.zeros((20_000_000, 1), np.float32)})
    if kind == 'half':
        path.write_bytes(path.read_bytes()[:5000])
    if kind == 'text':
        path.write_text('hello')
    if kind == 'empty':
        path.write_bytes(b'')
    if kind == 'beyond':
        path.write_bytes(path.read_bytes().replace(b"'shape': (", b"'shape': (9", 1))
    if kind == 'foreign':
        np.savez(path, vectors=np.eye(3))
    before = files(copied_shop)
    if kind == 'bomb in a member':
        assert '.jpg' in run(search_main, 'jeans', '--root', copied_shop)  # a member that nobody asked for isn't opened
    else:
        assert 'image_embeddings.npz' in run(search_main, 'jeans', '--root', copied_shop, refused=True)
    assert files(copied_shop) == before and not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'args, message',
    [
        (('--where', "category=x' OR '1'='1"), None),
        (('--where', "category' OR '1'='1=x"), 'no column'),
        (('--where', 'category~.*'), None),
        (('--where', '__class__=x'), 'no column'),
        (('--where', 'category>=1); DROP TABLE products'), 'is not a number'),
        (('--like', '../split/train.csv'), 'no picture'),
        (('--image', '/etc/passwd'), 'not a picture'),
        (('--image', '.'), 'missing'),
    ],
)
def test_conditions_and_pictures_that_mean_harm(shop, run, args, message):
    before = files(shop[0])
    if message:
        assert message in run(search_main, 'jeans', '--root', shop[0], *args, refused=True)
    else:
        assert run(search_main, 'jeans', '--root', shop[0], *args).startswith('No product matches.')
    assert files(shop[0]) == before


def test_query_pictures_are_checked(shop, run, tmp_path):
    picture = next((shop[0] / 'data/extracted/data').glob('*.jpg')).read_bytes()
    (tmp_path / 'cut.jpg').write_bytes(picture[: len(picture) // 2])
    Image.new('1', (20_000, 20_000)).save(tmp_path / 'large.png')
    for name, message in (('cut.jpg', 'cannot be decoded'), ('large.png', 'too large')):
        assert message in run(search_main, '--image', tmp_path / name, '--root', shop[0], refused=True)


def test_pictures_stay_inside_the_folder(copied_shop, run):
    "An embeddings file from somebody else names files elsewhere: they are not opened."
    paths = Paths(copied_shop)
    data = load_embeddings(paths.embeddings)
    Image.new('RGB', (50, 50)).save(copied_shop / 'secret.png')
    names = ['../../../secret.png', str(copied_shop / 'secret.png'), *data['image_names'][2:]]
    save_embeddings(
        paths.embeddings,
        np.array(data['embeddings']),
        names,
        data['dataframe'].assign(image=names),
        data['weights_hash'],
    )
    shown = run(search_main, 'jeans', '--root', copied_shop, '--top-k', 1000)
    assert 'secret.png' in shown
    axes = plot_results(
        data['dataframe'].head(3).assign(image=names[:3], clip_score=1.0), copied_shop / 'data/extracted/data'
    ).axes
    assert [len(o.images) for o in axes[:3]] == [0, 0, 1]
