"Hundreds of wrong arguments, files and values, drawn with fixed seeds: each is one line of error, and changes nothing."

import contextlib
import json
import os
import random
import shutil
import socket
from unittest.mock import patch

import numpy as np
import pytest
from conftest import snapshot

from clip_ft import train_command
from clip_ft.commands import embed_main, evaluate_main, get_data_main, preprocess_main, search_main, train_main
from clip_ft.core import InputError, Paths
from clip_ft.embeddings_file import load_embeddings
from clip_ft.model import load_model
from clip_ft.search import Searcher, search_products

NUMBERS = ['nan', 'inf', '-inf', '1e400', '1e-320', '-1', '-0.0', '0', '1.5', '2', '', ' ', 'x', '0x10', '1_0', '٣',
           str(2**31), str(2**33), str(2**63), str(2**64), '9'*400]
DEVICES = ['cuda:99', 'cuda:-1', 'cpu:', 'meta', 'gpu', '', '0', 'caf\udce9', 'cuda:x']
TEXTS = ['', 'caf\udce9', '\ud83d', '\x1b[31mred', '"', "' or 1=1 --", '\\', '=', '%s', '$x$', '~nobody', 'x'*10**5]
CONDITIONS = ['category', '=', 'category=', '=x', 'category>x', 'price=2..1', 'nothing=1', 'category=caf\udce9',
              'a=b=c', 'display name~', 'category=\x1b', "category=' or 1=1", 'price>=nan', 'price<=1e400', 'image=x']
WEIGHTS = ['name', '=1', 'name=', 'name=x', 'nothing=1', *(f'name={number}' for number in NUMBERS)]
COLUMNS = ['display name', '=', 'x=y', 'image=', 'image=nothing', 'caf\udce9=image', 'image=caf\udce9']
SETTINGS = ('epochs', 'lr', 'batch-size', 'val-size', 'patience', 'warmup', 'weight-decay', 'grad-clip', 'ema', 'lora',
            'hard-negative-size', 'micro-batch', 'freeze-vision', 'freeze-text', 'layer-decay', 'save-minutes', 'seed')


@pytest.fixture(scope='module')
def wrong_files(tmp_path_factory):
    "Paths that cannot be read as any file that a command expects."
    folder = tmp_path_factory.mktemp('wrong')
    contents = dict(
        empty=b'', text=b'no,thing\n1,2\n', null=b'null', list=b'[]', number=b'1', latin=b'{"caf\xe9": {"1": 1}}',
        nested=b'['*100_000, nan=b'{"red": {"1.jpg": NaN}}', half=b'{"\\ud83d": {"1.jpg": 1}}', zip=b'PK\x03\x04'*9,
        random=random.Random(0).randbytes(5000))
    for name, content in contents.items():
        (folder/name).write_bytes(content)
    os.mkfifo(folder/'fifo')
    (folder/'loop').symlink_to('loop')
    (folder/'folder').mkdir()
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(folder):  # bind takes at most about 100 characters
        server.bind('socket')
    return [*sorted(map(str, folder.iterdir())), str(folder/'missing'), 'caf\udce9', 'x'*300, '/dev/null']


def options(files):
    "For each command: arguments that it needs, and values to draw for its options; None: the argument without a name."
    return {
        get_data_main: ([], {'--source': [*files, *TEXTS], '--limit': NUMBERS, '--seed': NUMBERS}),
        preprocess_main: ([], {'--test-size': NUMBERS, '--seed': NUMBERS, '--columns': COLUMNS, '--keep-out': files}),
        train_main: (['--model', 'tiny'], {
            **{f'--{name}': NUMBERS for name in SETTINGS},
            '--texts': WEIGHTS, '--monitor': TEXTS, '--device': DEVICES, '--model': files}),
        evaluate_main: ([], {'--queries': files, '--device': DEVICES, '--model': files, '--base': files,
                             '--protocol': ['kagl', *TEXTS]}),
        embed_main: ([], {'--device': DEVICES, '--model': files}),
        search_main: ([], {
            None: TEXTS, '--image': files, '--like': TEXTS, '--not': TEXTS, '--where': CONDITIONS, '--top-k': NUMBERS,
            '--offset': NUMBERS, '--image-weight': NUMBERS, '--device': DEVICES, '--model': files}),
    }


def call(main, args, capsys):
    "Run a command; return its exit code and what it wrote to the error stream."
    try:
        main(args)
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err


@pytest.mark.parametrize('number', range(6))
def test_wrong_arguments(copied_shop, wrong_files, capsys, number):
    main, (needed, values) = list(options(wrong_files).items())[number]
    rng, refused = random.Random(number), 0
    before = snapshot(copied_shop)
    trained = InputError('These settings can be used.')
    with patch.object(train_command, 'train', side_effect=trained):  # these tests are about refusing
        for _ in range(40):
            names = rng.sample(list(values), min(len(values), rng.choice((1, 1, 2))))
            args = ['--root', str(copied_shop), *needed]
            for name in names:
                value = rng.choice(values[name])
                args += [value] if name is None else [f'{name}={value}'] if value.startswith('-') else [name, value]
            code, err = call(main, args, capsys)
            shown = ascii(args[2:])[:300], err[-600:]
            assert code in (0, 2) and 'Traceback' not in err, shown
            if code == 2:
                refused += 1
                last = err.rstrip('\n').splitlines()[-1]
                assert last.startswith('error: ') and err.count('error: ') == 1 and len(last) < 900, shown
                assert snapshot(copied_shop) == before, shown
            before = snapshot(copied_shop)
    assert refused >= 8


def damaged(content, rng):
    "Bytes that differ: cut, changed in a few places, or something else."
    kind, content = rng.randrange(4), bytearray(content)
    if kind == 0:
        return bytes(content[:rng.randrange(len(content))])
    if kind == 1:
        return rng.choice((b'', b'null', b'[]', b'{}', b'<html>', b'['*100_000, b'PK\x03\x04', b'{"a": "caf\xe9"}'))
    for _ in range(rng.randrange(1, 9)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def change_a_value(content, rng):
    "The content of a JSON file with another value at one place."
    content = part = json.loads(content)
    while True:
        key = rng.choice(list(part))
        if not (isinstance(part[key], dict) and part[key] and rng.random() < .8):
            break
        part = part[key]
    part[key] = rng.choice((None, -1, 0, 10**6, 10**12, 1e308, 'x', [], {}, True, '\ud800', '../../etc'))
    return json.dumps(content).encode()


def test_damaged_models(shop, tmp_path):
    "A model either loads or is refused by an InputError."
    original, rng, refused = Paths(shop[0]).best_model, random.Random(0), 0
    folder = shutil.copytree(original, tmp_path/'model')
    names = [path.name for path in original.iterdir()]
    for _ in range(60):
        path = folder/rng.choice(names)
        whole = path.read_bytes()
        is_config = path.suffix == '.json' and path.name != 'tokenizer.json'
        path.write_bytes(change_a_value(whole, rng) if is_config and rng.random() < .7 else damaged(whole, rng))
        try:
            load_model(folder, 'cpu')
        except InputError as error:
            refused += 1
            assert len(str(error)) < 1000
        path.write_bytes(whole)
    assert 20 <= refused < 60


def test_damaged_embeddings(shop, tmp_path):
    "Embeddings either are what was written or are refused by an InputError."
    original, rng, refused = Paths(shop[0]).embeddings, random.Random(0), 0
    expected, path = load_embeddings(original), tmp_path/'embeddings.npz'
    for _ in range(100):
        path.write_bytes(damaged(original.read_bytes(), rng))
        try:
            found = load_embeddings(path)
        except InputError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert np.array_equal(found['embeddings'], expected['embeddings'])
            assert found['image_names'].tolist() == expected['image_names'].tolist()
    assert refused > 80


@pytest.mark.parametrize('name, value', [
    *(('top_k', value) for value in (0, -1, 1.5, float('nan'), float('inf'), True, '5', None)),
    *(('offset', value) for value in (-1, .5, float('nan'), 'x')),
    *(('image_weight', value) for value in (float('nan'), -.1, 1.1, float('inf'), 'x', None)),
    ('query', 5), ('query', b'red'), ('image', 'no such file'), ('image', 5), ('like', 'nothing.jpg'), ('like', 5),
])
def test_wrong_values(shop, name, value):
    paths = Paths(shop[0])
    searcher = Searcher.load(paths, 'cpu')
    options = dict(query='red', image=np.zeros((9, 9, 3), np.uint8)) if name == 'image_weight' else dict(query='red')
    with pytest.raises(InputError):
        searcher.search(**(options | {name: value}))
    if name in ('top_k', 'query'):
        data, options = load_embeddings(paths.embeddings), dict(query='red', top_k=5) | {name: value}
        with pytest.raises(InputError):
            search_products(options['query'], searcher.model, searcher.processor, data['embeddings'],
                            data['image_names'], data['dataframe'], options['top_k'])
