"""What losses have in common: sums of weighted losses, and the sums of weights that turn them into means.

A loss does not divide: a training step divides once, by the total weight of all its micro-batches and processes.

None waits for the device. Losses of pixels keep one tensor of the size of the logits for their backward pass (the
log-probabilities); everything else is one value per pixel. `SegmentationLoss.chunked` keeps neither.

Class ids are checked where labels are read. An invalid one that is missed there raises ``IndexError`` on the CPU and
a device-side assertion on CUDA; it is never trained on.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pspexp.errors import ArgumentError

MAX_CHUNK_LOGITS = 2**25
"""Logits that `SegmentationLoss.chunked` upsamples at a time: 128 MiB in float32."""


class LossSum(NamedTuple):
    """A loss before division, two scalars on the device: ``loss / weight`` is the mean."""

    loss: Tensor
    weight: Tensor


def loss_sum(loss: Callable[..., Any], outputs: Mapping[str, Tensor], target: Tensor) -> LossSum:
    """The result of ``loss(outputs, target)`` before division.

    Args:
        loss: Function that returns ``(loss sum, weight sum)``, as every `SegmentationLoss` does, or the mean over the
            batch as one scalar, which counts as if every pixel of the batch had weight 1.
        outputs: Logits ``[N, C, H, W]`` by name.
        target: int64 ``[N, H, W]``.
    """
    result = loss(outputs, target)
    if isinstance(result, Tensor):
        return LossSum(result * target.numel(), result.new_full((), target.numel()))
    return LossSum(*result)


def mean_loss(loss: Callable[..., Any], outputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
    """The mean of `loss_sum`: a scalar, 0 where the weights are all 0."""
    total, weight = loss_sum(loss, outputs, target)
    # 0 / 1 instead of 0 / 0. Decided on the device; an `if` would wait for it.
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))


def combine(
    outputs: Mapping[str, Tensor], output_sum: Callable[[Tensor], LossSum], main_weight: float, aux_weight: float
) -> LossSum:
    """``main_weight * main + aux_weight * auxiliary``, or the main loss alone without an auxiliary output."""
    main = output_sum(outputs["out"])
    if "aux" not in outputs:
        return main
    aux = output_sum(outputs["aux"])
    # Each output has a mean over its own pixels (OHEM chooses them per output): bring both to one divisor.
    ratio = main.weight / torch.where(aux.weight > 0, aux.weight, torch.ones_like(aux.weight))
    return LossSum(main_weight * main.loss + aux_weight * aux.loss * ratio, main.weight)


class SegmentationLoss(nn.Module):
    """A loss with weights for the classes and for the two outputs, see `combine`.

    Args:
        num_classes: Number of channels of the logits.
        ignore_index: Label of ignored pixels.
        class_weights: One weight for each class, or None for equal ones. As in torch, a mean is divided by
            the weights of the pixels in it. The name of a method, such as ``auto``, stands for weights that a training
            counts before it builds the loss.
        main_weight: Factor of the loss on ``outputs["out"]``.
        aux_weight: Factor of the loss on ``outputs["aux"]``.

    Raises:
        ArgumentError: The number of class weights is not ``num_classes``, or all are 0.
    """

    pixels_are_independent: ClassVar[bool] = False  # True: `pixel_losses` need not see the whole batch
    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        ignore_index: int,
        class_weights: Sequence[float] | str | None,
        main_weight: float,
        aux_weight: float,
    ) -> None:
        super().__init__()
        self.uncounted = class_weights if isinstance(class_weights, str) else None
        if isinstance(class_weights, str):
            class_weights = None
        if class_weights is not None and len(class_weights) != num_classes:
            raise ArgumentError(
                f"class_weights: {len(class_weights)} values for num_classes={num_classes}; "
                "give one weight per class, or null"
            )
        if class_weights is not None and not any(class_weights):
            raise ArgumentError(f"class_weights={list(class_weights)}: must not all be 0")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.main_weight = main_weight
        self.aux_weight = aux_weight
        # A buffer follows the module to its device; not persistent, since it is configuration, not training state.
        weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, outputs: Mapping[str, Tensor], target: Tensor) -> LossSum:
        """Training loss of a batch, before division.

        Args:
            outputs: Logits ``[N, C, H, W]`` under ``"out"`` and, with an auxiliary head, ``"aux"``.
            target: int64 ``[N, H, W]``, class ids or ``ignore_index``.

        Returns:
            Scalars, at least float32; 0 with zero gradients when every pixel is ignored.

        Raises:
            ArgumentError: The class weights were not counted.
        """
        return self._combined(outputs, lambda logits: self.output_sum(logits, target))

    def chunked(
        self, outputs: Mapping[str, Tensor], target: Tensor, upsample: Callable[[Tensor, Tensor], Tensor]
    ) -> LossSum:
        """`forward` from low-resolution logits, which are upsampled a few images at a time.

        At most `MAX_CHUNK_LOGITS` upsampled logits, or those of one image if it has more, exist at a time. Nothing of
        that size is kept for the backward pass: the gradient with respect to the low-resolution logits is computed at
        once and kept instead. The result cannot be differentiated twice.

        Args:
            outputs: Logits ``[N, C, h, w]``.
            target: int64 ``[N, H, W]``.
            upsample: Function that maps the logits and labels of some images to logits of the labels' size.
        """

        def sums(logits: Tensor, labels: Tensor) -> LossSum:
            return self.output_sum(upsample(logits, labels), labels)

        images = max(1, MAX_CHUNK_LOGITS // (self.num_classes * target[0].numel()))
        return self._combined(outputs, lambda logits: LossSum(*_ChunkedSum.apply(logits, target, images, sums)))

    def _combined(self, outputs: Mapping[str, Tensor], output_sum: Callable[[Tensor], LossSum]) -> LossSum:
        if self.uncounted is not None:
            raise ArgumentError(f"class_weights={self.uncounted}: not counted; give one weight for each class, or null")
        return combine(outputs, output_sum, self.main_weight, self.aux_weight)

    def output_sum(self, logits: Tensor, target: Tensor) -> LossSum:
        """Sums over the pixels of one output: logits ``[N, C, H, W]``, target int64 ``[N, H, W]``."""
        assert logits.shape[1] == self.num_classes, f"{logits.shape[1]} channels for {self.num_classes} classes"
        # In half precision, a sum over a million pixels is inaccurate or overflows.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses, weights = self.pixel_losses(logits, target)
        return LossSum(losses.sum(), weights.sum())

    def pixel_losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted loss and weight of each pixel, both ``[N, H, W]``; weight 0 for pixels that do not count.

        A loss that is no sum over pixels has its own `output_sum` instead.
        """
        raise NotImplementedError(type(self).__name__)

    def pixel_weights(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Class weight of each pixel's label (1 without class weights), 0 where ignored: ``[N, H, W]``."""
        ignored = target == self.ignore_index
        if self.class_weights is None:
            return (~ignored).to(dtype)
        weights = self.class_weights.to(target.device, dtype)
        return weights[target.masked_fill(ignored, 0)].masked_fill(ignored, 0)

    def cross_entropies(self, logits: Tensor, target: Tensor) -> Tensor:
        """Unweighted ``-log p(label)`` of each pixel, 0 where ignored: ``[N, H, W]``."""
        return F.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="none")


def can_chunk(loss: nn.Module) -> bool:
    """Whether ``loss.chunked`` equals ``loss``: not if a subclass changes the sums or needs the whole batch."""
    if not isinstance(loss, SegmentationLoss) or not loss.pixels_are_independent:
        return False
    own = (type(loss).forward, type(loss).output_sum)
    return own == (SegmentationLoss.forward, SegmentationLoss.output_sum)


class _ChunkedSum(torch.autograd.Function):
    """Sums of a function's two results over parts of a batch; only the first has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, target: Tensor, images: int, sums: Callable[[Tensor, Tensor], LossSum]
    ) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        gradients: list[Tensor] = []
        for part, labels in zip(torch.split(maps, images), torch.split(target, images), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                loss, weight = sums(part, labels)
            gradients += torch.autograd.grad(loss, part)
            found.append(torch.stack([loss.detach(), weight.detach()]))
        ctx.save_for_backward(torch.cat(gradients))
        losses, weights = torch.stack(found).sum(0)
        ctx.mark_non_differentiable(weights)
        return losses, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * gradient, None, None, None
