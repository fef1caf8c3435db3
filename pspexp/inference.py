"""Inference on whole images: how evaluation resizes, crops and pads images for the network."""

from typing import Annotated, Protocol

import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from pspexp.data.dataset import Sample
from pspexp.utils.arguments import checked


class Inference(Protocol):
    """A method of evaluating images of any size."""

    def prepare(self, image: Image.Image, label: Image.Image) -> Sample:
        """Transform an image and its label before the loader converts them to tensors."""

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits ``[N, C, H, W]`` of normalised images ``[N, 3, H, W]``; ``model`` is in eval mode."""


class CenterCrop:
    """The reference's ``crop_val``: the shorter side resized to ``crop_size``, then the central square.

    The label is transformed in the same way, so pixels outside the square are not scored.

    Args:
        crop_size: Side of the square in pixels.
    """

    @checked
    def __init__(self, crop_size: Annotated[int, Field(gt=0)]) -> None:
        self.crop_size = crop_size

    def prepare(self, image: Image.Image, label: Image.Image) -> Sample:
        scale = self.crop_size / min(image.size)
        width, height = (max(self.crop_size, round(side * scale)) for side in image.size)
        left, top = (width - self.crop_size) // 2, (height - self.crop_size) // 2
        # Crop and resize in one operation: the box is the square in coordinates of the original image.
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
    """The whole image at its own size, padded at the right and bottom with the mean colour to the next valid size.

    Valid sizes map onto the feature grid without remainder: ``k * stride + 1`` with aligned corners, ``k * stride``
    otherwise. The logits of the padding are cropped.

    Args:
        stride: Output stride of the network.
        align_corners: Whether the network upsamples its logits with aligned corners.
    """

    @checked
    def __init__(self, stride: Annotated[int, Field(gt=0)], align_corners: bool) -> None:
        self.stride, self.align_corners = stride, align_corners

    def prepare(self, image: Image.Image, label: Image.Image) -> Sample:
        return image, label

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        remainder = int(self.align_corners)
        pad_bottom, pad_right = (-(side - remainder) % self.stride for side in (height, width))
        out: Tensor = model(F.pad(images, (0, pad_right, 0, pad_bottom)))["out"]  # 0 = the mean colour
        return out[..., :height, :width]
