"""A `LanceStore` of a million products: time to fill and to index it, disk, memory, and time and Recall@10 of queries, beside a scan without index.

    python benchmarks/store.py [--rows 1000000] [--dim 512] [--queries 200] [--folder /tmp]

The vectors are synthetic, with the structure that matters to an index: products of a kind lie together. 5,000 kinds of unequal size
(as 1/rank), each vector its kind's centre plus noise of the same length, in 512 dimensions; queries are drawn alike. They are made
in batches and again for the exact answers, so that memory stays small. Some filters keep few products. The folder is removed at the end.
"""
import argparse
import json
import os
import platform
import resource
import shutil
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pandas as pd

from clip_ft.store import LanceStore

BATCH = 50_000


def batches(rows, dim, kinds=5000):
    "Yields (vectors, kinds) batch by batch, the same each time."
    centres = np.random.default_rng(0).standard_normal((kinds, dim), dtype=np.float32)
    share = 1/np.arange(1, kinds+1)
    for i in range(0, rows, BATCH):
        rng = np.random.default_rng(i+1)
        kind = rng.choice(kinds, min(BATCH, rows-i), p=share/share.sum())
        vectors = centres[kind]+rng.standard_normal((len(kind), dim), dtype=np.float32)
        yield vectors/np.linalg.norm(vectors, axis=1, keepdims=True), kind


def table(start, kind):
    n = np.arange(start, start+len(kind))
    return pd.DataFrame({'image': [f'{i}.jpg' for i in n], 'display name': [f'Kind {k} product {i}' for i, k in zip(n, kind)], 'category': [f'category {k % 100}' for k in kind],
        'brand': [f'brand {i % 500}' for i in n], 'price': (n % 1000/10).astype(str)})


def exact(queries, rows, dim, keep, k=10):
    "The numbers of the true best k for each query among the rows for which `keep(number, kind)`."
    best, where = np.full((len(queries), k), -2., np.float32), np.zeros((len(queries), k), np.int64)
    for i, (vectors, kind) in enumerate(batches(rows, dim)):
        numbers = np.arange(i*BATCH, i*BATCH+len(kind))
        use = keep(numbers, kind)
        scores, numbers = np.hstack([best, queries @ vectors[use].T]), np.hstack([where, np.broadcast_to(numbers[use], (len(queries), use.sum()))])
        top = np.argpartition(-scores, k-1, axis=1)[:, :k]
        best, where = np.take_along_axis(scores, top, 1), np.take_along_axis(numbers, top, 1)
    return where


def measure(name, store, queries, truth, where=None):
    times, hits, full = [], 0, True
    store.nearest(queries[:1], 10, where)
    for query, right in zip(queries, truth):
        start = time.perf_counter()
        found = store.nearest(query[None], 10, where)[0]
        times.append(1000*(time.perf_counter()-start))
        hits += len({f'{o}.jpg' for o in right} & set(found['image']))
        full &= len(found) == 10
    print(json.dumps(dict(what=name, queries=len(times), p50_ms=round(np.median(times), 1), p95_ms=round(np.percentile(times, 95), 1), recall_at_10=round(hits/len(times)/10, 4), always_ten=full)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, default=1_000_000)
    parser.add_argument('--dim', type=int, default=512)
    parser.add_argument('--queries', type=int, default=200)
    parser.add_argument('--folder', default=None)
    args = parser.parse_args()
    print(json.dumps(dict(machine=platform.processor() or platform.machine(), cores=os.cpu_count(), python=platform.python_version(), lancedb=lancedb.__version__, numpy=np.__version__)))
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        store, start = LanceStore(folder/'store'), time.perf_counter()
        for i, (vectors, kind) in enumerate(batches(args.rows, args.dim)): store.write(table(i*BATCH, kind), [f'{o:032x}' for o in range(i*BATCH, i*BATCH+len(kind))], vectors, 'synthetic')
        filled = time.perf_counter()
        print(json.dumps(dict(what='filled', rows=len(store), seconds=round(filled-start))), flush=True)
        rng, centres = np.random.default_rng(10**9), np.random.default_rng(0).standard_normal((5000, args.dim), dtype=np.float32)
        queries = centres[rng.choice(5000, args.queries, p=1/np.arange(1, 5001)/sum(1/np.arange(1, 5001)))]+rng.standard_normal((args.queries, args.dim), dtype=np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        truth = exact(queries, args.rows, args.dim, lambda n, kind: np.ones(len(n), bool))
        brand = exact(queries, args.rows, args.dim, lambda n, kind: n % 500 == 7)
        both = exact(queries, args.rows, args.dim, lambda n, kind: np.isin(kind % 100, (3, 4)) & (n % 1000/10 <= 20))
        measure('no index: a scan', store, queries[:3], truth)
        start = time.perf_counter()
        store.optimize()
        size = sum(o.stat().st_size for o in folder.rglob('*') if o.is_file())
        print(json.dumps(dict(what='indexed', seconds=round(time.perf_counter()-start), disk_GB=round(size/1e9, 2), indexes=sorted(o.index_type for o in store.table.list_indices()))), flush=True)
        for name in ('first', 'again'):        # the first time much of it comes from the disk
            measure(f'index, {name}', store, queries, truth)
            measure(f'index, one brand of 500, {name}', store, queries, brand, {'brand': 'brand 7'})
            measure(f'index, two categories of 100 and a price, {name}', store, queries, both, {'category': ['category 3', 'category 4'], 'price': (None, 20)})
        store.table.optimize(cleanup_older_than=timedelta(0))
        print(json.dumps(dict(what='without older versions', disk_GB=round(sum(o.stat().st_size for o in folder.rglob('*') if o.is_file())/1e9, 2))), flush=True)
        start = time.perf_counter()
        for i in range(20): store.match(f'kind {i} product {i}', 100)
        print(json.dumps(dict(what='full text', mean_ms=round(50*(time.perf_counter()-start), 1))))
        print(json.dumps(dict(what='memory', peak_GB=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6, 2))))
    finally: shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__': main()
