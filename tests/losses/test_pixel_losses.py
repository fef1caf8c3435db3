"""Losses of pixels compared with NumPy formulas in float64, and what chunks of a batch keep and give."""

import math
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pspexp.errors import ArgumentError
from pspexp.losses import OHEM, CrossEntropy, Dice, Focal, LossSum, SegmentationLoss, base, can_chunk
from tests.losses.examples import CLASSES, PIXEL_LOSSES, WEIGHTS, batch, mean

each_loss = pytest.mark.parametrize("loss", PIXEL_LOSSES.values(), ids=PIXEL_LOSSES)


def formula(loss: SegmentationLoss, logits: Tensor, target: Tensor) -> float:
    """Compute the loss from its definition, pixel by pixel."""
    x = logits.double().numpy().transpose(0, 2, 3, 1).reshape(-1, CLASSES)
    y = target.numpy().ravel()
    x, y = x[y != 255], y[y != 255]
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    w = np.ones(CLASSES) if loss.class_weights is None else loss.class_weights.double().numpy()
    ce = -log_p[np.arange(len(y)), y]
    weights = w[y]
    losses = weights * ce
    if isinstance(loss, CrossEntropy):
        smooth = loss.label_smoothing
        losses = (1 - smooth) * losses - smooth / CLASSES * (log_p * w).sum(1)
    elif isinstance(loss, Focal):
        losses = losses * (1 - np.exp(-ce)) ** loss.gamma
    elif isinstance(loss, OHEM):
        rank = np.argsort(np.argsort(-ce))
        kept = (np.exp(-ce) <= loss.threshold) | (rank < loss.min_kept)
        losses, weights = losses[kept], weights[kept]
    return float(losses.sum() / weights.sum()) if weights.sum() else 0.0


@pytest.mark.parametrize("seed", range(5))
@each_loss
def test_loss_matches_its_formula(loss: SegmentationLoss, seed: int) -> None:
    logits, target = batch(seed, ignored=[0.0, 0.1, 0.3, 0.7, 0.96][seed])
    assert mean(loss, logits, target).item() == pytest.approx(formula(loss, logits, target), rel=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(weights: list[float] | None, smoothing: float) -> None:
    logits, target = batch(0)
    expected = F.cross_entropy(
        logits,
        target,
        weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
        ignore_index=255,
        label_smoothing=smoothing,
    )
    loss = CrossEntropy(CLASSES, class_weights=weights, label_smoothing=smoothing)
    torch.testing.assert_close(mean(loss, logits, target), expected, rtol=1e-12, atol=0)


def test_only_classes_of_weight_zero_give_zero_loss() -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    value = mean(CrossEntropy(2, class_weights=[1.0, 0.0]), logits, torch.ones(1, 3, 3, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_is_below_cross_entropy_for_positive_gamma(gamma: float) -> None:
    logits, target = batch(0)
    entropy = mean(CrossEntropy(CLASSES), logits, target)
    focal = mean(Focal(CLASSES, gamma=gamma), logits, target)
    if gamma == 0:
        torch.testing.assert_close(focal, entropy, rtol=1e-12, atol=0)
    else:
        assert 0 < focal < entropy


def gradient_mask(loss: SegmentationLoss, logits: Tensor, target: Tensor) -> Tensor:
    """Return a mask ``[N, H, W]`` of the pixels with a gradient."""
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mean(loss, logits, target), logits)
    return gradient.abs().amax(1) > 0


def test_ohem_keeps_pixels_under_the_threshold() -> None:
    logits, target = batch(4)
    p = logits.softmax(1).gather(1, target.where(target != 255, 0)[:, None])[:, 0]
    kept = gradient_mask(OHEM(CLASSES, threshold=0.4, min_kept=0), logits, target)
    assert torch.equal(kept, (p <= 0.4) & (target != 255))


@pytest.mark.parametrize("min_kept", [1, 10, 10_000])
def test_ohem_keeps_the_hardest_pixels_if_too_few_qualify(min_kept: int) -> None:
    logits, target = batch(4)
    valid = target != 255
    kept = gradient_mask(OHEM(CLASSES, threshold=1e-9, min_kept=min_kept), logits, target)
    assert kept.sum() == min(min_kept, valid.sum())
    entropies = F.cross_entropy(logits, target, reduction="none", ignore_index=255)
    assert entropies[kept].min() >= entropies[valid & ~kept].max() if (valid & ~kept).any() else True


@pytest.mark.parametrize("min_kept", [0, 5, 10_000])
def test_ohem_with_threshold_one_equals_cross_entropy(min_kept: int) -> None:
    logits, target = batch(5)
    ohem = OHEM(CLASSES, threshold=1.0, min_kept=min_kept, class_weights=WEIGHTS)
    expected = mean(CrossEntropy(CLASSES, class_weights=WEIGHTS), logits, target)
    torch.testing.assert_close(mean(ohem, logits, target), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [CrossEntropy(CLASSES), Focal(CLASSES), OHEM(CLASSES)], ids=repr)
def test_backward_keeps_only_one_tensor_of_logits_size(loss: SegmentationLoss) -> None:
    logits = torch.randn(2, CLASSES, 33, 33, requires_grad=True)
    target = torch.zeros(2, 33, 33, dtype=torch.int64)
    kept: set[int] = set()

    def pack(saved: Tensor) -> Tensor:
        if saved.numel() == logits.numel():
            kept.add(saved.data_ptr())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        mean(loss, logits, target)
    assert len(kept) == 1


@pytest.mark.parametrize("loss", [loss for loss in PIXEL_LOSSES.values() if can_chunk(loss)])
@pytest.mark.parametrize("max_chunk", [1, 2 * CLASSES * 81, 2**25])
@pytest.mark.parametrize("ignored", [0.3, 1.0])
def test_chunked_loss_equals_the_whole_loss(
    loss: SegmentationLoss, ignored: float, max_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_CHUNK_LOGITS", max_chunk)
    generator = torch.Generator().manual_seed(0)
    low_resolution = torch.randn(3, CLASSES, 4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    target = torch.randint(0, CLASSES, (3, 9, 9), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = 255
    target[1] = 255  # an image of the batch without labels

    def upsample(logits: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(logits, like.shape[-2:], mode="bilinear", align_corners=True)

    outputs = {"out": low_resolution, "aux": 2 * low_resolution}
    whole = loss({"out": upsample(low_resolution, target), "aux": upsample(2 * low_resolution, target)}, target)
    chunked = loss.chunked(outputs, target, upsample)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=0)
    expected, found = (torch.autograd.grad(3 * value.loss, low_resolution)[0] for value in (whole, chunked))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_each_output_is_averaged_over_its_own_pixels() -> None:
    (out, target), (aux, _) = batch(0), batch(1)
    loss = OHEM(CLASSES, threshold=0.2, min_kept=3)
    kept = [loss({"out": logits}, target).weight for logits in (out, aux)]
    assert kept[0] != kept[1]
    assert loss({"out": out, "aux": aux}, target).weight == kept[0]


def test_other_outputs_are_not_part_of_the_loss() -> None:
    logits, target = batch(0)
    loss = CrossEntropy(CLASSES)
    outputs = {"out": logits, "features": torch.randn(2, 64, 5, 5)}
    assert loss(outputs, target) == loss({"out": logits}, target)


def test_which_losses_can_be_chunked() -> None:
    class Custom(CrossEntropy):
        def output_sum(self, logits: Tensor, target: Tensor) -> LossSum:
            return LossSum(logits.sum(), torch.ones(()))

    assert can_chunk(CrossEntropy(CLASSES))
    assert can_chunk(Focal(CLASSES))
    assert not can_chunk(OHEM(CLASSES))
    assert not can_chunk(Dice(CLASSES))
    assert not can_chunk(Custom(CLASSES))
    assert not can_chunk(torch.nn.CrossEntropyLoss())


def test_chunked_loss_keeps_only_low_resolution_tensors() -> None:
    saved: list[weakref.ref[Tensor]] = []
    low_resolution = torch.randn(3, CLASSES, 4, 4, requires_grad=True)
    target = torch.zeros(3, 33, 33, dtype=torch.int64)

    def upsample(logits: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(logits, like.shape[-2:])

    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(weakref.ref(t)), t)[1], lambda t: t):
        loss, _ = CrossEntropy(CLASSES).chunked({"out": low_resolution}, target, upsample)
    kept = [tensor.numel() for one in saved if (tensor := one()) is not None]
    assert max(kept) == low_resolution.numel()
    loss.backward()


@pytest.mark.parametrize(
    ("build", "messages"),
    [
        (lambda: CrossEntropy(3, class_weights=[1.0, 2.0]), ["class_weights: 2 values for num_classes=3"]),
        (lambda: CrossEntropy(2, class_weights=[1.0, -1.0]), ["class_weights.1=-1.0: must be greater than or equal"]),
        (lambda: CrossEntropy(2, class_weights=[0.0, 0.0]), ["class_weights=[0.0, 0.0]: must not all be 0"]),
        (lambda: CrossEntropy(2, class_weights=[1.0, math.nan]), ["class_weights.1=nan"]),
        (lambda: CrossEntropy(2, label_smoothing=1.0), ["label_smoothing=1.0: must be less than 1"]),
        (lambda: Focal(2, gamma=-1.0, main_weight=-1.0), ["gamma=-1.0", "main_weight=-1.0"]),
        (lambda: OHEM(2, threshold=0.0, min_kept=-1), ["threshold=0.0", "min_kept=-1"]),
        (lambda: OHEM(2, aux_weight=math.inf), ["aux_weight=inf"]),
        (lambda: OHEM(2, class_weights=[]), ["class_weights: 0 values"]),
    ],
)
def test_invalid_arguments_are_reported_together(build: Callable[[], object], messages: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        build()
    assert len(caught.value.problems) == len(messages)
    assert all(problem.startswith(message) for problem, message in zip(caught.value.problems, messages, strict=True))
