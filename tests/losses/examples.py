"""Losses, batches and means that the tests of losses share."""

import numpy as np
import torch
from torch import Tensor

from pspexp.losses import OHEM, Boundary, CrossEntropy, Dice, Focal, Lovasz, Sum, Tversky, mean_loss

CLASSES = 4
WEIGHTS = [0.5, 1.0, 2.0, 0.25]  # exact in float32
PIXEL_LOSSES = {
    "ce": CrossEntropy(CLASSES),
    "ce-weighted": CrossEntropy(CLASSES, class_weights=WEIGHTS),
    "ce-smooth": CrossEntropy(CLASSES, label_smoothing=0.1),
    "ce-smooth-weighted": CrossEntropy(CLASSES, label_smoothing=0.1, class_weights=WEIGHTS),
    "focal": Focal(CLASSES),
    "focal-weighted": Focal(CLASSES, gamma=0.5, class_weights=WEIGHTS),
    "ohem": OHEM(CLASSES, min_kept=7),
    "ohem-weighted": OHEM(CLASSES, threshold=0.3, min_kept=20, class_weights=WEIGHTS),
}
BOUNDARY_LOSSES = {
    "boundary": Boundary(CLASSES, sigma=0.7),
    "boundary-weighted": Boundary(CLASSES, sigma=0.7, label_smoothing=0.2, class_weights=WEIGHTS),
}
REGION_LOSSES = {
    "dice": Dice(CLASSES),
    "dice-weighted": Dice(CLASSES, smooth=0.0, class_weights=WEIGHTS),
    "tversky": Tversky(CLASSES),
    "tversky-weighted": Tversky(CLASSES, alpha=0.6, beta=1.5, smooth=3.0, class_weights=WEIGHTS),
    "lovasz": Lovasz(CLASSES),
    "lovasz-weighted": Lovasz(CLASSES, class_weights=WEIGHTS),
    "lovasz-per-image": Lovasz(CLASSES, per_image=True),
}
SUMS = {
    "sum": Sum(CLASSES, terms=["cross_entropy", {"name": "dice", "weight": 0.5}]),
    "sum-weighted": Sum(CLASSES, terms=["lovasz", {"name": "ohem", "min_kept": 7}], class_weights=WEIGHTS),
}
LOSSES = PIXEL_LOSSES | BOUNDARY_LOSSES | REGION_LOSSES | SUMS


def batch(seed: int, ignored: float = 0.3, size: int = 5) -> tuple[Tensor, Tensor]:
    """Return logits ``[2, 4, size, size]`` in float64 and a target with a fraction of ignored pixels."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(2 * rng.standard_normal((2, CLASSES, size, size)))
    target = rng.integers(0, CLASSES, (2, size, size))
    target[rng.random(target.shape) < ignored] = 255
    return logits, torch.from_numpy(target)


def mean(loss: torch.nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """Return the loss of one output."""
    return mean_loss(loss, {"out": logits}, target)
