"""Conversion to tensors, and normalisation."""

import numpy as np
import torch
from PIL import Image

from pspexp.data.transforms import normalize, to_tensors

MEAN = [0.485, 0.456, 0.406]


def test_tensors_and_normalisation() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (3, 5, 3), np.uint8))
    label = Image.fromarray(rng.integers(0, 5, (3, 5), np.uint8))
    pixels, ids = to_tensors(image, label)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 3, 5))
    assert (ids.dtype, tuple(ids.shape)) == (torch.uint8, (3, 5))
    std = [0.229, 0.224, 0.225]
    expected = ((np.asarray(image) / 255 - MEAN) / std).transpose(2, 0, 1)
    got = normalize(pixels[None], MEAN, std, torch.float64)
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=1e-12)
    assert normalize(pixels[None], MEAN, std).dtype == torch.float32
    assert normalize(pixels[None], MEAN, std, torch.bfloat16).dtype == torch.bfloat16
    assert pixels.dtype == torch.uint8
