"Each public name of the package is imported when it is first used."
import ast
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import clip_ft

HEAVY = ('torch', 'transformers', 'pandas', 'numpy', 'matplotlib', 'PIL')


def loaded_by(statement):
    "Names of the heavy packages that a fresh interpreter loads when it runs a statement."
    code = f'import sys\n{statement}\nprint(*[name for name in {HEAVY} if name in sys.modules])'
    return subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.split()


def test_importing_the_package_loads_nothing():
    assert loaded_by('import clip_ft\nclip_ft.__version__\nassert {*clip_ft.__all__} <= {*dir(clip_ft)}') == []
    assert loaded_by('from clip_ft import Paths') == []


def test_the_data_commands_do_not_load_torch():
    assert set(loaded_by('import clip_ft.sources, clip_ft.data')) == {'pandas', 'numpy', 'PIL'}


ANSWERS = """
import contextlib, importlib, io
for target in {targets}:
    module, name = target.split(':')
    for argument in ('--help', '--no-such-option'):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                getattr(importlib.import_module(module), name)([argument])
            except SystemExit as stop:
                assert stop.code == (0 if argument == '--help' else 2), (target, argument)
"""


def test_commands_answer_before_they_load_anything():
    "`--help` and a wrong option take no seconds: the commands import what does the work after reading their arguments."
    settings = ConfigParser(delimiters=['='], interpolation=None)
    settings.read(Path(clip_ft.__file__).parent.parent/'settings.ini', encoding='utf-8')
    targets = [line.partition('=')[2] for line in settings['DEFAULT']['console_scripts'].split()]
    assert len(targets) >= 9 and loaded_by(ANSWERS.format(targets=targets)) == []


def test_every_public_name_is_found():
    for name in clip_ft.__all__:
        assert getattr(clip_ft, name).__name__ == name
    for name in ('Paths', 'get_data', 'preprocess', 'load_model', 'train', 'evaluate', 'compare', 'embed_catalogue',
                 'Searcher', 'SearchWidget'):
        assert name in clip_ft.__all__


def test_modules_can_be_imported_from_the_package():
    from clip_ft import search
    from clip_ft.search import load_embeddings, search_products
    assert search.search_products is search_products is clip_ft.search_products
    assert load_embeddings is clip_ft.load_embeddings


IMPORT_FIRST = """
import os, pandas, torch, transformers
for statement in ('import clip_ft.catalogue_checks', 'import clip_ft.checkup_report', 'from clip_ft import search',
                  'from clip_ft import checkup'):
    child = os.fork()  # which has not imported anything of clip_ft
    if not child:
        exec(statement)
        from clip_ft import checkup, evaluate, train
        assert callable(checkup) and callable(train), statement
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, statement
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')
def test_names_do_not_depend_on_what_is_imported_first():
    "No module of the package has the name of a public name, which it would replace when it is imported."
    subprocess.run([sys.executable, '-c', IMPORT_FIRST], check=True)


def test_no_module_has_a_public_name():
    modules = {path.stem for path in Path(clip_ft.__file__).parent.glob('*.py')}
    assert modules.isdisjoint(clip_ft.__all__)


def test_type_checkers_read_the_same_names():
    "The imports under TYPE_CHECKING name each public name and the module that defines it."
    tree = ast.parse(Path(clip_ft.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    found = {alias.name: node.module for node in imports for alias in node.names if node.module.startswith('clip_ft.')}
    assert found == {name: getattr(clip_ft, name).__module__ for name in clip_ft.__all__}
