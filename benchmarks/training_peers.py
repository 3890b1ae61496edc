"""Speed and memory of fine-tuning CLIP as others do it: a plain PyTorch loop, and sentence-transformers' trainer.

    python benchmarks/training_peers.py CATALOGUE [--batch-size 32 1024] [--seconds 60 | --steps 100] [--model FOLDER]

CATALOGUE holds data.csv (image, description, display name, category) and data/*.jpg. FOLDER holds a CLIPModel and its
processor; without one, a ViT-B/32 with random weights and a tokenizer learned from the catalogue is made (nothing is
downloaded, here or later). Each measurement runs in a process of its own and prints one line of JSON.

plain loop: a Dataset that opens the JPEG with Pillow and augments it, CLIPProcessor on each batch in the workers (texts padded
to 77), pinned memory, bf16 autocast, AdamW, cosine schedule, symmetric cross-entropy. Reading the loss each step, as many do, is
left out: it would only slow the loop down.
sentence-transformers: SentenceTransformerTrainer on a datasets.Dataset of pictures and texts, MultipleNegativesRankingLoss in
both directions (--cached N: the cached one, N pairs at a time), bf16, fused AdamW, no logging, no saving. It doesn't augment.

pairs_per_second is the steady state: from the end of the warm-up, which is at least one batch of every worker, to the end of the
last step. pairs_per_second_from_start counts everything from a loaded model on: on short runs it is too low, where the other
can be too high by what the workers had ready. seconds_to_first_step starts from the loaded model too. utilisation is the
arithmetic that the model needs (three times the forward pass) against --tflops, by default what an H200 reaches in bf16.
"""
import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
MAX_TOKENS = 77


# ---- what every measurement needs

def read_catalogue(folder):
    "(paths of the pictures, texts) of a catalogue's products."
    import pandas as pd
    table = pd.read_csv(folder/"data.csv", dtype=str, keep_default_na=False)
    table = table[table["image"].map(lambda o: (folder/"data"/o).is_file())]
    texts = table["display name"]+". "+table["category"]+". "+table["description"]
    return [str(folder/"data"/o) for o in table["image"]], list(texts)


def make_model(folder, texts, tiny=False):
    "Save a CLIPModel with random weights (ViT-B/32, or a tiny one) and its processor into `folder`; the tokenizer is learned from `texts`."
    import torch
    from clip_ft.model import _tiny_tokenizer, tiny_model
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor
    torch.manual_seed(0)
    if tiny: model, processor = tiny_model(texts)
    else:
        size = CLIPConfig().text_config.vocab_size
        tokenizer = _tiny_tokenizer(texts, size-2)   # start and end of a text come on top
        ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        model = CLIPModel(CLIPConfig(text_config=dict(vocab_size=size, **ids)))
        processor = CLIPProcessor(image_processor=CLIPImageProcessor(), tokenizer=tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def forward_flops(config, tokens):
    "Floating-point operations of one picture and one text of so many tokens through a CLIP: matrix products, 2 for each multiply-add."
    def tower(c, length):
        return c.num_hidden_layers*length*(8*c.hidden_size**2 + 4*length*c.hidden_size + 4*c.hidden_size*c.intermediate_size) + 2*c.hidden_size*config.projection_dim
    v, t = config.vision_config, config.text_config
    patches = (v.image_size//v.patch_size)**2
    return tower(v, patches+1) + 2*patches*3*v.patch_size**2*v.hidden_size + tower(t, tokens)


class Clock:
    "Times the steps of a loop that calls `tick` after each; the device is waited for only at the ends of what is timed."
    def __init__(self, batch_size, warmup, steps=None, seconds=None):
        self.batch_size, self.warmup, self.limit, self.seconds = batch_size, max(1, warmup), steps, seconds
        self.steps, self.start, self.marks = 0, self.now(), {}

    @staticmethod
    def now():
        import torch
        if torch.cuda.is_available(): torch.cuda.synchronize()
        return time.perf_counter()

    def tick(self):
        "Count a step; True when it was the last."
        self.steps += 1
        if self.steps in (1, self.warmup): self.marks[self.steps] = self.now()
        if self.steps <= self.warmup: return False
        done = self.steps-self.warmup >= self.limit if self.limit else time.perf_counter()-self.marks[self.warmup] >= self.seconds
        if done: self.end = self.now()
        return done

    def report(self, config, tokens, tflops):
        "What was measured, for JSON."
        rate = (self.steps-self.warmup)*self.batch_size/(self.end-self.marks[self.warmup])
        return dict(batch_size=self.batch_size, steps=self.steps, pairs_per_second=round(rate, 1),
            pairs_per_second_from_start=round(self.steps*self.batch_size/(self.end-self.start), 1),
            seconds_to_first_step=round(self.marks[1]-self.start, 2), tokens=round(tokens, 1), **device_report(rate*3*forward_flops(config, tokens), tflops))


def device_report(flops_per_second, tflops):
    "Memory and utilisation of the device."
    import torch
    achieved = dict(model_tflops=round(flops_per_second/1e12, 2))
    versions = dict(torch=torch.__version__, python=platform.python_version(), cores=os.cpu_count())
    if not torch.cuda.is_available(): return achieved | dict(device=platform.processor() or platform.machine()) | versions
    return achieved | dict(utilisation=round(flops_per_second/1e12/tflops, 4), peak_GB_allocated=round(torch.cuda.max_memory_allocated()/1e9, 2),
        peak_GB_reserved=round(torch.cuda.max_memory_reserved()/1e9, 2), device=torch.cuda.get_device_name()) | versions


# ---- the plain loop

def augmentation(size):
    "Random crop, flip, colour jitter and rotation of a PIL image: torchvision's, or the same with Pillow where there is none."
    try:
        from torchvision import transforms as T
        return T.Compose([T.Resize(size*8//7), T.RandomCrop(size), T.RandomHorizontalFlip(), T.ColorJitter(.2, .2, .2), T.RandomRotation(10)])
    except ImportError:
        from PIL import Image, ImageEnhance, ImageOps
        def augment(im):
            scale = size*8//7/min(im.size)
            im = im.resize([round(o*scale) for o in im.size], Image.Resampling.BILINEAR)
            left, top = random.randint(0, im.width-size), random.randint(0, im.height-size)
            im = im.crop((left, top, left+size, top+size))
            if random.random() < .5: im = ImageOps.mirror(im)
            for kind in random.sample([ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color], 3): im = kind(im).enhance(random.uniform(.8, 1.2))
            return im.rotate(random.uniform(-10, 10))
        return augment


class Products:
    "A map-style dataset of (PIL image, text)."
    def __init__(self, images, texts, augment): self.images, self.texts, self.augment = images, texts, augment
    def __len__(self): return len(self.images)

    def __getitem__(self, i):
        from PIL import Image
        with Image.open(self.images[i]) as im: return self.augment(im.convert("RGB")), self.texts[i]


def plain_loop(args, batch_size, images, texts):
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader
    from transformers import CLIPModel, CLIPProcessor
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor, model = CLIPProcessor.from_pretrained(args.model), CLIPModel.from_pretrained(args.model, dtype=torch.float32).to(device).train()
    config, forward = model.config, torch.compile(model) if args.compile else model
    clock = Clock(batch_size, max(args.warmup, args.workers), args.steps, args.seconds)

    def collate(batch):
        pictures, words = zip(*batch)
        return dict(processor(text=list(words), images=list(pictures), return_tensors="pt", padding="max_length", truncation=True, max_length=MAX_TOKENS))

    loader = DataLoader(Products(images, texts, augmentation(config.vision_config.image_size)), batch_size, shuffle=True, drop_last=True,
        num_workers=args.workers, prefetch_factor=args.prefetch if args.workers else None, persistent_workers=args.workers > 0, pin_memory=device.type == "cuda", collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5*len(loader))
    target = torch.arange(batch_size, device=device)
    while True:
        for batch in loader:
            batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                out = forward(**batch)
                loss = (cross_entropy(out.logits_per_image, target)+cross_entropy(out.logits_per_text, target))/2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if clock.tick(): return clock.report(config, MAX_TOKENS, args.tflops) | dict(loss=round(loss.item(), 4))


# ---- sentence-transformers

def sentence_transformers(args, batch_size, images, texts):
    import sentence_transformers, torch
    from datasets import Dataset, Image
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses
    from transformers import AutoConfig, TrainerCallback
    cuda, widths = torch.cuda.is_available(), []
    model = SentenceTransformer(str(args.model), device="cuda" if cuda else "cpu")
    clock = Clock(batch_size, max(args.warmup, args.workers), args.steps, args.seconds)

    class Tick(TrainerCallback):
        def on_step_end(self, train_args, state, control, **kwargs): control.should_training_stop = clock.tick()

    class Trainer(SentenceTransformerTrainer):
        def compute_loss(self, model, inputs, *rest, **kwargs):
            widths.append(inputs["text_input_ids"].shape[1])
            return super().compute_loss(model, inputs, *rest, **kwargs)

    both = dict(directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")
    loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=args.cached, **both) if args.cached else losses.MultipleNegativesRankingLoss(model, **both)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model=model, loss=loss, callbacks=[Tick()],
            train_dataset=Dataset.from_dict(dict(image=images, text=texts)).cast_column("image", Image()),
            args=SentenceTransformerTrainingArguments(folder, per_device_train_batch_size=batch_size, max_steps=10**6, learning_rate=5e-6, lr_scheduler_type="cosine",
                bf16=cuda, use_cpu=not cuda, torch_compile=args.compile, dataloader_num_workers=args.workers, dataloader_persistent_workers=args.workers > 0,
                dataloader_prefetch_factor=args.prefetch if args.workers else None, dataloader_pin_memory=cuda, dataloader_drop_last=True, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True))
        trainer.train()
    return clock.report(AutoConfig.from_pretrained(args.model), sum(widths)/len(widths), args.tflops) | dict(version=sentence_transformers.__version__)


PEERS = {"plain loop": plain_loop, "sentence-transformers": sentence_transformers}


def child(script, *options):
    "Run one measurement in a process of its own and print its line, or the end of what went wrong; returns whether it went well."
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen([sys.executable, "-W", "ignore", script, *map(str, options)], stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        for line in process.stdout:
            if line.startswith('{"'): print(line, end="", flush=True)
        if process.wait():
            errors.seek(0)
            print(f"failed: {' '.join(map(str, options))}\n{errors.read()[-3000:]}", flush=True)
    return process.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER", help=" or ".join(f"'{o}'" for o in PEERS))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32, 1024])
    parser.add_argument("--steps", type=int, help="steps to time after the warm-up; else --seconds counts")
    parser.add_argument("--seconds", type=float, default=60, help="time to run after the warm-up")
    parser.add_argument("--warmup", type=int, default=10, help="steps that don't count, at least")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that load data")
    parser.add_argument("--prefetch", type=int, default=2, help="batches that each of them keeps ready, in shared memory: 0.6 GB each at a batch size of 1024")
    parser.add_argument("--model", type=Path, help="folder of the model; made if it isn't there")
    parser.add_argument("--tiny", action="store_true", help="make a tiny model instead of ViT-B/32, to try the script out")
    parser.add_argument("--compile", action="store_true", help="let torch.compile work on the model")
    parser.add_argument("--cached", type=int, metavar="N", help="sentence-transformers with gradient caching, N pairs at a time")
    parser.add_argument("--tflops", type=float, default=790, help="what the device reaches in bf16, in TFLOP/s")
    parser.add_argument("--how", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.how == "make model": return make_model(args.model, read_catalogue(args.catalogue)[1], args.tiny)
    if args.how:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"      # the loaders' workers are forked
        result = PEERS[args.how](args, args.batch_size[0], *read_catalogue(args.catalogue))
        return print(json.dumps(dict(name=args.how, compiled=args.compile, cached=args.cached, workers=args.workers) | result))
    with tempfile.TemporaryDirectory() as folder:
        args.model = args.model or Path(folder)/"model"
        options = [args.catalogue, "--model", args.model, "--warmup", args.warmup, "--workers", args.workers, "--prefetch", args.prefetch, "--tflops", args.tflops, "--seconds", args.seconds]
        options += [o for name in ("steps", "cached") if getattr(args, name) for o in (f"--{name}", getattr(args, name))]
        options += [f"--{name}" for name in ("tiny", "compile") if getattr(args, name)]
        if not (args.model/"config.json").exists() and not child(__file__, *options, "--how", "make model"): sys.exit(1)
        for batch_size in args.batch_size:
            for how in args.peers: child(__file__, *options, "--batch-size", batch_size, "--how", how)


if __name__ == "__main__": main()
