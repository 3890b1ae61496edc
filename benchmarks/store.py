"""A LanceStore of a million products: time to fill and index it, disk, memory, query time and recall, against a scan.

    python benchmarks/store.py [--rows 1000000] [--dim 512] [--queries 200] [--folder /tmp]

The vectors are synthetic. They form clusters, which matter for an index: 5,000 kinds of products, with sizes
proportional to 1/rank. A vector is the centre of its kind plus noise of the same length; queries are drawn in the same
way. To save memory, the vectors are generated in batches, and generated again for the exact answers. Queries run
without a condition and with conditions that few products satisfy. recall_at_10 is the share of the ten nearest
products that are found. The store is deleted at the end.
"""
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from common import Results, benchmark_parser, peak_gb, percentiles, time_each

from clip_ft.store import LanceStore

BATCH = 50_000
KINDS = 5_000
SHARES = 1/np.arange(1, KINDS+1)/np.sum(1/np.arange(1, KINDS+1))

# Name -> (conditions of the store, the same as a function of row numbers and kinds)
CONDITIONS: dict[str, tuple[dict | None, Callable]] = {
    'no condition': (None, lambda rows, _: rows >= 0),
    'one brand of 500': ({'brand': 'brand 7'}, lambda rows, _: rows % 500 == 7),
    'two categories of 100 and a price': (
        {'category': ['category 3', 'category 4'], 'price': (None, 20)},
        lambda rows, kinds: np.isin(kinds % 100, (3, 4)) & (rows % 1000/10 <= 20)),
}


def draw_vectors(count: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Unit vectors of products, and their kinds."
    centres = np.random.default_rng(0).standard_normal((KINDS, dim), dtype=np.float32)
    rng = np.random.default_rng(seed)
    kinds = rng.choice(KINDS, count, p=SHARES)
    vectors = centres[kinds]+rng.standard_normal((count, dim), dtype=np.float32)
    return vectors/np.linalg.norm(vectors, axis=1, keepdims=True), kinds


def batches(count: int, dim: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    "Yield row numbers, vectors and kinds, batch by batch, the same in each call."
    for start in range(0, count, BATCH):
        rows = np.arange(start, min(start+BATCH, count))
        yield rows, *draw_vectors(len(rows), dim, start+1)


def product_table(rows: np.ndarray, kinds: np.ndarray) -> pd.DataFrame:
    "The products of a batch."
    return pd.DataFrame({
        'image': [f'{row}.jpg' for row in rows],
        'display name': [f'Kind {kind} product {row}' for row, kind in zip(rows, kinds)],
        'category': [f'category {kind % 100}' for kind in kinds],
        'brand': [f'brand {row % 500}' for row in rows],
        'price': (rows % 1000/10).astype(str)})


def exact_answers(queries: np.ndarray, count: int, keep: Callable, top_k: int = 10) -> np.ndarray:
    "Row numbers of the best products that satisfy a condition, int64 [Q, top_k]."
    best_scores = np.full((len(queries), top_k), -2, np.float32)
    best_rows = np.zeros((len(queries), top_k), np.int64)
    for rows, vectors, kinds in batches(count, queries.shape[1]):
        kept = keep(rows, kinds)
        scores = np.hstack([best_scores, queries @ vectors[kept].T])
        candidates = np.hstack([best_rows, np.broadcast_to(rows[kept], (len(queries), kept.sum()))])
        top = np.argpartition(-scores, top_k-1, axis=1)[:, :top_k]
        best_scores, best_rows = np.take_along_axis(scores, top, 1), np.take_along_axis(candidates, top, 1)
    return best_rows


def measure_queries(store: LanceStore, queries: np.ndarray, answers: np.ndarray, where: dict | None) -> dict:
    "Query times, recall, and whether all queries get ten results."
    found = []
    store.nearest(queries[:1], 10, where)
    seconds = time_each(lambda query: found.append(store.nearest(query[None], 10, where)[0]), queries)
    hits = [len({f'{row}.jpg' for row in rows} & set(table['image'])) for rows, table in zip(answers, found)]
    always_ten = all(len(table) == 10 for table in found)
    return dict(queries=len(queries), **percentiles(seconds), recall_at_10=np.mean(hits)/10, always_ten=always_ten)


def disk_gb(folder: Path) -> float:
    "Size of all files in a folder, in GB."
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())/1e9


def fill(store: LanceStore, count: int, dim: int):
    "Write all products."
    for rows, vectors, kinds in batches(count, dim):
        store.write(product_table(rows, kinds), [f'{row:032x}' for row in rows], vectors, 'synthetic')


def measure(results: Results, folder: Path, count: int, dim: int, number: int):
    "Run all measurements with a store in a folder."
    store = LanceStore(folder/'store')
    start = time.perf_counter()
    fill(store, count, dim)
    results.add(name='fill', rows=len(store), seconds=time.perf_counter()-start)
    queries, _ = draw_vectors(number, dim, 10**9)
    answers = {name: exact_answers(queries, count, keep) for name, (_, keep) in CONDITIONS.items()}
    results.add(name='scan without index', **measure_queries(store, queries[:3], answers['no condition'], None))
    start = time.perf_counter()
    store.optimize()
    indexes = sorted(index.index_type for index in store.table.list_indices())
    results.add(name='optimize', seconds=time.perf_counter()-start, disk_GB=disk_gb(folder), indexes=indexes)
    for repeat in (1, 2):  # the first time, much of the index is read from the disk
        for name, (where, _) in CONDITIONS.items():
            results.add(name=f'index, {name}', round=repeat, **measure_queries(store, queries, answers[name], where))
    store.table.optimize(cleanup_older_than=timedelta(0))
    results.add(name='without older versions', disk_GB=disk_gb(folder))
    seconds = time_each(lambda i: store.match(f'kind {i} product {i}', 100), range(20))
    results.add(name='full-text search', **percentiles(seconds))
    results.add(name='memory', peak_GB=peak_gb())


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('--rows', type=int, default=1_000_000, help='number of products')
    parser.add_argument('--dim', type=int, default=512, help='embedding dimension')
    parser.add_argument('--queries', type=int, default=200)
    parser.add_argument('--folder', type=Path, help='folder in which the store is created; default: a temporary one')
    args = parser.parse_args()
    temporary = tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True)
    with Results(args, 'lancedb') as results, temporary as folder:
        measure(results, Path(folder), args.rows, args.dim, args.queries)


if __name__ == '__main__':
    main()
