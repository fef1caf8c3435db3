"""Conversion of image and label to tensors, and normalisation."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pspexp.data.bands import AnyImage
from pspexp.errors import UserError, setting


def to_tensors(image: AnyImage, label: Image.Image) -> tuple[Tensor, Tensor]:
    """Image and "L" label as uint8 ``[B, H, W]``, with its number of bands B, and uint8 ``[H, W]``."""
    pixels = np.asarray(image).transpose(2, 0, 1).copy()  # NumPy transposes twice as fast as torch
    return torch.from_numpy(pixels), torch.from_numpy(np.array(label))


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(images / 255 - mean) / std`` on the images' device.

    Args:
        images: uint8 ``[N, B, H, W]``, with their number of bands B.
        mean: Mean of each band, as fractions of 255.
        std: Standard deviation of each band, likewise.
        dtype: Type of the result, which is computed in float32 or better.

    Raises:
        UserError: There is another number of means.
    """
    if images.shape[1] != len(mean):
        raise UserError(
            f"{setting('dataset.mean', mean)}: must have {images.shape[1]} values, one per band of the images"
        )
    scaled = images.to(torch.promote_types(dtype, torch.float32))
    # Python numbers: tensors would be copied to the device, with a synchronisation, for every batch.
    for channel, (shift, width) in enumerate(zip(mean, std, strict=True)):
        scaled[:, channel].sub_(255 * shift).div_(255 * width)
    return scaled.to(dtype)
