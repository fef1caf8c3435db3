"""Losses of other kinds as modules that take a network's outputs: functions, and losses of tensors as in torch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pspexp.errors import ArgumentError, as_yaml
from pspexp.losses.base import LossSum, combine
from pspexp.utils.arguments import NonNegativeNumber, checked


class TensorLoss(nn.Module):
    """A loss that takes logits ``[N, C, H, W]`` and labels ``[N, H, W]`` and returns their mean.

    A batch counts as often as it has labelled pixels.

    Args:
        loss: The loss, a module or function, which has to know of ``ignore_index`` itself.
        ignore_index: Label of ignored pixels.
        main_weight: Factor of the loss on ``outputs["out"]``.
        aux_weight: Factor of the loss on ``outputs["aux"]``.

    Raises:
        ArgumentError: The loss is one that returns no mean.
    """

    @checked
    def __init__(
        self,
        loss: Callable[..., Any],
        *,
        ignore_index: int = 255,
        main_weight: NonNegativeNumber = 0.6,
        aux_weight: NonNegativeNumber = 0.4,
    ) -> None:
        super().__init__()
        if problems := [*reduction_problems(loss)]:
            raise ArgumentError(*(f"loss.{problem}" for problem in problems))
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


class _Function(nn.Module):
    """A loss that is no module, so that it can be moved to a device, and be in a ModuleList."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function


def as_loss(loss: Any) -> nn.Module:
    """A loss of any kind as a module that takes outputs and labels.

    Args:
        loss: A loss of ``torch.nn``, which becomes a `TensorLoss`, or any function of outputs and labels.

    Raises:
        ArgumentError: It cannot be called, or is one of ``torch.nn`` that returns no mean.
    """
    if not callable(loss):
        raise ArgumentError(
            f"_target_: made a {type(loss).__name__}, not a loss; name a class whose objects map outputs and labels to "
            "their mean loss, or such a function with _partial_: true"
        )
    if not isinstance(loss, nn.Module):
        return _Function(loss)
    if not is_torch_loss(loss):
        return loss
    if problems := [*reduction_problems(loss)]:
        raise ArgumentError(*problems)
    return TensorLoss(loss, ignore_index=int(getattr(loss, "ignore_index", -100)))


def is_torch_loss(loss: Any) -> bool:
    """Whether a loss is a module of ``torch.nn``, which takes logits instead of outputs."""
    return isinstance(loss, nn.Module) and type(loss).__module__.startswith("torch.nn.")


def reduction_problems(loss: Any) -> Iterator[str]:
    """A line about a loss of tensors whose ``reduction``, an argument of those of torch, is no mean."""
    reduction = getattr(loss, "reduction", "mean")
    if reduction != "mean":
        yield f"reduction={as_yaml(reduction)}: must be mean, the default; remove it"
