"Saved models in sentence-transformers, without further files: the same vectors. Skipped unless it is installed."
import numpy as np
import pytest
import torch
from PIL import Image
from test_families import FAMILIES

from clip_ft.encode import embed_images, embed_texts
from clip_ft.model import load_model, save_model

LONG = 'a very long text about blue jeans and more '*40
TEXTS = ['', 'jeans', 'Blue JEANS', 'a red dress with long sleeves', 'ÄRMEL und Größe', '蓝色牛仔裤', LONG]


@pytest.mark.parametrize('family', FAMILIES)
def test_a_saved_model_gives_the_same_vectors(tmp_path, family):
    library = pytest.importorskip('sentence_transformers')
    torch.manual_seed(0)
    model, processor = FAMILIES[family][0](TEXTS, tmp_path)
    save_model(tmp_path/'base', model.eval(), processor)
    save_model(tmp_path/'best_model', *load_model(tmp_path/'base', 'cpu'))
    model, processor = load_model(tmp_path/'best_model', 'cpu')
    other = library.SentenceTransformer(str(tmp_path/'best_model'), device='cpu')
    expected = embed_texts(model, processor, TEXTS)
    for batch_size in (1, 32):  # alone, and beside longer texts
        found = other.encode(TEXTS, batch_size=batch_size, normalize_embeddings=True)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((64, 64), (90, 40), (33, 70))]
    images = [Image.fromarray(each) for each in pixels]
    found = other.encode(images, normalize_embeddings=True)
    # transformers resizes with torchvision if it is installed, which rounds pixels in another way than Pillow
    cosines = (found*embed_images(model, processor, images, progress=False)).sum(1)
    assert cosines.min() > .9999, cosines
