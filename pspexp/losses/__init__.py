"""Losses over ``{"out", "aux"}``: of pixels, of regions, and sums of both."""

from pspexp.losses.base import LossSum, SegmentationLoss, can_chunk, loss_sum, mean_loss
from pspexp.losses.boundary import Boundary
from pspexp.losses.pixel import OHEM, CrossEntropy, Focal
from pspexp.losses.region import Dice, Lovasz, RegionLoss, Tversky
from pspexp.losses.sum import Sum
from pspexp.losses.tensor import TensorLoss

__all__ = [
    "OHEM",
    "Boundary",
    "CrossEntropy",
    "Dice",
    "Focal",
    "LossSum",
    "Lovasz",
    "RegionLoss",
    "SegmentationLoss",
    "Sum",
    "TensorLoss",
    "Tversky",
    "can_chunk",
    "loss_sum",
    "mean_loss",
]
