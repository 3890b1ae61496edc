"""Time of exact search and of typed queries, compared with numpy and with other ways of embedding a query.

    python benchmarks/search.py [--products 44441] [--embeddings FILE] [--texts 200]

Exact search runs in one thread. ExactIndex.top finds the ten best products, without and with conditions; its peers
in the same run are a matrix-vector product and np.vecdot, each followed by argpartition. Its records name the path
that the queries took: "8 bits first", and how many rows were then scored in float32, or "float32". The first query,
which makes the 8-bit copy, has a record of its own. Vectors are random, unless an embeddings file is given.

Typed queries run in all threads, through a ViT-B/32 with random weights, which costs as much as a trained one, and a
tokenizer that is learned from the queries. The peers of embed_texts are 16-bit weights, dynamic quantization and
padding to 77 tokens.
"""
import copy
import os
import tempfile
from argparse import SUPPRESS, Namespace
from collections.abc import Callable
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from common import Results, benchmark_parser, percentiles, print_record, random_model, time_each

from clip_ft.embeddings_file import load_embeddings, save_embeddings
from clip_ft.exact import ExactIndex
from clip_ft.where import Contains

GENDERS = ('women', 'men', 'unisex')
KINDS = ('dress', 'jeans', 'shirt', 'watch', 'handbag', 'sandals', 'skirt', 'belt', 'cap', 'scarf')
COLOURS = ('red', 'blue', 'black', 'white', 'green', 'pink', 'grey', 'brown')
ENDINGS = ('', 'for the summer', 'with long sleeves and a round neck')


def synthetic_catalogue(n: int, dim: int = 512) -> tuple[np.ndarray, pd.DataFrame]:
    "Random unit vectors, and a table of products."
    vectors = np.random.default_rng(0).standard_normal((n, dim), dtype=np.float32)
    table = pd.DataFrame({
        'image': [f'{i}.jpg' for i in range(n)],
        'display name': [f'{COLOURS[i % 8]} {KINDS[i % 10]} number {i}' for i in range(n)],
        'category': [KINDS[i % 10] for i in range(n)],
        'gender': [GENDERS[i % 3] for i in range(n)],
        'price': (np.arange(n) % 1000/10).astype(str),
        'description': [f'A text of some length about product {i}. '*20 for i in range(n)]})
    return vectors/np.linalg.norm(vectors, axis=1, keepdims=True), table


def best_ten(scores: np.ndarray) -> np.ndarray:
    "Rows of the ten highest scores, with numpy."
    rows = np.argpartition(scores, -10)[-10:]
    return rows[np.argsort(-scores[rows])]


# ---- exact search

def open_catalogue(args: Namespace) -> dict:
    "Load the embeddings, and print a record of the time."
    with tempfile.TemporaryDirectory() as folder:
        path = args.embeddings or Path(folder)/'embeddings.npz'
        if not args.embeddings:
            vectors, table = synthetic_catalogue(args.products)
            save_embeddings(path, vectors, table['image'], table, 'synthetic')
        seconds = time_each(load_embeddings, [path]*7)
        print_record(name='load_embeddings', **percentiles(seconds), file_MB=path.stat().st_size/1e6)
        data = load_embeddings(path)
        return data | dict(embeddings=np.array(data['embeddings']))


def search_conditions(table: pd.DataFrame) -> dict[str, dict | None]:
    "Name -> conditions."
    genders = sorted(set(table.get('gender', [])) & {'women', 'Women'}) or ['women']
    equal = {'gender': genders[0]}
    three = {'gender': ['women', 'men', 'Women', 'Men'], 'category': Contains('s'), 'display name': Contains('e')}
    few = equal | {'category': table['category'].value_counts().index[0]}
    return {'no condition': None, 'equal': equal, 'three conditions': three, 'two conditions, few products left': few}


def path_taken(index: ExactIndex, queries: np.ndarray, where: dict | None) -> dict:
    "The path that the queries take, and the number of rows that the 8-bit pass leaves."
    counts, candidates = [], index.int8_bounds.candidates

    def counted(*args):
        rows = candidates(*args)
        counts.append(len(rows))
        return rows

    with patch.object(index.int8_bounds, 'candidates', counted):
        for query in queries:
            index.top(query[None], 10, where)
    if not counts:
        return dict(path='float32')
    scored = dict(scored_p50=np.median(counts), scored_max=max(counts))
    return dict(path='8 bits first', share_of_queries=len(counts)/len(queries), **scored)


def measure_first_query(data: dict, queries: np.ndarray):
    "Time the first query of an index, without the 8-bit copy and including its creation."
    def plain(query):
        best_ten(np.vecdot(ExactIndex(data).embeddings, query))

    print_record(name='first query, float32 alone', **percentiles(time_each(plain, queries)))
    seconds = time_each(lambda query: ExactIndex(data).top(query[None], 10), queries)
    print_record(name='first query, makes the 8-bit copy', **percentiles(seconds),
                 copy_MB=data['embeddings'].size/1e6, float32_MB=4*data['embeddings'].size/1e6)


def measure_queries(index: ExactIndex, queries: np.ndarray, repeat: int):
    "Time numpy and the index, query by query, and 1,000 queries at once."
    def record(name, search, **more):
        print_record(name=name, **percentiles(time_each(search, queries[:200])), **more, round=repeat)

    record('numpy: matrix-vector product, argpartition', lambda query: best_ten(index.embeddings @ query))
    record('numpy: vecdot, argpartition', lambda query: best_ten(np.vecdot(index.embeddings, query)))
    for name, where in search_conditions(index.dataframe).items():
        def search(query, where=where):
            return index.top(query[None], 10, where)

        first, = time_each(search, queries[:1])
        record(f'ExactIndex.top, {name}', search, first_ms=1000*first, **path_taken(index, queries[:200], where))
    one_by_one = sum(time_each(lambda query: index.top(query[None], 10), queries))
    at_once = min(time_each(lambda block: index.top(block, 10), [queries]*2))
    times = dict(one_by_one_s=one_by_one, at_once_s=at_once, ratio=one_by_one/at_once)
    print_record(name='1,000 queries', **times, round=repeat)


def shared_results(found: list[set], others: list[set]) -> dict:
    "Share of queries with the same ten results in two searches, and mean number of results in common."
    pairs = list(zip(found, others))
    return dict(same_ten=np.mean([a == b for a, b in pairs]), shared_of_ten=np.mean([len(a & b) for a, b in pairs]))


def measure_exact_search(args: Namespace):
    "Time exact search, and compare its results with those of numpy and of embeddings in 16 bits."
    data = open_catalogue(args)
    index = ExactIndex(data)
    vectors, rng = index.embeddings, np.random.default_rng(1)
    noise = rng.standard_normal((1000, vectors.shape[1]), dtype=np.float32)/25
    queries = vectors[rng.choice(len(vectors), 1000)]+noise
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    measure_first_query(data, queries[:3])
    for repeat in (1, 2):  # twice, because other programs may slow down one of the rounds
        measure_queries(index, queries, repeat)
    found = [set(rows) for rows, _ in index.top(queries, 10)]
    plain = [set(best_ten(vectors @ query)) for query in queries[:200]]
    print_record(name='results of ExactIndex and of numpy', **shared_results(found, plain))
    half = ExactIndex(data | dict(embeddings=vectors.astype(np.float16)))
    halves = [set(rows) for rows, _ in half.top(queries, 10)]
    print_record(name='results of float32 and of float16', **shared_results(found, halves))


# ---- typed queries

def measure_variant(name: str, index: ExactIndex, encode: Callable, texts: list[str], expected: list[set]):
    "Time an alternative way to embed a query, and compare its results."
    vectors = []
    seconds = time_each(lambda text: vectors.append(encode(text)[0]), texts)
    queries = np.array(vectors, np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    found = [set(rows) for rows, _ in index.top(queries, 10)]
    print_record(name=f'embedding alone, {name}', **percentiles(seconds), **shared_results(found, expected))


def measure_variants(model, processor, index: ExactIndex, texts: list[str]):
    "Time alternative ways to embed a query: 16-bit weights, dynamic quantization, padding."
    import torch

    from clip_ft.encode import embed_texts
    expected = [set(rows) for rows, _ in index.top(embed_texts(model, processor, texts), 10)]
    half = copy.deepcopy(model).bfloat16()
    int8 = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    for name, other in {'bfloat16 weights': half, 'int8, dynamic quantization': int8}.items():
        def encode(text, other=other):
            return embed_texts(other, processor, text)
        measure_variant(name, index, encode, texts, expected)

    def encode_padded(text):
        tokens = processor.tokenizer(text, padding='max_length', max_length=77, truncation=True, return_tensors='pt')
        with torch.inference_mode():
            features = model.get_text_features(**tokens)
        return getattr(features, 'pooler_output', features).numpy()

    measure_variant('padded to 77 tokens', index, encode_padded, texts, expected)


def measure_typed_queries(args: Namespace):
    "Time a typed query from the text to the table of results."
    import torch

    from clip_ft.checkpoints import weights_hash
    from clip_ft.encode import embed_texts
    from clip_ft.search import Searcher
    texts = [' '.join(words).strip() for words in product(GENDERS, COLOURS, KINDS, ENDINGS)]
    np.random.default_rng(0).shuffle(texts)
    model, processor = random_model(texts, 'vit-b-32')
    vectors, table = synthetic_catalogue(args.products)
    data = dict(embeddings=vectors, image_names=table['image'], dataframe=table, weights_hash=weights_hash(model))
    searcher = Searcher(model, processor, data)
    warm_up, timed = texts[:5], texts[5:5+args.texts]
    for text in warm_up:
        searcher.search(text, 10)
    seconds = time_each(lambda text: searcher.search(text, 10), timed)
    print_record(name='typed query to results', **percentiles(seconds), threads=torch.get_num_threads())
    seconds = time_each(lambda text: searcher.search(text, 10), timed)
    print_record(name='the same queries again', **percentiles(seconds))
    seconds = time_each(lambda text: embed_texts(model, processor, text), timed)
    print_record(name='embedding alone', **percentiles(seconds))
    measure_variants(model, processor, searcher.index, timed[:100])


PARTS = {'exact search': measure_exact_search, 'typed queries': measure_typed_queries}


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('--products', type=int, default=44_441, help='number of products of the synthetic catalogue')
    parser.add_argument('--embeddings', type=Path, help='embeddings file for exact search, in place of random vectors')
    parser.add_argument('--texts', type=int, default=200, help='number of typed queries')
    parser.add_argument('--how', choices=PARTS, help=SUPPRESS)
    args = parser.parse_args()
    if args.how:
        PARTS[args.how](args)
        return
    with Results(args, 'simsimd') as results:
        threads = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS')
        results.measure('--how', 'exact search', **dict.fromkeys(threads, '1'))
        results.measure('--how', 'typed queries', **dict.fromkeys(threads, str(os.cpu_count())))


if __name__ == '__main__':
    main()
