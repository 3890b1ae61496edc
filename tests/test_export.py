"clip_ft_export, the model card, and ONNX towers of several families."
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_families import FAMILIES

from clip_ft import export_command
from clip_ft.commands import evaluate_main, export_main
from clip_ft.core import Paths
from clip_ft.encode import embed_images, embed_texts
from clip_ft.export_command import export_model
from clip_ft.model import load_model, save_model
from clip_ft.model_card import write_card
from clip_ft.onnx_towers import OnnxTowers

TEXTS = ['', 'jeans', 'Blue JEANS', 'a red dress with long sleeves', 'ÄRMEL und Größe', 'blue jeans and more '*60]


def snippet(folder):
    "The code in a model card."
    return (folder/'README.md').read_text().split('```python\n')[1].split('```')[0]


def header(folder):
    "The YAML at the top of a model card."
    return yaml.safe_load((folder/'README.md').read_text().split('---\n')[1])


@pytest.mark.parametrize('family', ['CLIP', 'SigLIP', 'SigLIP 2', 'MetaCLIP 2', 'Chinese-CLIP'])
def test_towers_and_snippets_agree_with_the_model(tmp_path, family, monkeypatch):
    torch.manual_seed(0)
    model, processor = FAMILIES[family][0](TEXTS, tmp_path)
    save_model(tmp_path/'model', model.eval(), processor)
    model, processor = load_model(tmp_path/'model', 'cpu')
    export_model(model, processor, tmp_path/'model', tmp_path/'onnx', int8=True)
    rng = np.random.default_rng(0)
    sizes = ((64, 64), (90, 41), (33, 70), (65, 64), (128, 128))
    images = [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]
    expected = embed_images(model, processor, images, progress=False), embed_texts(model, processor, TEXTS)
    for int8, limit in ((False, 1-1e-5), (True, .95)):
        towers = OnnxTowers(tmp_path/'onnx', int8)
        for count in (1, 5):
            found = towers.embed_images(images, count), towers.embed_texts(TEXTS, count)
            assert all((a*b).sum(1).min() > limit for a, b in zip(found, expected, strict=True))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet(tmp_path/'onnx'), names)
    found = np.concatenate([names['embed_image'](image) for image in images]), names['embed_texts'](TEXTS)
    for a, b in zip(found, expected, strict=True):
        assert (a*b).sum(1).min() > .9999
    write_card(tmp_path/'model', processor)
    exec(snippet(tmp_path/'model'), names)
    assert names['scores'].shape == (2, 2)


@pytest.fixture
def project(copied_shop):
    "A trained project with a model of its own, and the arguments that name it."
    return Paths(copied_shop), ('--root', copied_shop)


def test_training_and_evaluation_write_the_card(project, run):
    paths, root = project
    card = paths.best_model/'README.md'
    assert '0.1' in card.read_text() and 'before | after | best' in card.read_text()
    found = header(paths.best_model)
    assert found['pipeline_tag'] == 'zero-shot-image-classification' and found['model-index']
    assert 'base_model' not in found and 'random weights' in card.read_text()
    assert '| epochs | 2 |' in card.read_text()
    card.write_text(card.read_text().replace('fill in, here', 'MIT, here'))
    assert 'was edited, and kept' in run(export_main, *root, '--format', 'card')
    card.unlink()
    run(export_main, *root, '--format', 'card', '--license', 'mit')
    assert header(paths.best_model)['license'] == 'mit'


def test_evaluation_of_a_protected_folder_prints_a_sentence(project, run, monkeypatch):
    _, root = project

    def refuse(*_):
        raise PermissionError(13, 'Permission denied', 'README.md')
    monkeypatch.setattr('clip_ft.report.save_evaluation', refuse)
    assert 'The results were not stored in' in run(evaluate_main, *root)


def test_no_file_of_an_export_names_a_folder_of_this_machine(project, run, tmp_path):
    paths, root = project
    notes = json.loads((paths.best_model/'clip_ft.json').read_text()) | dict(base=str(tmp_path/'secret'/'base'))
    (paths.best_model/'clip_ft.json').write_text(json.dumps(notes))
    run(export_main, *root, '--out', tmp_path/'out')
    run(export_main, *root, '--format', 'open_clip')
    for folder in (tmp_path/'out', paths.checkpoints/'open_clip'):
        files = [path for path in folder.rglob('*') if path.is_file()]
        assert len(files) > 5
        assert not [path.name for path in files if str(tmp_path).encode() in path.read_bytes()]
        assert 'the local model base' in (folder/'README.md').read_text()


def test_the_open_clip_snippet_runs(tmp_path, monkeypatch):
    pytest.importorskip('open_clip')  # needs torchvision
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path/'base', *FAMILIES['CLIP'][0](TEXTS, tmp_path))  # open_clip has no SigLIP of this size
    export_model(*load_model(tmp_path/'base', 'cpu'), tmp_path/'base', tmp_path/'out', 'open_clip')
    exec(snippet(tmp_path/'out'), {})


def test_mistakes(project, run, tmp_path, monkeypatch):
    paths, root = project
    photos = tmp_path/'photos'
    photos.mkdir()
    (photos/'a.jpg').write_text('x')
    for args, part in (
        (('--out', photos), 'name another folder'), (('--out', photos/'a.jpg'), 'is a file'),
        (('--out', paths.best_model), 'name another folder'), (('--out', photos/'a.jpg'/'deeper'), 'a.jpg'),
        (('--model', tmp_path/'missing'), 'no model'), (('--format', 'pickle'), 'invalid choice'),
        (('--format', 'open_clip', '--int8'), '--int8'), (('--public',), '--public'),
        (('--format', 'card', '--out', photos), '--out'),
        (('--format', 'card', '--push', 'a b'), 'is no name'),
    ):
        assert part in run(export_main, *root, *args, refused=True)
    assert (photos/'a.jpg').read_text() == 'x'
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    assert 'could not be uploaded' in run(export_main, *root, '--format', 'card', '--push', 'me/jeans', refused=True)


def test_upload(project, run, monkeypatch):
    paths, root = project
    sent = []

    class Hub:
        def create_repo(self, name, **options):
            sent.append((name, options))
            return type('Url', (str,), dict(repo_id=name))(f'https://huggingface.co/{name}')

        def upload_folder(self, **options):
            sent.append(options)
    monkeypatch.setattr(export_command, 'HfApi', Hub)
    assert 'https://huggingface.co/me/jeans' in run(export_main, *root, '--format', 'card', '--push', 'me/jeans')
    assert sent[0] == ('me/jeans', dict(private=True, exist_ok=True))
    assert sent[1]['folder_path'] == paths.best_model and 'clip_ft.json' in sent[1]['ignore_patterns']
    assert "name = 'me/jeans'" in (paths.best_model/'README.md').read_text()
    run(export_main, *root, '--format', 'card', '--push', 'me/jeans', '--public')
    assert sent[2][1]['private'] is False
