"The texts of the search page and of the map: complete in every language, and none outside the files of the languages."
import ast
import json
import re
from pathlib import Path
from string import Formatter

import pytest
from babel import Locale

from clip_ft.languages import languages, phrase, set_language, texts_of

PACKAGE = Path(__file__).resolve().parent.parent/'clip_ft'
FOLDER = PACKAGE/'static'/'languages'
TEMPLATES = ('chips.html', 'details.html', 'grid.html', 'message.html', 'parts.html', 'side_by_side.html', 'first.html',
             'web.html')
MODULES = ('cards', 'filters', 'page', 'results', 'widget', 'project_page')
NOT_SHOWN = (  # errors for the owner of a project and its log, names of attributes, and names in results
    'The model has changed', 'There is no column', 'There is no image folder', 'A job of the search page failed',
    'An error on the search page', 'Results are', 'After fine-tuning', 'again (embed_catalogue', 'a query',
    'display name', 'by image')


def placeholders(text):
    return {name for _, name, *_ in Formatter().parse(text) if name}


def forms(text):
    return text if isinstance(text, dict) else {'': text}


@pytest.mark.parametrize('code', sorted(path.stem for path in FOLDER.glob('*.json')))
def test_complete(code):
    english = json.loads((FOLDER/'en.json').read_text(encoding='utf-8'))
    own = json.loads((FOLDER/f'{code}.json').read_text(encoding='utf-8'))
    assert own.keys() == english.keys()
    for key, text in own.items():
        names = set().union(*map(placeholders, forms(english[key]).values()))
        assert all(placeholders(form) == names for form in forms(text).values()), key
        assert all(form.strip() for form in forms(text).values()), key
        if isinstance(text, dict):
            assert Locale.parse(code).plural_form.tags | {'other'} == text.keys(), key


def test_each_text_is_used():
    patterns = ('*.py', 'templates/*.html', 'static/*.js')
    sources = [path.read_text(encoding='utf-8') for pattern in patterns for path in PACKAGE.glob(pattern)]
    source = '\n'.join(sources)
    families = ('column.', 'stock.', 'close.', 'sort.', 'compare.', 'mix.')  # their keys are composed
    keys = [key for key in texts_of('en') if not key.startswith(families)]
    unused = [key for key in keys if not re.search(f'[\'"]{re.escape(key)}[\'"]', source)]
    assert not unused, unused


def constants(tree):
    "The strings of a module that are no docstrings."
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.lineno, node.value


@pytest.mark.parametrize('name', MODULES)
def test_no_text_in_modules(name):
    found = [(line, text) for line, text in constants(ast.parse((PACKAGE/f'{name}.py').read_text(encoding='utf-8')))
             if re.search(r'[A-Za-z]{2,} [a-z]{2,}', re.sub(r'<[^>]*>', '', text)) and not text.startswith(NOT_SHOWN)]
    assert not found, found


@pytest.mark.parametrize('name', TEMPLATES)
def test_no_text_in_templates(name):
    html = (PACKAGE/'templates'/name).read_text(encoding='utf-8')
    html = re.sub(r'(?s){#.*?#}|{%.*?%}|{{.*?}}|<script>.*?</script>', '', html)
    texts = re.findall(r'(?:aria-label|title|alt|placeholder)="([^"]*)"', html)
    texts += re.sub(r'(?s)<[^>]*>', '\n', html).split()
    assert not [text for text in texts if re.search('[A-Za-z]', text)]


def test_numbers_of_russian():
    assert 'ru' in languages()
    set_language('ru')
    try:
        said = [phrase('facet.count', value='S', n=n) for n in (1, 2, 5, 11, 21, 1500)]
    finally:
        set_language('en')
    assert said == ['S: 1 товар', 'S: 2 товара', 'S: 5 товаров', 'S: 11 товаров', 'S: 21 товар', 'S: 1\xa0500 товаров']
