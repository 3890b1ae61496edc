"The catalogue changes: the split, the products that a model has learned, embeddings and sources."

import numpy as np
import pandas as pd
import pytest
from conftest import HEADER, add_rows, jpeg, rows

import clip_ft.embedding
from clip_ft.catalogue import find_table
from clip_ft.commands import embed_main, evaluate_main, export_main, preprocess_main
from clip_ft.core import Paths
from clip_ft.data import catalogue_folder, image_folder, load_split, preprocess
from clip_ft.embeddings_file import load_embeddings, save_embeddings
from clip_ft.learned import read_learned
from clip_ft.sources import get_data
from clip_ft.splits import LastSplit, are_known, duplicate_groups, learned_hashes, split_products, write_split


def synthetic(count, start=0):
    "Products of which every second one has a duplicate by name or description."
    number = np.arange(start, start + count)
    texts = {name: pd.Series([f'{name} {i//2*2 if i % 5 == k else i}' for i in number])
             for k, name in enumerate(('display name', 'description'))}
    return pd.DataFrame({'image': [f'{i}.jpg' for i in number], 'category': [f'c{i % 7}' for i in number], **texts})


def sides(train, test):
    "The side of each image."
    return {**dict.fromkeys(train['image'], 'train'), **dict.fromkeys(test['image'], 'test')}


def edit(products, rng, number):
    "One random edit: rows added, removed, reordered, or with other texts."
    kind, rows = number % 4, rng.choice(len(products), 10, replace=False)
    if kind == 0:
        return pd.concat([products, synthetic(15, 10_000 + 100*number)], ignore_index=True)
    if kind == 1:
        return products.drop(index=rows).reset_index(drop=True)
    if kind == 2:
        return products.sample(frac=1, random_state=number).reset_index(drop=True)
    column = ['display name', 'description', 'category'][number % 3]
    return products.assign(**{column: products[column].mask(np.isin(np.arange(len(products)), rows), f'new {number}')})


def test_no_product_changes_sides_in_random_edits():
    products, rng = synthetic(2000), np.random.default_rng(0)
    last = LastSplit(*split_products(products), 42, .1)
    for number in range(20):
        products = edit(products, rng, number)
        train, test = split_products(products, last=last)
        before, now = sides(last.train, last.test), sides(train, test)
        groups = pd.Series(duplicate_groups(products), products['image'])
        trained = set(groups[[before.get(name) == 'train' for name in groups.index]])
        moved = [name for name in now if name in before and now[name] != before[name]]
        assert all(now[name] == 'train' and groups[name] in trained for name in moved)  # joined by an edit
        assert not {name for name in test['image'] if before.get(name) == 'train'}
        assert .07 < len(test)/len(products) < .13
        last = LastSplit(train, test, 42, .1)


def test_without_memory_the_sides_are_the_same_as_long_as_groups_are():
    products = synthetic(2000)
    whole = sides(*split_products(products))
    part = sides(*split_products(products[:1500].sample(frac=1, random_state=0)))
    complete = [name for name in part if int(name[:-4]) < 1490]
    assert all(part[name] == whole[name] for name in complete)
    other = sides(*split_products(products, purpose='validation'))
    assert sum(whole[name] == other[name] == 'test' for name in whole) < 60  # 20 if they are independent
    assert sides(*split_products(products, seed=1)) != whole


@pytest.fixture
def project(catalogue, tmp_path):
    "A project of a folder with 60 products after preprocess."
    (catalogue/'data.csv').write_text(HEADER + rows(60))
    for i in range(20, 90):
        (catalogue/'data'/f'{i}.jpg').write_bytes(jpeg(i))
    paths = Paths(tmp_path/'root')
    get_data(catalogue, paths)
    preprocess(paths, test_size=.2)
    return paths


def test_ten_rows_more_ten_rows_less_and_other_texts(project, catalogue, run):
    first = sides(*load_split(project))
    add_rows(catalogue, *(rows(70).splitlines()[60:]))
    out = run(preprocess_main, '--root', project.root)
    assert 'Since the last split: 10 products are new, 0 changed, 0 were removed; no product changed sides' in out
    more = sides(*load_split(project))
    assert more.items() >= first.items() and len(more) == 70

    lines = (catalogue/'data.csv').read_text().splitlines()
    (catalogue/'data.csv').write_text('\n'.join(lines[:1] + lines[11:]) + '\n')
    assert '0 products are new, 0 changed, 10 were removed' in run(preprocess_main, '--root', project.root)
    (catalogue/'data.csv').write_text('\n'.join(lines) + '\n')
    assert '10 products are new, 0 changed, 0 were removed' in run(preprocess_main, '--root', project.root)
    assert sides(*load_split(project)) == more

    table = '\n'.join(lines).replace('text 5 about it', 'another text').replace('Product 9,', 'Nine,')
    (catalogue/'data.csv').write_text(table)
    (catalogue/'data'/'12.jpg').write_bytes(jpeg(1000))
    out = run(preprocess_main, '--root', project.root)
    assert '0 products are new, 3 changed, 0 were removed; no product changed sides' in out
    assert sides(*load_split(project)) == more


def test_two_groups_joined_by_a_new_product(project, catalogue, run):
    train, test = load_split(project)
    name, text = train['display name'][0], test['description'][0]
    add_rows(catalogue, f'70.jpg,{text},{name},Hats')
    out = run(preprocess_main, '--root', project.root)
    assert '1 product is new, 0 changed, 0 were removed; 1 product was moved to the training set' in out
    now = sides(*load_split(project))
    assert now['70.jpg'] == now[test['image'][0]] == 'train'


def test_settings_are_kept_and_others_start_over(project, run):
    first = sides(*load_split(project))
    out = run(preprocess_main, '--root', project.root)
    assert '0 products are new, 0 changed, 0 were removed; no product changed sides' in out
    assert sides(*load_split(project)) == first
    out = run(preprocess_main, '--root', project.root, '--seed', 1)
    assert 'The split starts over: the last one had the seed 42 and the test size 0.2.' in out
    other = sides(*load_split(project))
    assert other != first
    run(preprocess_main, '--root', project.root)
    assert sides(*load_split(project)) == other
    for content in ('{', '{"train.csv": 1}'):
        project.split_json.write_text(content)
        assert 'The split starts over: the last split is damaged' in run(preprocess_main, '--root', project.root)


def test_texts_with_odd_characters_do_not_count_as_changed(project, catalogue, run):
    lines = rows(60).splitlines()
    lines[3] = '3.jpg,"two\nlines, ""quoted"" ",=1+1,"  Hats "'
    (catalogue/'data.csv').write_text(HEADER.strip() + ',price,note\n' + '\n'.join(
        f'{line},"1.299,0{i % 10} €","{note}"' for i, (line, note) in
        enumerate(zip(lines, ['a \r\nb', ' x', 'NA', '', '\u200b', '-5', '\t']*9, strict=False))))
    run(preprocess_main, '--root', project.root)
    out = run(preprocess_main, '--root', project.root)
    assert '0 products are new, 0 changed, 0 were removed; no product changed sides' in out


def test_the_model_stores_what_it_has_learned(shop):
    root, _ = shop
    paths = Paths(root)
    train, test = load_split(paths)
    learned = read_learned(paths.best_model)
    assert learned.know(train).all() and not learned.know(test).any()
    assert len(learned.validated) and not set(learned.validated) & set(learned.trained)


def test_test_products_that_were_trained_on_are_left_out(copied_shop, run, tmp_path):
    paths = Paths(copied_shop)
    old_train, _ = load_split(paths)
    run(preprocess_main, '--root', copied_shop, '--seed', 1)
    _, test = load_split(paths)
    known = are_known(test, learned_hashes(old_train)).sum()
    out = run(evaluate_main, '--root', copied_shop, '--report', tmp_path/'report.html')
    first = f'{known} of {len(test)} test products were in the training set of {paths.best_model} and are left out.'
    assert out.startswith(first + '\n') and f'queries made from {len(test) - known} products' in out
    page = (tmp_path/'report.html').read_text()
    assert page.index(first) < page.index('<h2>')

    run(export_main, '--root', copied_shop, '--format', 'open_clip')
    assert read_learned(paths.checkpoints/'open_clip').know(old_train).all()

    write_split(paths, test, old_train, test[:0])
    message = run(evaluate_main, '--root', copied_shop, refused=True)
    assert 'too few are left to test on; train again on this split' in message


def test_adding_products_leaves_nothing_out(copied_shop, run):
    paths = Paths(copied_shop)
    table = find_table(catalogue_folder(paths))
    lines = table.read_text().splitlines()
    table.write_text('\n'.join([lines[0], *lines[11:]]) + '\n')
    assert run(evaluate_main, '--root', copied_shop).splitlines()[0].endswith('to include the changes.')
    assert '10 were removed; no product changed sides' in run(preprocess_main, '--root', copied_shop)
    table.write_text('\n'.join(lines) + '\n')
    run(preprocess_main, '--root', copied_shop)
    assert 'left out' not in run(evaluate_main, '--root', copied_shop)
    (paths.best_model/'learned.npz').write_bytes(b'PK')
    assert 'learned.npz is damaged' in run(evaluate_main, '--root', copied_shop, refused=True)


def test_only_changed_images_are_embedded(copied_shop, run, monkeypatch):
    paths = Paths(copied_shop)
    folder = image_folder(catalogue_folder(paths))
    seen, embed_images = [], clip_ft.embedding.embed_images

    def counted(model, processor, images, **options):
        seen.append(len(images))
        return embed_images(model, processor, images, **options)

    monkeypatch.setattr(clip_ft.embedding, 'embed_images', counted)
    before = load_embeddings(paths.embeddings)
    count = len(before['image_names'])
    out = run(embed_main, '--root', copied_shop, '--device', 'cpu')
    assert f'0 images embedded, {count} unchanged' in out and not seen

    names = before['image_names'][[3, 50, 120]]
    for seed, name in enumerate(names):
        (folder/name).write_bytes(jpeg(seed, (96, 96)))
    (paths.processed/'shards'/before['weights_hash']).mkdir(parents=True)  # a killed run
    (paths.processed/'shards'/before['weights_hash']/'000000.npz').write_bytes(b'PK')
    out = run(embed_main, '--root', copied_shop, '--device', 'cpu')
    assert f'3 images embedded, {count - 3} unchanged' in out and seen == [3]
    after = load_embeddings(paths.embeddings)
    changed = np.isin(after['image_names'], names)
    assert np.array_equal(after['embeddings'][~changed], before['embeddings'][~changed])
    assert not np.isclose(after['embeddings'][changed], before['embeddings'][changed], atol=1e-3).all(axis=1).any()

    run(embed_main, '--root', copied_shop, '--device', 'cpu', '--float16')
    assert sum(seen) == count + 3  # another type of numbers
    out = run(embed_main, '--root', copied_shop, '--device', 'cpu')  # keeps the type
    assert f'0 images embedded, {count} unchanged' in out and 'in 128 dimensions of 16 bits: ' in out
    stored = load_embeddings(paths.embeddings)
    save_embeddings(paths.embeddings, **stored)  # an older file, without digests
    assert f'{count} images embedded, in 128' in run(embed_main, '--root', copied_shop, '--device', 'cpu')
