"""All retrieval metrics of 44,441 queries in a gallery of 44,441 products at 512 dimensions, beside other packages.

    python benchmarks/metrics.py [--n 44441] [--dim 512] [--peer-queries 200]

Each method runs in a process of its own, whose peak memory is reported. The embeddings are random unit rows; duplicates
are drawn so that a product has one right answer (60 %) or several (up to 200), as in a real catalogue. clip_ft computes,
from the embeddings, for every query: hit rate, recall and precision at 1, 5 and 10, MRR, MRR@10, mAP, mAP@R, nDCG@10 and
rank; the line first_ten adds the first ten results. The floor is the matrix product alone.

The peers are trec_eval (by pytrec_eval) and, where they are installed, torchmetrics and ranx. They take scores, so the
matrix product and the conversion of scores are part of their time: trec_eval and ranx read a dict of all scores of a
query, torchmetrics one flat row per pair. None of them handles all queries in reasonable time and memory, so they get the
first --peer-queries of them, against the whole gallery; the time for all queries is extrapolated and marked as an
estimate. All must agree on that part.
"""
import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np

METRICS = ("hit_rate@1", "hit_rate@10", "recall@10", "precision@10", "mrr", "map", "ndcg@10")
TREC_EVAL = dict(zip(METRICS, ("success_1", "success_10", "recall_10", "P_10", "recip_rank", "map", "ndcg_cut_10")))
BLOCK = 50  # queries of which a peer gets all scores as a dict


def unit_rows(rng, n, dim):
    x = rng.normal(size=(n, dim)).astype(np.float32)
    return x/np.linalg.norm(x, axis=1, keepdims=True)


def make(args):
    "Query and gallery embeddings, and the right answers of each query."
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.zipf(3., args.n), 200)
    groups = np.repeat(np.arange(args.n), sizes)[:args.n]
    members = np.split(np.arange(args.n), np.cumsum(np.bincount(groups))[:-1])
    centres = unit_rows(rng, groups.max()+1, args.dim)[groups]
    queries, gallery = (centres+3*unit_rows(rng, args.n, args.dim) for _ in range(2))
    queries, gallery = (x/np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery))
    return queries, gallery, [members[group] for group in groups]


def floor(queries, gallery, _):
    for start in range(0, len(queries), 512):
        queries[start:start+512] @ gallery.T
    return {}


def ours(queries, gallery, relevant):
    from clip_ft.metrics import retrieval_metrics
    return retrieval_metrics(queries, gallery, relevant)


def first_ten(queries, gallery, relevant):
    from clip_ft.metrics import mean_metrics, query_metrics, rank_relevant
    return mean_metrics(query_metrics(rank_relevant(queries, gallery, relevant, top_k=10)))


def as_dicts(queries, gallery, relevant):
    "Blocks of judgments and runs as trec_eval and ranx read them."
    names = [str(row) for row in range(len(gallery))]
    for start in range(0, len(queries), BLOCK):  # a dict of all scores would not fit into memory
        scores, right = queries[start:start+BLOCK] @ gallery.T, relevant[start:start+BLOCK]
        judged = {f"q{i}": {names[row]: 1 for row in rows} for i, rows in enumerate(right)}
        yield judged, {f"q{i}": dict(zip(names, row.tolist())) for i, row in enumerate(scores)}


def trec_eval(queries, gallery, relevant):
    import pytrec_eval
    wanted = {"success.1,10", "recall.10", "P.10", "recip_rank", "map", "ndcg_cut.10"}
    found = []
    for judged, run in as_dicts(queries, gallery, relevant):
        found += pytrec_eval.RelevanceEvaluator(judged, wanted).evaluate(run).values()
    return {name: np.mean([values[theirs] for values in found]) for name, theirs in TREC_EVAL.items()}


def ranx(queries, gallery, relevant):
    import ranx
    total = dict.fromkeys(METRICS, 0.)
    for judged, run in as_dicts(queries, gallery, relevant):
        for name, value in ranx.evaluate(ranx.Qrels(judged), ranx.Run(run), list(METRICS)).items():
            total[name] += value*len(judged)/len(queries)
    return total


def torchmetrics(queries, gallery, relevant):
    import torch
    from torchmetrics import retrieval
    kinds = dict(zip(METRICS, (
        retrieval.RetrievalHitRate(top_k=1), retrieval.RetrievalHitRate(top_k=10), retrieval.RetrievalRecall(top_k=10),
        retrieval.RetrievalPrecision(top_k=10), retrieval.RetrievalMRR(), retrieval.RetrievalMAP(),
        retrieval.RetrievalNormalizedDCG(top_k=10))))
    scores = torch.from_numpy(queries @ gallery.T).double()+2  # torchmetrics takes a score of 0 or less for "not found"
    target = torch.zeros(scores.shape, dtype=torch.bool)
    for i, rows in enumerate(relevant):
        target[i, rows] = True
    indexes = torch.arange(len(queries))[:, None].expand(-1, len(gallery)).flatten()
    return {name: kind(scores.flatten(), target.flatten(), indexes=indexes).item() for name, kind in kinds.items()}


METHODS = {method.__name__: method for method in (floor, ours, first_ten, trec_eval, ranx, torchmetrics)}


def child(args):
    "Run one method in this process, and print its time, memory and metrics."
    queries, gallery, relevant = make(args)
    if args.queries:
        queries, relevant = queries[:args.queries].copy(), relevant[:args.queries]
    METHODS[args.method](queries[:2], gallery, [[0], [1]])  # imports, compilation
    start = time.perf_counter()
    metrics = METHODS[args.method](queries, gallery, relevant)
    seconds, peak = time.perf_counter()-start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
    print(json.dumps(dict(seconds=round(seconds, 2), peak_GB=round(peak, 2), metrics=metrics)))


def run(args, method, queries=0):
    command = [sys.executable, __file__, "--method", method, "--n", args.n, "--dim", args.dim, "--queries", queries]
    out = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def report(method, found, remark):
    print(f"{method:13}{found['seconds']:8.1f} s   peak {found['peak_GB']:.2f} GB   {remark}", flush=True)


def compare_peers(args):
    "Time and metrics of the installed peers on the first queries; they must agree with ours."
    part = run(args, "ours", args.peer_queries)
    report("ours", part, f"the first {args.peer_queries} queries only")
    for peer in ("trec_eval", "torchmetrics", "ranx"):
        if not importlib.util.find_spec("pytrec_eval" if peer == "trec_eval" else peer):
            print(f"{peer:13} is not installed", flush=True)
            continue
        found = run(args, peer, args.peer_queries)
        difference = max(abs(found["metrics"][name]-part["metrics"][name]) for name in METRICS)
        minutes = found["seconds"]*args.n/args.peer_queries/60
        report(peer, found, f"the first {args.peer_queries} queries only; "
                            f"about {minutes:.0f} minutes for all (an estimate); metrics differ by {difference:.1e}")
        assert difference < 1e-5, (peer, found["metrics"], part["metrics"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=44_441)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--peer-queries", type=int, default=200)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--queries", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        return child(args)
    packages = ("numpy", "torch", "pytrec_eval-terrier", "torchmetrics", "ranx")
    versions = {name: version(name) for name in packages if importlib.util.find_spec(name.replace("-terrier", ""))}
    setting = dict(
        machine=platform.processor() or platform.machine(), cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0],
        python=platform.python_version(), **versions, queries=args.n, products=args.n, dimensions=args.dim)
    print(json.dumps(setting), flush=True)
    remarks = dict(
        floor="the matrix product alone", ours="all metrics", first_ten="all metrics, and the first ten results")
    for method, remark in remarks.items():
        report(method, run(args, method), remark)
    compare_peers(args)


if __name__ == "__main__":
    main()
