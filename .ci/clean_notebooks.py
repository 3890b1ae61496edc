"""Remove from the notebooks what nbdev_clean leaves: widget state and views, progress bars and other output of stderr.
Large pictures are stored with a palette of 256 colours, which makes them about three times smaller.

`clean_notebooks.py` rewrites the files that need it. With `--check` it rewrites nothing, lists what it finds and exits
with 1. Timings and paths of a machine in saved outputs are only listed, because removing them would spoil the page.
"""
import re
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
from PIL import Image

NBS = Path(__file__).resolve().parent.parent / "nbs"
VIEW = "application/vnd.jupyter.widget-view+json"
UNWANTED = {
    "path": re.compile(r"(?:/(?:home|Users|root|work|tmp|mnt)/|[A-Za-z]:\\\\?Users)[\w.\\/-]*"),
    "timing": re.compile(r"(?:Wall|CPU) times?:|\bit/s\b|s/it\b|[\d.]+ (?:ms|µs|ns) ±"),
}
LARGE = 40_000  # bytes of a picture


def with_palette(picture):
    "A PNG in base64, stored with 256 colours if it is large, opaque and becomes smaller by a fifth or more."
    before = b64decode(picture)
    if len(before) < LARGE:
        return picture
    image = Image.open(BytesIO(before))
    if image.mode == "P" or (image.mode == "RGBA" and image.getextrema()[3][0] < 255):
        return picture
    after = BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(after, "PNG", optimize=True)
    return b64encode(after.getvalue()).decode() if len(after.getvalue()) < 0.8 * len(before) else picture


def is_wanted(output):
    "Whether a committed notebook keeps an output."
    is_stderr = output.output_type == "stream" and output.name == "stderr"
    return not is_stderr and VIEW not in output.get("data", {})


def strip(nb):
    "Remove, in place, what a committed notebook must not contain."
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.metadata.pop("execution", None)
        cell.outputs = [output for output in cell.outputs if is_wanted(output)]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = with_palette(data["image/png"])
            if data.get("text/plain", "").startswith("<Figure size") and len(data) > 1:
                del data["text/plain"]
    return nb


def saved_text(output):
    "All text of an output."
    data = output.get("data", {}).items()
    return output.get("text", "") + "".join(v for k, v in data if k.startswith("text/") and isinstance(v, str))


def complaints(nb):
    "Outputs that only the author can correct: errors, paths and timings."
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"an error is saved: {output.ename}"
            for what, pattern in UNWANTED.items():
                found = pattern.search(saved_text(output))
                if found:
                    yield f"a {what} is saved: {found.group()}"


def clean(path, check):
    "Clean one notebook, or only check it; returns the remaining problems."
    before = path.read_text(encoding="utf-8")
    nb = strip(nbformat.reads(before, as_version=4))
    problems = list(complaints(nb))
    if nbformat.reads(before, as_version=4) != nb:
        if check:
            problems.append("not clean: run `make clean-notebooks`")
        else:
            path.write_text(nbformat.writes(nb).rstrip("\n") + "\n", encoding="utf-8")
    return problems


def main(check):
    bad = 0
    for path in sorted(NBS.rglob("*.ipynb")):
        if any(part.startswith((".", "_")) for part in path.relative_to(NBS).parts):
            continue
        for problem in clean(path, check):
            print(f"{path.relative_to(NBS.parent)}: {problem}")
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
