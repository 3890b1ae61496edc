"The six commands, each in its own process, and interruption by Ctrl-C."
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BIN, command

from clip_ft.checkpoints import Snapshots
from clip_ft.commands import embed_main, evaluate_main, get_data_main, preprocess_main, search_main, train_main
from clip_ft.core import Paths
from clip_ft.model import load_model, save_model, tiny_model
from clip_ft.views import image_rows

METRICS = ('clip_score', 'batch_accuracy', 'hit_rate@1', 'hit_rate@5', 'hit_rate@10', 'mrr', 'median_rank')


def test_all_six_commands(shop):
    root, printed = shop
    paths = Paths(root)
    products = pd.concat([pd.read_csv(paths.train_csv), pd.read_csv(paths.test_csv)])
    assert len(products) + len(pd.read_csv(paths.rejects_csv)) == 200
    assert pd.read_csv(paths.history_csv)['epoch'].tolist() == [0, 1, 2]
    assert paths.history_png.read_bytes().startswith(b'\x89PNG')
    assert 'model_state_dict' in torch.load(paths.best_checkpoint)
    for word in (*METRICS, 'before'):
        assert word in printed['evaluate']
    with np.load(paths.embeddings, allow_pickle=False) as file:
        assert file['embeddings'].shape == (len(image_rows(products).names), 128)
    lines = printed['search'].splitlines()
    assert sum('.jpg' in line for line in lines) == 5
    assert max(map(len, lines[:6])) <= 100
    assert str(root) in printed['search']  # the folder of the images
    assert (root/'grid.png').stat().st_size > 10_000


def test_saved_model_opens_with_plain_transformers(shop):
    from transformers import CLIPModel, CLIPProcessor
    paths = Paths(shop[0])
    model = CLIPModel.from_pretrained(paths.best_model)
    saved = torch.load(paths.best_checkpoint)['model_state_dict']
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, saved[name]), name
    assert CLIPProcessor.from_pretrained(paths.best_model).tokenizer('blue jeans')['input_ids']


def test_search_as_a_prompt(shop):
    process = subprocess.run([str(BIN/'clip_ft_search'), '--root', str(shop[0]), '--top-k', '2'],
                             input='red dress\nwatch\n', capture_output=True, text=True, timeout=120)
    assert process.returncode == 0 and process.stdout.count('.jpg') == 4


def test_repeating_the_first_commands_changes_nothing(shop):
    paths = Paths(shop[0])
    files = [paths.train_csv, paths.test_csv, paths.rejects_csv]
    before = [path.read_bytes() for path in files]
    command('clip_ft_get_data', '--root', paths.root, '--source', 'demo', '--limit', 200)
    command('clip_ft_preprocess', '--root', paths.root, '--test-size', .2)
    assert [path.read_bytes() for path in files] == before


def test_embeddings_of_another_model_are_refused(shop, run):
    root, _ = shop
    model, processor = tiny_model(['blue jeans and a red dress'], seed=9)
    save_model(root/'other', model, processor)
    assert 'another model' in run(search_main, 'jeans', '--root', root, '--model', root/'other', refused=True)


@pytest.mark.parametrize('main, args, message', [
    (get_data_main, ['--source', 'no/such/place'], 'no/such/place'),
    (preprocess_main, [], 'clip_ft_get_data'),
    (train_main, ['--model', 'tiny'], 'clip_ft_preprocess'),
    (evaluate_main, [], 'clip_ft_preprocess'),
    (embed_main, [], 'clip_ft_preprocess'),
    (search_main, ['jeans'], 'clip_ft_embed'),
])
def test_missing_prerequisite_is_reported_in_one_line(tmp_path, run, main, args, message):
    assert message in run(main, '--root', tmp_path, *args, refused=True)
    assert not any(path.is_file() for path in tmp_path.rglob('*'))


@pytest.mark.parametrize('main', [get_data_main, preprocess_main, train_main, evaluate_main, embed_main, search_main])
def test_help_explains_every_option(run, main):
    text = run(main, '--help')
    options = re.findall(r'^  (?:-\w, )?(--[\w-]+|\w+)(.*(?:\n {8,}.*)*)', text, re.MULTILINE)
    assert '--root' in [name for name, _ in options]
    for name, rest in options:
        assert len(re.sub(r'Default: .*|[A-Z_]+', '', rest).split()) >= 2, f'{name} is not explained'


def test_error_line_and_exit_code_of_a_process(tmp_path):
    _, err = command('clip_ft_search', 'jeans', '--root', tmp_path, '--top-k', '0', code=2)
    assert err == 'error: --top-k must be at least 1, not 0.\n'


def test_ctrl_c_keeps_the_best_epoch(copied_shop, fork, run):
    "Training that is interrupted exits with code 130; --finish makes a model of the best epoch so far."
    paths = Paths(copied_shop)
    shutil.rmtree(paths.checkpoints)
    args = ['--root', str(paths.root), '--model', 'tiny', '--epochs', '500', '--patience', '500', '--lr', '1e-3']
    process = fork(train_main, args, log=paths.root/'log.txt')
    deadline = time.time() + 240
    while time.time() < deadline:
        if Snapshots(paths.last).best_path.exists():
            break  # one epoch is complete
        time.sleep(.1)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    output = (paths.root/'log.txt').read_text()
    assert process.exitcode == 130 and 'Traceback' not in output, output
    assert '--finish' in output and not paths.best_model.exists()
    assert 'unfinished' in run(evaluate_main, '--root', paths.root, '--device', 'cpu', refused=True)
    assert 'Epoch' in run(train_main, *args, '--finish')
    checkpoint = torch.load(paths.best_checkpoint)
    model, _ = load_model(paths.best_model, device='cpu')
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, checkpoint['model_state_dict'][name]), name
    assert len(pd.read_csv(paths.history_csv)) >= 2
    assert not [path for path in paths.checkpoints.iterdir() if path.name.startswith('.')]  # no half-written files
