"""What every network of this project has in common."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from pspexp.models.interpolation import upsample


class Segmenter(nn.Module):
    """Maps float images ``[N, 3, H, W]`` to ``{"out": logits [N, C, H, W]}``, plus ``"aux"`` while training.

    Parameters of the pretrained part start with ``backbone.``. The class attributes name the layers that a
    checkpoint may have for another number of classes, and the one that it may lack.

    Args:
        num_classes: C.
        output_stride: input pixels per step of the last feature map.
        align_corners: how maps are upsampled. True fits sizes of ``k * output_stride + 1``, False multiples of
            it; other sizes work too, stretched by less than one step.
    """

    class_layers: ClassVar[tuple[str, ...]] = ()
    auxiliary_layer: ClassVar[str] = "auxiliary"

    def __init__(self, num_classes: int, output_stride: int, align_corners: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.output_stride = output_stride
        self.align_corners = align_corners

    def low_resolution(self, images: Tensor) -> dict[str, Tensor]:
        """As `forward`, but with logits as small as the feature maps: ``[N, C, h, w]``. For subclasses to define."""
        raise NotImplementedError

    def forward(self, images: Tensor, upsampled: bool = True) -> dict[str, Tensor]:
        """Float ``[N, 3, H, W]``, any size, to ``{"out": [N, C, H, W]}``; ``"aux"`` too in training mode.

        Args:
            upsampled: False gives what `low_resolution` gives.
        """
        outputs = self.low_resolution(images)
        return {name: self.upsample(logits, images) for name, logits in outputs.items()} if upsampled else outputs

    def upsample(self, logits: Tensor, like: Tensor) -> Tensor:
        """Logits ``[N, C, h, w]`` at the height and width of ``like``, bilinear, in float32 or better.

        Half-precision logits are widened first: the loss needs float32 anyway, so this costs no memory, and
        the upsampled scores are not rounded a second time.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits.contiguous()  # with so few channels, channels-last would be the slower order
        return upsample(logits, (like.shape[-2], like.shape[-1]), self.align_corners)


def can_defer_upsampling(model: nn.Module) -> bool:
    """Whether ``model(images, upsampled=False)`` leaves enlarging to others."""
    return isinstance(model, Segmenter) and type(model).forward is Segmenter.forward
