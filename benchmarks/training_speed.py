"""Speed and memory of clip_ft's own train(), end to end: pixel cache, epochs, augmentation, metrics and checkpoints.

    python benchmarks/training_speed.py CATALOGUE [--batch-size 32 1024] [--epochs 5] [--model FOLDER] [--root FOLDER]

CATALOGUE and --model are as for training_peers.py, which measures the competitors. The catalogue is brought in and split
below --root first, outside the clock; what is there is reused. Each measurement runs in a process of its own and prints one
line of JSON. cache "cold" is a first run, which decodes the pictures; "warm" finds the cache.

seconds is the whole of train(), and pairs_per_second_from_start is what it trained on over that time. pairs_per_second is
the steps alone, without metrics and checkpoints, the first epoch left out if there are more. seconds_to_first_step is from the
call, with a loaded model, to the end of the first optimizer step, and so includes the metrics before training. stages says where
the time beside the steps went, in seconds; Trainer includes TextSampler and to_device. utilisation is as for training_peers.py,
with the texts as wide as the batches really were. For several GPUs, once --root and --model are there:

    torchrun --nproc-per-node 2 benchmarks/training_speed.py CATALOGUE --how warm --batch-size 2048 --root FOLDER --model FOLDER
"""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from training_peers import child, device_report, forward_flops, make_model, read_catalogue


def prepare(args):
    "Bring in and split the catalogue, and make the model, where they aren't there yet."
    from clip_ft.core import Paths
    from clip_ft.data import preprocess
    from clip_ft.sources import get_data
    paths = Paths(args.root)
    get_data(args.catalogue, paths)
    if not paths.train_csv.exists(): preprocess(paths)
    if not (args.model/"config.json").exists(): make_model(args.model, read_catalogue(args.catalogue)[1], args.tiny)


class Watch:
    "Notes when the first optimizer step ended, how long each epoch's steps took, and how wide the texts of each batch were."
    def __init__(self):
        from clip_ft import trainer, training
        from torch.optim.optimizer import register_optimizer_step_post_hook
        self.first, self.epochs, self.widths, self.stages = None, [], [], {}
        self.hook = register_optimizer_step_post_hook(self.after_step)
        epoch, inputs = training.Loop.train_epoch, training.Trainer.inputs

        def train_epoch(loop, number):
            start, figures = self.now(), epoch(loop, number)
            self.epochs.append(self.now()-start)
            return figures

        def read(run, rows):
            batch = inputs(run, rows)
            self.widths.append(batch["input_ids"].shape[1])
            return batch

        training.Loop.train_epoch, training.Trainer.inputs = train_epoch, read
        for name in ("split_products", "run_fingerprint", "Trainer", "Gallery", "measure", "save_history", "load_checkpoint"): self.timed(training, name)
        for name in ("TextSampler", "to_device"): self.timed(trainer, name)
        for owner, name in ((training.PixelCache, "build"), (training.Snapshots, "wait"), (training.Loop, "snapshot")): self.timed(owner, name)

    def timed(self, owner, name):
        "Let a function add its time to `stages`."
        work = getattr(owner, name)

        def run(*args, **kwargs):
            start = self.now()
            try: return work(*args, **kwargs)
            finally: self.stages[name] = round(self.stages.get(name, 0)+self.now()-start, 2)

        setattr(owner, name, staticmethod(run) if name == "build" else run)

    @staticmethod
    def now():
        import torch
        if torch.cuda.is_available(): torch.cuda.synchronize()
        return time.perf_counter()

    def after_step(self, *_):
        import torch
        if self.first is not None or torch.cuda.is_available() and torch.cuda.is_current_stream_capturing(): return
        self.first = self.now()
        self.hook.remove()


def measure(args, batch_size):
    from accelerate import PartialState
    from clip_ft.core import Paths
    from clip_ft.data import catalogue_folder, image_folder, load_split
    from clip_ft.model import load_model
    from clip_ft.training import TrainConfig, train
    paths, main = Paths(args.root), PartialState().is_main_process      # of several processes each gets a device of its own
    train_products, test_products = load_split(paths)
    images = image_folder(catalogue_folder(paths))
    model, processor = load_model(args.model)
    watch, start = Watch(), Watch.now()
    history = train(model, processor, train_products, test_products, images, paths, TrainConfig(epochs=args.epochs, patience=args.epochs, batch_size=batch_size), fresh=True)
    seconds = Watch.now()-start
    if not main: return
    pairs = int(history.step.max())*batch_size
    each = pairs/len(watch.epochs)
    later = watch.epochs[1:] or watch.epochs
    steady, tokens = each*len(later)/sum(later), sum(watch.widths)/len(watch.widths)
    return dict(batch_size=batch_size, products=len(train_products), epochs=len(watch.epochs), pairs_per_second=round(steady, 1), pairs_per_second_from_start=round(pairs/seconds, 1),
        seconds=round(seconds, 2), epoch_seconds=[round(o, 2) for o in watch.epochs], seconds_to_first_step=round(watch.first-start, 2), tokens=round(tokens, 1), stages=watch.stages,
        **device_report(steady*3*forward_flops(model.config, tokens), args.tflops))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32, 1024])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--root", type=Path, help="where data and checkpoints go; a temporary folder if not given")
    parser.add_argument("--model", type=Path, help="folder of the model; made if it isn't there")
    parser.add_argument("--tiny", action="store_true", help="make a tiny model instead of ViT-B/32, to try the script out")
    parser.add_argument("--tflops", type=float, default=790, help="what the device reaches in bf16, in TFLOP/s")
    parser.add_argument("--how", choices=("prepare", "cold", "warm"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1")
    if args.how == "prepare": return prepare(args)
    if args.how:
        found = measure(args, args.batch_size[0])
        if found: print(json.dumps(dict(name="clip_ft", cache=args.how) | found))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.root, args.model = args.root or Path(folder), args.model or Path(folder)/"model"
        options = [args.catalogue, "--root", args.root, "--model", args.model, "--epochs", args.epochs, "--tflops", args.tflops] + ["--tiny"]*args.tiny
        if not child(__file__, *options, "--how", "prepare"): sys.exit(1)
        cold = not any((args.root/"data"/"processed"/"pixels").glob("*.npy"))
        if cold: child(__file__, *options, "--batch-size", args.batch_size[0], "--how", "cold")
        for batch_size in args.batch_size: child(__file__, *options, "--batch-size", batch_size, "--how", "warm")


if __name__ == "__main__": main()
