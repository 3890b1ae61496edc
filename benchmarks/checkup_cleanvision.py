"""Recall and precision of cleanvision (pip install cleanvision) on the planted faults of checkup_images.py.

    python benchmarks/checkup_cleanvision.py NAME FOLDER [--odd] --out FILE

FOLDER contains data.csv and data/. The 2,000 images of seed 1 are written to a temporary folder, 50 of each kind with a
fault, and cleanvision searches them with its default limits. checkup_cleanvision.csv adds recall and precision of
checkup_images.csv for the same images. Kinds that cleanvision does not know are left out.
"""
import argparse
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from checkup_images import PLANTED, RELATED, plant
from cleanvision import Imagelab

from clip_ft.images import image_problem

CHECKS = {
    'blurred': ['blurry'], 'dark': ['dark'], 'washed out': ['light', 'low_information'], 'tiny': ['odd_size'],
    'odd aspect': ['odd_aspect_ratio', 'odd_size'], 'nearly empty': ['low_information'],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name')
    parser.add_argument('folder', type=Path)
    parser.add_argument('--odd', action='store_true')
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    folder, rng = args.folder/'data', np.random.default_rng(1)
    names = sorted(path.name for path in folder.iterdir() if not args.odd or zlib.crc32(path.name.encode()) % 2)
    names = [name for name in names if not image_problem(folder, name)]
    sample = [names[row] for row in rng.permutation(len(names))[:2000]]
    with tempfile.TemporaryDirectory() as target, tempfile.TemporaryDirectory() as faulty:
        planted = plant(sample, folder, Path(faulty), rng)
        for name in sample:
            shutil.copy((Path(faulty) if name in planted else folder)/name, Path(target)/name)
        lab = Imagelab(data_path=target)
        lab.find_issues(n_jobs=1)
        issues = lab.issues
    kinds = pd.Series([planted.get(Path(path).name, '') for path in issues.index], issues.index)
    rows = []
    for kind, checks in CHECKS.items():
        for check in checks:
            found = issues[f'is_{check}_issue']
            right = found & (kinds == kind)
            counted = right | found & ~kinds.isin([kind, *RELATED.get(kind, [])])
            rows.append(dict(data=args.name, seed=1, kind=kind, cleanvision_check=check,
                             cleanvision_recall=round(right.sum()/PLANTED, 3),
                             cleanvision_precision=round(right.sum()/max(1, counted.sum()), 3)))
    pd.DataFrame(rows).to_csv(args.out, index=False)


if __name__ == '__main__':
    main()
