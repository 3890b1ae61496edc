"Products with several images, from the table to the search page."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import jpeg

from clip_ft.cards import Thumbnails
from clip_ft.checkpoints import weights_hash
from clip_ft.commands import preprocess_main, search_main
from clip_ft.core import Paths
from clip_ft.data import clean_products, image_folder, preprocess, read_products
from clip_ft.embedding import embed_catalogue
from clip_ft.embeddings_file import load_embeddings
from clip_ft.encode import embed_texts
from clip_ft.evaluation import evaluate
from clip_ft.model import load_model, tiny_model
from clip_ft.results import product_details
from clip_ft.search import Searcher, search_products
from clip_ft.settings import TrainConfig
from clip_ft.sources import get_data
from clip_ft.splits import duplicate_groups
from clip_ft.store import LanceStore
from clip_ft.training import Trainer, train
from clip_ft.views import draw_images, image_rows, image_table

COUNT = 30


def names(number):
    "The images of a product: one to four."
    return [f'{number}_{view}.jpg' for view in range(number % 4 + 1)]


def write_shop(folder):
    "Thirty products whose images are listed in several ways; the second image of 2 is also that of 5."
    (folder/'photos').mkdir(parents=True)
    rows = []
    for number in range(COUNT):
        for view, name in enumerate(names(number)):
            (folder/'photos'/name).write_bytes(jpeg(2_001 if name == '5_1.jpg' else 1_000*number + view))
        row = {'image': names(number)[0], 'images': ' | '.join(names(number)),
               'description': f'About number {number}, made of {"wool" if number % 2 else "linen"}.',
               'display name': f'Product {number}', 'category': ('Shirts', 'Shoes', 'Hats')[number % 3]}
        if number % 5 == 1:
            row |= {'image': ', '.join(names(number)), 'images': ''}
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder/'data.csv', index=False)


CONFIG = TrainConfig(epochs=2, batch_size=4, lr=1e-3, patience=9, val_size=.2, hard_negative_size=2)
drawn = {}  # folder of a run: the rows of the images of each step


def train_and_record(parts, photos, root, stop=None):
    "Train for two epochs, and record the images; stop at a step, as after Ctrl-C."
    plain = Trainer.train_step

    def step(trainer, rows):
        drawn.setdefault(root, []).append(trainer.batches.rows[rows].tolist())
        if trainer.step == stop:
            trainer.interrupted.set()
        return plain(trainer, rows)

    model, processor = tiny_model(parts[0]['full_text'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, 'train_step', step)
        return train(model, processor, *parts, photos, Paths(root), CONFIG), model, processor


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "The thirty products, split, a model that was trained on them, and its embeddings. Read only."
    paths = Paths(tmp_path_factory.mktemp('views'))
    write_shop(paths.root/'source')
    get_data(paths.root/'source', paths)
    parts = preprocess(paths, test_size=.3)
    _, model, processor = train_and_record(parts, paths.root/'source/photos', paths.root)
    embed_catalogue(model, processor, paths)
    return paths, model, processor, *parts


def best_images(embeds, owners, vector):
    "The best image of each product, best first, by a plain loop."
    best = {}
    for row, owner in enumerate(owners):
        score = float(np.dot(embeds[row], vector))
        if owner not in best or score > best[owner][0]:
            best[owner] = score, row
    return [row for score, row in sorted(best.values(), key=lambda pair: (-pair[0], pair[1]))]


def test_all_images_are_kept_and_on_one_side(project):
    _, _, _, train_products, test_products = project
    products = pd.concat([train_products, test_products])
    kept = {image_rows(products[row:row + 1]).names[0]: list(image_rows(products[row:row + 1]).names)
            for row in range(len(products))}
    assert kept == {names(number)[0]: names(number) for number in range(COUNT)}
    pixels = [set(' | '.join(part['pixel_ids']).split(' | ')) for part in (train_products, test_products)]
    assert len(pixels[0] | pixels[1]) == len(image_rows(products).names) - 1 and not pixels[0] & pixels[1]
    groups = pd.Series(duplicate_groups(products), products['image'])
    assert groups['2_0.jpg'] == groups['5_0.jpg'] and groups.nunique() == COUNT - 1


def test_unusable_images_are_left_out(tmp_path, capsys, run):
    write_shop(tmp_path/'shop')
    photos = tmp_path/'shop/photos'
    (photos/'3_1.jpg').unlink()
    (photos/'6_0.jpg').write_text('<html>not found</html>')
    (photos/'4_0.jpg').unlink()  # the only one
    for number in range(1, COUNT, 4):
        (photos/f'{number}_1.jpg').write_bytes((photos/'7_1.jpg').read_bytes())  # shared by few: no placeholder
    products = read_products(tmp_path/'shop')
    notes = []
    kept, rejects = clean_products(products, image_folder(tmp_path/'shop', products), notes=notes)
    lists = kept.set_index('image')['images']
    assert lists['3_0.jpg'] == '3_0.jpg | 3_2.jpg | 3_3.jpg' and lists['6_1.jpg'] == '6_1.jpg | 6_2.jpg'
    assert rejects[['image', 'row']].to_numpy().tolist() == [['4_0.jpg', 6]]
    assert rejects['reason'].iloc[0].startswith('image is missing') and len(kept) == COUNT - 1
    assert any('2 of products with several are left out' in note for note in notes)
    assert any('1 of these came first' in note for note in notes)
    get_data(tmp_path/'shop', Paths(tmp_path))
    capsys.readouterr()
    assert '2 of products with several are left out' in run(preprocess_main, '--root', tmp_path)


def test_a_shared_placeholder_is_left_out(tmp_path):
    rows = [{'image': f'{i}.jpg', 'images': f'none{i}.jpg' if i < 30 else f'{i}_2.jpg', 'description': f'text {i}',
             'display name': f'name {i}', 'category': 'Hats'} for i in range(40)]
    for i, row in enumerate(rows):
        (tmp_path/row['image']).write_bytes(jpeg(i))
        (tmp_path/row['images']).write_bytes(jpeg(999 if i < 30 else 100 + i))
    kept, rejects = clean_products(pd.DataFrame(rows), tmp_path)
    assert (len(kept), len(rejects)) == (40, 0)
    assert kept['images'].str.count(r'\|').tolist() == [0]*30 + [1]*10
    assert len(np.unique(duplicate_groups(kept))) == 40


@pytest.mark.parametrize('limit', [None, 12])
def test_get_data_copies_all_images(limit, tmp_path):
    write_shop(tmp_path/'shop')
    folder = get_data(tmp_path/'shop', Paths(tmp_path/'project'), limit=limit)
    products = read_products(folder)
    kept, _ = clean_products(products, image_folder(folder, products))
    counts = [len(image_rows(kept[row:row + 1]).names) for row in range(len(kept))]
    assert counts == [int(name.partition('_')[0]) % 4 + 1 for name in kept['image']]
    assert len(kept) == (limit or COUNT)


def test_columns_of_further_images(tmp_path):
    table = pd.DataFrame({'Title': ['Hat', 'Cap'], 'Description': ['warm', 'cool'], 'Type': 'Hats',
                          'Image Link': ['a.jpg', 'b.jpg'], 'additional_image_link': ['a2.jpg,a3.jpg', ''],
                          'Image 4': ['', 'b2.jpg']})
    table.to_csv(tmp_path/'data.csv', index=False)
    for seed, name in enumerate(('a', 'a2', 'a3', 'b', 'b2')):
        (tmp_path/f'{name}.jpg').write_bytes(jpeg(seed))
    recognized = {}
    products = read_products(tmp_path, recognized=recognized)
    assert recognized['images'] == ['additional_image_link', 'Image 4'] and 'Image 4' not in products
    kept, _ = clean_products(products, tmp_path)
    assert kept['images'].tolist() == ['a.jpg | a2.jpg | a3.jpg', 'b.jpg | b2.jpg']
    frame = pd.DataFrame({'image': [['a.jpg', 'a2.jpg'], 'b.jpg'], 'description': ['warm', 'cool'],
                          'display name': ['Hat', 'Cap'], 'category': 'Hats'})
    assert clean_products(frame, tmp_path)[0]['images'].tolist() == ['a.jpg | a2.jpg', 'b.jpg']


def test_an_interrupted_run_draws_the_same_images(project, tmp_path):
    paths, trained, _, *parts = project
    photos, whole = paths.root/'source/photos', np.concatenate(drawn[paths.root])
    with pytest.raises(KeyboardInterrupt):
        train_and_record(parts, photos, tmp_path, stop=len(whole)//4//2 + 1)  # in the second epoch
    _, model, _ = train_and_record(parts, photos, tmp_path)
    assert np.concatenate(drawn[tmp_path]).tolist() == whole.tolist()
    assert weights_hash(model) == weights_hash(trained)
    owners = image_rows(parts[0]).owners
    assert len(np.unique(whole)) > len(np.unique(owners[whole]))  # some products with two images


def test_one_image_each_changes_nothing():
    assert torch.equal(torch.tensor(draw_images(np.arange(9), 1, 2)), torch.arange(9))


def test_metrics_are_those_of_the_best_image(project):
    paths, model, processor, _, test_products = project
    found = evaluate(model, processor, test_products, paths.root/'source/photos', n_resamples=10)
    data, rows = load_embeddings(paths.embeddings), image_rows(test_products)
    row_of = {name: row for row, name in enumerate(data['image_names'])}
    embeds = data['embeddings'][[row_of[name] for name in rows.names]]
    texts = embed_texts(model, processor, list(test_products['display name']))
    ranks = [[rows.owners[row] for row in best_images(embeds, rows.owners, vector)] for vector in texts]
    right = found.query_sets['name'].relevant
    expected = [min(ranking.index(row) for row in answers) + 1 for ranking, answers in zip(ranks, right, strict=True)]
    assert found.per_query['name']['rank'].tolist() == expected
    assert found.top_results['name'].max() < len(test_products)
    main = test_products.drop(columns=['images', 'pixel_ids'])
    other = evaluate(model, processor, main, paths.root/'source/photos', n_resamples=10)
    pd.testing.assert_frame_equal(found.recipe, other.recipe)  # loss and scores of the main images


def test_search_answers_with_products(project):
    paths, model, processor, train_products, test_products = project
    data = load_embeddings(paths.embeddings, model)
    products = pd.concat([train_products, test_products], ignore_index=True)
    rows = image_rows(products)
    assert data['image_names'].tolist() == data['dataframe']['image'].tolist() == rows.names.tolist()
    assert data['dataframe']['display name'].tolist() == products['display name'].iloc[rows.owners].tolist()
    searcher = Searcher(model, processor, data, paths.root/'source/photos')
    assert len(searcher) == len(searcher.dataframe) == COUNT
    for query in ('linen hat', 'product 7'):
        expected = rows.names[best_images(data['embeddings'], rows.owners, searcher.embed_query(query))].tolist()
        for top_k in (1, 5, 99):
            assert searcher.search(query, top_k, hybrid=False)['image'].tolist() == expected[:top_k]
            assert searcher.search_many([query]*20, top_k, hybrid=False)[3]['image'].tolist() == expected[:top_k]
            assert search_products(query, model, processor, data['embeddings'], data['image_names'],
                                   data['dataframe'], top_k)['image'].tolist() == expected[:top_k]
        assert searcher.search(query, 4, offset=3, hybrid=False)['image'].tolist() == expected[3:7]
    assert searcher.search('Product 7', 1)['display name'].tolist() == ['Product 7']
    assert searcher.search('Product 7', COUNT)['display name'].is_unique
    similar = searcher.search(like='7_2.jpg', top_k=COUNT)
    assert len(similar) == COUNT - 1 and 'Product 7' not in similar['display name'].tolist()


def test_a_store_keeps_to_products(project, tmp_path):
    paths, model, processor, train_products, test_products = project
    products, photos = pd.concat([train_products, test_products], ignore_index=True), paths.root/'source/photos'
    store, exact = LanceStore(tmp_path/'store'), Searcher(model, processor, load_embeddings(paths.embeddings))
    done = store.sync(model, processor, products, photos, progress=False)
    assert len(done) == len(image_table(products)) and (done['outcome'] == 'added').all()
    assert len(store) == len(store.dataframe) == COUNT
    searcher = Searcher(model, processor, store)
    for query in ('linen hat', 'wool'):
        for top_k, where in ((1, None), (5, {'category': 'Hats'}), (COUNT, None)):
            expected = exact.search(query, top_k, where=where, hybrid=False)['image'].tolist()
            assert searcher.search(query, top_k, where=where, hybrid=False)['image'].tolist() == expected
    hybrid = searcher.search('product 7', COUNT)
    assert hybrid['display name'].is_unique and len(hybrid) == COUNT
    assert hybrid['display name'].iloc[0] == 'Product 7'
    assert store.update(model, processor, products, photos, progress=False).empty
    fewer = products.assign(images=products['images'].str.replace(' | 7_2.jpg', '', regex=False))
    done = store.update(model, processor, fewer, photos, progress=False)
    assert dict(zip(done['image'], done['outcome'], strict=True)) == {
        '7_0.jpg': 'new text', '7_1.jpg': 'new text', '7_3.jpg': 'new text', '7_2.jpg': 'deleted'}
    store.delete(['7_1.jpg'])
    assert len(store) == COUNT - 1 and not store.table.count_rows("`display name` = 'Product 7'")
    store.sync(model, processor, products[:10], photos, progress=False)
    assert sorted(store.dataframe['image']) == sorted(products['image'][:10])


def test_the_page_and_the_command_show_all_images(project, run):
    paths, *_ = project
    found = json.loads(run(search_main, 'linen', '--root', paths.root, '--top-k', COUNT, '--json'))
    by_name = {product['display name']: product['images'] for product in found}
    assert by_name == {f'Product {number}': ' | '.join(names(number)) for number in range(COUNT)}
    searcher = Searcher(*load_model(paths.best_model, 'cpu', verbose=False), load_embeddings(paths.embeddings),
                        paths.root/'source/photos')
    html = product_details([searcher.dataframe], '7_2.jpg', Thumbnails(searcher.image_dir))
    assert html.count('<img') == 5 and 'Image 3 of 4' in html and html.count('aria-current="true"') == 1


def test_an_unusable_further_image_is_listed_by_embed(project, tmp_path):
    _, model, processor, *_ = project
    paths = Paths(tmp_path)
    write_shop(tmp_path/'source')
    get_data(tmp_path/'source', paths)
    preprocess(paths)
    (tmp_path/'source/photos/3_1.jpg').unlink()
    (tmp_path/'source/photos/6_0.jpg').unlink()
    data = embed_catalogue(model, processor, paths)
    rejects = pd.read_csv(paths.processed/'embedding_rejects.csv')
    assert sorted(rejects['image']) == ['3_1.jpg', '6_0.jpg']
    lists = data['dataframe'].set_index('image')['images']
    assert lists['3_3.jpg'] == '3_0.jpg | 3_2.jpg | 3_3.jpg' and lists['6_2.jpg'] == '6_1.jpg | 6_2.jpg'
    assert len(Searcher(model, processor, data)) == COUNT
