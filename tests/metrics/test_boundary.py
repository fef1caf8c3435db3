"""Boundary IoU compared with erosions of single masks, as in the official implementation."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from pspexp.metrics import BoundaryIoU


def official_boundary(mask: np.ndarray, dilation_ratio: float) -> np.ndarray:
    """``mask_to_boundary`` of the paper's authors, with SciPy's erosion in the place of OpenCV's."""
    height, width = mask.shape
    dilation = max(1, round(dilation_ratio * np.sqrt(height**2 + width**2)))
    padded = np.pad(mask, 1)  # so that a mask cut off by the edge of the image has a boundary there
    eroded = ndimage.binary_erosion(padded, np.ones((3, 3)), iterations=dilation, border_value=1)
    return mask & ~eroded[1:-1, 1:-1]


def expected(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int, ratio: float) -> list[float]:
    shared, either = np.zeros(classes), np.zeros(classes)
    for prediction, target in pairs:
        for index in range(classes):
            valid = target != 255
            ours, theirs = (official_boundary((ids == index) & valid, ratio) for ids in (prediction, target))
            shared[index] += (ours & theirs).sum()
            either[index] += (ours | theirs).sum()
    return [hit / union if union else math.nan for hit, union in zip(shared, either, strict=True)]


def blobs(seed: int, classes: int, size: tuple[int, int]) -> np.ndarray:
    """A label map of large regions, in which the last class is missing."""
    noise = np.random.default_rng(seed).random((classes - 1, *size))
    return ndimage.gaussian_filter(noise, (0, 4, 4)).argmax(0)


def computed(metric: BoundaryIoU, *pairs: tuple[np.ndarray, np.ndarray]) -> tuple[float, ...]:
    metric.reset()
    for prediction, target in pairs:
        metric.update(torch.from_numpy(prediction)[None], torch.from_numpy(target)[None])
    return metric.compute()


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.05, 0.3])
def test_agrees_with_the_official_definition(ratio: float) -> None:
    pairs = []
    for seed, size in enumerate([(60, 80), (47, 31), (9, 100)]):
        target = blobs(seed, 5, size)
        prediction = np.roll(target, (2, -3), (0, 1))
        target[np.random.default_rng(seed).random(size) < 0.002] = 255
        target[:4] = 255
        pairs.append((prediction, target))
    found = computed(BoundaryIoU(5, 255, ratio), *pairs)
    assert found == pytest.approx(expected(pairs, 5, ratio), nan_ok=True)
    assert all(0 < value < 1 for value in found[:4])
    assert math.isnan(found[4])


def test_edge_of_the_image_is_a_boundary() -> None:
    target = np.zeros((50, 50), np.int64)
    prediction = np.zeros((50, 50), np.int64)
    prediction[25, 25] = 1  # d = 1: the boundary of 0 is the frame of 196 pixels and the 8 around this one
    assert computed(BoundaryIoU(2, 255, 0.02), (prediction, target)) == pytest.approx((196 / 204, 0.0))


def test_is_stricter_than_iou_and_ignores_the_inside() -> None:
    target = np.zeros((100, 100), np.int64)
    target[20:80, 20:80] = 1
    shifted, hole = np.roll(target, 3, 1), target.copy()
    hole[45:55, 45:55] = 255
    metric = BoundaryIoU(2, 255, 0.02)  # 3 pixels
    assert computed(metric, (target, target)) == (1.0, 1.0)
    assert computed(metric, (shifted, target))[1] < 0.5 < (60 * 57) / (60 * 63)
    # Ignored pixels are taken out of both: around them there are boundaries in both.
    assert computed(metric, (target, hole)) == (1.0, 1.0)


def test_batch_counts_like_its_images() -> None:
    target = np.stack([blobs(seed, 4, (40, 50)) for seed in range(3)])
    prediction = np.roll(target, 2, 2)
    metric = BoundaryIoU(4)
    metric.reset()
    metric.update(torch.from_numpy(prediction), torch.from_numpy(target))
    assert metric.compute() == pytest.approx(computed(metric, *zip(prediction, target, strict=True)), nan_ok=True)


def test_update_does_not_read_values_or_change_its_inputs() -> None:
    ids = torch.zeros(2, 5, 5, dtype=torch.int64, device="meta")  # reading a value of these raises
    metric = BoundaryIoU(21)
    metric.reset()
    metric.update(ids, ids)
    assert metric.state.device.type == "meta"
    prediction, target = torch.randint(0, 3, (1, 9, 9)), torch.full((1, 9, 9), 255)
    before: list[Tensor] = [prediction.clone(), target.clone()]
    metric.reset()
    metric.update(prediction, target)
    assert torch.equal(prediction, before[0])
    assert torch.equal(target, before[1])
    assert all(map(math.isnan, metric.compute()))  # every pixel is ignored


@pytest.mark.cuda
def test_update_does_not_synchronise_cuda() -> None:
    target = torch.from_numpy(blobs(0, 4, (40, 50)))[None]
    prediction = target.roll(2, 2)
    metric, on_cuda = BoundaryIoU(4), BoundaryIoU(4)
    metric.reset()
    metric.update(prediction, target)
    prediction, target = prediction.cuda(), target.cuda()
    for _ in range(2):  # the first moves the state
        on_cuda.reset()
        on_cuda.update(prediction, target)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_cuda.update(prediction, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(on_cuda.state.cpu(), 2 * metric.state)
