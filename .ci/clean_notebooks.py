"""Strip from the notebooks what nbdev_clean leaves: widget state and views, progress bars and other stderr text.

`clean_notebooks.py` rewrites the files that need it; with `--check` it rewrites nothing, names what it finds and exits 1.
A timing or a path of somebody's machine in an output can't be stripped without spoiling the page, so both are only named.
"""
import re
import sys
from pathlib import Path

import nbformat

NBS = Path(__file__).resolve().parent.parent / "nbs"
VIEW = "application/vnd.jupyter.widget-view+json"
PATHS = re.compile(r"(?:/(?:home|Users|root|work|tmp|mnt)/|[A-Za-z]:\\\\?Users)[\w.\\/-]*")
TIMINGS = re.compile(r"(?:Wall|CPU) times?:|\bit/s\b|s/it\b|[\d.]+ (?:ms|µs|ns) ±")


def strip(nb):
    "Remove what is never wanted in a committed notebook, in place."
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        cell.execution_count = None
        cell.metadata.pop("execution", None)
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr": continue
            data = output.get("data", {})
            if VIEW in data: continue
            if "execution_count" in output: output.execution_count = None
            if data.get("text/plain", "").startswith("<Figure size") and len(data) > 1: del data["text/plain"]
            kept.append(output)
        cell.outputs = kept
    return nb


def complaints(nb):
    "Outputs that only the author can mend: paths, timings, errors."
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error": yield f"an error is saved: {output.ename}"
            text = output.get("text", "") + "".join(
                v for k, v in output.get("data", {}).items() if k.startswith("text/") and isinstance(v, str))
            for what, pattern in (("path", PATHS), ("timing", TIMINGS)):
                found = pattern.search(text)
                if found: yield f"a {what} is saved: {found.group()}"


def main(check):
    bad = 0
    for path in sorted(NBS.rglob("*.ipynb")):
        if any(part.startswith((".", "_")) for part in path.relative_to(NBS).parts): continue
        before = path.read_text(encoding="utf-8")
        nb = strip(nbformat.reads(before, as_version=4))
        problems = list(complaints(nb))
        after = nbformat.writes(nb).rstrip("\n") + "\n"
        if nbformat.reads(before, as_version=4) != nb:
            if check: problems.append("not clean: run `make clean-notebooks`")
            else: path.write_text(after, encoding="utf-8")
        for problem in problems: print(f"{path.relative_to(NBS.parent)}: {problem}")
        bad += len(problems)
    return 1 if bad else 0


if __name__ == "__main__": sys.exit(main("--check" in sys.argv[1:]))
