"mypy and its plugin: methods that fastcore's @patch adds to a class are checked like other methods."
import subprocess
import sys
from pathlib import Path

PLUGIN = Path(__file__).resolve().parent.parent / ".ci" / "mypy_patch.py"
MODULE = '''
from fastcore.basics import patch


class Circle:
    def __init__(self, radius: float):
        self.radius = radius


class Square:
    pass


@patch(as_prop=True)
def area(self: Circle) -> float:
    self.known = True
    return 3*self.radius**2


@patch(cls_method=True)
def unit(cls: Circle) -> Circle:
    return cls(1.0)


@patch
def grow(self: Circle, by: int) -> Circle:
    return Circle(self.radius + by)


@patch
def grow(self: Square, by: int) -> str:
    return "a square has no " + self.size


def use(circle: Circle, square: Square) -> str:
    Circle.unit().grow(1).area.hex()
    print(circle.known, circle.missing)
    circle.grow("a lot")
    return square.grow(2)


def use() -> None: ...
'''
EXPECTED = [
    (32, '"Square" has no attribute "size"'),
    (37, '"Circle" has no attribute "missing"'),
    (38, 'Argument 1 to "grow" of "Circle" has incompatible type "str"; expected "int"'),
    (42, 'Name "use" already defined on line 35'),
]


def test_patched_methods_are_checked(tmp_path):
    package = tmp_path / "clip_ft"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "shapes.py").write_text(MODULE)
    settings = ["[mypy]", f"plugins = {PLUGIN}", "ignore_missing_imports = True", "show_error_codes = False"]
    (tmp_path / "mypy.ini").write_text("\n".join(settings))
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "clip_ft"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == [f"clip_ft/shapes.py:{line}: error: {text}" for line, text in EXPECTED]
