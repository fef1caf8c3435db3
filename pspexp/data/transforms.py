"""Joint changes of picture and label, and the way from PIL to normalised tensors.

An augmentation is a callable ``(picture, label, rng) -> (picture, label)``, random through ``rng`` alone.
Labels are sampled nearest: anything else would invent class ids.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from pspexp.data.dataset import Sample
from pspexp.errors import UserError

_Fill = int | tuple[int, ...]
_BILINEAR, _NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


class _Axis(NamedTuple):
    """Where the crop lies along one axis, in pixels of the scaled picture."""

    length: int  # of the picture before scaling
    scaled: int  # of the picture after scaling
    start: int  # first scaled pixel that survives
    kept: int  # how many survive
    pad: int  # pixels of padding before them

    @classmethod
    def place(cls, length: int, scale: float, crop: int, place: float) -> "_Axis":
        """``place`` in [0, 1) chooses among the possible windows; a picture that is too small is centred."""
        scaled = max(1, round(length * scale))
        kept = min(scaled, crop)
        return cls(length, scaled, int(place * (scaled - kept + 1)), kept, (crop - kept) // 2)

    @property
    def source(self) -> tuple[float, float]:
        """The surviving interval in the picture before scaling."""
        return self.start * self.length / self.scaled, (self.start + self.kept) * self.length / self.scaled


class _Crop:
    """A square of ``crop_size`` pixels, padded with the mean colour and the ignore index."""

    def __init__(self, crop_size: int, mean: Sequence[float], ignore_index: int) -> None:
        if crop_size < 1:
            raise UserError(f"crop_size={crop_size}: must be at least 1")
        self.crop_size = crop_size
        self.colour = tuple(round(255 * value) for value in mean)
        self.ignore_index = ignore_index

    def resized(self, picture: Image.Image, label: Image.Image, x: _Axis, y: _Axis) -> Sample:
        """Scale and crop at once: only the pixels that survive are computed."""
        (left, right), (top, bottom) = x.source, y.source
        size, box, corner = (x.kept, y.kept), (left, top, right, bottom), (x.pad, y.pad)
        return (
            self._padded(picture.resize(size, _BILINEAR, box), self.colour, corner),
            self._padded(label.resize(size, _NEAREST, box), self.ignore_index, corner),
        )

    def rotated(self, picture: Image.Image, label: Image.Image, x: _Axis, y: _Axis, degrees: float) -> Sample:
        """The same, turned about the picture's centre, as one affine map from the crop into the picture."""
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        per_x, per_y = x.length / x.scaled, y.length / y.scaled
        dx, dy = x.start - x.pad - x.scaled / 2, y.start - y.pad - y.scaled / 2  # crop corner from the centre
        # Pillow maps each output position (u, v) to (a·u + b·v + c, d·u + e·v + f) of the input
        first = (per_x * cos, per_x * sin, per_x * (cos * dx + sin * dy) + x.length / 2)
        second = (-per_y * sin, per_y * cos, per_y * (cos * dy - sin * dx) + y.length / 2)
        size, affine, kind = (self.crop_size, self.crop_size), (*first, *second), Image.Transform.AFFINE
        return (
            picture.transform(size, kind, affine, _BILINEAR, fillcolor=self.colour),
            label.transform(size, kind, affine, _NEAREST, fillcolor=self.ignore_index),
        )

    def centred(self, picture: Image.Image, label: Image.Image) -> Sample:
        """The middle of the picture at its own size."""
        corner = ((self.crop_size - picture.width) // 2, (self.crop_size - picture.height) // 2)
        return self._padded(picture, self.colour, corner), self._padded(label, self.ignore_index, corner)

    def _padded(self, image: Image.Image, fill: _Fill, corner: tuple[int, int]) -> Image.Image:
        if image.size == (self.crop_size, self.crop_size):
            return image
        canvas = Image.new(image.mode, (self.crop_size, self.crop_size), fill)
        canvas.paste(image, corner)  # negative corners cut
        return canvas


class ScaleCropFlip:
    """Random scale, random crop, random horizontal flip: the reference's training input. Colour jitter if wanted.

    The scale is uniform between the limits (hszhao/semseg, ``transform.RandScale``), so 1–2 is twice as
    frequent as 0.5–1. A scaled picture smaller than the crop is centred in it.

    Args:
        crop_size: side of the result, in pixels.
        scale_min, scale_max: factors on width and height.
        flip_probability: 0–1.
        mean: the padding's colour, RGB, as fractions of 255.
        ignore_index: label of the padding.
        color_jitter: brightness, contrast and saturation are each multiplied by a factor within 1 ± this, 0–1.
    """

    def __init__(
        self,
        crop_size: int,
        scale_min: float,
        scale_max: float,
        flip_probability: float,
        mean: Sequence[float],
        ignore_index: int,
        color_jitter: float = 0.0,
    ) -> None:
        _check_scale(scale_min, scale_max)
        _check_probabilities(flip_probability=flip_probability, color_jitter=color_jitter)
        self._crop = _Crop(crop_size, mean, ignore_index)
        self.scale_min, self.scale_max = scale_min, scale_max
        self.flip_probability, self.color_jitter = flip_probability, color_jitter

    def __call__(self, picture: Image.Image, label: Image.Image, rng: np.random.Generator) -> Sample:
        x, y = _random_window(picture.size, self._crop.crop_size, self.scale_min, self.scale_max, rng)
        flip = rng.random() < self.flip_probability
        picture, label = _flipped(self._crop.resized(picture, label, x, y), flip)
        if self.color_jitter:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                factor = 1 + rng.uniform(-self.color_jitter, self.color_jitter)
                picture = enhance(picture).enhance(factor)
        return picture, label


class SemsegAugment:
    """`ScaleCropFlip` with a random rotation and a Gaussian blur, the recipe of hszhao/semseg.

    There, blur is OpenCV's 5×5 kernel: sigma 1.1. The rotation turns about the picture's centre.

    Args:
        crop_size, scale_min, scale_max, flip_probability, mean, ignore_index: as in `ScaleCropFlip`.
        rotate_degrees: the angle is uniform between minus and plus this.
        rotate_probability, blur_probability: 0–1.
        blur_sigma: in pixels of the result.
    """

    def __init__(
        self,
        crop_size: int,
        scale_min: float,
        scale_max: float,
        flip_probability: float,
        rotate_degrees: float,
        rotate_probability: float,
        blur_probability: float,
        blur_sigma: float,
        mean: Sequence[float],
        ignore_index: int,
    ) -> None:
        _check_scale(scale_min, scale_max)
        _check_probabilities(
            flip_probability=flip_probability,
            rotate_probability=rotate_probability,
            blur_probability=blur_probability,
        )
        self._crop = _Crop(crop_size, mean, ignore_index)
        self.scale_min, self.scale_max = scale_min, scale_max
        self.flip_probability = flip_probability
        self.rotate_degrees, self.rotate_probability = rotate_degrees, rotate_probability
        self.blur_probability, self.blur_sigma = blur_probability, blur_sigma

    def __call__(self, picture: Image.Image, label: Image.Image, rng: np.random.Generator) -> Sample:
        x, y = _random_window(picture.size, self._crop.crop_size, self.scale_min, self.scale_max, rng)
        flip, rotate, blur = rng.random(3) < (
            self.flip_probability,
            self.rotate_probability,
            self.blur_probability,
        )
        degrees = rng.uniform(-self.rotate_degrees, self.rotate_degrees)
        if rotate:
            picture, label = self._crop.rotated(picture, label, x, y, degrees)
        else:
            picture, label = self._crop.resized(picture, label, x, y)
        if blur:
            picture = picture.filter(ImageFilter.GaussianBlur(self.blur_sigma))
        return _flipped((picture, label), bool(flip))


class NoAugment:
    """The middle of the picture at its own size, cut or padded to the crop; nothing random.

    Args:
        crop_size, mean, ignore_index: as in `ScaleCropFlip`.
    """

    def __init__(self, crop_size: int, mean: Sequence[float], ignore_index: int) -> None:
        self._crop = _Crop(crop_size, mean, ignore_index)

    def __call__(self, picture: Image.Image, label: Image.Image, rng: np.random.Generator) -> Sample:
        return self._crop.centred(picture, label)


def to_tensors(picture: Image.Image, label: Image.Image) -> tuple[Tensor, Tensor]:
    """RGB picture and "L" label to uint8 ``[3, H, W]`` and uint8 ``[H, W]``."""
    pixels = np.asarray(picture).transpose(2, 0, 1).copy()  # numpy reorders twice as fast as torch
    return torch.from_numpy(pixels), torch.from_numpy(np.array(label))


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(images / 255 - mean) / std`` on the device that holds the images.

    Args:
        images: uint8 ``[N, 3, H, W]``.
        mean, std: RGB, as fractions of 255.
        dtype: of the result; the arithmetic is done in float32 at least.
    """
    scaled = images.to(torch.promote_types(dtype, torch.float32))
    # plain numbers: tensors of constants would be copied to the device, and waited for, at every batch
    for channel, (shift, width) in enumerate(zip(mean, std, strict=True)):
        scaled[:, channel].sub_(255 * shift).div_(255 * width)
    return scaled.to(dtype)


def _random_window(
    size: tuple[int, int], crop: int, scale_min: float, scale_max: float, rng: np.random.Generator
) -> tuple[_Axis, _Axis]:
    scale = rng.uniform(scale_min, scale_max)
    places = rng.random(2)
    return _Axis.place(size[0], scale, crop, places[0]), _Axis.place(size[1], scale, crop, places[1])


def _flipped(sample: Sample, flip: bool) -> Sample:
    if not flip:
        return sample
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    return sample[0].transpose(mirror), sample[1].transpose(mirror)


def _check_scale(scale_min: float, scale_max: float) -> None:
    if not 0 < scale_min <= scale_max:
        raise UserError(
            f"augment.scale_min={scale_min}, augment.scale_max={scale_max}: need 0 < scale_min <= scale_max"
        )


def _check_probabilities(**probabilities: float) -> None:
    wrong = [
        f"augment.{key}={value}: must lie between 0 and 1"
        for key, value in probabilities.items()
        if not 0 <= value <= 1
    ]
    if wrong:
        raise UserError(*wrong)
