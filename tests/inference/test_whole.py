"""Image preprocessing and inference for evaluation."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pspexp.errors import ArgumentError
from pspexp.inference import CenterCrop, Whole


def gradient_image(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Red increases to the right, green downwards; the left half of the label is 0, the right half 3."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)
    label = np.where(np.arange(width) < width // 2, 0, 3).astype(np.uint8)[None].repeat(height, 0)
    return Image.fromarray(image), Image.fromarray(label)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (33, 33), (500, 375), (20, 90)])
def test_center_crop_equals_resize_then_crop(width: int, height: int) -> None:
    image, label = gradient_image(width, height)
    shaped, shaped_label = CenterCrop(33).prepare(image, label)
    assert shaped.size == shaped_label.size == (33, 33)

    scale = 33 / min(width, height)
    full = image.resize((max(33, round(width * scale)), max(33, round(height * scale))), Image.Resampling.BILINEAR)
    left, top = (full.width - 33) // 2, (full.height - 33) // 2
    expected = np.asarray(full.crop((left, top, left + 33, top + 33)), int)
    assert np.abs(np.asarray(shaped, int) - expected).max() <= 1  # one rounding instead of two
    assert set(np.unique(np.asarray(shaped_label))) <= {0, 3}


class SizeChecked(nn.Module):
    """Returns its input; fails for sizes other than ``k * 8``, plus 1 with aligned corners."""

    output_stride = 8

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        assert all(side % 8 == self.align_corners for side in images.shape[-2:]), images.shape
        return {"out": images[:, :2]}


@pytest.mark.parametrize(("height", "width"), [(360, 480), (9, 17), (8, 10), (1, 2)])
@pytest.mark.parametrize("align_corners", [True, False])
def test_whole_pads_with_the_mean_and_crops_the_logits(height: int, width: int, align_corners: bool) -> None:
    images = torch.randn(2, 3, height, width)
    whole = Whole()
    logits = whole.logits(SizeChecked(align_corners), images)
    assert torch.equal(logits, images[:, :2])

    image, label = gradient_image(12, 10)
    assert whole.prepare(image, label) == (image, label)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match=r"^crop_size=0: must be greater than 0$"):
        CenterCrop(0)
    with pytest.raises(ArgumentError, match=r"^base_size=0: must be greater than 0$"):
        Whole(base_size=0)


@pytest.mark.parametrize(
    ("size", "base", "expected"),
    [
        ((375, 500), [2048, 512], (512, 683)),  # the shorter side decides
        ((500, 375), [2048, 512], (683, 512)),
        ((300, 1500), [2048, 512], (410, 2048)),  # the longer one
        ((1024, 2048), [2048, 1024], (1024, 2048)),
        ((375, 500), 250, (188, 250)),
    ],
)
def test_base_size_limits_both_sides(size: tuple[int, int], base: Any, expected: tuple[int, int]) -> None:
    """The sizes are those of mmcv's ``imrescale``."""
    assert Whole(base_size=base).scaled_size(*size, scale=1.0) == expected


def test_whole_pads_nothing_for_a_network_without_stride() -> None:
    sizes = []

    class Recorder(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            sizes.append(tuple(images.shape[-2:]))
            return {"out": images}

    Whole().logits(Recorder(), torch.zeros(1, 3, 9, 17))
    assert sizes == [(9, 17)]
