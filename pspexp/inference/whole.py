"""The network applied once: to the whole image, or to its central square."""

from collections.abc import Iterator
from typing import Any, cast

from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.data.bands import ImageT
from pspexp.inference.base import BaseSize, Box, Inference, Normalize, Pixels, Scales, as_logits
from pspexp.models.segmenter import size_rule
from pspexp.utils.arguments import checked


class CenterCrop(Inference):
    """The reference's ``crop_val``: the shorter side resized to ``crop_size``, then the central square.

    The label is transformed in the same way, so pixels outside the square are not scored.

    Args:
        crop_size: Side of the square in pixels.
        scales, flip, base_size, compile: See `Inference`; the first three apply to the square.
    """

    @checked
    def __init__(
        self,
        crop_size: Pixels,
        scales: Scales = (1.0,),
        flip: bool = False,
        base_size: BaseSize = None,
        compile: bool = False,
    ) -> None:
        super().__init__(scales, flip, base_size, compile)
        self.crop_size = crop_size

    def describe(self) -> str:
        """See `Inference.describe`."""
        return f"centre crops of {self.crop_size}×{self.crop_size}, after resizing the shorter side"

    def resize(self, image: ImageT, resampling: Image.Resampling) -> ImageT:
        """See `Inference.resize`."""
        # Crop and resize in one operation.
        resized = image.resize((self.crop_size, self.crop_size), resampling, box=self._square(*image.size))
        return cast(ImageT, resized)

    def region(self, width: int, height: int) -> Box:
        """See `Inference.region`."""
        left, top, right, bottom = self._square(width, height)
        return round(left), round(top), round(right), round(bottom)

    def view(self, model: nn.Module, images: Tensor, normalize: Normalize) -> Iterator[Tensor]:
        """See `Inference.view`."""
        yield mirrored_mean(model, normalize(images)) if self.flip else model(normalize(images))["out"]

    def _square(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The square in coordinates of the original image."""
        scale = self.crop_size / min(width, height)
        scaled = [max(self.crop_size, round(side * scale)) for side in (width, height)]
        left, top = ((side - self.crop_size) // 2 for side in scaled)
        x_scale, y_scale = width / scaled[0], height / scaled[1]
        return left * x_scale, top * y_scale, (left + self.crop_size) * x_scale, (top + self.crop_size) * y_scale


class Whole(Inference):
    """The whole image at its own size, padded at the right and bottom with the mean colour to the next valid size.

    Valid sizes map onto the network's feature grid without remainder: ``k * output_stride + 1`` if it aligns corners,
    ``k * output_stride`` otherwise. The logits of the padding are cropped.

    Args:
        scales, flip, base_size, compile: See `Inference`.
    """

    @checked
    def __init__(
        self, scales: Scales = (1.0,), flip: bool = False, base_size: BaseSize = None, compile: bool = False
    ) -> None:
        super().__init__(scales, flip, base_size, compile)

    def view(self, model: nn.Module, images: Tensor, normalize: Normalize) -> Iterator[Tensor]:
        """See `Inference.view`."""
        images = normalize(images)
        height, width = images.shape[-2:]
        stride, remainder = size_rule(model)
        pad_bottom, pad_right = (-(side - remainder) % stride for side in (height, width))

        def padded(images: Tensor) -> dict[str, Any]:
            out = model(F.pad(images, (0, pad_right, 0, pad_bottom)))["out"]  # 0 = the mean colour
            return {"out": out[..., :height, :width]}

        yield mirrored_mean(padded, images) if self.flip else padded(images)["out"]


def mirrored_mean(model: Any, images: Tensor) -> Tensor:
    """Logarithms of the class probabilities, averaged over the images and their mirror images.

    The two are computed one after the other: in one batch, rounding could differ between them.
    """
    straight = model(images)["out"].softmax(1)
    mirrored = model(images.flip(-1))["out"].softmax(1).flip(-1)
    return as_logits((straight + mirrored) / 2)
