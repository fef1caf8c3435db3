"""From a whole image to its logits: how an image is shaped for the network in evaluation."""

from typing import Protocol

import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

Pair = tuple[Image.Image, Image.Image]  # an RGB image and its label


class Inference(Protocol):
    """One way of evaluating images of any size."""

    def prepare(self, image: Image.Image, label: Image.Image) -> Pair:
        """What the loader does to an image and its label before they become tensors."""

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Normalised images ``[N, 3, H, W]`` to logits ``[N, C, H, W]``; ``model`` is in eval mode."""


class CenterCrop:
    """The reference's ``crop_val``: shorter side resized to ``crop_size``, then the central square.

    The label takes the same way (nearest), so pixels outside the square are not scored.

    Args:
        crop_size: side of the square in pixels.
    """

    def __init__(self, crop_size: int) -> None:
        self.crop_size = crop_size

    def prepare(self, image: Image.Image, label: Image.Image) -> Pair:
        scale = self.crop_size / min(image.size)
        width, height = (max(self.crop_size, round(side * scale)) for side in image.size)
        left, top = (width - self.crop_size) // 2, (height - self.crop_size) // 2
        # Crop and resize in one go: the box is the square in coordinates of the original image.
        x_scale, y_scale = image.width / width, image.height / height
        box = (
            left * x_scale,
            top * y_scale,
            (left + self.crop_size) * x_scale,
            (top + self.crop_size) * y_scale,
        )
        size = (self.crop_size, self.crop_size)
        return (
            image.resize(size, Image.Resampling.BILINEAR, box=box),
            label.resize(size, Image.Resampling.NEAREST, box=box),  # nearest: bilinear would invent class ids
        )

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        out: Tensor = model(images)["out"]
        return out


class Whole:
    """The whole image at its own size, padded right and bottom with the mean colour to the next valid size.

    Valid is what maps onto the feature grid without a rest: ``k * stride + 1`` where corners are aligned, else
    ``k * stride``. The logits of the padding are cut off.

    Args:
        stride: output stride of the network.
        align_corners: how the network enlarges its logits.
    """

    def __init__(self, stride: int, align_corners: bool) -> None:
        self.stride, self.align_corners = stride, align_corners

    def prepare(self, image: Image.Image, label: Image.Image) -> Pair:
        return image, label

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rest = int(self.align_corners)
        pad_bottom, pad_right = (-(side - rest) % self.stride for side in (height, width))
        out: Tensor = model(F.pad(images, (0, pad_right, 0, pad_bottom)))["out"]  # 0 = the mean colour
        return out[..., :height, :width]
