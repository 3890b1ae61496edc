"The examples of README.md run unchanged, on a small catalogue and with a tiny model under the name of the large one."
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest

from clip_ft.commands import embed_main, evaluate_main, get_data_main, preprocess_main, search_main, train_main
from clip_ft.model import save_model, tiny_model

README = (Path(__file__).parent.parent/'README.md').read_text(encoding='utf-8')
MAINS = dict(get_data=get_data_main, preprocess=preprocess_main, train=train_main, evaluate=evaluate_main,
             embed=embed_main, search=search_main)


def example(heading):
    "The code under a heading."
    return re.search(rf'^## {heading}\n.*?^```\w+\n(.*?)^```', README, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def working_folder(shop, tmp_path, monkeypatch):
    "An empty working folder with a tiny model in a folder that is named like CLIP on the hub."
    monkeypatch.chdir(tmp_path)
    products = pd.read_csv(shop[0]/'data/processed/split/train.csv')
    save_model('openai/clip-vit-base-patch32', *tiny_model(products['full_text']))
    return tmp_path


def test_ten_lines_of_python(shop, working_folder):
    shutil.make_archive('catalogue', 'zip', shop[0]/'data'/'extracted')
    names = {}
    exec(example('Ten lines of Python'), names)
    assert len(names['Searcher'].load(names['paths']).search('blue jeans', top_k=5)) == 5
    assert Path('my_shop/data/processed/rejects.csv').exists() and names['history'].epoch.max() >= 1


def test_your_own_catalogue(shop, working_folder, run):
    shutil.copytree(shop[0]/'data'/'extracted', 'path/to/folder')
    table = pd.read_csv('path/to/folder/data.csv', dtype=str, keep_default_na=False)
    own_names = {'image': 'file', 'display name': 'title', 'description': 'text', 'category': 'type'}
    table.rename(columns=own_names).to_csv('path/to/folder/data.csv', index=False)
    for line in example('Your own catalogue in five lines').replace(' && ', '\n').splitlines():
        name, *args = shlex.split(line, comments=True)
        out = run(MAINS[name.removeprefix('clip_ft_')], *args)
    assert out.count('.jpg') == 5 and Path('dress.png').stat().st_size > 10_000


def test_the_kaggle_lines_name_options_that_exist(run):
    for line in example('The Kaggle data set in five lines').replace(' && ', '\n').splitlines():
        name, *args = shlex.split(line, comments=True)
        help_text = run(MAINS[name.removeprefix('clip_ft_')], '--help')
        assert all(o in help_text for o in args if o.startswith('--'))


def test_images_and_links_of_the_readme_exist():
    targets = re.findall(r'\]\(([^)\s]+)\)', README)
    assert any(o.endswith('.png') for o in targets)
    for target in targets:
        assert target.startswith('https://') or (Path(__file__).parent.parent/target).is_file(), target
