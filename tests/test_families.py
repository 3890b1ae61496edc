"""Every family of models through the whole path: load, embed like the reference, train, save, evaluate, search.

The weights are random and the towers tiny; positions, padding, tokenizers and image processors are those of the
published checkpoints. Variants of a family are only loaded, compared, saved and loaded again. The last test prints the
table family x step."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import sentencepiece
import torch
import transformers
from conftest import HEADER, jpeg, split_demo
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoProcessor

from clip_ft.commands import embed_main, evaluate_main, get_data_main, preprocess_main, search_main, train_main
from clip_ft.core import Paths
from clip_ft.data import load_split
from clip_ft.encode import embed_images, embed_texts
from clip_ft.fast import CompiledLayers, can_record, half_copy
from clip_ft.history import History
from clip_ft.inputs import ModelInputs
from clip_ft.losses import model_loss
from clip_ft.model import image_features, load_model, save_model, text_features, tiny_model
from clip_ft.texts import Tokens

TOWER = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2)
VISION = dict(TOWER, image_size=64, patch_size=16)
TEXTS = ['blue jeans', 'Red DRESS, floral print!', '', 'Żółć 连衣裙 🎉', 'x', ' two  spaces ',
         'a very long text about a dress ' * 80, 'Shoes. Sports Shoes. ' * 8]
CLIP_IMAGES = dict(size=dict(shortest_edge=64), crop_size=dict(height=64, width=64))


# Tokenizers, learned from the texts of the demo

def clip_tokenizer(texts, length=77):
    tokenizer = tiny_model(texts)[1].tokenizer
    tokenizer.model_max_length = length
    return tokenizer


def siglip_tokenizer(texts, folder):
    "The tokenizer of SigLIP 1, which ships spiece.model and no tokenizer.json."
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in texts]), model_writer=model, vocab_size=300, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
    (folder/'spiece.model').write_bytes(model.getvalue())
    return transformers.SiglipTokenizer(str(folder/'spiece.model'))


def gemma_tokenizer(texts):
    "The tokenizer of SigLIP 2: it keeps upper case and states no length."
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token='<unk>'))
    bpe.normalizer = normalizers.Replace(' ', '▁')
    bpe.pre_tokenizer = pre_tokenizers.Split(' ', 'merged_with_previous')
    special = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>', *(f'<0x{byte:02X}>' for byte in range(256))]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    model = json.loads(bpe.to_str())['model']
    tokenizer = transformers.GemmaTokenizer(
        vocab=model['vocab'], merges=[tuple(merge) for merge in model['merges']], padding_side='right')
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single='$A <eos>', special_tokens=[('<eos>', 1)])
    return tokenizer


def roberta_tokenizer(texts, length=512):
    "The tokenizer of XLM-RoBERTa, which AltCLIP and MetaCLIP 2 use."
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer, unigram.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
    unigram.train_from_iterator(texts, trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token='<unk>', show_progress=False))
    vocabulary = [tuple(entry) for entry in json.loads(unigram.to_str())['model']['vocab']]
    return transformers.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=length)


def bert_tokenizer(texts, length=10**30):
    "The tokenizer of Chinese-CLIP and of most dual encoders; it states no length here."
    pieces = Tokenizer(models.WordPiece(unk_token='[UNK]'))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    pieces.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=special, show_progress=False))
    vocabulary = dict(sorted(pieces.get_vocab().items(), key=lambda item: item[1]))
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=length)


# Models as they are published

def clip(texts, folder, length=77):
    tokenizer = clip_tokenizer(texts, length)
    text = dict(TOWER, vocab_size=len(tokenizer), max_position_embeddings=length, eos_token_id=tokenizer.eos_token_id,
                bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))
    return model, transformers.CLIPProcessor(transformers.CLIPImageProcessor(**CLIP_IMAGES), tokenizer)


def siglip(texts, folder, length=64, make_tokenizer=siglip_tokenizer):
    tokenizer = make_tokenizer(texts, folder)
    text = dict(TOWER, vocab_size=len(tokenizer), max_position_embeddings=length)
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION))
    images = transformers.SiglipImageProcessor(size=dict(height=64, width=64))
    return model, transformers.SiglipProcessor(images, tokenizer)


def metaclip_2(texts, folder):
    tokenizer = roberta_tokenizer(texts, 77)
    text = dict(TOWER, vocab_size=len(tokenizer), max_position_embeddings=77, eos_token_id=tokenizer.eos_token_id)
    model = transformers.MetaClip2Model(transformers.MetaClip2Config(
        text_config=text, vision_config=VISION, projection_dim=24))
    return model, transformers.CLIPProcessor(transformers.CLIPImageProcessor(**CLIP_IMAGES), tokenizer)


def altclip(texts, folder):
    tokenizer = roberta_tokenizer(texts)
    text = dict(TOWER, vocab_size=len(tokenizer), max_position_embeddings=514, project_dim=24)
    model = transformers.AltCLIPModel(transformers.AltCLIPConfig(
        text_config=text, vision_config=VISION, projection_dim=24))
    return model, transformers.AltCLIPProcessor(transformers.CLIPImageProcessor(**CLIP_IMAGES), tokenizer)


def chinese_clip(texts, folder):
    tokenizer = bert_tokenizer(texts, 512)
    text = dict(TOWER, vocab_size=len(tokenizer), max_position_embeddings=52)
    model = transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(
        text_config=text, vision_config=VISION, projection_dim=24))
    images = transformers.ChineseCLIPImageProcessor(size=dict(height=64, width=64), do_center_crop=False)
    return model, transformers.ChineseCLIPProcessor(images, tokenizer)


def dual(texts, folder, vision, text, tokenizer, images):
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    model = transformers.VisionTextDualEncoderModel(config)
    return model, transformers.VisionTextDualEncoderProcessor(images, tokenizer)


def vit_bert(texts, folder):
    tokenizer = bert_tokenizer(texts)
    return dual(texts, folder, transformers.ViTConfig(**VISION),
                transformers.BertConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=512),
                tokenizer, transformers.ViTImageProcessor(size=dict(height=64, width=64)))


def clip_xlm_roberta(texts, folder):
    tokenizer = roberta_tokenizer(texts)
    return dual(texts, folder, transformers.CLIPVisionConfig(**VISION),
                transformers.XLMRobertaConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=130),
                tokenizer, transformers.CLIPImageProcessor(**CLIP_IMAGES))


def deit_roberta(texts, folder):
    "An image processor that distorts to a larger square and crops its center."
    tokenizer = roberta_tokenizer(texts)
    images = transformers.DeiTImageProcessor(size=dict(height=72, width=72), crop_size=dict(height=64, width=64))
    return dual(texts, folder, transformers.ViTConfig(**VISION),
                transformers.RobertaConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=66),
                tokenizer, images)


FAMILIES = {  # name -> how it is made, most tokens per text, options of its own processor
    'CLIP': (clip, 77, {}),
    'Long-CLIP, a variant': (lambda *args: clip(*args, length=248), 248, {}),
    'SigLIP': (siglip, 64, dict(padding='max_length')),
    'SigLIP with 16 positions, a variant': (lambda *args: siglip(*args, length=16), 16,
                                            dict(padding='max_length')),
    'SigLIP 2': (lambda *args: siglip(*args, make_tokenizer=lambda texts, _: gemma_tokenizer(texts)), 64,
                 dict(padding='max_length')),
    'MetaCLIP 2': (metaclip_2, 77, {}),
    'AltCLIP': (altclip, 512, {}),
    'Chinese-CLIP': (chinese_clip, 52, {}),
    'VisionTextDualEncoder': (vit_bert, 512, {}),
    'CLIP and XLM-RoBERTa, a variant': (clip_xlm_roberta, 128, {}),
    'DeiT and RoBERTa, a variant': (deit_roberta, 64, {}),
}
STEPS = ('load', 'embeds like reference', 'trains on CPU', 'saves and loads', 'searches')
DONE = {}  # family -> the steps that passed


@pytest.fixture(scope='module')
def small_shop(tmp_path_factory):
    "A demo project of 50 products, ready to train for 20 steps of 2 products, and its texts."
    root = split_demo(tmp_path_factory.mktemp('small_shop')/'root', 50, .1)
    texts = [text for part in load_split(Paths(root)) for text in part['full_text']]
    return root, texts


def reference(folder, family, texts, images):
    "Embeddings by the family's own processor and model."
    _, length, options = FAMILIES[family]
    processor, model = AutoProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    if family == 'SigLIP 2':
        texts = [text.lower() for text in texts]
    options = dict(padding=True, truncation=True, max_length=length) | options
    tokens = processor(text=texts, return_tensors='pt', **options)
    if options['padding'] == 'max_length':
        tokens = dict(input_ids=tokens['input_ids'])  # the published tokenizers return no mask
    pixels = [processor.image_processor(images=image, return_tensors='pt')['pixel_values'] for image in images]
    with torch.no_grad():
        features = model.get_image_features(torch.cat(pixels)), model.get_text_features(**tokens)
    return [F.normalize(x.pooler_output).numpy() for x in features]


def odd_images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            for height, width in ((40, 90), (200, 71), (64, 64))]


def published(family, texts, folder):
    "A folder with a model of random weights and its processor, saved by transformers alone."
    folder.mkdir()
    torch.manual_seed(0)
    for part in FAMILIES[family][0](texts, folder):
        part.save_pretrained(folder)
    return folder


def saved_again(model, processor, best):
    "Check that transformers, asking for padding as sentence-transformers does, reads texts like this project."
    tuned, tuned_processor = load_model(best, 'cpu', verbose=False)
    assert ModelInputs.of(tuned, tuned_processor) == ModelInputs.of(model, processor)
    fresh = AutoProcessor.from_pretrained(best)
    tokens = fresh(text=TEXTS, return_tensors='pt', padding=True, truncation=True)
    with torch.no_grad():
        found = F.normalize(tuned.get_text_features(**tokens).pooler_output)
    np.testing.assert_allclose(found, embed_texts(tuned, tuned_processor, TEXTS), atol=1e-5)


class Waits(TorchDispatchMode):
    "Collects operations that read a value from the device, for which a CUDA graph cannot be recorded."
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in ('aten::_local_scalar_dense', 'aten::nonzero', 'aten::masked_select'):
            self.found.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def check_fast_versions(model, processor, images, expected):
    "A step that never waits, a 16-bit copy, and layers that can be compiled and restored."
    tokens, pixels = Tokens(processor, TEXTS[:3])[[0, 1, 2]], torch.rand(3, 3, 64, 64)
    with Waits() as waits:
        model_loss(model, image_features(model, pixels), text_features(model, tokens)).backward()
    assert not waits.found
    assert can_record(model) == (model.config.vision_config.model_type not in ('vit', 'deit'))
    model.zero_grad()
    half = half_copy(model)
    dtypes = {p.dtype for name, p in half.named_parameters() if not name.startswith('logit_')}
    assert dtypes == {torch.float16}
    for embeds, plain in zip((embed_images(half, processor, images, progress=False),
                              embed_texts(half, processor, TEXTS)), expected):
        assert ((embeds*plain).sum(1) > .999).all()
    names, compiled = list(model.state_dict()), CompiledLayers(model)
    assert (len(compiled.layers), len(compiled.hooks)) == (4, 1)
    compiled.close()
    assert list(model.state_dict()) == names and not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize('family', FAMILIES)
def test_family(family, small_shop, tmp_path, run, monkeypatch):
    monkeypatch.setattr(History, 'plot', lambda self: None)  # takes a second, and is the same for all
    root, texts = small_shop
    _, length, options = FAMILIES[family]
    folder, done = published(family, texts, tmp_path/'published'), DONE.setdefault(family, [])
    model, processor = load_model(folder, 'cpu')
    text = ModelInputs.of(model, processor).text
    assert (text.length, text.pad_to_length) == (length, bool(options))
    done.append(STEPS[0])

    images, expected = odd_images(), reference(folder, family, TEXTS, odd_images())
    np.testing.assert_allclose(embed_images(model, processor, images, progress=False), expected[0], atol=1e-5)
    np.testing.assert_allclose(embed_texts(model, processor, TEXTS), expected[1], atol=1e-5)
    check_fast_versions(model, processor, images, expected)
    done.append(STEPS[1])

    if 'variant' in family:
        save_model(tmp_path/'saved', model, processor)
        saved_again(model, processor, tmp_path/'saved')
        done.append(STEPS[3])
        return
    copy = shutil.copytree(root, tmp_path/'root')
    printed = run(train_main, '--root', copy, '--model', folder, '--epochs', 1, '--batch-size', 2, '--lr', 1e-4,
                  '--device', 'cpu')
    assert printed.startswith(str(ModelInputs.of(model, processor)))
    assert pd.read_csv(Paths(copy).history_csv)['step'].max() >= 15
    done.append(STEPS[2])
    saved_again(model, processor, Paths(copy).best_model)
    done.append(STEPS[3])
    run(embed_main, '--root', copy, '--device', 'cpu')
    run(evaluate_main, '--root', copy, '--device', 'cpu', '--base', 'none')
    assert len(json.loads(run(search_main, '--root', copy, 'Blue JEANS', '--json', '--device', 'cpu'))) == 5
    done.append(STEPS[4])


def test_without_logit_scale(small_shop, tmp_path, run):
    "ALIGN embeds and searches; it is not trained."
    root, texts = small_shop
    tokenizer = bert_tokenizer(texts, 64)
    text = dict(TOWER, vocab_size=len(tokenizer), max_position_embeddings=64)
    vision = dict(image_size=64, hidden_dim=24, depthwise_padding=[], width_coefficient=.1, depth_coefficient=.1)
    images = transformers.EfficientNetImageProcessor(
        size=dict(height=72, width=72), crop_size=dict(height=64, width=64), do_center_crop=True, resample=2,
        include_top=False)
    model = transformers.AlignModel(transformers.AlignConfig(
        text_config=text, vision_config=vision, projection_dim=32)).eval()
    for module in model.modules():
        module.momentum = 1.  # random layers shrink their input; normalization takes its statistics from one batch
    with torch.no_grad():
        model.train().get_image_features(torch.rand(8, 3, 64, 64))
    folder = tmp_path/'align'
    for part in (model, transformers.AlignProcessor(images, tokenizer)):
        part.save_pretrained(folder)
    assert 'ALIGN' in run(embed_main, '--root', shutil.copytree(root, tmp_path/'root'), '--model', folder)
    printed = run(search_main, '--root', tmp_path/'root', 'blue jeans', '--model', folder)
    assert 'score' in printed and 'ALIGN' not in printed
    run(evaluate_main, '--root', tmp_path/'root', '--model', folder)
    assert 'no logit scale' in run(train_main, '--root', tmp_path/'root', '--model', folder, refused=True)


LANGUAGES = {  # three texts of a product: name, category, description
    'ru': ('Красное платье', 'Платья', 'Летнее платье из хлопка. Носить с поясом. № {}'),
    'ar': ('فستان أحمر', 'فساتين', 'فستان صيفي من القطن؟ يلبس مع حزام جميل. {}'),
    'zh': ('红色连衣裙', '连衣裙', '夏季纯棉连衣裙，配有腰带。适合在海边穿着！款式 {}'),
    'de': ('Rotes Kleid für Größe XL', 'Kleider', 'Sommerkleid aus Baumwolle, mit Gürtel. Für Straße und Büro. {}'),
}


def test_languages(tmp_path, run):
    "A catalogue in four languages goes through all commands, and comes out as it went in."
    source, root = tmp_path/'source', tmp_path/'root'
    (source/'data').mkdir(parents=True)
    rows = [(f'{language}{i}.jpg', description.format(i), f'{name} {i}', category)
            for language, (name, category, description) in LANGUAGES.items() for i in range(8)]
    for number, (image, *_) in enumerate(rows):
        (source/'data'/image).write_bytes(jpeg(number))
    table = pd.DataFrame(rows, columns=HEADER.strip().split(','))
    table.to_csv(source/'data.csv', index=False)
    texts = [*table['display name'], *table['description'], *table['display name'].str.upper()]
    folder = published('CLIP and XLM-RoBERTa, a variant', texts, tmp_path/'model')
    run(get_data_main, '--root', root, '--source', source)
    run(preprocess_main, '--root', root, '--test-size', .25)
    run(train_main, '--root', root, '--model', folder, '--epochs', 1, '--batch-size', 4)
    run(embed_main, '--root', root)
    run(evaluate_main, '--root', root, '--base', 'none')
    for name, category, _ in LANGUAGES.values():
        where = f'category~{category.upper()}'
        found = json.loads(run(search_main, '--root', root, name.upper(), '--json', '--where', where))
        assert {(product['category'], product['display name'][:-2]) for product in found} == {(category, name)}
        assert name in run(search_main, '--root', root, name, '--where', f'category={category}')


def test_table(capsys):
    "Print the table of families and steps of this run."
    if not DONE:
        pytest.skip('no family was tested')
    with capsys.disabled():
        print('\n| family |', ' | '.join(STEPS), '|')
        for family, done in DONE.items():
            print('|', family, '|', ' | '.join('yes' if step in done else '' for step in STEPS), '|')
