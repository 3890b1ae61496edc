"""What words and texts add to the search by image: tables of queries by name, category, colour, brand and description.

    python benchmarks/finding.py words ROOT --label NAME         # the rules of combination, and the time of a query
    python benchmarks/finding.py texts ROOT --label NAME         # the share of the texts in the embeddings
    python benchmarks/finding.py spelling ROOT --label NAME      # suggestions for words with typing errors

ROOT is a project after clip_ft_train and clip_ft_embed (with the text share 0). Rules are
compared on queries from validation products and from test products. The weight 8 was chosen before, on queries that
include test products. The rows of a label in results/finding.csv are replaced. Each interval is that of the mean over
1,000 resamples of the queries.

Words of names, categories and brands are indexed, so queries from these fields measure whether they are found, not
what a model has understood. Queries "without brand" and "without category" are made from a field that is left out of
the index, and show what remains; in the catalogue of fashion-thumbs, names contain most brands and colours.
"""
import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from common import RESULTS

from clip_ft.core import Paths
from clip_ft.data import load_split
from clip_ft.embedding import SHARES, embed_product_texts, held_out_queries, mix_texts
from clip_ft.embeddings_file import load_embeddings
from clip_ft.encode import embed_texts
from clip_ft.exact import ExactIndex
from clip_ft.learned import validation_split
from clip_ft.model import load_model
from clip_ft.queries import query_sets
from clip_ft.search import Searcher
from clip_ft.settings import TrainConfig
from clip_ft.words import WordIndex

WEIGHTS = (2, 4, 6, 8, 12)
QUERIES = 200  # of each kind
COLUMNS = ['label', 'experiment', 'queries from', 'kind', 'rule', 'queries', 'MRR', 'MRR low', 'MRR high', 'recall@10',
           'MAP', 'gain low', 'gain high']


def measured(scores: np.ndarray, relevant: np.ndarray) -> tuple[float, float, float]:
    "Reciprocal rank, recall at 10 and average precision; equal scores in the order of the rows."
    right = np.zeros(len(scores), bool)
    right[relevant] = True
    ranks = 1 + np.flatnonzero(right[np.argsort(-scores, kind='stable')])
    recall = (ranks <= 10).sum()/min(10, len(ranks))
    return 1/ranks[0], recall, float((np.arange(1, len(ranks) + 1)/ranks).mean())


def rules(cosines: np.ndarray, spread: float, words: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    "The scores of all products by each rule."
    yield 'image', cosines
    yield 'words', words
    for weight in WEIGHTS:
        yield f'image + {weight} x words', cosines + weight*spread*words
    by_image = 1 + np.argsort(np.argsort(-cosines, kind='stable'))
    by_words = pd.Series(-words).rank(method='min').to_numpy()
    yield 'reciprocal rank fusion', 1/(60 + by_image) + np.where(words > 0, 1/(60 + by_words), 0)


def interval(values: np.ndarray) -> tuple[float, float]:
    "95 % confidence interval of the mean, by resampling."
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(1000, len(values)))].mean(axis=1)
    return tuple(np.quantile(means, (.025, .975)))


def rows_of(label: str, experiment: str, part: str, kind: str, found: dict[str, list]) -> list[dict]:
    "One row per rule; gains are differences of the reciprocal rank to the first rule."
    table, first = [], None
    for rule, values in found.items():
        per_query = np.array(values)
        first = per_query[:, 0] if first is None else first
        low, high = interval(per_query[:, 0])
        gain_low, gain_high = interval(per_query[:, 0] - first)
        mean = per_query.mean(axis=0)
        table.append(dict(zip(COLUMNS, (label, experiment, part, kind, rule, len(per_query), mean[0], low, high,
                                        mean[1], mean[2], gain_low, gain_high))))
    return table


def show(rows: list[dict]) -> None:
    columns = ['queries from', 'kind', 'rule', 'queries', 'MRR', 'MAP', 'gain low', 'gain high']
    print(pd.DataFrame(rows)[columns].to_string(), flush=True)


def load(root: str) -> tuple:
    "Searcher of a project, its table of products, and the rows of validation and test products."
    paths = Paths(root)
    model, processor = load_model(paths.best_model, 'cpu', verbose=False)
    searcher, (train, test) = Searcher(model, processor, load_embeddings(paths.embeddings)), load_split(paths)
    kept = train.iloc[validation_split(train, TrainConfig().val_size)[1]]
    images = searcher.dataframe['image']
    parts = {name: np.flatnonzero(images.isin(set(part['image']))) for name, part in
             (('validation', kept), ('test', test))}
    shuffled = {name: np.random.default_rng(0).permutation(rows) for name, rows in parts.items()}
    return searcher, searcher.dataframe, shuffled


def product_cosines(index: ExactIndex, vector: np.ndarray) -> np.ndarray:
    "The cosine of the best image of each product."
    cosines = np.vecdot(index.embeddings, vector)
    if index.owners is None:
        return cosines
    best = np.full(len(index), -1, np.float32)
    np.maximum.at(best, index.owners, cosines)
    return best


def measure_words(root: str, label: str) -> list[dict]:
    "Search by image, by words, and by both, with several rules; then the time of a typed query."
    searcher, products, parts = load(root)
    index, table = searcher.index, []
    without = {f'{kind}, without {column}': (kind, WordIndex(products.drop(columns=[column])))
               for kind, column in (('brand', 'brand'), ('category', 'category')) if column in products}
    for part, rows in parts.items():
        sets = query_sets(products, np.sort(rows[:2000]))
        kinds = {kind: (kind, index.words) for kind in ('name', 'category', 'colour', 'brand', 'gender', 'description')}
        for name, (kind, words) in (kinds | without).items():
            if kind not in sets:
                continue
            asked = np.random.default_rng(0).permutation(len(sets[kind]))[:QUERIES]
            texts = [sets[kind].texts[row] for row in asked]
            found: dict[str, list] = {}
            for row, text, vector in zip(asked, texts, embed_texts(searcher.model, searcher.processor, texts)):
                cosines = product_cosines(index, vector)
                for rule, scores in rules(cosines, searcher._spread(vector), words.scores(text)):
                    found.setdefault(rule, []).append(measured(scores, sets[kind].relevant[row]))
            table += rows_of(label, 'words', part, name, found)
            show(table[-len(found):])
    return table + measure_time(searcher, sets['name'].texts[:300], label)


def measure_time(searcher: Searcher, texts: list[str], label: str) -> list[dict]:
    "Milliseconds of typed queries that no cache knows, and of suggestions for them with an error."
    searcher.search(texts[0], 24)
    searcher.suggest('xqzt')
    milliseconds: dict[str, list] = {'search': [], 'suggest': []}
    for text in texts:
        start = time.perf_counter()
        searcher.search(f'{text} ', 24)
        milliseconds['search'].append(1000*(time.perf_counter() - start))
        start = time.perf_counter()
        searcher.suggest(text.replace('e', 'ee'))
        milliseconds['suggest'].append(1000*(time.perf_counter() - start))
    rows = [dict(label=label, experiment='time', kind=f'{name}, {len(searcher):,} products', rule=f'p{percent}, ms',
                 queries=len(texts), MRR=float(np.percentile(values, percent)))
            for name, values in milliseconds.items() for percent in (50, 95)]
    print(pd.DataFrame(rows).to_string())
    return rows


def measure_texts(root: str, label: str) -> list[dict]:
    "Names and descriptions as queries, without words of the texts that are mixed into the embeddings."
    searcher, products, parts = load(root)
    index, table = searcher.index, []
    main = np.arange(len(index)) if index.owners is None else np.unique(index.owners, return_index=True)[1]
    images = index.embeddings[main]
    for field, kind in (('display name', 'name'), ('description', 'description')):
        queries, mixed_in = held_out_queries(products, field)
        texts = embed_product_texts(searcher.model, searcher.processor, mixed_in)
        galleries = {share: mix_texts(images, texts, share) for share in (0, *SHARES)}
        for part, rows in parts.items():
            asked = rows[(queries.iloc[rows] != '').to_numpy()][:500]
            vectors = embed_texts(searcher.model, searcher.processor, queries.iloc[asked].tolist())
            found = {}
            for share, gallery in galleries.items():
                pairs = zip(vectors, asked)
                found[f'share {share}'] = [measured(gallery @ vector, np.array([row])) for vector, row in pairs]
            table += rows_of(label, 'texts', part, f'{kind}, held out', found)
            show(table[-len(found):])
    return table


def mistyped(word: str, rng: np.random.Generator) -> str:
    "One typing error after the first letter: a swap, an omission, a repetition or another letter."
    place, kind = int(rng.integers(1, len(word) - 1)), rng.integers(4)
    start, letter, rest = word[:place], word[place], word[place + 1:]
    if kind == 0:
        return start + rest[0] + letter + rest[1:]
    return start + ['', letter*2, str(rng.choice(list('etaoinsr')))][kind - 1] + rest


def measure_spelling(root: str, label: str) -> list[dict]:
    "Share of corrected errors in words that occur five times or more, and of offers for correct words; three seeds."
    words, found = load(root)[0].index.words, {'corrected': [], 'offers for words of the catalogue': []}
    common = sorted(word for word, count in words.counts.items() if count >= 5 and word.isalpha() and len(word) > 4)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        asked = [str(word) for word in rng.permutation(common)[:500]]
        errors = {word: mistyped(word, rng) for word in asked}
        unknown = {word: error for word, error in errors.items() if not words._is_known(error)}
        same = [words.terms(words.suggest(error) or '') == words.terms(word) for word, error in unknown.items()]
        found['corrected'] += same
        found['offers for words of the catalogue'] += [words.suggest(word) is not None for word in asked]
    table = []
    for kind, values in found.items():
        low, high = interval(np.array(values, float))
        table.append(dict(label=label, experiment='spelling', kind=kind, rule='share, three seeds', queries=len(values),
                          MRR=float(np.mean(values)), **{'MRR low': low, 'MRR high': high}))
    print(pd.DataFrame(table).to_string())
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('experiment', choices=('words', 'texts', 'spelling'))
    parser.add_argument('root', help='folder of the project')
    parser.add_argument('--label', required=True, help='name of the catalogue in the table')
    args = parser.parse_args()
    measure = {'words': measure_words, 'texts': measure_texts, 'spelling': measure_spelling}[args.experiment]
    new = pd.DataFrame(measure(args.root, args.label), columns=COLUMNS)
    path = Path(RESULTS)/'finding.csv'
    if path.exists():
        old = pd.read_csv(path)
        replaced = (old['label'] == args.label) & old['experiment'].isin(set(new['experiment']))
        new = pd.concat([old[~replaced], new], ignore_index=True)
    new.round(4).to_csv(path, index=False)


if __name__ == '__main__':
    main()
