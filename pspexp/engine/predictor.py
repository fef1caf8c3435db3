"""A trained network applied to single images: for ``mode=predict`` and from Python."""

import math
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.data import images, masks
from pspexp.data.band_files import as_bands, check_bands, read_bands
from pspexp.data.bands import AnyImage, Bands
from pspexp.data.transforms import normalize
from pspexp.engine.components import Components
from pspexp.errors import ArgumentError, UserError, setting
from pspexp.inference.base import as_logits

Pixels = npt.NDArray[np.uint8]
Source = str | PathLike[str] | AnyImage | Pixels
"""An image: its file, a Pillow image, or uint8 ``[H, W, 3]`` or ``[H, W]``; with other numbers of bands than three,
also a `Bands` image, or uint8 ``[H, W, B]``."""


class Prediction(NamedTuple):
    """The predicted classes of an image.

    Attributes:
        ids: uint8 ``[H, W]``; the ignore index where the inference mode predicts nothing.
        confidence: Mean probability of the predicted class over the predicted pixels.
        probabilities: float32 ``[C, H, W]`` if wanted; 0 where the inference mode predicts nothing.
    """

    ids: Pixels
    confidence: float
    probabilities: npt.NDArray[np.float32] | None = None


class Predictor:
    """A trained network with its preprocessing and inference mode; made by `pspexp.load`.

    Attributes:
        model: The network, on its device, in evaluation mode.
        inference: How it is applied to images of any size.
    """

    def __init__(self, components: Components) -> None:
        self.model: nn.Module = components.model.eval()
        self.inference = components.inference
        self._info = components.dataset.info
        self._device, self._precision = components.device, components.precision
        self._applied: nn.Module | None = None

    @property
    def class_names(self) -> list[str]:
        """One name for each class id."""
        return list(self._info.class_names)

    @property
    def palette(self) -> Pixels:
        """uint8 ``[C, 3]``, the RGB colour of each class."""
        return self._info.palette

    @overload
    def __call__(self, image: Source) -> Pixels: ...  # type: ignore[overload-overlap] # a path is a sequence, too

    @overload
    def __call__(self, image: Sequence[Source]) -> list[Pixels]: ...

    def __call__(self, image: Source | Sequence[Source]) -> Pixels | list[Pixels]:
        """The class ids, uint8 ``[H, W]``, of an image, or of each image of a list.

        Raises:
            UserError: An image cannot be read.
        """
        if isinstance(image, list | tuple):
            return [self.predict(one).ids for one in image]
        return self.predict(image).ids  # type: ignore[arg-type]

    def __repr__(self) -> str:
        names = ", ".join(self._info.class_names[:3])
        return f"Predictor({type(self.model).__name__}, {self._info.num_classes} classes: {names}, …)"

    @torch.inference_mode()
    def predict(self, image: Source, *, with_probabilities: bool = False) -> Prediction:
        """The class ids of an image and their mean confidence.

        Args:
            image: The image.
            with_probabilities: Whether to return the probabilities of all classes, too.

        Raises:
            UserError: The image cannot be read, or the network's outputs are NaN or infinite.
        """
        image = self.read(image)
        left, top, right, bottom = self.inference.region(*image.size)
        ids = np.full((image.height, image.width), self._info.ignore_index, np.uint8)
        shape = (self._info.num_classes, *ids.shape)
        probabilities = np.zeros(shape, np.float32) if with_probabilities else None
        confidence, row = 0.0, top
        with self._precision.autocast(self._device):
            for logits in self._strips(image):
                best = logits.max(1)
                rows = slice(row, row + logits.shape[2])
                ids[rows, left:right] = best.indices[0].to("cpu", torch.uint8).numpy()
                confidence += (best.values - logits.logsumexp(1)).float().exp().sum().item()
                if probabilities is not None:
                    probabilities[:, rows, left:right] = logits.float().softmax(1)[0].cpu().numpy()
                row = rows.stop
        if not math.isfinite(confidence):
            raise UserError(
                f"the network's outputs for this image are NaN or infinite; train with a lower "
                f"{setting('optimizer.lr')}, or set {setting('precision', 'fp32')} if it is not set"
            )
        return Prediction(ids, confidence / ((right - left) * (bottom - top)), probabilities)

    def probabilities(self, image: Source) -> npt.NDArray[np.float32]:
        """Class probabilities, float32 ``[C, H, W]``; 0 where the inference mode predicts nothing.

        Raises:
            UserError: The image cannot be read.
        """
        found = self.predict(image, with_probabilities=True).probabilities
        assert found is not None
        return found

    def overlay(self, image: Source) -> Image.Image:
        """The image with the colours of its predicted classes, and a legend below.

        Raises:
            UserError: The image cannot be read.
        """
        image = self.read(image)
        return masks.overlay(image, self.predict(image).ids, self._info)

    def read(self, image: Source) -> AnyImage:
        """An image as 8-bit RGB, or of the network's number of bands, turned as viewers show it.

        Raises:
            UserError: It cannot be read.
        """
        if isinstance(image, str | PathLike):
            return read_bands(Path(image), self._info.num_bands, self._info.max_image_pixels)
        return self._as_rgb(image) if self._info.num_bands == 3 else self._as_bands(image)

    def _as_rgb(self, image: AnyImage | Pixels) -> Image.Image:
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim < 2 or image.shape[2:] not in ((), (3,), (4,)) or not image.size:
                raise ArgumentError(f"image: {image.dtype} {list(image.shape)}; must be uint8 [H, W, 3] or [H, W]")
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise ArgumentError(f"image: {type(image).__name__}; must be a path, a Pillow image or a uint8 array")
        images.check_size(image.size, "image", self._info.max_image_pixels)
        return images.as_rgb(image, "image")

    def _as_bands(self, image: AnyImage | Pixels) -> Bands:
        number = self._info.num_bands
        if isinstance(image, np.ndarray):
            pixels = image[..., None] if image.ndim == 2 else image
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != number or not pixels.size:
                raise ArgumentError(f"image: {image.dtype} {list(image.shape)}; must be uint8 [H, W, {number}]")
            image = Bands.from_array(pixels)
        if not isinstance(image, Image.Image | Bands):
            raise ArgumentError(f"image: {type(image).__name__}; must be a path, an image or a uint8 array")
        images.check_size(image.size, "image", self._info.max_image_pixels)
        if isinstance(image, Image.Image):
            return as_bands(image, number, "image")
        check_bands(len(image.bands), number, "image")
        return image

    def _strips(self, image: AnyImage) -> Iterator[Tensor]:
        """Logits ``[1, C, rows, W]`` of the part of the image that is predicted, from top to bottom."""
        prepared = self.inference.resize(image, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(prepared).transpose(2, 0, 1).copy())[None]
        strips = self.inference.strips(self._network(), self._device.move(pixels), self._normalized)
        left, top, right, bottom = self.inference.region(*image.size)
        size = (bottom - top, right - left)
        if prepared.size == size[::-1]:
            return strips
        found = torch.cat([logits.softmax(1) for logits in strips], 2)
        return iter([as_logits(F.interpolate(found, size, mode="bilinear", align_corners=False))])

    def _normalized(self, pixels: Tensor) -> Tensor:
        return normalize(pixels, self._info.mean, self._info.std)

    def _network(self) -> nn.Module:
        if self._applied is None:
            pixel = torch.zeros(1, self._info.num_bands, 1, 1, device=self._device.torch)
            self._applied = self.inference.network(self.model, pixel)
        return self._applied
