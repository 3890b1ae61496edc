"open_clip checkpoints: read them as open_clip computes with them (recorded by record_open_clip.py), and write them."
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from clip_ft import formats, towers
from clip_ft.core import InputError
from clip_ft.dataset import Normalize, ResizeSpec
from clip_ft.formats import CONFIG_FILE, is_open_clip, open_clip_folder, read_open_clip, save_open_clip
from clip_ft.model import image_features, load_model, text_features
from clip_ft.texts import Tokens
from clip_ft.towers import WEIGHTS_FILES

CASES = Path(__file__).parent/'recorded'
NAMES = ['clip', 'clip_quickgelu', 'siglip', 'siglip2']


@pytest.fixture(autouse=True)
def small_timm_towers(monkeypatch):
    "The vision towers of the recorded SigLIP models, which timm does not have."
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=12, intermediate_size=96)
    monkeypatch.setitem(towers.TIMM_TOWERS, 'base', sizes)
    monkeypatch.setitem(towers.TIMM_IMAGES, ('base', 8), dict(gelu=(16,), gelu_pytorch_tanh=(24,)))


def copied(name, folder, **files):
    "Copy a recorded checkpoint; files are written beside it."
    shutil.copytree(CASES/name, folder)
    for file, content in files.items():
        (folder/f'{file}.json').write_text(json.dumps(content))
    return folder


def changed(folder, part=None, **fields):
    "Change the description of a copied checkpoint."
    config = json.loads((folder/CONFIG_FILE).read_text())
    (config['model_cfg'][part] if part else config['model_cfg']).update(fields)
    (folder/CONFIG_FILE).write_text(json.dumps(config))
    return folder


def embeddings(model, processor, expected):
    "Embed the recorded pixels and texts as every stage of clip_ft does."
    pixels = Normalize(processor)(torch.from_numpy(expected['pixels']))
    texts = Tokens(processor, expected['texts'].tolist())
    with torch.inference_mode():
        images = image_features(model, pixels)
        return images.numpy(), text_features(model, texts[range(len(texts))]).numpy()


def check(model, processor, expected, atol=1e-5):
    for ours, theirs in zip(embeddings(model, processor, expected), (expected['image'], expected['text'])):
        np.testing.assert_allclose(ours, theirs, atol=atol)


# In

@pytest.mark.parametrize('name', NAMES)
def test_equals_open_clip(name):
    expected = np.load(CASES/name/'expected.npz')
    model, processor = read_open_clip(CASES/name)
    check(model, processor, expected)
    length = model.config.text_config.max_position_embeddings
    assert processor.tokenizer.model_max_length == length == expected['tokens'].shape[1]
    for text, row in zip(expected['texts'].tolist(), expected['tokens']):
        ids = processor.tokenizer(text, truncation=True, padding='max_length', max_length=length)['input_ids']
        assert ids == row.tolist(), text
    assert float(model.logit_scale.detach()) == float(expected['logit_scale'])
    spec = ResizeSpec.from_processor(processor)
    assert (spec.size, spec.center_crop) == (model.config.vision_config.image_size, name.startswith('clip'))


def test_marqo_layout(tmp_path):
    "A config.json that only refers to code, and weights with the name of an attribute before each name."
    marqo = dict(auto_map={'AutoModel': 'marqo_fashionSigLIP.MarqoFashionSigLIP'}, model_type='siglip',
                 open_clip_model_name='hf-hub:Marqo/marqo-fashionSigLIP')
    folder = copied('siglip', tmp_path/'marqo', config=marqo)
    (folder/'marqo_fashionSigLIP.py').write_text('raise SystemExit("executed")')
    weights = load_file(folder/WEIGHTS_FILES[0])
    (folder/WEIGHTS_FILES[0]).unlink()
    save_file({f'model.{name}': value for name, value in weights.items()}, folder/'model.safetensors')
    (folder/'open_clip_pytorch_model.bin').write_bytes(b'not read')
    assert is_open_clip(folder)
    model, processor = load_model(folder, 'cpu')
    expected = np.load(folder/'expected.npz')
    check(model, processor, expected)
    assert model.name_or_path == str(folder)
    model.save_pretrained(tmp_path/'best')       # what is saved is read by transformers alone
    processor.save_pretrained(tmp_path/'best')
    check(*load_model(tmp_path/'best', 'cpu'), expected)


def test_other_layouts(tmp_path):
    "Text tower without a module of its own, or with one; a module. prefix; a bias that only the loss of SigLIP uses."
    folder = copied('clip', tmp_path/'clip')
    weights = load_file(folder/WEIGHTS_FILES[0])
    save_file({'module.'+('' if name.startswith(('visual', 'logit')) else 'text.')+name: value
               for name, value in weights.items()} | {'module.logit_bias': torch.zeros(1)}, folder/WEIGHTS_FILES[1])
    (folder/WEIGHTS_FILES[0]).unlink()
    changed(folder, custom_text=True, init_logit_bias=-10)
    check(*read_open_clip(folder), np.load(folder/'expected.npz'))


def test_transformers_keeps_what_it_can_read(tmp_path):
    folder = copied('clip', tmp_path/'both', config=dict(model_type='clip', text_config={}, vision_config={}))
    assert not is_open_clip(folder) and open_clip_folder(folder) == folder  # the weights of transformers are missing
    (folder/'model.safetensors').touch()
    assert open_clip_folder(folder) is None
    assert not is_open_clip(tmp_path) and open_clip_folder('no/such/name') is None


def clip_model(**options):
    tower = dict(hidden_size=64, intermediate_size=128, num_attention_heads=1, num_hidden_layers=1)
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(projection_dim=8, vision_config=dict(tower, image_size=32, patch_size=16, **options),
        text_config=dict(tower, vocab_size=518, eos_token_id=517, max_position_embeddings=12, **options))).eval()


def siglip_model(**options):
    tower = dict(hidden_size=24, intermediate_size=96, num_attention_heads=12, num_hidden_layers=2, hidden_act='gelu')
    torch.manual_seed(0)
    return SiglipModel(SiglipConfig(vision_config=dict(tower, image_size=224, patch_size=16, **options),
        text_config=dict(tower, vocab_size=100, max_position_embeddings=10))).eval()


@pytest.mark.parametrize('name, like, build', [
    ('ViT-B-16', 'clip', lambda: clip_model(hidden_act='gelu')), ('ViT-B-32-quickgelu', 'clip', clip_model),
    ('ViT-B-16-SigLIP', 'siglip', siglip_model)])
def test_named_architecture(tmp_path, name, like, build):
    "config.json only names the architecture; sizes follow from the weights."
    _, processor = read_open_clip(CASES/like)
    model = build()
    size = model.config.vision_config.image_size
    processor.image_processor.size = dict.fromkeys(dict(processor.image_processor.size), size)
    processor.image_processor.crop_size = dict(height=size, width=size)
    save_open_clip(tmp_path/'model', model, processor)
    (tmp_path/'model'/CONFIG_FILE).unlink()
    (tmp_path/'model'/'config.json').write_text(json.dumps(dict(open_clip_model_name=name)))
    assert is_open_clip(tmp_path/'model')
    read, _ = read_open_clip(tmp_path/'model')
    pixels, ids = torch.rand(2, 3, size, size), torch.randint(3, 99, (2, 10))
    with torch.inference_mode():
        torch.testing.assert_close(image_features(read, pixels), image_features(model, pixels))
        tokens = dict(input_ids=ids)
        torch.testing.assert_close(text_features(read, tokens), text_features(model, tokens))


# Refused

@pytest.mark.parametrize('name, part, fields, message', [
    ('clip', 'vision_cfg', dict(layers=[3, 4, 6, 3]), 'layers'), ('clip', 'vision_cfg', dict(layers=10**6), 'layers'),
    ('clip', 'vision_cfg', dict(layers=-2), 'layers'), ('clip', 'vision_cfg', dict(layers='2'), 'layers'),
    ('clip', 'vision_cfg', dict(head_width=0), 'head_width'), ('clip', 'vision_cfg', dict(head_width=5), 'head_width'),
    ('clip', 'vision_cfg', dict(head_width='8'), 'head_width'),
    ('clip', 'vision_cfg', dict(image_size=10**9), 'pixels'),
    ('clip', 'vision_cfg', dict(image_size=32), 'patches'), ('clip', 'vision_cfg', dict(image_size=[16, 32]), 'square'),
    ('clip', 'vision_cfg', dict(image_size='16'), 'pixels'), ('clip', 'vision_cfg', dict(mlp_ratio=4.0), 'mlp_ratio'),
    ('clip', 'vision_cfg', dict(mlp_ratio=float('inf')), 'mlp_ratio'),
    ('clip', 'vision_cfg', dict(mlp_ratio=float('nan')), 'mlp_ratio'),
    ('clip', 'vision_cfg', dict(attentional_pool=True), 'attentional_pool'),
    ('clip', 'vision_cfg', dict(no_ln_pre=True), 'no_ln_pre'), ('clip', 'vision_cfg', dict(qk_norm=True), 'qk_norm'),
    ('clip', 'vision_cfg', dict(timm_model_name='convnext_base'), 'convnext_base'),
    ('clip', 'vision_cfg', dict(timm_model_name='eva02_base_patch16_clip_224'), 'eva02'),
    ('clip', 'vision_cfg', dict(timm_model_name=['x']), 'timm_model_name'),
    ('clip', 'text_cfg', dict(hf_model_name='roberta-base'), 'roberta-base'),
    ('clip', 'text_cfg', dict(heads=0), 'heads'), ('clip', 'text_cfg', dict(heads=True), 'heads'),
    ('clip', 'text_cfg', dict(context_length=77), 'context_length'), ('clip', 'text_cfg', dict(vocab_size=9), 'vocab'),
    ('clip', 'text_cfg', dict(no_causal_mask=True), 'no_causal_mask'),
    ('clip', 'text_cfg', dict(pool_type='eos', eos_id=2), 'eos_id'), ('clip', 'text_cfg', dict(new=1), 'text_cfg.new'),
    ('clip', 'text_cfg', dict(act_kwargs=dict(approximate='x')), 'act_kwargs'),
    ('clip', 'text_cfg', dict(act_kwargs=[1]), 'act_kwargs'), ('clip', 'text_cfg', dict(norm_kwargs=[1]), 'norm_kw'),
    ('clip', 'text_cfg', dict(norm_kwargs=dict(eps='x')), 'norm_kwargs'),
    ('clip', 'text_cfg', dict(tokenizer_kwargs=dict(strip_sep_token=True)), 'tokenizer_kwargs'),
    ('clip', 'text_cfg', dict(tokenizer_kwargs=dict(clean='x')), 'cleaned'),
    ('clip', None, dict(multimodal_cfg={}), 'multimodal_cfg'), ('clip', None, dict(vision_cfg=None), 'vision_cfg'),
    ('clip', None, dict(embed_dim=512), 'embed_dim'),
    ('siglip', 'vision_cfg', dict(timm_pool='avg'), 'timm_pool'),
    ('siglip', 'vision_cfg', dict(timm_proj='linear'), 'timm_proj'),
    ('siglip', 'vision_cfg', dict(timm_model_name='vit_base_patch8_siglip_24'), 'image_size'),
    ('siglip', 'vision_cfg', dict(timm_model_name='vit_base_patch8_siglip_gap_16'), 'timm_model_name'),
    ('siglip', 'vision_cfg', dict(timm_model_name='vit_huge_patch8_siglip_16'), 'timm_model_name'),
    ('siglip', 'text_cfg', dict(no_causal_mask=False), 'no_causal_mask'),
    ('siglip', 'text_cfg', dict(pool_type='argmax'), 'pool_type'),
])
def test_refused_descriptions(tmp_path, name, part, fields, message):
    folder = changed(copied(name, tmp_path/'model'), part, **fields)
    with pytest.raises(InputError, match=message) as error:
        read_open_clip(folder)
    assert '\n' not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize('fields, message', [
    (dict(resize_mode='longest'), 'longest'), (dict(interpolation='nearest'), 'nearest'), (dict(mean='x'), 'mean'),
    (dict(mean=[.5, .5]), 'mean'), (dict(std=[0, 0, 0]), 'std'), (dict(std=[.5, .5, 'x']), 'std'),
    (dict(mode='L'), 'resize'), (dict(mean=[float('nan')]*3), 'mean'), (dict(resize_mode=['x']), 'resize_mode')])
def test_refused_preprocessing(tmp_path, fields, message):
    folder = copied('clip', tmp_path/'model')
    config = json.loads((folder/CONFIG_FILE).read_text())
    config['preprocess_cfg'].update(fields)
    (folder/CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        read_open_clip(folder)


def without(folder, name):
    weights = load_file(folder/WEIGHTS_FILES[0])
    del weights[name]
    save_file(weights, folder/WEIGHTS_FILES[0])


def with_weights(folder, **new):
    save_file(load_file(folder/WEIGHTS_FILES[0]) | new, folder/WEIGHTS_FILES[0])


def only_pickle(folder):
    (folder/WEIGHTS_FILES[0]).rename(folder/'open_clip_pytorch_model.bin')


@pytest.mark.parametrize('damage, message', [
    (lambda f: without(f, 'visual.proj'), 'visual.proj'), (lambda f: without(f, 'ln_final.bias'), 'ln_final.bias'),
    (lambda f: without(f, 'visual.transformer.resblocks.1.ln_1.weight'), 'resblocks.1.ln_1.weight is missing'),
    (lambda f: with_weights(f, new=torch.zeros(2)), 'new is left over'),
    (lambda f: with_weights(f, **{'visual.class_embedding': torch.zeros(7)}), 'shape'),
    (lambda f: with_weights(f, **{'visual.class_embedding': torch.zeros(0, 10**9)}), 'shape'),
    (lambda f: with_weights(f, **{'transformer.resblocks.1.attn.in_proj_weight': torch.zeros(7, 12)}), 'shape'),
    (lambda f: with_weights(f, **{'visual.conv1.weight': torch.zeros(10**9, 0, 8, 8)}), 'misshapen'),
    (lambda f: with_weights(f, logit_scale=torch.zeros(3)), 'shape'),
    (only_pickle, 'no open_clip_model.safetensors'),
    (lambda f: (f/WEIGHTS_FILES[0]).write_bytes((2**62).to_bytes(8, 'little')+b'{}'), 'damaged'),
    (lambda f: (f/WEIGHTS_FILES[0]).write_bytes(b''), 'damaged'),
    (lambda f: (f/WEIGHTS_FILES[0]).write_bytes((f/WEIGHTS_FILES[0]).read_bytes()[:-9]), 'damaged'),
    (lambda f: (f/CONFIG_FILE).write_text('{'), 'damaged'), (lambda f: (f/CONFIG_FILE).write_text('[]'), 'damaged'),
    (lambda f: (f/CONFIG_FILE).write_text('['*10**5), 'damaged'),
    (lambda f: (f/CONFIG_FILE).write_text('{"a": 1}'), 'model_cfg'),
    (lambda f: (f/'tokenizer.json').write_text('{}'), 'tokenizer'),
    (lambda f: [p.unlink() for p in f.glob('tokenizer*')], 'no tokenizer'),
])
def test_damaged_files(tmp_path, damage, message):
    folder = copied('clip', tmp_path/'model')
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load_model(folder, 'cpu')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['../../etc', '/etc', 'a'*10**4, 7, '\0'])
def test_tokenizer_name_is_no_path(tmp_path, name):
    folder = changed(copied('clip', tmp_path/'model'), 'text_cfg', hf_tokenizer_name=name)
    for path in folder.glob('tokenizer*'):
        path.unlink()
    with pytest.raises(InputError, match='no tokenizer'):
        read_open_clip(folder)


# From the hub

class Hub:
    "Stands for snapshot_download: copies the files that match the patterns, and counts them."

    def __init__(self, folder, cache):
        self.folder, self.cache, self.downloaded = folder, cache, []

    def __call__(self, _, allow_patterns):
        self.cache.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns) and not (self.cache/path.name).exists():
                shutil.copy(path, self.cache/path.name)
                self.downloaded.append(path.name)
        return str(self.cache)


def test_hub(tmp_path, monkeypatch):
    folder = copied('siglip', tmp_path/'repository', config=dict(model_type='siglip', auto_map={}))
    shutil.copy(folder/WEIGHTS_FILES[0], folder/'model.safetensors')
    (folder/'code.py').write_text('')
    hub = Hub(folder, tmp_path/'cache')
    monkeypatch.setattr(formats, 'snapshot_download', hub)
    model, processor = load_model('owner/name', 'cpu')
    check(model, processor, np.load(folder/'expected.npz'))
    assert model.name_or_path == 'owner/name'
    tokenizer = ['tokenizer.json', 'tokenizer_config.json']
    assert sorted(hub.downloaded) == ['config.json', CONFIG_FILE, WEIGHTS_FILES[0], *tokenizer]


def test_hub_leaves_other_repositories_alone(tmp_path, monkeypatch):
    folder = copied('clip', tmp_path/'laion', config=dict(model_type='clip', text_config={}, vision_config={}))
    hub = Hub(folder, tmp_path/'cache')
    monkeypatch.setattr(formats, 'snapshot_download', hub)
    assert open_clip_folder('laion/name') is None
    assert sorted(hub.downloaded) == ['config.json', CONFIG_FILE]


def test_tokenizer_from_the_hub(tmp_path, monkeypatch):
    folder = changed(copied('siglip', tmp_path/'model'), 'text_cfg', hf_tokenizer_name='timm/ViT-B-16-SigLIP')
    for path in folder.glob('tokenizer*'):
        path.unlink()
    hub = Hub(CASES/'siglip', tmp_path/'cache')
    monkeypatch.setattr(formats, 'snapshot_download', hub)
    check(*read_open_clip(folder), np.load(folder/'expected.npz'))
    assert sorted(hub.downloaded) == ['tokenizer.json', 'tokenizer_config.json']


# Out

@pytest.mark.parametrize('name', NAMES)
def test_there_and_back(tmp_path, name):
    model, processor = read_open_clip(CASES/name)
    save_open_clip(tmp_path/'out', model, processor)
    again, other = read_open_clip(tmp_path/'out')
    first, second = model.state_dict(), again.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    check(again, other, np.load(CASES/name/'expected.npz'))
    for theirs, ours in zip(*(load_file(folder/WEIGHTS_FILES[0]).items() for folder in (CASES/name, tmp_path/'out'))):
        assert theirs[0] == ours[0] and torch.equal(theirs[1].float(), ours[1])
    save_open_clip(tmp_path/'out', model, processor)             # an older one is replaced
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_tokenizer_as_open_clip_reads_it(tmp_path):
    "load_model completes the settings of the tokenizer; open_clip reads its files with AutoTokenizer."
    for name in ('clip', 'siglip'):
        expected = np.load(CASES/name/'expected.npz')
        save_open_clip(tmp_path/name, *load_model(CASES/name, 'cpu'))
        texts, length = expected['texts'].tolist(), expected['tokens'].shape[1]
        ids = AutoTokenizer.from_pretrained(tmp_path/name)([' '.join(text.split()) for text in texts], truncation=True,
                                                           max_length=length, padding='max_length')['input_ids']
        assert ids == expected['tokens'].tolist()


def test_tokens_without_embeddings(tmp_path):
    "The vocabulary of T5 ends with tokens that no text contains, and SigLIP has no embeddings for them."
    folder = copied('siglip', tmp_path/'model')
    tokenizer = json.loads((folder/'tokenizer.json').read_text())
    size = len(tokenizer['model']['vocab'])
    for i in range(3):
        content = f'<extra_id_{i}>'
        tokenizer['model']['vocab'].append([content, 0.])
        tokenizer['added_tokens'].append(dict(id=size+i, content=content, single_word=False, lstrip=False, rstrip=False,
                                              normalized=False, special=True))
    (folder/'tokenizer.json').write_text(json.dumps(tokenizer))
    model, processor = load_model(folder, 'cpu')
    check(model, processor, np.load(folder/'expected.npz'))
    assert max(processor.tokenizer.get_vocab().values()) < model.config.text_config.vocab_size


def test_vocabulary_files_only(tmp_path):
    "CLIP's tokenizer as vocab.json and merges.txt, without tokenizer.json."
    folder = copied('clip', tmp_path/'model')
    model = json.loads((folder/'tokenizer.json').read_text())['model']
    (folder/'vocab.json').write_text(json.dumps(model['vocab']))
    (folder/'merges.txt').write_text('#version: 0.2\n'+'\n'.join(' '.join(pair) for pair in model['merges'])+'\n')
    for path in folder.glob('tokenizer*'):
        path.unlink()
    check(*read_open_clip(folder), np.load(folder/'expected.npz'))


@pytest.mark.parametrize('change, message', [
    (lambda m, p: setattr(m.config.vision_config, 'hidden_act', 'quick_gelu'), 'quick_gelu'),
    (lambda m, p: setattr(m.config, 'model_type', 'align'), 'align'),
    (lambda m, p: setattr(p.image_processor, 'do_rescale', False), 'images'),
    (lambda m, p: setattr(p.image_processor, 'size', dict(shortest_edge=20)), 'images')])
def test_refused_out(tmp_path, change, message):
    model, processor = read_open_clip(CASES/'clip')
    change(model, processor)
    with pytest.raises(InputError, match=message):
        save_open_clip(tmp_path/'out', model, processor)
    assert not list(tmp_path.iterdir())


def test_other_towers_and_folders_are_refused(tmp_path):
    model, processor = read_open_clip(CASES/'siglip')
    model.config.vision_config.num_hidden_layers = 3
    with pytest.raises(InputError, match='3 layers of width 24'):
        save_open_clip(tmp_path/'out', model, processor)
    model, processor = read_open_clip(CASES/'siglip')
    model.config.vision_config.hidden_act = 'gelu_pytorch_tanh'
    with pytest.warns(UserWarning, match='GELU'):
        save_open_clip(tmp_path/'out', model, processor)
    (tmp_path/'other').mkdir()
    (tmp_path/'other'/'photo.jpg').touch()
    with pytest.raises(InputError, match='other files'):
        save_open_clip(tmp_path/'other', model, processor)
    assert (tmp_path/'other'/'photo.jpg').exists()
