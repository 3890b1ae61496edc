r"""Speed and memory of train() of clip_ft from end to end: pixel cache, epochs, augmentation, metrics and checkpoints.

    python benchmarks/training_speed.py CATALOGUE [--batch-size 32 1024] [--epochs 5] [--model FOLDER] [--root FOLDER]
    python benchmarks/training_speed.py CATALOGUE --size siglip-b-16 --once --plain

CATALOGUE, --model and --size are as in training_peers.py, which measures the peers. The catalogue is first copied and
split below --root, which is not timed; existing files are reused. Each measurement runs in a process of its own and
prints one record. The cache is "cold" in a first run, which decodes the images, and "warm" in all others; with --once
the cold run is also the one at the first batch size. --plain adds the plain loop of training_peers.py.

compiled tells whether the layers were compiled, replayed whether whole steps were recorded as CUDA graphs, which
train() does for models of the types clip and siglip (SigLIP 2 of fixed resolution is a siglip).

seconds is the time of the call of train(), and pairs_per_second_from_start the pairs that it trained on, divided by
that time. pairs_per_second counts only the steps, without metrics and checkpoints, and leaves out the first epoch if
there are several. seconds_to_first_step ends with the first optimizer step; it includes the metrics before training.
stages lists the seconds spent beside the steps; TextSampler and to_device are part of Trainer. utilisation is as in
training_peers.py, with the texts as wide as in the batches. several_gpus.py measures several GPUs.
"""
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import (
    device_use,
    forward_flops,
    load_parts,
    model_parser,
    now,
    prepare_model,
    prepared,
    print_record,
    read_catalogue,
    usable_cores,
)
from training_peers import plain_loop


class Watch:
    "Records the first optimizer step, the seconds of each epoch and stage, and the text width of each batch."

    def __init__(self):
        from torch.optim.optimizer import register_optimizer_step_post_hook
        self.first_step, self.epochs, self.widths, self.stages, self.trainer = None, [], [], {}, {}
        self.hook = register_optimizer_step_post_hook(self.after_step)

    def after_step(self, *_):
        "Record the time of the first step, except a step that is captured as a CUDA graph."
        import torch
        recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if self.first_step is None and not recording:
            self.first_step = now()
            self.hook.remove()

    def stage(self, work: Callable, name: str) -> Callable:
        "A wrapper of a function that adds its time to a stage."
        def timed(*args, **kwargs):
            start = now()
            try:
                return work(*args, **kwargs)
            finally:
                self.stages[name] = self.stages.get(name, 0)+now()-start
        return timed

    def epoch(self, work: Callable) -> Callable:
        "A wrapper of Trainer.train_epoch that records its time, and how the trainer takes its steps."
        def timed(trainer, *args, **kwargs):
            start = now()
            result = work(trainer, *args, **kwargs)
            self.epochs.append(now()-start)
            self.trainer = dict(compiled=trainer.compiled, replayed=bool(trainer.recorded))
            return result
        return timed

    def batch(self, work: Callable) -> Callable:
        "A wrapper of a function that records the text width of the batch that it returns."
        def noted(*args, **kwargs):
            batch = work(*args, **kwargs)
            self.widths.append(batch['input_ids'].shape[1])
            return batch
        return noted


def stages() -> list[tuple[Any, str]]:
    "Functions of train() whose time is reported: owner and name of each."
    from clip_ft import batches, models, steps, training
    functions = ('run_fingerprint', 'Trainer', 'Gallery', 'load_checkpoint', 'remember_base', 'offer_model',
                 'choose_weights', 'weights_hash')
    methods = ('measure_epoch', 'save_snapshot', 'interpolate', 'keep_best')
    return [*((training, name) for name in functions), *((training.Trainer, name) for name in methods),
            (steps, 'validation_split'), (models, 'measure'), (models, 'embed_images'), (batches, 'TextSampler'),
            (batches, 'to_device'), (training.PixelCache, 'build'), (training.Snapshots, 'wait')]


@contextmanager
def watching() -> Iterator[Watch]:
    "Record the calls of train() inside the with block."
    from clip_ft.batches import TrainingBatches
    from clip_ft.training import Trainer
    watch = Watch()
    with ExitStack() as stack:
        stack.enter_context(patch.object(Trainer, 'train_epoch', watch.epoch(Trainer.train_epoch)))
        stack.enter_context(patch.object(TrainingBatches, 'batch', watch.batch(TrainingBatches.batch)))
        for owner, name in stages():
            stack.enter_context(patch.object(owner, name, watch.stage(getattr(owner, name), name)))
        yield watch


def measure(args: Namespace) -> dict:
    "Train, and return the record."
    from clip_ft.model import load_model
    from clip_ft.settings import TrainConfig
    from clip_ft.training import train
    paths, products, test_products, image_dir = load_parts(args.root)
    model, processor = load_model(args.model)
    batch_size = args.batch_size[0]
    config = TrainConfig(epochs=args.epochs, patience=args.epochs, batch_size=batch_size)
    start = now()
    with watching() as watch:
        history = train(model, processor, products, test_products, image_dir, paths, config, fresh=True)
    seconds = now()-start
    pairs = int(history.step.max())*batch_size
    steady = watch.epochs[1:] or watch.epochs
    rate = pairs/len(watch.epochs)*len(steady)/sum(steady)
    tokens = sum(watch.widths)/len(watch.widths)
    return dict(
        batch_size=batch_size, products=len(products), epochs=len(watch.epochs), pairs_per_second=rate,
        pairs_per_second_from_start=pairs/seconds, seconds=seconds, epoch_seconds=watch.epochs,
        seconds_to_first_step=watch.first_step-start, tokens=tokens, stages=watch.stages, **watch.trainer,
        **device_use(rate*3*forward_flops(model.config, tokens), args.tflops))


def measure_plain(args: Namespace) -> dict:
    "The record of the plain loop."
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # the workers of the loaders are forked
    options = dict(steps=None, seconds=args.plain_seconds, warmup=10, prefetch=2, compile=False)
    return plain_loop(Namespace(**vars(args) | options), *read_catalogue(args.catalogue))


def main():
    parser = model_parser(__doc__, ('prepare', 'cold', 'warm', 'plain loop'))
    parser.add_argument('--batch-size', type=int, nargs='+', default=[32, 1024])
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--root', type=Path, help='folder of data and checkpoints; default: a temporary folder')
    parser.add_argument('--once', action='store_true', help='one run per batch size; the first decodes the images')
    parser.add_argument('--plain', action='store_true', help='also measure the plain loop of training_peers.py')
    parser.add_argument('--plain-seconds', type=float, default=10, help='length of the timed part of the plain loop')
    parser.add_argument('--workers', type=int, default=usable_cores(), help='processes that load data, plain loop')
    args = parser.parse_args()
    if args.how == 'prepare':
        prepare_model(args)
        return
    if args.how == 'plain loop':
        print_record(name=args.how, workers=args.workers, **measure_plain(args))
        return
    if args.how:
        print_record(name='clip_ft', cache=args.how, **measure(args))
        return
    with prepared(args) as (results, root, places):
        cold = not any((root/'data'/'processed'/'pixels').glob('*.npy'))
        runs = [('warm', batch_size) for batch_size in args.batch_size]
        if cold:
            runs = [('cold', args.batch_size[0]), *runs[args.once:]]
        runs += [('plain loop', batch_size) for batch_size in args.batch_size if args.plain]
        for how, batch_size in runs:
            results.measure(*places, '--batch-size', batch_size, '--how', how)


if __name__ == '__main__':
    main()
