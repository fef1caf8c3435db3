"""Losses of tensors, such as those of torch, as losses of a network's outputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pspexp.losses.base import LossSum, combine
from pspexp.losses.class_weights import Weight
from pspexp.utils.arguments import checked


class TensorLoss(nn.Module):
    """A loss that takes logits ``[N, C, H, W]`` and labels ``[N, H, W]`` and returns their mean.

    A batch counts as often as it has labelled pixels.

    Args:
        loss: The loss, which has to know of ``ignore_index`` itself.
        ignore_index: Label of ignored pixels.
        main_weight: Factor of the loss on ``outputs["out"]``.
        aux_weight: Factor of the loss on ``outputs["aux"]``.
    """

    @checked
    def __init__(
        self, loss: nn.Module, *, ignore_index: int = 255, main_weight: Weight = 0.6, aux_weight: Weight = 0.4
    ) -> None:
        super().__init__()
        self.loss, self.ignore_index = loss, ignore_index
        self.main_weight, self.aux_weight = main_weight, aux_weight

    def forward(self, outputs: Mapping[str, Tensor], target: Tensor) -> LossSum:
        """See `SegmentationLoss.forward`."""
        labelled = (target != self.ignore_index).sum()
        # A mean over no pixels would be NaN, and so would its gradient: take any other, and multiply it by 0.
        target = torch.where(labelled > 0, target, 0)

        def output_sum(logits: Tensor) -> LossSum:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            weight = labelled.to(logits.dtype)
            return LossSum(self.loss(logits, target) * weight, weight)

        return combine(outputs, output_sum, self.main_weight, self.aux_weight)


def as_loss(loss: Any) -> Any:
    """A loss of ``torch.nn`` as a `TensorLoss`; any other loss unchanged."""
    if not (isinstance(loss, nn.Module) and type(loss).__module__.startswith("torch.nn.")):
        return loss
    return TensorLoss(loss, ignore_index=getattr(loss, "ignore_index", -100))
