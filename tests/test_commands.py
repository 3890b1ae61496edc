"The six commands as a user types them, one after the other, each in a process of its own; and what Ctrl-C leaves behind."
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BIN, command, start

from clip_ft.data import preprocess_main
from clip_ft.sources import get_data_main
from clip_ft.report import evaluate_main
from clip_ft.model import load_model, save_model, tiny_model
from clip_ft.embedding import embed_main
from clip_ft.search_command import search_main
from clip_ft.train_command import train_main

def test_the_whole_path(shop):
    root, said = shop
    split = [pd.read_csv(root/'data'/'processed'/'split'/f'{o}.csv') for o in ('train', 'test')]
    rejects = pd.read_csv(root/'data'/'processed'/'rejects.csv')
    assert sum(map(len, split))+len(rejects) == 200
    history = pd.read_csv(root/'checkpoints'/'training_history.csv')
    assert history.epoch.tolist() == [0, 1, 2]
    assert (root/'checkpoints'/'training_history.png').read_bytes().startswith(b'\x89PNG')
    assert 'model_state_dict' in torch.load(root/'checkpoints'/'best_model.pt')
    assert all(o in said['evaluate'] for o in ('clip_score', 'batch_accuracy', 'hit_rate@1', 'hit_rate@5', 'hit_rate@10', 'mrr', 'median_rank', 'before'))
    with np.load(root/'data'/'processed'/'image_embeddings.npz', allow_pickle=False) as f:
        assert f['embeddings'].shape == (sum(map(len, split)), 128)
    lines = said['search'].splitlines()
    assert len([o for o in lines if '.jpg' in o]) == 5 and max(map(len, lines[:6])) <= 100
    assert str(root) in said['search']                    # where the pictures are
    assert (root/'grid.png').stat().st_size > 10_000


def test_saved_model_opens_with_plain_transformers(shop):
    from transformers import CLIPModel, CLIPProcessor
    root, _ = shop
    model = CLIPModel.from_pretrained(root/'checkpoints'/'best_model')
    model.load_state_dict(torch.load(root/'checkpoints'/'best_model.pt')['model_state_dict'])
    assert CLIPProcessor.from_pretrained(root/'checkpoints'/'best_model').tokenizer('blue jeans')['input_ids']


def test_search_as_a_prompt(shop):
    root, _ = shop
    done = subprocess.run([str(BIN/'clip_ft_search'), '--root', str(root), '--top-k', '2'], input='red dress\nwatch\n', capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count('.jpg') == 4


def test_twice_gives_the_same(shop):
    "Preprocessing again changes nothing, and neither does asking for the data again."
    root, _ = shop
    files = [root/'data'/'processed'/'split'/'train.csv', root/'data'/'processed'/'rejects.csv']
    before = [o.read_bytes() for o in files]
    command('clip_ft_get_data', '--root', root, '--source', 'demo', '--limit', 200)
    command('clip_ft_preprocess', '--root', root, '--test-size', .2)
    assert [o.read_bytes() for o in files] == before


def test_embeddings_of_another_model_are_refused(shop):
    root, _ = shop
    model, processor = tiny_model(['blue jeans and a red dress'], seed=9)
    save_model(root/'other', model, processor)
    _, err = command('clip_ft_search', 'jeans', '--root', root, '--model', root/'other', code=2)
    assert 'another model' in err and 'Traceback' not in err


@pytest.mark.parametrize('main, args, message', [
    (get_data_main, ['--source', 'no/such/place'], 'no/such/place'),
    (preprocess_main, [], 'clip_ft_get_data'),
    (train_main, ['--model', 'tiny'], 'clip_ft_preprocess'),
    (evaluate_main, [], 'clip_ft_preprocess'),
    (embed_main, [], 'clip_ft_preprocess'),
    (search_main, ['jeans'], 'clip_ft_embed'),
])
def test_too_early_or_wrong_is_one_line(tmp_path, run, main, args, message):
    assert message in run(main, '--root', tmp_path, *args, refused=True)
    assert not any(o.is_file() for o in tmp_path.rglob('*'))


@pytest.mark.parametrize('main', [get_data_main, preprocess_main, train_main, evaluate_main, embed_main, search_main])
def test_help_explains_every_option(run, main):
    text = run(main, '--help')
    options = re.findall(r'^  (?:-\w, )?(--[\w-]+|\w+)(.*(?:\n {8,}.*)*)', text, re.MULTILINE)
    assert '--root' in [name for name, _ in options]
    for name, rest in options:
        assert len(re.sub(r'\(default: .*|[A-Z_]+', '', rest).split()) >= 2, f'{name} is not explained'


def test_a_process_gives_the_same_line_and_code(tmp_path):
    _, err = command('clip_ft_search', 'jeans', '--root', tmp_path, '--top-k', '0', code=2)
    assert err == 'error: --top-k must be at least 1, not 0.\n'
    assert 'what to look for' in command('clip_ft_search', '--help')[0]


def test_ctrl_c_keeps_the_best_model(copied_shop):
    "Interrupted while it trains: exit code 130, one line, and a checkpoint that loads."
    again = copied_shop
    shutil.rmtree(again/'checkpoints')
    process = start('clip_ft_train', '--root', again, '--model', 'tiny', '--epochs', 500, '--patience', 500, '--lr', 1e-3)
    history, best = again/'checkpoints'/'training_history.csv', again/'checkpoints'/'best_model.pt'
    deadline = time.time()+240
    while not (best.exists() and history.read_text().count('\n') >= 3) and time.time() < deadline:
        time.sleep(.1)   # one epoch is done
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert 'Traceback' not in err
    checkpoint = torch.load(again/'checkpoints'/'best_model.pt')
    model, _ = load_model(again/'checkpoints'/'best_model', device='cpu')
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, checkpoint['model_state_dict'][name]), name
    assert len(pd.read_csv(history)) >= 2
    assert not [o for o in (again/'checkpoints').iterdir() if o.name.startswith('.')]   # no half-written files
