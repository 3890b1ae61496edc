"""Exact search and typed queries: time for the best ten, beside numpy's matrix-vector product and `np.vecdot`, each with argpartition, in the same run.

    python benchmarks/search.py [--products 44441] [--embeddings FILE] [--texts 200]

One thread for exact search, all cores for typed queries. Each line of `ExactIndex.top` names the path that was timed: `8 bits first` (and how many rows
were then scored in float32), or `float32` alone. The first query makes the copy in 8 bits and has a line of its own. The vectors are random unless an embeddings file of clip_ft is given.
Typed queries go through the true ViT-B/32 with random weights, which cost what the trained ones cost; the tokenizer is learnt from the queries.
"""
import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = os.environ['OPENBLAS_NUM_THREADS'] = '1'   # before numpy is loaded
import numpy as np
import pandas as pd
import simsimd
import torch

from clip_ft.embedding import load_embeddings, save_embeddings
from clip_ft.exact import ExactIndex
from clip_ft.where import Contains

GENDERS, KINDS, COLOURS = ('women', 'men', 'unisex'), ('dress', 'jeans', 'shirt', 'watch', 'handbag', 'sandals', 'skirt', 'belt', 'cap', 'scarf'), ('red', 'blue', 'black', 'white', 'green', 'pink', 'grey', 'brown')


def say(what, times, **more): print(json.dumps(dict(what=what, p50_ms=round(1000*np.median(times), 2), p95_ms=round(1000*np.percentile(times, 95), 2), **more)), flush=True)


def timed(work, items):
    times = []
    for o in items:
        start = time.perf_counter()
        work(o)
        times.append(time.perf_counter()-start)
    return times


def synthetic(n, dim=512):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    table = pd.DataFrame({'image': [f'{i}.jpg' for i in range(n)], 'display name': [f'{COLOURS[i % 8]} {KINDS[i % 10]} number {i}' for i in range(n)], 'category': [KINDS[i % 10] for i in range(n)],
        'gender': [GENDERS[i % 3] for i in range(n)], 'price': (np.arange(n) % 1000/10).astype(str), 'description': [f'A text of some length about product {i}. '*20 for i in range(n)]})
    return vectors/np.linalg.norm(vectors, axis=1, keepdims=True), table


def exact_search(args, folder):
    path = args.embeddings or folder/'some.npz'
    if not args.embeddings:
        vectors, table = synthetic(args.products)
        save_embeddings(path, vectors, table.image, table, 'synthetic')
    say('load_embeddings', timed(load_embeddings, [path]*7), MB=round(Path(path).stat().st_size/1e6))
    data = load_embeddings(path)
    index, vectors = ExactIndex(data), np.array(data['embeddings'], dtype=np.float32)
    rng = np.random.default_rng(1)
    queries = vectors[rng.choice(len(vectors), 1000)]+rng.standard_normal((1000, vectors.shape[1]), dtype=np.float32)/25
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    def best(scores):
        rows = np.argpartition(scores, -10)[-10:]
        return rows[np.argsort(-scores[rows])]
    def plain(query): return best(vectors @ query)
    def path(where):
        "Which way these queries go, seen from outside: the rows that the 8-bit pass leaves."
        scored = []
        bounds, plain = index.int8_bounds, index.int8_bounds.candidates
        bounds.candidates = lambda *args: (lambda rows: scored.append(len(rows)) or rows)(plain(*args))
        for q in queries[:200]: index.top(q[None], 10, where)
        del bounds.candidates
        return dict(path='8 bits first', queries_so=len(scored)/200, scored_p50=int(np.median(scored)), scored_max=max(scored)) if scored else dict(path='float32')
    say('first query of a new ExactIndex, float32 alone', timed(lambda q: (lambda o: (o.embeddings, best(np.vecdot(o.embeddings, q))))(ExactIndex(data)), queries[:3]))
    say('first query of a new ExactIndex: makes the copy in 8 bits', timed(lambda q: ExactIndex(data).top(q[None], 10), queries[:3]), copy_MB=round(vectors.size/1e6, 1), float32_MB=round(vectors.nbytes/1e6, 1))
    common = data['dataframe']['category'].value_counts().index[0]
    conditions = {'no filter': None, 'equal': {'gender': 'Women' if 'Women' in set(data['dataframe'].get('gender', [])) else 'women'}, 'three filters': {'gender': ['women', 'men', 'Women', 'Men'], 'category': Contains('s'), 'display name': Contains('e')}}
    conditions['two filters, few left'] = conditions['equal'] | {'category': common}
    for round_ in (1, 2):                                                # twice, in turn: other programs come and go
        say('numpy: matrix-vector product, argpartition', timed(plain, queries[:200]), round=round_)
        say('numpy: vecdot, argpartition', timed(lambda q: best(np.vecdot(vectors, q)), queries[:200]), round=round_)
        for name, where in conditions.items():
            first = timed(lambda q: index.top(q[None], 10, where), queries[:1])[0]
            say(f'ExactIndex.top, {name}', timed(lambda q: index.top(q[None], 10, where), queries[:200]), first_ms=round(1000*first, 1), **path(where), round=round_)
        one = timed(lambda q: index.top(q[None], 10), queries)
        many = timed(lambda q: index.top(q, 10), [queries]*2)
        print(json.dumps(dict(what='1,000 queries', one_by_one_s=round(sum(one), 2), at_once_s=round(min(many), 2), times_faster=round(sum(one)/min(many), 1), round=round_)))
    right = [plain(q) for q in queries[:200]]
    print(json.dumps(dict(what='same ten as numpy', share=np.mean([set(a) == set(b) for a, (b, _) in zip(right, index.top(queries[:200], 10))]))))
    halves = ExactIndex(data | dict(embeddings=vectors.astype(np.float16))).top(queries, 10)
    pairs = [(set(a), set(b)) for (a, _), (b, _) in zip(index.top(queries, 10), halves)]
    print(json.dumps(dict(what='float16 and float32', same_ten=np.mean([a == b for a, b in pairs]), shared_of_ten=np.mean([len(a & b) for a, b in pairs]))))


def typed(args, folder):
    from transformers import CLIPConfig, CLIPModel
    from clip_ft.checkpoints import weights_hash
    from clip_ft.encode import embed_texts
    from clip_ft.model import tiny_model
    from clip_ft.search import Searcher
    torch.set_num_threads(os.cpu_count())
    texts = [f'{g} {c} {k} {extra}' for g in GENDERS for c in COLOURS for k in KINDS for extra in ('', 'for the summer', 'with long sleeves and a round neck')]
    np.random.default_rng(0).shuffle(texts)
    torch.manual_seed(0)
    model, (_, processor) = CLIPModel(CLIPConfig()).eval(), tiny_model(texts)
    model.config.text_config.eos_token_id = processor.tokenizer.eos_token_id
    vectors, table = synthetic(args.products)
    searcher = Searcher(model, processor, dict(embeddings=vectors, image_names=table.image, dataframe=table, weights_hash=weights_hash(model)))
    for o in texts[:5]: searcher.search(o, 10)
    say('typed query to results, ViT-B/32', timed(lambda o: searcher.search(o, 10), texts[5:5+args.texts]), threads=torch.get_num_threads())
    say('the same queries again', timed(lambda o: searcher.search(o, 10), texts[5:5+args.texts]))
    say('encoding alone', timed(lambda o: embed_texts(model, processor, o), texts[5:5+args.texts]))
    full = embed_texts(model, processor, texts[5:105])
    def variant(name, other, context):
        with torch.inference_mode(), context(): encode = lambda o: embed_texts(other, processor, o); times = timed(encode, texts[5:105]); vectors_ = np.concatenate([encode(o) for o in texts[5:105]])
        same = np.mean([set(a) == set(b) for (a, _), (b, _) in zip(searcher.index.top(full, 10), searcher.index.top(vectors_/np.linalg.norm(vectors_, axis=1, keepdims=True), 10))])
        say(f'encoding alone, {name}', times, same_ten=same)
    import copy
    from contextlib import nullcontext
    variant('bfloat16 weights', copy.deepcopy(model).bfloat16(), nullcontext)
    variant('int8, dynamically quantised', torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8), nullcontext)
    def padded(o):
        t = processor.tokenizer(o, padding='max_length', max_length=77, truncation=True, return_tensors='pt')
        with torch.inference_mode(): model.get_text_features(**t)
    say('encoding alone, padded to 77 tokens', timed(padded, texts[5:55]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--products', type=int, default=44_441)
    parser.add_argument('--embeddings', default=None)
    parser.add_argument('--texts', type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(dict(machine=platform.processor() or platform.machine(), cores=os.cpu_count(), python=platform.python_version(), numpy=np.__version__, torch=torch.__version__, simsimd=simsimd.__version__)))
    with tempfile.TemporaryDirectory() as folder:
        exact_search(args, Path(folder))
        typed(args, Path(folder))


if __name__ == '__main__': main()
