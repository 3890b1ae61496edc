"""Record the fixtures of test_formats.py: small open_clip checkpoints, and what open_clip computes with them.

Needs open_clip_torch, timm and torchvision, which the tests do not: python tests/record_open_clip.py
"""
import json
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent/"recorded"
TEXTS = ["A Red_Dress,  size-XL!", "blue jeans", "", "caf\u00e9 99% cotton; #1 & more, " + "very " * 9 + "long",
         "SHOES shoes"]
TOWER = dict(patch_size=8, embed_dim=24, depth=2, num_heads=12, class_token=False, global_pool="map")


@register_model
def vit_base_patch8_siglip_16(pretrained=False, **options):
    return VisionTransformer(img_size=16, **TOWER, **{k: options[k] for k in ("num_classes",)})


@register_model
def vit_base_patch8_siglip_24(pretrained=False, **options):
    return VisionTransformer(img_size=24, act_layer="gelu_tanh", **TOWER, **{k: options[k] for k in ("num_classes",)})


def save_clip_tokenizer(folder):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("d", "r"), ("s", "h")]
    tokens = [*letters, *(c + "</w>" for c in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges).save_pretrained(folder)
    return len(tokens)


def save_siglip_tokenizer(folder):
    "Like SentencePiece: lower-case and upper-case letters and punctuation have tokens of their own."
    letters = "abcdefghijklmnopqrstuvwxyz\u00e9ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!-,_.%;#&"
    tokens = [("<pad>", 0.), ("</s>", 0.), ("<unk>", 0.), ("\u2581", -2.), *((c, -4.) for c in letters),
              ("\u2581red", -3.)]
    backend = Tokenizer(models.Unigram(tokens, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>",
                            unk_token="<unk>").save_pretrained(folder)
    return len(tokens)


def clip_cfg(vocabulary, **options):
    return dict(embed_dim=20, **options,
        vision_cfg=dict(image_size=16, layers=2, width=16, head_width=8, patch_size=8, mlp_ratio=2.7),
        text_cfg=dict(context_length=12, vocab_size=vocabulary, width=12, heads=3, layers=3, hf_tokenizer_name="x"))


def siglip_cfg(vocabulary, image, **text):
    return dict(embed_dim=24, init_logit_bias=-10, custom_text=True,
        vision_cfg=dict(image_size=image, timm_model_name=f"vit_base_patch8_siglip_{image}",
                        timm_model_pretrained=False, timm_pool="map", timm_proj="none"),
        text_cfg=dict(context_length=10, vocab_size=vocabulary, hf_tokenizer_name="x",
                      tokenizer_kwargs=dict(clean="canonicalize"), width=16, heads=2, layers=3, mlp_ratio=2.5,
                      no_causal_mask=True, proj_bias=True, pool_type="last", norm_kwargs=dict(eps=1e-6), **text))


def record(name, make_cfg, save_tokenizer, mean, mode):
    folder = FOLDER/name
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = dict(mean=[mean]*3, std=[.5]*3, interpolation="bicubic", resize_mode=mode)
    description = dict(model_cfg=make_cfg(save_tokenizer(folder)), preprocess_cfg=preprocess)
    (folder/"open_clip_config.json").write_text(json.dumps(description, indent=1) + "\n")
    path = folder/"open_clip_model.safetensors"
    path.unlink(missing_ok=True)
    model = open_clip.create_model(f"local-dir:{folder}")
    with torch.no_grad():  # large, so that a wrong activation function changes the embeddings
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).mul(.4).half())
    save_file({key: value.half().contiguous() for key, value in model.state_dict().items()}, path)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    size = model.visual.image_size[0]
    image = np.random.default_rng(0).integers(0, 256, (5, 3, size, size), dtype=np.uint8)
    normalize = transform.transforms[-1]
    pixels = torch.stack([normalize(torch.from_numpy(x).float()/255) for x in image])
    with torch.no_grad():
        embeddings = dict(image=model.eval().encode_image(pixels, normalize=True).numpy(),
                          text=model.encode_text(tokens, normalize=True).numpy())
    np.savez_compressed(folder/"expected.npz", pixels=image, tokens=tokens.numpy(), texts=np.array(TEXTS), **embeddings,
                        logit_scale=model.logit_scale.detach().numpy())


if __name__ == "__main__":
    record("clip", clip_cfg, save_clip_tokenizer, .45, "shortest")
    record("clip_quickgelu", partial(clip_cfg, quick_gelu=True), save_clip_tokenizer, .45, "shortest")
    record("siglip", partial(siglip_cfg, image=16), save_siglip_tokenizer, .5, "squash")
    tanh = dict(approximate="tanh")
    record("siglip2", partial(siglip_cfg, image=24, act_kwargs=tanh), save_siglip_tokenizer, .5, "squash")
    print(f"recorded with open_clip {open_clip.__version__} and timm {timm.__version__}")
