"""Speed and memory of the image and text towers of the base models in base_models.json, with random weights.

    python benchmarks/base_models.py [--device cuda] [--models 'CLIP B/32' ...] [--csv FILE]

base_models.json lists the models, and the shapes that they share; each shape is measured once. Inputs are random and
already on the device, so neither decoding nor tokenizing is timed; a result is timed until it is on the CPU. On CUDA
the towers run in float16, as InferenceModel of clip_ft does, at batch sizes 1 and 256. On a CPU they run in
float32 on one thread; instead of 256, a batch has 32 inputs, or is left out, if it would take longer than --seconds.
SigLIP reads texts of a fixed length; the other models read queries of 16 tokens.

ms is the shortest time of a batch, of at least three if it takes less than 3 s: on a CPU the time that the thread
computed, which depends less on other processes. weights_GB is the size of both towers, peak_GB what CUDA allocated at
most (empty on a CPU). The rows replace those of the same device and models in results/base_models_speed.csv.
"""
import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from common import OFFLINE, RESULTS, Results, benchmark_parser, cpu_name, now

FACTS = Path(__file__).with_name('base_models.json')
QUERY_TOKENS = 16
BATCHES = (256, 32)


def build(config: dict, device: Any) -> Any:
    "A model with small random weights; its parameters are created on the device."
    import torch
    from transformers import AutoConfig, AutoModel
    with torch.device('meta'):
        model = AutoModel.from_config(AutoConfig.for_model(**config)).eval()
    buffers = {name: buffer.shape for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-.03, .03)
        for name, buffer in model.named_buffers():  # positions, or types of tokens
            positions = torch.arange(buffers[name][-1], device=device)
            buffer.copy_(positions if name.endswith('position_ids') else 0*positions)
    return model


def towers(model: Any, device: Any) -> Iterator[tuple[str, str, Callable[[int], Callable]]]:
    "Name, input, and a function from a batch size to a call that embeds a batch, of each tower."
    import torch

    from clip_ft.model import image_features, text_features
    config = model.config
    size, width = config.vision_config.image_size, QUERY_TOKENS
    if config.model_type == 'siglip':
        width = config.text_config.max_position_embeddings
    dtype = torch.float16 if str(device).startswith('cuda') else torch.float32

    def images(batch):
        pixels = torch.randn(batch, 3, size, size, device=device, dtype=dtype)
        return lambda: image_features(model, pixels).cpu()

    def texts(batch):
        tokens = dict(input_ids=torch.randint(3, 1000, (batch, width), device=device))
        if config.model_type != 'siglip':
            tokens['attention_mask'] = torch.ones_like(tokens['input_ids'])
        return lambda: text_features(model, tokens).cpu()

    yield 'image', f'{size} px', images
    yield 'text', f'{width} tokens', texts


def best_seconds(work: Callable[[], Any], clock: Callable[[], float], seconds: float = .4, slow: float = 3) -> float:
    "Shortest time of a call, of three to ten that take `seconds`; the first call warms up, unless it is slow."
    times: list[float] = []
    while len(times) < 4 or (len(times) < 11 and sum(times[1:]) < seconds):
        start = clock()
        work()
        times.append(clock()-start)
        if times[0] > slow:
            return times[0]
    return min(times[1:])


def measure_batch(work: Callable[[], Any], cuda: bool) -> dict:
    "Seconds of a batch and, on CUDA, the peak of the allocated memory."
    import torch
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        seconds = best_seconds(work, now if cuda else time.process_time)
    return dict(seconds=seconds, peak_GB=torch.cuda.max_memory_allocated()/1e9 if cuda else None)


def measure(name: str, config: dict, args: Namespace) -> Iterator[dict]:
    "The records of a model."
    import torch

    from clip_ft.fast import half_copy
    cuda = args.device.startswith('cuda')
    model = build(config, torch.device(args.device))
    if cuda:
        model = half_copy(model)
        torch.cuda.empty_cache()
    weights = sum(x.numel()*x.element_size() for x in model.parameters())/1e9
    for tower, content, work in towers(model, args.device):
        found = {1: measure_batch(work(1), cuda)}
        short = [batch for batch in BATCHES if cuda or batch*found[1]['seconds'] <= args.seconds]
        found |= {batch: measure_batch(work(batch), cuda) for batch in short[:1]}
        for batch, record in found.items():
            seconds = record.pop('seconds')
            yield dict(model=name, tower=tower, input=content, batch=batch, ms=1000*seconds,
                       per_second=batch/seconds, weights_GB=weights, **record)


def machine(args: Namespace) -> dict:
    "Device, arithmetic, versions and date."
    import torch
    if args.device.startswith('cuda'):
        device = dict(device=torch.cuda.get_device_name(args.device), dtype='float16')
    else:
        device = dict(device=f'{cpu_name()}, 1 thread', dtype='float32')
    return device | dict(torch=torch.__version__, date=date.today().isoformat())


def write(path: Path, records: list[dict]):
    "Write the rows, in place of earlier rows of the same device and models."
    table = pd.DataFrame(records)
    if path.exists():
        before = pd.read_csv(path)
        new = set(zip(table['device'], table['model']))
        table = pd.concat([before[[key not in new for key in zip(before['device'], before['model'])]], table])
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format='%.4g')
    print(f'wrote {path}', flush=True)


def main():
    shapes = json.loads(FACTS.read_text())['shapes']
    parser = benchmark_parser(__doc__)
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1')
    parser.add_argument('--models', nargs='+', choices=shapes, default=list(shapes), metavar='SHAPE')
    parser.add_argument('--seconds', type=float, default=5, help='longest batch on a CPU')
    parser.add_argument('--csv', type=Path, default=RESULTS/'base_models_speed.csv', help='table to write or complete')
    args = parser.parse_args()
    os.environ.update(OFFLINE)
    import torch
    torch.set_num_threads(1)
    with Results(args) as results:
        about = machine(args)
        next(measure(args.models[0], shapes[args.models[0]], args))  # start-up costs of the libraries
        for name in args.models:
            for record in measure(name, shapes[name], args):
                results.add(**record, **about)
    write(args.csv, results.records)


if __name__ == '__main__':
    main()
