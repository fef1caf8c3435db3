"""Sliding windows, scales and mirror images."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.errors import ArgumentError
from pspexp.inference import CenterCrop, Inference, Slide, Whole


class Blur(nn.Module):
    """Logits that depend on a pixel's neighbourhood, on the mirroring, and on nothing outside the image."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3, 5, 5, generator=generator))
        self.windows = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.windows += len(images)
        return {"out": F.conv2d(images, self.weight, padding=2)}


@pytest.fixture
def model() -> Blur:
    return Blur().eval()


def images(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("window_weights", ["uniform", "gaussian"])
def test_one_window_equals_whole(model: Blur, average: Any, window_weights: Any) -> None:
    found = Slide(65, average=average, window_weights=window_weights).probabilities(model, images(65, 65))
    torch.testing.assert_close(found, Whole().probabilities(model, images(65, 65)))


@pytest.mark.parametrize(("height", "width"), [(65, 97), (40, 100), (20, 30), (1, 1), (130, 33)])
def test_windows_are_averaged_where_they_overlap(model: Blur, height: int, width: int) -> None:
    """Compared with the published procedure, written down directly."""
    window, stride = 33, 22
    pad_y, pad_x = max(window - height, 0), max(window - width, 0)
    padded = F.pad(images(height, width), (pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2))
    total, count = torch.zeros(1, 4, *padded.shape[-2:]), torch.zeros(padded.shape[-2:])
    for top in range(0, padded.shape[-2] - window + stride, stride):
        for left in range(0, padded.shape[-1] - window + stride, stride):
            y, x = min(top, padded.shape[-2] - window), min(left, padded.shape[-1] - window)
            part = padded[..., y : y + window, x : x + window]
            total[..., y : y + window, x : x + window] += model(part)["out"].softmax(1)
            count[y : y + window, x : x + window] += 1
    expected = (total / count)[..., pad_y // 2 :, pad_x // 2 :][..., :height, :width]
    torch.testing.assert_close(Slide(window).probabilities(model, images(height, width)), expected)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("window_weights", ["uniform", "gaussian"])
def test_result_does_not_depend_on_the_batches(model: Blur, average: Any, window_weights: Any) -> None:
    def found(window_batch: int, count: int = 1) -> Tensor:
        slide = Slide(33, average=average, window_weights=window_weights, window_batch=window_batch, flip=True)
        return slide.probabilities(model, images(50, 120, 3)[:count])

    torch.testing.assert_close(found(1), found(7))
    torch.testing.assert_close(found(1), found(7, count=3)[:1])


@pytest.mark.parametrize(
    "inference",
    [
        Whole(flip=True),
        Whole(flip=True, scales=[0.5, 1.0, 1.5]),
        CenterCrop(65, flip=True),
        Slide(33, stride=16, flip=True),
        Slide(33, stride=16, flip=True, average="logits", window_weights="gaussian", base_size=65),
    ],
)
def test_mirror_image_gives_the_mirrored_result(model: Blur, inference: Inference) -> None:
    straight = inference.probabilities(model, images(65, 65))
    torch.testing.assert_close(inference.probabilities(model, images(65, 65).flip(-1)).flip(-1), straight)
    assert not torch.allclose(straight, type(inference)(**without_flip(inference)).probabilities(model, images(65, 65)))


def without_flip(inference: Inference) -> dict[str, Any]:
    values = vars(inference) | {"flip": False}
    return values | ({"overlap": None} if isinstance(inference, Slide) else {})


@pytest.mark.parametrize("size", [(65, 97), (97, 65), (60, 1), (1, 1)])
def test_scales_are_averaged_at_the_size_of_the_image(
    model: Blur, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = size
    whole = Whole()
    scales, base = [0.5, 1.0, 1.75], 80
    expected = torch.zeros(1, 4, height, width)
    for scale in scales:
        longer = round(scale * base)
        shorter = max(1, round(longer * min(size) / max(size)))
        resized = F.interpolate(
            images(*size), (longer, shorter) if height > width else (shorter, longer), mode="bilinear"
        )
        expected += F.interpolate(whole.probabilities(model, resized), size, mode="bilinear") / len(scales)
    inference = Whole(scales=scales, base_size=base)
    torch.testing.assert_close(inference.probabilities(model, images(*size)), expected)
    monkeypatch.setattr("pspexp.inference.base.STRIP_PIXELS", 7 * width)
    torch.testing.assert_close(inference.probabilities(model, images(*size)), expected)


def test_large_images_are_computed_strip_by_strip(model: Blur) -> None:
    strips = Slide(33, stride=16).strips(model, images(1000, 40))
    sizes = []
    for before, after in pairwise([0, *iter_windows(model, strips, sizes)]):
        assert after - before <= 2
    assert sum(sizes) == 1000
    assert max(sizes) <= 33


def iter_windows(model: Blur, strips: Any, sizes: list[int]) -> Any:
    """The number of windows computed before each strip arrives."""
    for strip in strips:
        sizes.append(strip.shape[2])
        yield model.windows


def test_images_are_normalised_where_they_are_needed(model: Blur) -> None:
    raw = torch.randint(0, 256, (1, 3, 90, 70), dtype=torch.uint8)

    def normalize(pixels: Tensor) -> Tensor:
        return (pixels.float() - 100) / 50

    for inference in (Slide(33), Slide(100), Slide(33, scales=[0.5, 1.0]), Whole(), CenterCrop(65)):
        found = torch.cat(list(inference.strips(model, raw, normalize)), 2)
        torch.testing.assert_close(found, inference.logits(model, normalize(raw)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 40}, "stride=40: must be at most window=33; a larger stride would skip pixels"),
        ({"stride": 10, "overlap": 0.5}, "stride=10, overlap=0.5: give one of them, set the other to null"),
        ({"overlap": 1.0}, "overlap=1.0: must be less than 1"),
        ({"scales": []}, "scales=[]: "),
        ({"scales": [0.0]}, "scales.0=0.0: must be greater than 0"),
        ({"window_weights": "cosine"}, "window_weights=cosine: must be 'uniform' or 'gaussian'"),
    ],
)
def test_wrong_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Slide(33, **arguments)
    assert str(caught.value).startswith(message)


def test_overlap_gives_the_stride() -> None:
    assert Slide(100, overlap=0.25).stride == 75
    assert Slide(473).stride == 316
