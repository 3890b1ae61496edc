"A training run never costs the model that was there before, and 'before' is always the model before fine-tuning."
import shutil

import numpy as np
import pytest
import torch

from clip_ft.checkpoints import weights_hash
from clip_ft.commands import evaluate_main, train_main
from clip_ft.core import Paths
from clip_ft.data import load_split
from clip_ft.history import open_tracker
from clip_ft.learned import Learned, read_learned
from clip_ft.model import load_model, read_notes, save_model, tiny_model
from clip_ft.models import base_model, kept_models

FAST = ['--device', 'cpu', '--epochs', '1', '--batch-size', '64']


@pytest.fixture
def project(copied_shop):
    "A project with a trained model: its paths, and the weights hash of the model."
    paths = Paths(copied_shop)
    return paths, best_hash(paths)


def best_hash(paths):
    return weights_hash(load_model(paths.best_model, 'cpu', verbose=False)[0])


def test_a_rate_that_is_too_high(project, run):
    paths, before = project
    checkpoint = paths.best_checkpoint.read_bytes()
    base = base_model(paths, read_notes(paths.best_model))
    out = run(train_main, '--root', paths.root, '--model', paths.best_model, *FAST, '--lr', '.05')
    assert 'No epoch was better than the model before training' in out and 'lower learning rate' in out
    assert best_hash(paths) == before and paths.best_checkpoint.read_bytes() == checkpoint
    assert base_model(paths, read_notes(paths.best_model)) == base and not paths.last.exists()
    assert len(kept_models(paths)) == 1  # nothing new was learned, so nothing is kept


def test_the_better_model_is_the_best_one(project, run):
    "Whichever model wins, the other one is kept, and both can be loaded."
    paths, before = project
    out = run(train_main, '--root', paths.root, '--model', 'tiny', *FAST, '--seed', '3')
    models = kept_models(paths)
    assert len(models) == 2 and ('is better and stays' in out) != ('The new model was written' in out)
    hashes = {weights_hash(load_model(folder, 'cpu', verbose=False)[0]) for folder in models.model}
    assert before in hashes and len(hashes) == 2
    assert all(folder in run(train_main, '--root', paths.root, '--list') for folder in models.model)
    used = {str(read_notes(folder).get('base_copy')) for folder in kept_models(paths).model}
    assert {f'base/{path.name}' for path in paths.bases.iterdir()} == used


def test_before_is_the_model_before_the_first_training(project, run):
    paths, _ = project
    notes = read_notes(paths.best_model)
    base, _ = load_model(base_model(paths, notes), 'cpu', verbose=False)
    assert weights_hash(base) == notes['base_hash']
    run(train_main, '--root', paths.root, '--model', paths.best_model, *FAST, '--monitor', 'loss', '--lr', '1e-4')
    again = read_notes(paths.best_model)
    assert {name: again[name] for name in ('base', 'base_hash', 'base_copy')} == {
        name: notes[name] for name in ('base', 'base_hash', 'base_copy')}
    for key in ('date', 'versions', 'data', 'config', 'products', 'started_from', 'weights_hash', 'score'):
        assert again[key] is not None, key
    changed = paths.checkpoints/notes['base_copy']
    save_model(changed, *tiny_model(['another', 'model'], seed=9))
    assert 'has changed since training' in run(evaluate_main, '--root', paths.root, '--device', 'cpu', refused=True)


def test_a_best_model_that_cannot_be_compared(project, run):
    "It was trained on the validation products, or is damaged: the new model takes its place, and it is kept."
    paths, before = project
    learned = read_learned(paths.best_model)
    Learned(np.concatenate(learned), learned.validated).save(paths.best_model)
    out = run(train_main, '--root', paths.root, '--model', 'tiny', *FAST, '--seed', '3')
    assert 'it was trained on' in out and 'The previous model is kept' in out and best_hash(paths) != before
    (paths.best_model/'model.safetensors').write_bytes(b'')
    out = run(train_main, '--root', paths.root, '--model', 'tiny', *FAST, '--val-size', '0')
    assert 'without validation products' in out and 'The previous model is kept' in out
    assert best_hash(paths) and len(kept_models(paths)) == 3


def test_the_start_may_be_a_folder_that_disappears(project, tmp_path, run):
    paths, _ = project
    shutil.rmtree(paths.checkpoints)
    start = tmp_path/'start'
    save_model(start, *tiny_model(load_split(paths)[0].full_text, seed=5))
    expected = weights_hash(load_model(start, 'cpu', verbose=False)[0])
    run(train_main, '--root', paths.root, '--model', start, *FAST, '--lr', '1e-7')
    assert torch.load(paths.best_checkpoint)['alpha'] == 1  # random weights know nothing to keep
    shutil.rmtree(start)
    base = base_model(paths, read_notes(paths.best_model))
    assert weights_hash(load_model(base, 'cpu', verbose=False)[0]) == expected


def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    tracker = open_tracker('tensorboard', tmp_path, dict(lr=1e-3, texts=dict(name=1)))
    tracker.log(dict(val_mrr=.5), step=1)
    tracker.finish()
    assert list(tmp_path.rglob('events*'))
