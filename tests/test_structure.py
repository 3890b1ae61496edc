"Rules for the notebooks and their modules, checked without importing them. CONTRIBUTING.md explains the rules."
import ast
import io
import json
import re
import tokenize
from configparser import ConfigParser
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from textwrap import dedent

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
MAX_WIDTH, MAX_CELL = 120, 60
MAX_FUNCTION_LINES, MAX_FUNCTION_CHARACTERS = 45, 1800
MIN_MODULE, MAX_MODULE = 50, 350
DRAWING = "demo"  # draws the demo catalogue: an appendix, whose functions and length are not limited
SHORT = {"init"}  # allowed to be shorter: the public names of the package
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Cell:
    "An exported cell, without its directives."
    id: str
    source: str

    @cached_property
    def lines(self):
        return self.source.splitlines()

    @cached_property
    def tree(self):
        return ast.parse(self.source)


@dataclass(frozen=True)
class Notebook:
    "A notebook of nbs/: its file name without extension, the module that it names, and its exported cells."
    name: str
    module: str | None
    cells: list[Cell]

    @property
    def number(self):
        return self.name[:2]

    @property
    def title(self):
        return self.name[3:]


def read_notebook(path):
    module, cells = None, []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).splitlines()
        directives = [line for line in lines if line.startswith("#|")]
        if cell["cell_type"] != "code":
            continue
        for directive in directives:
            words = directive.removeprefix("#|").split()
            if words[0] == "default_exp":
                module = words[1]
            elif words[0] in ("export", "exporti", "exports"):
                source = "\n".join(line for line in lines if line not in directives)
                cells.append(Cell(cell.get("id", f"#{len(cells)}"), source.strip("\n")))
    return Notebook(path.stem, module, cells)


class Project:
    "A folder with nbs/ and the package clip_ft/."

    def __init__(self, root):
        self.package = root / "clip_ft"
        self.notebooks = [read_notebook(path) for path in sorted((root / "nbs").glob("*.ipynb"))]
        self.exporting = [notebook for notebook in self.notebooks if notebook.module]
        self.numbers = {notebook.module: notebook.number for notebook in self.exporting}
        paths = [path for path in sorted(self.package.glob("*.py")) if path.stem != "_modidx"]
        self.sources = {path.stem: path.read_text(encoding="utf-8") for path in paths}
        self.trees = {name: ast.parse(source) for name, source in self.sources.items()}

    def cells(self):
        "All exported cells, each with its notebook."
        return [(notebook, cell) for notebook in self.exporting for cell in notebook.cells]


def wrong_names(project):
    "Unique two-digit numbers; the name after the number is that of the module; no module without a notebook."
    seen = {}
    for notebook in project.exporting:
        if not re.fullmatch(r"\d\d_[a-z]\w*", notebook.name):
            yield f"{notebook.name}.ipynb: the name is not NN_name"
            continue
        if notebook.title != notebook.module.strip("_"):
            yield f"{notebook.name}.ipynb exports the module {notebook.module}"
        if notebook.number in seen:
            yield f"{notebook.name}.ipynb has the number of {seen[notebook.number]}.ipynb"
        seen[notebook.number] = notebook.name
    for name in project.trees:
        if name not in project.numbers:
            yield f"clip_ft/{name}.py is exported by no notebook"


def imported_modules(tree, known):
    "Modules of clip_ft that a module imports, also inside functions: pairs of line and name."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["clip_ft" if node.level else "", node.module or ""]))
            names = [base]
            if base == "clip_ft":  # a module, or a public name of the package
                names = [f"clip_ft.{alias.name}" if alias.name in known else base for alias in node.names]
        else:
            continue
        for name in names:
            package, _, module = name.partition(".")
            if package == "clip_ft":
                yield node.lineno, module.split(".")[0] or "__init__"


def wrong_imports(project):
    "A module imports only modules with lower numbers; the package itself imports its public names when they are used."
    for name, tree in project.trees.items():
        for line, other in imported_modules(tree, project.trees):
            own, imported = project.numbers.get(name, ""), project.numbers.get(other)
            if imported is None:
                yield f"clip_ft/{name}.py:{line} imports {other}, which no notebook exports"
            elif imported >= own and name != "__init__":
                yield f"clip_ft/{name}.py:{line} ({own}) imports {other} ({imported})"


def annotation_names(tree):
    "Names in annotations that are written as strings."
    for node in ast.walk(tree):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for part in ast.walk(annotation) if annotation else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield from re.findall(r"\w+", part.value)


def all_names(tree):
    "The names in __all__."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            yield from ast.literal_eval(node.value)


def unused_imports(project):
    "A module uses all its imports; imports for the tests of a notebook are in cells that are not exported."
    for name, tree in project.trees.items():
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used.update(annotation_names(tree), all_names(tree))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            for alias in node.names:
                bound = alias.asname or alias.name.split(".")[0]
                if bound not in used:
                    yield f"clip_ft/{name}.py:{node.lineno} imports {bound} without using it"


def wrong_lengths(project):
    "Exported lines of a notebook."
    for notebook in project.exporting:
        lines = sum(len(cell.lines) for cell in notebook.cells)
        shortest = 1 if notebook.title in SHORT else MIN_MODULE
        if notebook.title != DRAWING and not shortest <= lines <= MAX_MODULE:
            yield f"{notebook.name}: {lines} exported lines, not {shortest} to {MAX_MODULE}"


def long_lines(project):
    "Columns of exported lines."
    for notebook, cell in project.cells():
        for number, line in enumerate(cell.lines, 1):
            if len(line) > MAX_WIDTH:
                yield f"{notebook.name}, cell {cell.id}, line {number}: {len(line)} characters"


def long_cells(project):
    "Lines of exported cells."
    for notebook, cell in project.cells():
        if len(cell.lines) > MAX_CELL and notebook.title != DRAWING:
            yield f"{notebook.name}, cell {cell.id}: {len(cell.lines)} lines"


def long_functions(project):
    "Lines and characters of functions and methods, signature and docstring included."
    for notebook, cell in project.cells():
        for node in ast.walk(cell.tree):
            if not isinstance(node, FUNCTIONS) or notebook.title == DRAWING:
                continue
            source = "\n".join(cell.lines[node.lineno - 1:node.end_lineno])
            lines, characters = source.count("\n") + 1, len(dedent(source))
            if lines > MAX_FUNCTION_LINES or characters > MAX_FUNCTION_CHARACTERS:
                yield f"{notebook.name}: {node.name} has {lines} lines, {characters} characters"


def docments(cell):
    "The comments that nbdev shows in signatures: those of parameters, of return values and of the fields of classes."
    described = set()
    for node in ast.walk(cell.tree):
        if isinstance(node, FUNCTIONS):
            described.update(range(node.lineno, node.body[0].lineno))
        elif isinstance(node, ast.ClassDef):
            fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
            described.update(line for field in fields for line in range(field.lineno, field.end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(cell.source).readline):
        if token.type == tokenize.COMMENT and token.start[0] in described:
            yield token.string


def backticks(project):
    "Docments without back-ticked names: nbdev makes links of them, which show up raw in the signature."
    for notebook, cell in project.cells():
        for comment in docments(cell):
            if "`" in comment:
                yield f"{notebook.name}, cell {cell.id}: {comment}"


def is_public(name):
    return not name.startswith("_") or re.fullmatch(r"__\w+__", name)


def public_functions(tree):
    "Public functions of a module and public methods of its public classes, as pairs of name and node."
    for node in tree.body:
        if isinstance(node, FUNCTIONS) and is_public(node.name):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            for method in node.body:
                if isinstance(method, FUNCTIONS) and is_public(method.name):
                    yield f"{node.name}.{method.name}", method


def missing_annotations(function):
    "Parameters of a function without annotation, and `return`."
    args = function.args
    for parameter in [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]:
        if parameter and parameter.annotation is None and not re.match("self$|cls$|_", parameter.arg):
            yield parameter.arg
    if function.returns is None and function.name != "__init__":
        yield "return"


def untyped_functions(project):
    "Public functions and methods without complete annotations."
    for module, tree in project.trees.items():
        for name, function in public_functions(tree):
            missing = list(missing_annotations(function))
            if missing:
                yield f"clip_ft/{module}.py:{function.lineno} {name}: {', '.join(missing)}"


def report(problems):
    "Fail with a list of problems, if there are any."
    problems = list(problems)
    if problems:
        pytest.fail("\n".join([f"{len(problems)} problems", *problems]), pytrace=False)


@pytest.fixture(scope="module")
def project():
    return Project(ROOT)


def test_names_and_numbers(project):
    report(wrong_names(project))


def test_modules_import_lower_numbers_only(project):
    report(wrong_imports(project))


def test_modules_use_their_imports(project):
    report(unused_imports(project))


def test_exported_lines_per_notebook(project):
    report(wrong_lengths(project))


def test_columns(project):
    report(long_lines(project))


def test_lines_per_cell(project):
    report(long_cells(project))


def test_lines_per_function(project):
    report(long_functions(project))


def test_no_backticks_in_docments(project):
    report(backticks(project))


def test_public_functions_are_annotated(project):
    report(untyped_functions(project))


def test_benchmarks_import_names_that_exist():
    "The benchmarks are not run here; most of them import what they use inside their functions."
    for path in (ROOT/'benchmarks').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('clip_ft.'):
                missing = {alias.name for alias in node.names}-set(vars(import_module(node.module)))
                assert not missing, f'{path.name}: {node.module} has no {", ".join(missing)}'


def test_package_data_is_shipped():
    "Each file of the package is a module, or matches a pattern in setup.py."
    listed = re.search(r"package_data=\{.*?: \[(.*?)\]", (ROOT / "setup.py").read_text(), re.DOTALL)[1]
    patterns = re.findall(r"[\w/*.]+", listed)
    files = [path.relative_to(ROOT / "clip_ft") for path in (ROOT / "clip_ft").rglob("*") if path.is_file()]
    others = [path.as_posix() for path in files if path.suffix not in (".py", ".pyc")]
    report(name for name in others if not any(fnmatch(name, pattern) for pattern in patterns))
    assert "py.typed" in others


def test_pinned_packages_run_on_the_oldest_python():
    pins = [line.partition('==') for line in (ROOT/'constraints.txt').read_text().splitlines() if '==' in line]
    tested = 0
    for name, _, version in pins:
        try:
            package = metadata(name)
        except PackageNotFoundError:  # of another extra, or of another system
            continue
        tested += 1
        needed = SpecifierSet(package.get('Requires-Python') or '')
        assert '3.11.0' in needed, f'{name} {version} needs Python {needed}: pin an older version in constraints.txt'
    assert tested > 100


def test_version_has_a_changelog_entry():
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert latest == settings["DEFAULT"]["version"]


GOOD = '''
from pathlib import Path
from .core import double


def read(
    path: Path, # Text file
    size: int=1 # In characters
) -> str:       # The beginning of the file
    "Read a file."
    return path.read_text()[:double(size)]
'''
PADDING = "\n".join(f"x{i} = {i}" for i in range(50))
RULES = [wrong_names, wrong_imports, unused_imports, wrong_lengths, long_lines, long_cells, long_functions, backticks,
         untyped_functions]


def write_project(root, name="10_data", module="data", exported=GOOD, cells=(PADDING,)):
    "A project of two notebooks and their modules, written without nbdev."
    core = ["def double(n: int) -> int:\n    return 2*n", PADDING]
    for folder in ("nbs", "clip_ft"):
        (root / folder).mkdir()
    for title, target, sources in (("00_core", "core", core), (name, module, [exported, *cells])):
        sources = [source.strip("\n") for source in sources]
        cells = [f"#| default_exp {target}", *(f"#| export\n{source}" for source in sources), "import only_for_tests"]
        cells = [{"cell_type": "code", "id": f"cell{i}", "source": source} for i, source in enumerate(cells)]
        (root / "nbs" / f"{title}.ipynb").write_text(json.dumps({"cells": cells}))
        (root / "clip_ft" / f"{target}.py").write_text("\n\n".join(sources))
    return Project(root)


def violated(project):
    return [rule for rule in RULES if list(rule(project))]


def test_the_rules_accept_a_good_project(tmp_path):
    assert violated(write_project(tmp_path)) == []


@pytest.mark.parametrize(("rules", "changes"), [
    ([wrong_names], {"name": "10_dat"}),
    ([wrong_names, wrong_imports], {"name": "00_data"}),
    ([wrong_imports], {"exported": f"{GOOD}\ndef _later() -> None:\n    from .data import read\n    read()"}),
    ([wrong_imports], {"exported": f"{GOOD}\nfrom clip_ft import core, read\ncore.double(1)\nread"}),
    ([wrong_imports], {"exported": f"{GOOD}\nimport clip_ft.gone\nclip_ft"}),
    ([unused_imports], {"exported": f"import json\n{GOOD}"}),
    ([wrong_lengths], {"cells": []}),
    ([wrong_lengths], {"cells": [PADDING]*7}),
    ([long_lines], {"exported": f"{GOOD}\nlong = '{'x'*120}'"}),
    ([long_cells], {"exported": f"{GOOD}\n{PADDING}"}),
    ([long_functions], {"exported": GOOD + "    size += 1\n"*40}),
    ([long_functions], {"exported": GOOD + f"    text = '{'x'*100}'\n"*20}),
    ([backticks], {"exported": GOOD.replace("In characters", "As in `read`")}),
    ([backticks], {"exported": f"{GOOD}\nclass Settings:\n    size: int = 1 # Of `read`"}),
    ([untyped_functions], {"exported": GOOD.replace("size: int=1", "size=1")}),
    ([untyped_functions], {"exported": GOOD.replace(" -> str:", ":")}),
    ([untyped_functions], {"exported": f"{GOOD}\nclass Reader:\n    def read(self, *paths) -> None: ..."}),
])
def test_the_rules_find_violations(tmp_path, rules, changes):
    assert violated(write_project(tmp_path, **changes)) == rules
