"""Time and memory of all retrieval metrics, compared with trec_eval, torchmetrics and ranx.

    python benchmarks/metrics.py [--n 44441] [--dim 512] [--peer-queries 200]

N queries are ranked against N products. Embeddings are random unit vectors; duplicates are drawn so that a product
has one right answer (60 % of them) or several (up to 200), as in a real catalogue. Methods, each in a process of its
own:

    product     the matrix product alone, which every method needs
    clip_ft     retrieval_metrics: hit rate, recall and precision at 1, 5 and 10, MRR, MRR@10, mAP, mAP@R, nDCG@10,
                mean and median rank, of every query
    first ten   the same, and the first ten results of each query, as evaluate needs them
    peers       trec_eval (pytrec_eval), torchmetrics and ranx, if they are installed

The peers read scores: trec_eval and ranx a dict of all scores of a query, torchmetrics one flat row per pair. The
matrix product and this preparation are part of their time. None of them handles all queries in reasonable time and
memory, so they get the first --peer-queries queries, against the whole gallery; seconds_for_all is extrapolated. On
these queries all methods must give the same metrics, which is checked.
"""
import sys
import time
from argparse import SUPPRESS
from importlib.util import find_spec

import numpy as np
from common import Results, benchmark_parser, peak_gb, print_record

COMPARED = ('hit_rate@1', 'hit_rate@10', 'recall@10', 'precision@10', 'mrr', 'map', 'ndcg@10')
TREC_NAMES = ('success_1', 'success_10', 'recall_10', 'P_10', 'recip_rank', 'map', 'ndcg_cut_10')
BLOCK = 50  # queries whose scores fit into memory as dicts


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    "Vectors scaled to length 1."
    return vectors/np.linalg.norm(vectors, axis=1, keepdims=True)


def draw_embeddings(n: int, dim: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    "Query embeddings, gallery embeddings, and the right answers of each query."
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.zipf(3., n), 200)
    groups = np.repeat(np.arange(n), sizes)[:n]
    members = np.split(np.arange(n), np.cumsum(np.bincount(groups))[:-1])

    def draw(count):
        return unit_rows(rng.normal(size=(count, dim)).astype(np.float32))

    centres = draw(groups.max()+1)[groups]
    queries, gallery = (unit_rows(centres+3*draw(n)) for _ in range(2))
    return queries, gallery, [members[group] for group in groups]


def matrix_product(queries, gallery, _relevant):
    for start in range(0, len(queries), 512):
        queries[start:start+512] @ gallery.T
    return {}


def clip_ft(queries, gallery, relevant):
    from clip_ft.metrics import retrieval_metrics
    return retrieval_metrics(queries, gallery, relevant)


def first_ten(queries, gallery, relevant):
    from clip_ft.metrics import mean_metrics, query_metrics, rank_relevant
    return mean_metrics(query_metrics(rank_relevant(queries, gallery, relevant, top_k=10)))


def blocks_of_dicts(queries, gallery, relevant):
    "Yield right answers and scores of blocks of queries, in the format of trec_eval and ranx."
    names = [str(row) for row in range(len(gallery))]
    for start in range(0, len(queries), BLOCK):
        scores = queries[start:start+BLOCK] @ gallery.T
        right = relevant[start:start+BLOCK]
        judged = {f'q{i}': {names[row]: 1 for row in rows} for i, rows in enumerate(right)}
        run = {f'q{i}': dict(zip(names, row.tolist())) for i, row in enumerate(scores)}
        yield judged, run


def trec_eval(queries, gallery, relevant):
    from pytrec_eval import RelevanceEvaluator
    measures = {'success.1,10', 'recall.10', 'P.10', 'recip_rank', 'map', 'ndcg_cut.10'}
    per_query = []
    for judged, run in blocks_of_dicts(queries, gallery, relevant):
        found = RelevanceEvaluator(judged, measures).evaluate(run)
        per_query += [[metrics[name] for name in TREC_NAMES] for metrics in found.values()]
    return dict(zip(COMPARED, np.mean(per_query, axis=0)))


def ranx(queries, gallery, relevant):
    from ranx import Qrels, Run, evaluate
    total = dict.fromkeys(COMPARED, 0.)
    for judged, run in blocks_of_dicts(queries, gallery, relevant):
        means = evaluate(Qrels(judged), Run(run), list(COMPARED))
        for name in COMPARED:
            total[name] += means[name]*len(judged)/len(queries)
    return total


def torchmetrics(queries, gallery, relevant):
    import torch
    from torchmetrics import retrieval
    metrics = [
        retrieval.RetrievalHitRate(top_k=1), retrieval.RetrievalHitRate(top_k=10), retrieval.RetrievalRecall(top_k=10),
        retrieval.RetrievalPrecision(top_k=10), retrieval.RetrievalMRR(), retrieval.RetrievalMAP(),
        retrieval.RetrievalNormalizedDCG(top_k=10)]
    scores = torch.from_numpy(queries @ gallery.T).double()+2  # scores of at most 0 count as not retrieved
    target = torch.zeros(scores.shape, dtype=torch.bool)
    for query, rows in enumerate(relevant):
        target[query, rows] = True
    indexes = torch.arange(len(queries))[:, None].expand(scores.shape).flatten()
    values = [metric(scores.flatten(), target.flatten(), indexes=indexes).item() for metric in metrics]
    return dict(zip(COMPARED, values))


OURS = {'product': matrix_product, 'clip_ft': clip_ft, 'first ten': first_ten}
PEERS = {'trec_eval': trec_eval, 'torchmetrics': torchmetrics, 'ranx': ranx}


def measure(name: str, n: int, dim: int, count: int):
    "Run one method here, and print its record."
    method = (OURS | PEERS)[name]
    queries, gallery, relevant = draw_embeddings(n, dim)
    queries, relevant = queries[:count].copy(), relevant[:count]
    method(queries[:2], gallery, relevant[:2])  # imports and compilation are not timed
    before = peak_gb()
    start = time.perf_counter()
    metrics = method(queries, gallery, relevant)
    seconds = time.perf_counter()-start
    print_record(name=name, queries=len(queries), seconds=seconds, seconds_for_all=seconds*n/len(queries),
                 peak_GB=peak_gb(), peak_GB_before=before, metrics=metrics)


def check(record: dict, expected: dict):
    "Exit unless a peer's metrics are those of clip_ft."
    differences = {name: abs(record['metrics'][name]-expected['metrics'][name]) for name in COMPARED}
    if max(differences.values()) > 1e-5:
        sys.exit(f'{record["name"]} gives other metrics than clip_ft; the differences are {differences}.')


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('--n', type=int, default=44_441, help='number of queries, and of products')
    parser.add_argument('--dim', type=int, default=512, help='embedding dimension')
    parser.add_argument('--peer-queries', type=int, default=200, help='number of queries that the peers get')
    parser.add_argument('--how', choices=OURS | PEERS, help=SUPPRESS)
    parser.add_argument('--queries', type=int, help=SUPPRESS)
    args = parser.parse_args()
    if args.how:
        measure(args.how, args.n, args.dim, args.queries or args.n)
        return
    with Results(args, 'pytrec_eval-terrier', 'torchmetrics', 'ranx') as results:
        for name in OURS:
            results.measure('--how', name, required=True)
        few = ('--queries', args.peer_queries)
        expected, = results.measure('--how', 'clip_ft', *few, required=True)
        for name in PEERS:
            if not find_spec('pytrec_eval' if name == 'trec_eval' else name):
                results.add(name=name, problem='not installed')
                continue
            for record in results.measure('--how', name, *few):
                check(record, expected)


if __name__ == '__main__':
    main()
