"""All figures of retrieval for 44,441 queries against 44,441 products at 512 dimensions, beside other packages in the same run.

    python benchmarks/metrics.py [--n 44441] [--dim 512] [--peer-queries 200]

Each stands in a process of its own, and its peak memory is that process's. The embeddings are random, of length 1; twins are drawn
so that a product has one right answer (60 %) or several (up to 200), as in a real catalogue. clip_ft calculates recall, found and
precision at 1, 5 and 10, MRR, MRR@10, mAP, mAP@R, nDCG@10, and mean and median rank, for every query, from the embeddings on; a
second line is what training calculates (recall, MRR and median rank of the best right answer). The floor is the matrix product alone.

The peers are trec_eval (by pytrec_eval), and torchmetrics and ranx where they are installed. They take scores, so the matrix product and the
choice of what to hand over are part of their time: trec_eval and ranx need all scores of a query in a dict of Python, torchmetrics one
flat row a pair. None of them does all queries in reasonable time and memory, so they get the first --peer-queries of them, against the whole
gallery; the line says so, and the time for all is that of the piece in proportion, marked as an estimate. On that piece all
must give the same figures, which is checked.
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


def make(args):
    "Query and gallery embeddings, and the right answers of each query."
    rng = np.random.default_rng(0)
    unit = lambda x: x/np.linalg.norm(x, axis=1, keepdims=True)
    sizes = np.minimum(rng.zipf(3., args.n), 200)
    groups = np.repeat(np.arange(args.n), sizes)[:args.n]
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1])
    relevant = [members[g] for g in groups]
    centres = unit(rng.normal(size=(groups.max()+1, args.dim)).astype(np.float32))[groups]
    noise = lambda s: unit(rng.normal(size=(args.n, args.dim)).astype(np.float32))*s
    return unit(centres+noise(3.)), unit(centres+noise(3.)), relevant


def floor(queries, gallery, relevant):
    for i in range(0, len(queries), 512): queries[i:i+512] @ gallery.T
    return {}


def ours(queries, gallery, relevant):
    from clip_ft.metrics import retrieval_metrics
    return retrieval_metrics(queries, gallery, relevant)


def first_ten(queries, gallery, relevant):
    from clip_ft.metrics import mean_metrics, query_metrics, rank_relevant
    return mean_metrics(query_metrics(rank_relevant(queries, gallery, relevant, top_k=10)))


def as_dicts(queries, gallery, relevant):
    "What trec_eval and ranx read."
    names = [str(i) for i in range(len(gallery))]
    scores = queries @ gallery.T
    judged = {f"q{i}": {names[r]: 1 for r in right} for i, right in enumerate(relevant)}
    return judged, {f"q{i}": dict(zip(names, row.tolist())) for i, row in enumerate(scores)}


def trec_eval(queries, gallery, relevant):
    import pytrec_eval
    total, n = {}, len(queries)
    for i in range(0, n, 50):                              # a dict of all scores would not fit into memory
        judged, run = as_dicts(queries[i:i+50], gallery, relevant[i:i+50])
        found = pytrec_eval.RelevanceEvaluator(judged, {"success.1,5,10", "recall.1,5,10", "P.1,5,10", "recip_rank", "map", "ndcg_cut.10"}).evaluate(run)
        for o in found.values():
            for k, v in o.items(): total[k] = total.get(k, 0)+v/n
    return {"hit_rate@1": total["success_1"], "hit_rate@10": total["success_10"], "recall@10": total["recall_10"], "precision@10": total["P_10"], "mrr": total["recip_rank"], "map": total["map"], "ndcg@10": total["ndcg_cut_10"]}


def ranx(queries, gallery, relevant):
    import ranx
    names = {"hit_rate@1": "hit_rate@1", "hit_rate@10": "hit_rate@10", "recall@10": "recall@10", "precision@10": "precision@10", "mrr": "mrr", "map": "map", "ndcg@10": "ndcg@10"}
    total = {}
    for i in range(0, len(queries), 50):
        judged, run = as_dicts(queries[i:i+50], gallery, relevant[i:i+50])
        for k, v in ranx.evaluate(ranx.Qrels(judged), ranx.Run(run), list(names)).items(): total[names[k]] = total.get(names[k], 0)+v*len(judged)/len(queries)
    return total


def torchmetrics(queries, gallery, relevant):
    import torch
    from torchmetrics import retrieval as R
    kinds = {"hit_rate@1": R.RetrievalHitRate(top_k=1), "hit_rate@10": R.RetrievalHitRate(top_k=10), "recall@10": R.RetrievalRecall(top_k=10), "precision@10": R.RetrievalPrecision(top_k=10),
             "mrr": R.RetrievalMRR(), "map": R.RetrievalMAP(), "ndcg@10": R.RetrievalNormalizedDCG(top_k=10)}
    # above 0, because torchmetrics takes a score of 0 or less for "not found"
    scores, target = torch.from_numpy(queries @ gallery.T).double()+2, torch.zeros(len(queries), len(gallery), dtype=torch.bool)
    for i, right in enumerate(relevant): target[i, right] = True
    indexes = torch.arange(len(queries))[:, None].expand(-1, len(gallery))
    return {k: m(scores.flatten(), target.flatten(), indexes=indexes.flatten()).item() for k, m in kinds.items()}


METHODS = dict(floor=floor, ours=ours, first_ten=first_ten, trec_eval=trec_eval, ranx=ranx, torchmetrics=torchmetrics)


def child(args):
    "Run one method here, and print its time, memory and figures."
    queries, gallery, relevant = make(args)
    if args.queries: queries, relevant = queries[:args.queries].copy(), relevant[:args.queries]
    METHODS[args.method](queries[:2], gallery, [[0], [1]])                             # imports, compilation
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
    start = time.perf_counter()
    figures = METHODS[args.method](queries, gallery, relevant)
    seconds = time.perf_counter()-start
    print(json.dumps(dict(seconds=round(seconds, 2), peak_GB=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6, 2), before_GB=round(before, 2), figures=figures)))


def run(args, method, queries=0):
    out = subprocess.run([sys.executable, __file__, "--method", method, "--n", str(args.n), "--dim", str(args.dim), "--queries", str(queries)], check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=44_441)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--peer-queries", type=int, default=200)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--queries", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method: return child(args)
    packages = {o: version(o) for o in ("numpy", "torch", "pytrec_eval-terrier", "torchmetrics", "ranx") if importlib.util.find_spec(o.replace("-terrier", ""))}
    print(json.dumps(dict(machine=platform.processor() or platform.machine(), cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0], python=platform.python_version(), **packages, queries=args.n, products=args.n, dimensions=args.dim)), flush=True)
    for method, says in (("floor", "the matrix product alone"), ("ours", "all figures"), ("first_ten", "all metrics, and the first ten results")):
        found = run(args, method)
        print(f"{method:13}{found['seconds']:8.1f} s   peak {found['peak_GB']:.2f} GB   {says}", flush=True)
    piece = run(args, "ours", args.peer_queries)
    print(f"{'ours':13}{piece['seconds']:8.1f} s   peak {piece['peak_GB']:.2f} GB   the first {args.peer_queries} queries only", flush=True)
    for peer in ("trec_eval", "torchmetrics", "ranx"):
        if not importlib.util.find_spec(dict(trec_eval="pytrec_eval").get(peer, peer)):
            print(f"{peer:13} is not installed", flush=True)
            continue
        found = run(args, peer, args.peer_queries)
        apart = max(abs(found["figures"][o]-piece["figures"][o]) for o in METRICS)
        print(f"{peer:13}{found['seconds']:8.1f} s   peak {found['peak_GB']:.2f} GB   the first {args.peer_queries} queries only; in proportion {found['seconds']*args.n/args.peer_queries/60:.0f} minutes for all (an estimate); figures differ by {apart:.1e}", flush=True)
        assert apart < 1e-5, (peer, found["figures"], piece["figures"])


if __name__ == "__main__": main()
