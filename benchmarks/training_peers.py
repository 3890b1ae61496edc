"""Speed and memory of fine-tuning CLIP in two common ways: a plain PyTorch loop, and sentence-transformers' trainer.

    python benchmarks/training_peers.py CATALOGUE [--batch-size 32 1024] [--seconds 60 | --steps 100] [--model FOLDER]

CATALOGUE holds data.csv (image, description, display name, category) and data/*.jpg. --model holds a CLIP or SigLIP
and its processor; without it, a model of --size (ViT-B/32) with random weights and a tokenizer learned from the
catalogue is created.
Nothing is downloaded. Each measurement runs in a process of its own and prints one record.

plain loop: a Dataset that opens the JPEG with Pillow and augments it, the model's processor on each batch in the
workers (texts padded to 77 tokens, 64 for SigLIP), pinned memory, bf16 autocast, AdamW, cosine schedule, symmetric
cross-entropy or, for SigLIP, its sigmoid loss. Unlike many such loops it does not read the loss at each step, which
would only slow it down.

sentence-transformers: SentenceTransformerTrainer on a datasets.Dataset of images and texts,
MultipleNegativesRankingLoss in both directions (--cached N: the cached loss with mini-batches of N pairs), bf16,
fused AdamW, no logging, no saving, no augmentation.

pairs_per_second is the steady rate: from the end of the warm-up, which is at least one batch of every worker, to the
end of the last step. On short runs it can be too high, because of batches that the workers had ready.
pairs_per_second_from_start counts everything from a loaded model on; on short runs it is too low.
seconds_to_first_step starts from the loaded model too. utilisation is the arithmetic that the model needs (three
times the forward pass) divided by --tflops, by default what an H200 reaches in bf16.
"""
import os
import random
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from common import (
    Results,
    device_use,
    forward_flops,
    model_parser,
    now,
    print_record,
    read_catalogue,
    save_random_model,
)


class StepClock:
    "Times the steps of a loop that calls tick after each. Synchronizes the device only when timing starts and ends."

    def __init__(self, args: Namespace):
        self.args, self.batch_size = args, args.batch_size[0]
        self.warmup = max(1, args.warmup, args.workers)
        self.steps = 0
        self.start = now()

    def tick(self) -> bool:
        "Count a step; True after the last one."
        self.steps += 1
        if self.steps == 1:
            self.first = now()
        if self.steps == self.warmup:
            self.warm = now()
        if self.steps <= self.warmup:
            return False
        if self.args.steps:
            done = self.steps-self.warmup >= self.args.steps
        else:
            done = time.perf_counter()-self.warm >= self.args.seconds
        if done:
            self.end = now()
        return done

    def report(self, config: Any, tokens: float) -> dict:
        "The metrics of the run."
        rate = (self.steps-self.warmup)*self.batch_size/(self.end-self.warm)
        from_start = self.steps*self.batch_size/(self.end-self.start)
        use = device_use(rate*3*forward_flops(config, tokens), self.args.tflops)
        return dict(batch_size=self.batch_size, steps=self.steps, pairs_per_second=rate,
                    pairs_per_second_from_start=from_start, seconds_to_first_step=self.first-self.start,
                    tokens=tokens, **use)


# ---- the plain loop

class PillowAugment:
    "Random crop, horizontal flip, colour jitter and rotation with Pillow, where torchvision is not installed."

    def __init__(self, size: int):
        self.size = size

    def __call__(self, image):
        from PIL import Image, ImageEnhance, ImageOps
        size = self.size
        scale = size*8//7/min(image.size)
        image = image.resize([round(edge*scale) for edge in image.size], Image.Resampling.BILINEAR)
        left, top = random.randint(0, image.width-size), random.randint(0, image.height-size)
        image = image.crop((left, top, left+size, top+size))
        if random.random() < .5:
            image = ImageOps.mirror(image)
        enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
        for enhancer in random.sample(enhancers, 3):
            image = enhancer(image).enhance(random.uniform(.8, 1.2))
        return image.rotate(random.uniform(-10, 10))


def augmentation(size: int):
    "The augmentation of torchvision, or the same with Pillow."
    try:
        from torchvision import transforms
    except ImportError:
        return PillowAugment(size)
    return transforms.Compose([
        transforms.Resize(size*8//7), transforms.RandomCrop(size), transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(.2, .2, .2), transforms.RandomRotation(10)])


class Pairs:
    "A map-style dataset of (PIL image, text)."

    def __init__(self, images: list[str], texts: list[str], augment):
        self.images, self.texts, self.augment = images, texts, augment

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        from PIL import Image
        with Image.open(self.images[row]) as image:
            return self.augment(image.convert('RGB')), self.texts[row]


class Collate:
    "Makes a batch of tensors in a worker."

    def __init__(self, processor, tokens: int):
        self.processor, self.tokens = processor, tokens

    def __call__(self, pairs):
        images, texts = (list(each) for each in zip(*pairs))
        options = dict(padding='max_length', truncation=True, max_length=self.tokens)
        return dict(self.processor(text=texts, images=images, return_tensors='pt', **options))


def make_loader(args: Namespace, collate: Collate, pairs: Pairs, cuda: bool):
    "The DataLoader of the plain loop."
    from torch.utils.data import DataLoader
    options = dict(prefetch_factor=args.prefetch, persistent_workers=True) if args.workers else {}
    return DataLoader(pairs, args.batch_size[0], shuffle=True, drop_last=True, num_workers=args.workers,
                      pin_memory=cuda, collate_fn=collate, **options)


def endless(loader):
    "The batches of one epoch after another."
    while True:
        yield from loader


def plain_loss(out, target, sigmoid: bool):
    "The loss of a batch, as the papers of CLIP and SigLIP define it."
    import torch
    from torch.nn.functional import cross_entropy, logsigmoid
    if sigmoid:
        sign = 2*torch.eye(len(target), device=target.device)-1
        return -logsigmoid(sign*out.logits_per_image).sum(1).mean()
    return (cross_entropy(out.logits_per_image, target)+cross_entropy(out.logits_per_text, target))/2


def plain_loop(args: Namespace, images: list[str], texts: list[str]) -> dict:
    "Train with the common loop."
    import torch
    from transformers import AutoModel, AutoProcessor
    cuda = torch.cuda.is_available()
    device = torch.device('cuda' if cuda else 'cpu')
    model = AutoModel.from_pretrained(args.model, dtype=torch.float32).to(device).train()
    tokens, sigmoid = model.config.text_config.max_position_embeddings, hasattr(model, 'logit_bias')
    forward = torch.compile(model) if args.compile else model
    clock = StepClock(args)
    pairs = Pairs(images, texts, augmentation(model.config.vision_config.image_size))
    loader = make_loader(args, Collate(AutoProcessor.from_pretrained(args.model), tokens), pairs, cuda)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5*len(loader))
    target = torch.arange(clock.batch_size, device=device)
    for batch in endless(loader):
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = plain_loss(forward(**batch), target, sigmoid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if clock.tick():
            break
    return clock.report(model.config, tokens) | dict(loss=loss.item())


# ---- sentence-transformers

def ranking_loss(args: Namespace, model):
    "MultipleNegativesRankingLoss in both directions, with gradient caching if --cached is given."
    from sentence_transformers.sentence_transformer import losses
    both = dict(directions=('query_to_doc', 'doc_to_query'), partition_mode='per_direction')
    if args.cached:
        return losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=args.cached, **both)
    return losses.MultipleNegativesRankingLoss(model, **both)


def trainer_arguments(args: Namespace, folder: str, cuda: bool):
    "Settings of the trainer: no logging, no saving, bf16 on CUDA."
    from sentence_transformers import SentenceTransformerTrainingArguments
    loading = dict(dataloader_num_workers=args.workers, dataloader_persistent_workers=args.workers > 0,
                   dataloader_prefetch_factor=args.prefetch if args.workers else None,
                   dataloader_pin_memory=cuda, dataloader_drop_last=True)
    quiet = dict(logging_strategy='no', save_strategy='no', report_to='none', disable_tqdm=True)
    return SentenceTransformerTrainingArguments(
        folder, per_device_train_batch_size=args.batch_size[0], max_steps=10**6, learning_rate=5e-6,
        lr_scheduler_type='cosine', bf16=cuda, use_cpu=not cuda, torch_compile=args.compile, **loading, **quiet)


def sentence_transformers(args: Namespace, images: list[str], texts: list[str]) -> dict:
    import torch
    from datasets import Dataset, Image
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from transformers import AutoConfig, TrainerCallback
    cuda = torch.cuda.is_available()
    model = SentenceTransformer(str(args.model), device='cuda' if cuda else 'cpu')
    clock, widths = StepClock(args), []

    class Tick(TrainerCallback):
        def on_step_end(self, _args, _state, control, **_kwargs):
            control.should_training_stop = clock.tick()

    class Trainer(SentenceTransformerTrainer):
        def compute_loss(self, model, inputs, *rest, **kwargs):
            widths.append(inputs['text_input_ids'].shape[1])
            return super().compute_loss(model, inputs, *rest, **kwargs)

    pairs = Dataset.from_dict(dict(image=images, text=texts)).cast_column('image', Image())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model=model, loss=ranking_loss(args, model), callbacks=[Tick()], train_dataset=pairs,
                          args=trainer_arguments(args, folder, cuda))
        trainer.train()
    return clock.report(AutoConfig.from_pretrained(args.model), sum(widths)/len(widths))


PEERS = {'plain loop': plain_loop, 'sentence-transformers': sentence_transformers}


def measure(args: Namespace):
    "Run one peer here, and print its record."
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # the workers of the loaders are forked
    found = PEERS[args.how](args, *read_catalogue(args.catalogue))
    print_record(name=args.how, compiled=args.compile, cached=args.cached, workers=args.workers, **found)


def main():
    parser = model_parser(__doc__, ('model', *PEERS))
    parser.add_argument('--peers', nargs='+', choices=PEERS, default=list(PEERS), metavar='PEER',
                        help=' or '.join(map(repr, PEERS)))
    parser.add_argument('--batch-size', type=int, nargs='+', default=[32, 1024])
    parser.add_argument('--steps', type=int, help='number of timed steps, in place of --seconds')
    parser.add_argument('--seconds', type=float, default=60, help='length of the timed part')
    parser.add_argument('--warmup', type=int, default=10, help='number of steps before the timed part, at least')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='number of processes that load data')
    parser.add_argument('--prefetch', type=int, default=2, metavar='N',
                        help='batches that each worker keeps ready, in shared memory: 0.6 GB each at 1024')
    parser.add_argument('--compile', action='store_true', help='compile the model with torch.compile')
    parser.add_argument('--cached', type=int, metavar='N', help='mini-batch of the cached loss')
    args = parser.parse_args()
    if args.how == 'model':
        save_random_model(args.model, read_catalogue(args.catalogue)[1], args.size)
        return
    if args.how:
        measure(args)
        return
    with tempfile.TemporaryDirectory() as folder, Results(args, 'sentence-transformers') as results:
        model = args.model or Path(folder)/'model'
        results.measure('--model', model, '--how', 'model', required=True)
        for batch_size in args.batch_size:
            for peer in args.peers:
                results.measure('--model', model, '--batch-size', batch_size, '--how', peer)


if __name__ == '__main__':
    main()
