"""The base class of this project's networks."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from pspexp.models.interpolation import upsample


class Segmenter(nn.Module):
    """Maps float images ``[N, B, H, W]`` of B bands to ``{"out": logits [N, C, H, W]}``, plus ``"aux"`` while training.

    Attributes:
        backbone_prefix: What the names of the pretrained parameters begin with.
        backbone_name: timm's name of the backbone; empty if it is not from timm.
        initial_weights: What the weights were before training, ``random`` or a description; empty if that is unknown.
        class_layers: Names of the layers that depend on the number of classes.
        auxiliary_layer: Name of the layer that only training needs.

    Args:
        num_classes: Number of classes, C.
        output_stride: Input pixels per step of the last feature map.
        align_corners: Whether logits are upsampled with aligned corners. True fits image sides of
            ``k * output_stride + 1`` pixels, False sides of ``k * output_stride``; other sizes are stretched by less
            than one step.
    """

    backbone_prefix: str = "backbone."
    backbone_name: str = ""
    initial_weights: str = ""
    class_layers: tuple[str, ...] = ()
    auxiliary_layer: ClassVar[str] = "auxiliary"

    def __init__(self, num_classes: int, output_stride: int, align_corners: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.output_stride = output_stride
        self.align_corners = align_corners

    def low_resolution(self, images: Tensor) -> dict[str, Tensor]:
        """`forward` without upsampling: logits ``[N, C, h, w]`` at the size of the feature maps."""
        raise NotImplementedError

    def forward(self, images: Tensor, upsampled: bool = True) -> dict[str, Tensor]:
        """Logits for images of any size: ``{"out": [N, C, H, W]}``, in training mode ``"aux"`` as well.

        Args:
            images: float ``[N, B, H, W]``.
            upsampled: False returns the output of `low_resolution`.
        """
        outputs = self.low_resolution(images)
        return {name: self.upsample(logits, images) for name, logits in outputs.items()} if upsampled else outputs

    def upsample(self, logits: Tensor, like: Tensor) -> Tensor:
        """Logits ``[N, C, h, w]`` at the height and width of ``like``, bilinear, in float32 or better.

        Half-precision logits are converted first. The loss needs float32 anyway, so this takes no more memory, and
        the upsampled logits are not rounded a second time.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits.contiguous()  # channels-last is slower with so few channels
        return upsample(logits, (like.shape[-2], like.shape[-1]), self.align_corners)


def can_defer_upsampling(model: nn.Module) -> bool:
    """Whether ``model(images, upsampled=False)`` returns low-resolution logits."""
    return isinstance(model, Segmenter) and type(model).forward is Segmenter.forward


def size_rule(model: object) -> tuple[int, int]:
    """Stride and remainder of the image sides that a network maps onto its feature grid: ``k * stride + remainder``.

    Of a network that does not state them, any side.
    """
    return getattr(model, "output_stride", 1), int(getattr(model, "align_corners", False))
