"""The whole path on real products with a model that starts from random weights: all six commands, their times, and result grids.

    python benchmarks/whole_path.py CATALOGUE --root FOLDER [--limit 1000] [--model tiny | mid | vit-b-32] [--epochs 30] ...

CATALOGUE is an archive or a folder, as for clip_ft_get_data. The models: tiny is clip_ft's own (1.3 M parameters, pictures of
96 x 96); mid has 16 M (128 x 128, patches of 16, 6 layers of 384 and 4 of 256); vit-b-32 is the true ViT-B/32 (151 M), for speed
and memory: from random weights it learns little from a few thousand products. Options after these go to clip_ft_train.
One line of JSON a stage; FOLDER/grids holds a picture for each query.
"""
import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

QUERIES = ("blue jeans", "red dress", "black leather shoes", "women handbag", "white sports shoes", "men watch", "striped shirt", "pink top", "sandals",
    "sunglasses", "green tshirt", "nightdress", "denim shorts", "silver earrings", "brown belt")


def save_mid(folder, texts):
    "A CLIPModel of 16 M parameters with a tokenizer of 8,000 pieces, in `folder`."
    import torch
    from clip_ft.model import _tiny_tokenizer
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor
    tokenizer = _tiny_tokenizer(texts, 8000)
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(projection_dim=256,
        text_config=dict(hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_hidden_layers=4, projection_dim=256, vocab_size=len(tokenizer), **ids),
        vision_config=dict(hidden_size=384, intermediate_size=1536, num_attention_heads=6, num_hidden_layers=6, projection_dim=256, image_size=128, patch_size=16))).save_pretrained(folder)
    CLIPProcessor(image_processor=CLIPImageProcessor(size=dict(shortest_edge=128), crop_size=dict(height=128, width=128)), tokenizer=tokenizer).save_pretrained(folder)


def stage(name, main, *args):
    "Run a command and print how long it took and what memory it has taken so far."
    import torch
    start = time.perf_counter()
    main([str(o) for o in args])
    memory = dict(peak_MB=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1000)
    if torch.cuda.is_available(): memory["gpu_GB"] = round(torch.cuda.max_memory_reserved()/1e9, 2)
    print(json.dumps(dict(stage=name, seconds=round(time.perf_counter()-start, 1), **memory)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalogue")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model", default="tiny", choices=("tiny", "mid", "vit-b-32"))
    args, rest = parser.parse_known_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from clip_ft.core import Paths
    from clip_ft.data import load_split, preprocess_main
    from clip_ft.sources import get_data_main
    from clip_ft.report import evaluate_main
    from clip_ft.embedding import embed_main
    from clip_ft.search_command import search_main
    from clip_ft.train_command import train_main
    from training_peers import make_model
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(json.dumps(dict(device=device, cores=os.cpu_count(), torch=torch.__version__, python=platform.python_version(), model=args.model)))
    root = ("--root", args.root)
    stage("get_data", get_data_main, *root, "--source", args.catalogue, *(("--limit", args.limit) if args.limit else ()))
    stage("preprocess", preprocess_main, *root)
    model = args.model
    if model != "tiny":
        model, texts = args.root/args.model, list(load_split(Paths(args.root))[0]["full_text"])
        if not model.is_dir(): (save_mid if args.model == "mid" else make_model)(model, texts)
    stage("train", train_main, *root, "--model", model, *rest)
    stage("evaluate", evaluate_main, *root)
    stage("embed", embed_main, *root)
    (args.root/"grids").mkdir(exist_ok=True)
    for i, query in enumerate(QUERIES):
        stage(f"search {query!r}", search_main, query, *root, "--top-k", 10, "--save-grid", args.root/"grids"/f"{i:02}-{query.replace(' ', '-')}.png")


if __name__ == "__main__": main()
