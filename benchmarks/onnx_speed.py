"""CPU time of the two towers in PyTorch, and as ONNX files in 32 and in 8 bits.

    python benchmarks/onnx_speed.py [--rounds 3] [--batches 1 32] [--tokens 16] [--tiny]

A ViT-B/32 with random weights, which costs as much as a trained one, is exported with save_onnx. Each tower then embeds
batches of images, or of texts of --tokens tokens, with one thread per core: in PyTorch, in inference mode, and in
onnxruntime. The implementations take turns in each round, so that other programs slow down all of them alike; the first
call of each is not timed. The records also hold the file sizes and the lowest cosine between the vectors of an ONNX
tower and those of PyTorch; with 8 bits, the cosine of trained weights differs from that of these random ones.
"""
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import Results, benchmark_parser, percentiles, random_model, time_each, usable_cores

WORDS = ('red', 'blue', 'dress', 'jeans', 'with', 'long', 'sleeves', 'for', 'the', 'summer')


def tower_inputs(model, tokens: int, batch: int) -> dict[str, np.ndarray]:
    "Random inputs of the two towers: normalized pixels, and texts that end with the end token."
    rng, text, size = np.random.default_rng(0), model.config.text_config, model.config.vision_config.image_size
    ids = rng.integers(0, text.vocab_size-2, (batch, tokens))
    ids[:, -1] = text.eos_token_id
    return dict(image=rng.standard_normal((batch, 3, size, size), dtype=np.float32), text=ids)


def torch_towers(model) -> dict[str, Callable]:
    "The towers of the model, from arrays to arrays."
    import torch

    from clip_ft.model import image_features, text_features

    @torch.inference_mode()
    def image(values):
        return image_features(model, torch.from_numpy(values)).numpy()

    @torch.inference_mode()
    def text(values):
        ids = torch.from_numpy(values)
        return text_features(model, dict(input_ids=ids, attention_mask=torch.ones_like(ids))).numpy()
    return dict(image=image, text=text)


def onnx_towers(folder: Path, int8: bool) -> dict[str, Callable]:
    "The towers of the files, from arrays to arrays."
    from clip_ft.onnx_towers import OnnxTowers
    towers = OnnxTowers(folder, int8, threads=usable_cores())
    return dict(image=lambda values: towers.image_tower.run(None, dict(pixel_values=values))[0],
                text=lambda values: towers.text_tower.run(None, dict(input_ids=values))[0])


def measure(results: Results, args: Namespace, folder: Path, model, processor):
    "Export the model, and record the times of all implementations."
    import torch

    from clip_ft.onnx_towers import SUFFIXES, save_onnx
    torch.set_num_threads(usable_cores())
    seconds, = time_each(lambda _: save_onnx(folder, model, processor, int8=True), [None])
    results.add(name='save_onnx, 32 and 8 bits', seconds=seconds)
    ways = {'PyTorch': torch_towers(model), 'ONNX, 32 bits': onnx_towers(folder, False),
            'ONNX, 8 bits': onnx_towers(folder, True)}
    files = {'ONNX, 32 bits': SUFFIXES[False], 'ONNX, 8 bits': SUFFIXES[True]}
    stems = dict(image='vision_model', text='text_model')
    for batch in args.batches:
        for tower, values in tower_inputs(model, args.tokens, batch).items():
            embeds = {way: towers[tower](values) for way, towers in ways.items()}
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(args.rounds):
                for way, towers in ways.items():
                    times[way] += time_each(towers[tower], [values]*max(3, 32//batch))
            for way, found in embeds.items():
                cosine = (found*embeds['PyTorch']).sum(1).min()
                path = folder/'onnx'/f'{stems[tower]}{files[way]}.onnx' if way in files else None
                size = dict(file_MB=path.stat().st_size/1e6) if path else {}
                results.add(name=f'{tower} tower, {way}', batch=batch, **percentiles(times[way]),
                            items_per_second=batch/np.median(times[way]), lowest_cosine=cosine, **size)


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument('--rounds', type=int, default=3, help='rounds in which the implementations take turns')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 32], help='batch sizes')
    parser.add_argument('--tokens', type=int, default=16, help='tokens per text')
    parser.add_argument('--tiny', action='store_true', help='a tiny model instead of ViT-B/32, for a trial')
    args = parser.parse_args()
    texts = [f'{first} {second} {third}' for first in WORDS for second in WORDS for third in WORDS]
    model, processor = random_model(texts, 'tiny' if args.tiny else 'vit-b-32')
    with Results(args, 'onnx', 'onnxruntime') as results, tempfile.TemporaryDirectory() as folder:
        measure(results, args, Path(folder), model, processor)


if __name__ == '__main__':
    main()
