"""Recall and precision of the checks for products listed twice and for categories, on planted faults.

    python benchmarks/checkup_products.py PROJECT [--label NAME] [--products N] [--seeds SEED ...] [--only KINDS]
        [--csv FILE]

PROJECT has a model and embeddings from clip_ft_embed. Faults are planted in a copy of N products, never in the project:

- altered image: 50 products are listed again with another name; the image is resized to 70 %, cropped by 2 %, mirrored,
  made brighter or darker by 15 to 20 %, or only saved again (10 each)
- changed name: 50 products are listed again with the same image, saved again, and two words added to the name
- shared image: the image of one product under the names of 50 others
- across split: each copy that is in the test set while its original is not
- same category: up to ten categories, of at least 40 products, divided by lot into two spellings
- overlapping categories: up to ten categories, of at least 40 products, divided by lot into two different names;
  `same category` counts as right too, because the images do not differ
- small category: ten new categories of five products

For copies, recall is the share of planted rows that are found with the planted kind; `any kind` accepts duplicate and
shared image. Precision is over products that are found in the changed and not in the unchanged catalogue, because real
catalogues have duplicates of their own; a finding is right if its group has a planted row. For categories, recall and
precision count categories and pairs, and what is found in the unchanged catalogue is left out in the same way. Seed 0
was used to choose thresholds; report other seeds. Both kinds of duplicates share their numbers found and precision. The
precision of overlapping categories is judged on pairs with a planted name: right are the two names of a category, and
pairs of a planted name and a category that overlaps with the original category in the unchanged catalogue. Others
are looked at by eye (checkup_by_eye.csv).
"""
import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import ImageEnhance, ImageOps

from clip_ft.category_checks import check_categories
from clip_ft.core import Paths
from clip_ft.data import catalogue_folder, image_folder
from clip_ft.embedding import embed_blocks
from clip_ft.embeddings_file import load_embeddings
from clip_ft.images import open_image
from clip_ft.model import load_model
from clip_ft.near_duplicates import check_duplicates
from clip_ft.views import product_keys

PLANTED = 50
ALTERATIONS = ('saved again', 'resized', 'cropped', 'mirrored', 'brightness')
OTHER_NAMES = ('Zalmo', 'Quarn', 'Vintel', 'Orbix', 'Fendrel', 'Pluvia', 'Kestor', 'Murano', 'Drovel', 'Halcyn')


def altered(image, how, rng):
    "An image after one alteration."
    width, height = image.size
    if how == 'resized':
        return image.resize((int(.7*width), int(.7*height)))
    if how == 'cropped':
        left, top = rng.uniform(0, .02, 2)
        box = (left*width, top*height, (.98 + left)*width, (.98 + top)*height)
        return image.crop(tuple(round(edge) for edge in box))
    if how == 'mirrored':
        return ImageOps.mirror(image)
    return ImageEnhance.Brightness(image).enhance(rng.choice([.85, 1.2])) if how == 'brightness' else image


def plant_copies(products, folder, target, rng):
    "New rows with their images in a folder, the row of each original, and what was done."
    rows = rng.permutation(len(products))
    originals = np.concatenate([rows[:PLANTED], rows[PLANTED:2*PLANTED], np.repeat(rows[2*PLANTED], PLANTED)])
    kinds = np.repeat(['altered image', 'changed name', 'shared image'], PLANTED)
    copies = products.iloc[originals].reset_index(drop=True)
    copies['display name'] = copies['display name'].astype(object)
    others = rows[2*PLANTED + 1:3*PLANTED + 1]
    for row, (original, kind) in enumerate(zip(originals, kinds)):
        how = ALTERATIONS[row % 5] if kind == 'altered image' else 'saved again'
        name = f'planted-{row}.jpg'
        image = open_image(folder/products['image'][original])
        altered(image, how, rng).save(target/name, quality=85)
        copies.loc[row, 'image'] = name
        if kind == 'altered image':
            copies.loc[row, 'display name'] = f'Article {rng.integers(10**6)} {copies["category"][row]}'
        elif kind == 'changed name':
            copies.loc[row, 'display name'] += ' New Arrival'
    for column in products.columns.difference(['image', 'images', 'pixel_id', 'pixel_ids']):
        copies.loc[2*PLANTED:, column] = products[column].iloc[others].to_numpy()
    copies[copies.columns.intersection(['pixel_id', 'pixel_ids', 'images'])] = ''
    return copies, originals, kinds


def measure_copies(products, vectors, folder, model, rng):
    "One dictionary per kind."
    with TemporaryDirectory() as temporary:
        target = Path(temporary)
        for name in products['image']:
            (target/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder/name, target/name)
        copies, originals, kinds = plant_copies(products, folder, target, rng)
        blocks = [(list(copies['image']), {})]
        new = next(embed_blocks(*model, target, blocks, len(copies), progress=False)).vectors
        both, all_vectors = pd.concat([products, copies], ignore_index=True), np.vstack([vectors, new])
        in_test = rng.random(len(both)) < .2
        before = check_duplicates(products, vectors, target, in_test[:len(products)])
        after = check_duplicates(both, all_vectors, target, in_test)
    known, planted = set(before['image']), set(copies['image'])
    after = after[~after['image'].isin(known)]
    with_planted = after.groupby('group')['image'].transform(lambda images: bool(planted & set(images)))
    after = after.assign(right=with_planted | after['image'].isin(planted | set(products['image'][originals])))
    found = {kind: set(part['image']) for kind, part in after.groupby('kind')}
    none = set()
    same = found.get('duplicate', none) | found.get('shared image', none)
    leaks = {name for name, row, original in zip(copies['image'], range(len(products), len(both)), originals)
             if in_test[row] and not in_test[original]}
    main = [('altered image', 'duplicate', 'duplicate'), ('changed name', 'duplicate', 'duplicate'),
            ('shared image', 'shared image', 'shared image'), ('any kind', None, None)]
    for label, kind, _ in main:
        wanted = set(copies['image'][kinds == label]) if kind else planted
        hits = wanted & (found.get(kind, none) if kind else same)
        part = after[after['kind'] == kind] if kind else after[after['kind'].isin(['duplicate', 'shared image'])]
        yield dict(kind=label, planted=len(wanted), found=len(part), right=len(hits),
                   recall=len(hits)/len(wanted), precision=part['right'].mean())
    for how in range(5):
        wanted = set(copies['image'][np.flatnonzero(kinds == 'altered image')[how::5]])
        yield dict(kind=f'altered image: {ALTERATIONS[how]}', planted=len(wanted), found=len(wanted & same),
                   right=len(wanted & same), recall=len(wanted & same)/len(wanted), precision=np.nan)
    part = after[after['kind'] == 'across split']
    hits = leaks & set(part['image'])
    yield dict(kind='across split', planted=len(leaks), found=len(part), right=len(hits),
               recall=len(hits)/max(1, len(leaks)), precision=part['right'].mean())


def respelled(name, number):
    "Another spelling of a name."
    singular = name.rstrip('s') if name.endswith('s') else name + 's'
    return [name.upper(), name.replace(' ', '-') + '.', singular][number % 3]


def two_names(group, names):
    "The two categories of the group `first and second`; names may contain `and` as well."
    words = group.split(' and ')
    for end in range(1, len(words)):
        pair = {' and '.join(words[:end]), ' and '.join(words[end:])}
        if pair <= names:
            return frozenset(pair)


def measure_categories(products, vectors, rng):
    "One dictionary per kind."
    names = products['category'].astype(object).reset_index(drop=True)
    sizes = names.value_counts()
    large = rng.permutation(sizes.index[sizes >= 40].to_numpy(object))
    changed = names.copy()
    planted = {'same category': {}, 'overlapping categories': {}, 'small category': {}}
    for number, name in enumerate(large[:20]):
        kind = 'same category' if number % 2 else 'overlapping categories'
        new = respelled(name, number//2) if number % 2 else OTHER_NAMES[number//2]
        rows = rng.permutation(np.flatnonzero(names == name))
        changed[rows[:int(len(rows)*rng.uniform(.25, .5))]] = new
        planted[kind][new] = name
    for number in range(10):
        changed[rng.permutation(len(names))[:5]] = f'Small {number}'
        planted['small category'][f'Small {number}'] = ''
    before = check_categories(products, vectors)
    after = check_categories(products.assign(category=changed.to_numpy(object)), vectors)
    known = set(before['kind'] + before['group'])
    after = after[~(after['kind'] + after['group']).isin(known)].drop_duplicates(['kind', 'group'])
    groups = before.loc[before['kind'] == 'overlapping categories', 'group']
    every = {*names, *changed}
    overlapping = {two_names(group, every) for group in groups}
    for kind, wanted in planted.items():
        part = after[after['kind'] == kind]
        pairs = [two_names(group, every) if kind == 'overlapping categories' else frozenset({group, other})
                 for group, other in zip(part['group'], part['suggestion'])]
        truth = {frozenset(pair) for part in planted.values() for pair in part.items()}
        origin = {new: name for part in planted.values() for new, name in part.items()}
        if kind == 'overlapping categories':
            pairs = [pair for pair in pairs if pair & set(origin)]
        inherited = [frozenset(origin.get(name, name) for name in pair) in overlapping for pair in pairs]
        right = [bool(pair in truth or (kind == 'small category' and pair & set(wanted)) or is_inherited)
                 for pair, is_inherited in zip(pairs, inherited)]
        both = after[after['kind'].isin({kind, 'same category'})] if kind == 'overlapping categories' else part
        named = {name for pair in pairs for name in pair} | {*both['group']} | {*both['suggestion']}
        hits = sum(new in named for new in wanted)
        yield dict(kind=kind, planted=len(wanted), found=len(pairs), right=hits, recall=hits/max(1, len(wanted)),
                   precision=np.mean(right) if right else np.nan)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('project', type=Path)
    parser.add_argument('--label', default='')
    parser.add_argument('--products', type=int, default=8000)
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3])
    parser.add_argument('--csv', type=Path, default=Path('benchmarks/results/checkup_products.csv'))
    parser.add_argument('--only', choices=('copies', 'categories'), help='measure only these kinds')
    args = parser.parse_args()
    paths = Paths(args.project)
    data = load_embeddings(paths.embeddings)
    folder, model = image_folder(catalogue_folder(paths)), load_model(paths.best_model, verbose=False)
    rows = np.flatnonzero(~product_keys(data['dataframe']).duplicated())
    for seed in args.seeds:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.permutation(rows)[:args.products])
        products, vectors = data['dataframe'].iloc[chosen].reset_index(drop=True), data['embeddings'][chosen]
        vectors = vectors.astype(np.float32)/np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
        results = [*measure_copies(products, vectors, folder, model, rng)] if args.only != 'categories' else []
        if args.only != 'copies':
            results += measure_categories(products, vectors, np.random.default_rng([seed, 1]))
        table = pd.DataFrame(results).assign(data=args.label or args.project.name, seed=seed).round(3)
        table = table[['data', 'seed', 'kind', 'planted', 'found', 'right', 'recall', 'precision']]
        print(table.to_string(index=False), flush=True)
        table.to_csv(args.csv, mode='a', header=not args.csv.exists(), index=False)


if __name__ == '__main__':
    main()
