"""Training and embedding with one GPU and with several GPUs of one host: rates, efficiency and memory.

    python benchmarks/several_gpus.py CATALOGUE [--processes 1 2 4] [--shares 32 1024] [--root FOLDER] [--model FOLDER]

CATALOGUE, --root and --model are as in training_speed.py. One process per GPU, started by torchrun. Everything in one
call on a machine with 4 GPUs, which takes some 4 minutes for each number of processes; --cached may be left out:

    python benchmarks/several_gpus.py CATALOGUE --processes 1 2 4 --cached 16384 --root ROOT --model MODEL --save

A record of the training is the rate of the steps of TrainingSteps, as train() takes them, with --shares products per
process: the whole batch grows with the number of processes. Steps in which the layers are compiled and recorded are
not timed; seconds_to_first_step is the time from a loaded model to the end of the first step. A record with a
micro_batch uses gradient caching, at a batch of --cached products over all processes.

A record of the matrix is the loss of such a batch and its gradients for random embeddings: the time, and the peak of
the memory of the first process above what it had before.

The record of the host is what one core of this machine decodes and tokenizes; fewer than 2,000 images, so that they
are decoded by threads whose time is counted.

A record of the embedding is the rate of embed_images on pixels in the memory of the device, with --images images for
each process. The time is that of the slowest process.

efficiency is the rate divided by the number of processes and the rate of one process at the same share. loss_error is
the largest difference between the losses of a few steps in float32 and those of one process, at the same batch.
"""
import os
import tempfile
import time
from argparse import Namespace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    device_use,
    forward_flops,
    load_parts,
    memory_mb,
    model_parser,
    now,
    prepare_model,
    prepared,
    print_record,
)


def opened(args: Namespace) -> tuple[Any, Any, Any, Any]:
    "Model, processor, pixel cache and training products; each process on its device."
    import torch
    from accelerate import PartialState

    from clip_ft.data import image_paths
    from clip_ft.dataset import PixelCache, ResizeSpec
    from clip_ft.model import load_model
    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        paths, products, _, image_dir = load_parts(args.root)
        model, processor = load_model(args.model, verbose=False)
        cache = PixelCache.build(image_paths(products, image_dir), ResizeSpec.from_processor(processor), paths.pixels)
    return model, processor, cache, products


def together() -> float:
    "Seconds, when all processes have come here."
    from accelerate import PartialState
    now()
    PartialState().wait_for_everyone()
    return now()


def run_steps(trainer: Any, number: int) -> list:
    "Take the next steps; returns their metrics."
    first, steps = divmod(trainer.step, trainer.steps_per_epoch)
    rows = chain.from_iterable(trainer.epoch_batches(epoch) for epoch in count(first+1))
    return [trainer.train_step(each) for each in islice(rows, steps, steps+number)]


def measure_training(args: Namespace):
    "Time the steps of a run."
    import torch
    from accelerate import PartialState

    from clip_ft.settings import TrainConfig
    from clip_ft.steps import TrainingSteps
    model, processor, cache, products = opened(args)
    world = PartialState().num_processes
    size = args.batch_size or args.share*world
    config = TrainConfig(epochs=1000, batch_size=size, micro_batch=args.micro_batch)
    start = together()
    trainer = TrainingSteps(model, processor, cache, products, config)
    trainer.model.train()
    run_steps(trainer, 1)
    first = together()-start
    run_steps(trainer, args.warmup)
    begin = together()
    run_steps(trainer, args.steps)
    seconds = together()-begin
    rate, recorded = args.steps*trainer.batches.size/seconds, bool(trainer.recorded)
    use = device_use(rate/world*3*forward_flops(model.config, 32), args.tflops) if torch.cuda.is_available() else {}
    trainer.close()  # a communicator must outlive the graphs that use it
    if PartialState().is_main_process:
        print_record(name='training', processes=world, share=size//world, batch_size=size, micro_batch=args.micro_batch,
                     pairs_per_second=rate, seconds_to_first_step=first, recorded=recorded, **use)
    PartialState().destroy_process_group()


def measure_losses(args: Namespace):
    "The losses of the first steps in float32."
    import torch
    from accelerate import PartialState

    from clip_ft.settings import TrainConfig
    from clip_ft.steps import TrainingSteps
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model, processor, cache, products = opened(args)
    config = TrainConfig(epochs=12, batch_size=args.batch_size, micro_batch=args.micro_batch, compile=False)
    trainer = TrainingSteps(model, processor, cache, products, config)
    trainer.dtype = None
    losses = [float(metrics[0]) for metrics in run_steps(trainer, args.steps)]
    trainer.close()
    if PartialState().is_main_process:
        print_record(name='losses', processes=PartialState().num_processes, batch_size=args.batch_size,
                     losses=[f'{loss:.8f}' for loss in losses])
    PartialState().destroy_process_group()


def measure_matrix(args: Namespace):
    "Time and peak memory of the loss of a batch and its gradients for the embeddings."
    import torch
    from accelerate import PartialState

    from clip_ft.losses import contrastive_loss, embedding_gradients
    state = PartialState(cpu=not torch.cuda.is_available())
    torch.manual_seed(state.process_index)
    share = args.batch_size//state.num_processes
    images, texts = torch.nn.functional.normalize(torch.randn(2, share, args.dimension, device=state.device), dim=2)
    loss = partial(contrastive_loss, logit_scale=100.)
    embedding_gradients(loss, images[:64], texts[:64])  # loads the libraries
    if state.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()/1e6
    else:
        Path('/proc/self/clear_refs').write_text('5')  # the peak becomes what is resident now
        before = memory_mb('VmRSS')
    begin = together()
    embedding_gradients(loss, images, texts)
    seconds = together()-begin
    peak = torch.cuda.max_memory_allocated()/1e6 if state.device.type == 'cuda' else memory_mb('VmHWM')
    if state.is_main_process:
        print_record(name='matrix', processes=state.num_processes, batch_size=args.batch_size, seconds=seconds,
                     MB=peak-before)
    state.destroy_process_group()


def measure_host(args: Namespace):
    "Images that one core decodes, and products whose texts it tokenizes, per second of its time."
    from clip_ft.data import image_paths
    from clip_ft.dataset import PixelCache, ResizeSpec
    from clip_ft.model import load_model
    from clip_ft.settings import TrainConfig
    from clip_ft.texts import TextSampler
    _, products, _, image_dir = load_parts(args.root)
    processor = load_model(args.model, 'cpu', verbose=False)[1]
    few = products.head(args.steps)
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, work in dict(
            images=lambda: PixelCache.build(image_paths(few, image_dir), ResizeSpec.from_processor(processor), folder),
            products=lambda: TextSampler(processor, few, TrainConfig().texts),
        ).items():
            begin = time.process_time()
            work()
            rates[f'{name}_per_core_second'] = len(few)/(time.process_time()-begin)
    print_record(name='host', size=ResizeSpec.from_processor(processor).size, **rates)


def measure_embedding(args: Namespace):
    "Time embed_images on the pixels of a process."
    from accelerate import PartialState

    from clip_ft.dataset import to_device
    from clip_ft.encode import embed_images
    from clip_ft.fast import InferenceModel
    from clip_ft.model import model_device
    model, processor, cache, _ = opened(args)
    state, inference, pixels = PartialState(), InferenceModel.of(model), to_device(cache.pixels, model_device(model))
    rows = (np.arange(args.images)+state.process_index) % len(cache)
    embed_images(inference, processor, pixels, progress=False, rows=rows[:4096])
    begin = together()
    embed_images(inference, processor, pixels, progress=False, rows=rows)
    seconds = together()-begin
    if state.is_main_process:
        images = args.images*state.num_processes
        print_record(name='embedding', processes=state.num_processes, images=images, seconds=seconds,
                     images_per_second=images/seconds)
    state.destroy_process_group()


STEPS = dict(prepare=prepare_model, training=measure_training, losses=measure_losses, matrix=measure_matrix,
             host=measure_host, embedding=measure_embedding)


def add_efficiency(records: list[dict], results: Any):
    "Add the records that compare several processes with one."
    for name, rate in (('training', 'pairs_per_second'), ('embedding', 'images_per_second')):
        found = [record for record in records if record['name'] == name and not record.get('micro_batch')]
        one = {record.get('share'): record[rate] for record in found if record['processes'] == 1}
        for record in found:
            if record['processes'] > 1 and record.get('share') in one:
                speedup = record[rate]/one[record.get('share')]
                results.add(name=f'{name}, efficiency', processes=record['processes'], share=record.get('share'),
                            speedup=speedup, efficiency=speedup/record['processes'])
    runs = [record for record in records if record['name'] == 'losses']
    losses = {(record['batch_size'], record['processes']): np.array(record['losses'], float) for record in runs}
    for size, processes in losses:
        if processes > 1 and (size, 1) in losses:
            error = np.abs(losses[size, processes]-losses[size, 1]).max()
            results.add(name='loss error', processes=processes, batch_size=size, loss_error=error)


def main():
    parser = model_parser(__doc__, STEPS)
    parser.add_argument('--root', type=Path, help='folder of data and pixel cache; default: a temporary folder')
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], help='numbers of processes')
    parser.add_argument('--shares', type=int, nargs='+', default=[32, 1024], help='products per process')
    parser.add_argument('--cached', type=int, default=0, help='batch of the run with gradient caching; 0: no such run')
    parser.add_argument('--images', type=int, default=600_000, help='images to embed in each process; 0: none')
    parser.add_argument('--steps', type=int, default=100, help='steps that are timed')
    parser.add_argument('--warmup', type=int, default=60, help='steps before; more at small shares')
    parser.add_argument('--dimension', type=int, default=512, help='of the embeddings in the records of the matrix')
    parser.add_argument('--parts', type=int, default=1024, help='products of a micro-batch, with --cached')
    for name in ('--share', '--batch-size', '--micro-batch'):
        parser.add_argument(name, type=int, default=0, help='of one measurement')
    args = parser.parse_args()
    if args.how:
        STEPS[args.how](args)
        return
    os.environ['OMP_NUM_THREADS'] = '4'
    with prepared(args) as (results, _, places):
        records: list[dict] = []
        for processes in args.processes:
            def measure(how, *options, processes=processes):
                records.extend(results.measure(*places, '--how', how, *options, processes=processes))
            for share in args.shares:
                few = share <= 128
                measure('training', '--share', share, '--steps', args.steps*(1+2*few), '--warmup', args.warmup*(1+few))
            if args.cached:
                cached = '--batch-size', args.cached, '--micro-batch', args.parts
                measure('training', *cached, '--steps', 3, '--warmup', 4)
                measure('losses', *cached, '--steps', 2)
                measure('matrix', *cached)
            if args.images:
                measure('embedding')
            measure('losses', '--batch-size', 64, '--steps', 12)
        results.measure(*places, '--how', 'host', '--steps', 1500)
        add_efficiency(records, results)


if __name__ == '__main__':
    main()
