"""The whole path on real products, with a model that starts from random weights: time and memory of all six commands.

    python benchmarks/whole_path.py CATALOGUE --root FOLDER [--limit 1000] [--model tiny|mid|vit-b-32] [--epochs 30] ...

CATALOGUE is an archive or a folder, as for clip_ft_get_data. Models: tiny is tiny_model of clip_ft (1.2 M
parameters, images of 96 x 96 pixels); mid has 16 M (128 x 128, patches of 16, 6 layers of 384 and 4 of 256);
vit-b-32 has the dimensions of ViT-B/32 (151 M) and serves to measure speed and memory, since from random weights it
learns little from a few thousand products. Further options are passed to clip_ft_train. Each command gives one
record; FOLDER/grids contains an image of the results of each query. The commands are not compared with peers.
"""
import os
import time
from collections.abc import Callable
from pathlib import Path

from common import OFFLINE, Results, benchmark_parser, load_parts, peak_gb, save_random_model

QUERIES = (
    'blue jeans', 'red dress', 'black leather shoes', 'women handbag', 'white sports shoes', 'men watch',
    'striped shirt', 'pink top', 'sandals', 'sunglasses', 'green tshirt', 'nightdress', 'denim shorts',
    'silver earrings', 'brown belt')


def measure(results: Results, name: str, command: Callable, *options: object):
    "Run a command, and add a record of its seconds and of the peak memory so far."
    import torch
    start = time.perf_counter()
    command([str(option) for option in options])
    record = dict(name=name, seconds=time.perf_counter()-start, peak_GB=peak_gb())
    if torch.cuda.is_available():
        record['device_GB'] = torch.cuda.max_memory_reserved()/1e9
    results.add(**record)


def run_commands(results: Results, root: Path, catalogue: Path, limit: int | None, model: str, train_options: list):
    "Run all commands."
    from clip_ft.commands import embed_main, evaluate_main, get_data_main, preprocess_main, search_main, train_main
    where = ('--root', root)
    limited = ('--limit', limit) if limit else ()
    measure(results, 'get_data', get_data_main, *where, '--source', catalogue, *limited)
    measure(results, 'preprocess', preprocess_main, *where)
    if model != 'tiny':
        save_random_model(root/model, load_parts(root)[1]['full_text'], model)
        model = root/model
    measure(results, 'train', train_main, *where, '--model', model, *train_options)
    measure(results, 'evaluate', evaluate_main, *where)
    measure(results, 'embed', embed_main, *where)
    (root/'grids').mkdir(exist_ok=True)
    for number, query in enumerate(QUERIES):
        image = root/'grids'/f'{number:02}-{query.replace(" ", "-")}.png'
        measure(results, f'search {query!r}', search_main, query, *where, '--top-k', 10, '--save-grid', image)


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('catalogue', type=Path)
    parser.add_argument('--root', type=Path, required=True, help='folder of data, checkpoints and grids')
    parser.add_argument('--limit', type=int, help='number of products, as for clip_ft_get_data')
    parser.add_argument('--model', default='tiny', choices=('tiny', 'mid', 'vit-b-32'))
    args, train_options = parser.parse_known_args()
    args.train_options = train_options
    os.environ.update(OFFLINE)
    with Results(args) as results:
        run_commands(results, args.root, args.catalogue, args.limit, args.model, args.train_options)


if __name__ == '__main__':
    main()
