"""Pipelines of albumentations and of torchvision's transforms v2 as augmentations."""

import math
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field
from torchvision import tv_tensors

from pspexp.data.augment.cropping import Probability
from pspexp.data.augment.mixing import Mix, Mixing
from pspexp.data.bands import AnyImage, Bands
from pspexp.data.dataset import Sample
from pspexp.data.transforms import to_tensors
from pspexp.errors import ArgumentError, UserError, setting
from pspexp.utils.arguments import checked
from pspexp.utils.text import count, first_names, one_line

Transforms = Annotated[Sequence[Callable[..., Any]], Field(min_length=1)]
Side = Annotated[int, Field(gt=0)]
Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # image [H, W, B], label [H, W]

TRIALS = 8  # runs of a new pipeline: most transforms act on every second image only

# Otherwise every import of albumentations asks PyPI for a newer version, which takes seconds where there is no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


class _Pipeline(ABC):
    """Applies the transforms of a library, and checks their results."""

    library: str
    method: str = "__call__"  # by which a transform of the library is known
    random_crop: str  # what to end a pipeline with whose results have other sizes

    @checked
    def __init__(
        self,
        transforms: Transforms,
        crop_size: Side,
        mean: Sequence[float],
        ignore_index: int,
        mix: Mix | None = None,
        mix_probability: Probability = 0.5,
    ) -> None:
        if foreign := [
            f"transforms.{place}: {type(transform).__name__} is not a transform of {self.library}; use one"
            for place, transform in enumerate(transforms)
            if not hasattr(transform, self.method)
        ]:
            raise ArgumentError(*foreign)
        self.transforms, self.crop_size, self.ignore_index = transforms, crop_size, ignore_index
        self.mixing = Mixing(mix, mix_probability, ignore_index) if mix else None
        self._pad_with_ignore_index()
        self._try(len(mean))

    def __call__(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Sample:
        try:
            pixels, ids = self._applied(image, label, rng)
        except ArgumentError as error:
            key = setting("augment.transforms")
            raise UserError(*(problem.replace("transforms", key, 1) for problem in error.problems)) from error
        return Image.fromarray(pixels) if pixels.shape[2] == 3 else Bands.from_array(pixels), Image.fromarray(ids)

    @abstractmethod
    def _apply(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Arrays:
        """Image and label after all transforms."""

    @abstractmethod
    def _pad_with_ignore_index(self) -> None:
        """Let the transforms fill the label with the ignore index: their default is 0, which is a class."""

    def _applied(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Arrays:
        """Image and label after all transforms, uint8 and of the size of the crop.

        Raises:
            ArgumentError: A transform fails, or the result is of another kind.
        """
        before = f"an image of {image.width}×{image.height} pixels"
        try:
            pixels, ids = self._apply(image, label, rng)
        except Exception as error:  # anything, since it is the library's
            raise ArgumentError(f"transforms: fails on {before}: {type(error).__name__}: {one_line(error)}") from error
        if others := {str(part.dtype) for part in (pixels, ids)} - {"uint8"}:
            raise ArgumentError(
                f"transforms: returns {' and '.join(sorted(others))} instead of uint8; remove normalisation and "
                "conversion to floating point: images are normalised on the device"
            )
        side, bands = self.crop_size, len(image.getbands())
        if pixels.shape[2:] != (bands,):
            found = count(math.prod(pixels.shape[2:]), "band")
            raise ArgumentError(f"transforms: returns {found} for an image of {bands}; their number must not change")
        if wrong := [part for part in (pixels, ids) if part.shape[:2] != (side, side)]:
            height, width = wrong[0].shape[:2]
            raise ArgumentError(
                f"transforms: returns {width}×{height} pixels for {before}, but crop_size={side} needs {side}×{side}; "
                f"end the list with {self.random_crop}"
            )
        return pixels, ids

    def _try(self, num_bands: int) -> None:
        """Apply the transforms to an image that is larger than the crop.

        Raises:
            ArgumentError: Something is wrong with the results.
        """
        rng = np.random.default_rng(0)
        height, width = 3 * self.crop_size // 2 + 1, 2 * self.crop_size
        pixels = rng.integers(0, 256, (height, width, num_bands), np.uint8)
        image = Image.fromarray(pixels) if num_bands == 3 else Bands.from_array(pixels)
        values = [self.ignore_index, *(value for value in range(1, 4) if value != self.ignore_index)]
        blocks = rng.choice(np.array(values, np.uint8), (height // 8 + 1, width // 8 + 1))
        label = Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])
        for _ in range(TRIALS):
            _, ids = self._applied(image, label, rng)
            if invented := sorted({*np.unique(ids).tolist()} - {*values}):
                raise ArgumentError(
                    f"transforms: writes label values that were not there ({first_names([*map(str, invented)])}); "
                    f"resample labels by nearest neighbour, and pad them with ignore_index={self.ignore_index}"
                )


class Albumentations(_Pipeline):
    """Transforms of albumentations, applied one after another to image and mask.

    All of them draw from the sample's random numbers, so that a result depends only on ``(seed, epoch, index)``. Where
    a transform pads, the label gets the ignore index, whatever its ``fill_mask`` says.

    Args:
        transforms: Transforms of albumentations 2, or compositions of them such as ``OneOf``.
        crop_size: Width and height of the results in pixels; the transforms must see to it.
        mean: Mean of each band: there are as many values as bands.
        ignore_index: Label of the padding.
        mix: Which part of a second sample is pasted in; see `pspexp.data.augment.mixing.Mixing`. None: no mixing.
        mix_probability: Probability of mixing.
    """

    library, method = "albumentations 2", "set_random_state"
    random_crop = "albumentations.RandomCrop and its pad_if_needed=true"

    def _apply(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Arrays:
        both = {"image": np.array(image), "mask": np.array(label)}
        state = random.Random(int(rng.integers(2**63)))
        for transform in self.transforms:
            # One state for all of them: with a seed each, transforms of the same probability would act together.
            transform.set_random_state(rng, state)  # type: ignore[attr-defined]
            both = transform(**both)
        return both["image"], both["mask"]

    def _pad_with_ignore_index(self) -> None:
        for transform in _with_nested(self.transforms):
            if getattr(transform, "fill_mask", None) is not None:  # of a dropout, None leaves the label as it is
                transform.fill_mask = self.ignore_index


class TorchvisionV2(_Pipeline):
    """Transforms of ``torchvision.transforms.v2``, applied one after another to a ``tv_tensors`` image and mask.

    torch's generator is seeded for each sample, and left as it was, so that a result depends only on
    ``(seed, epoch, index)``. Where a transform pads, the label gets the ignore index, whatever its ``fill`` says.

    Args:
        transforms: Transforms, or compositions of them such as ``RandomApply``.
        crop_size: Width and height of the results in pixels; the transforms must see to it.
        mean: Mean of each band: there are as many values as bands.
        ignore_index: Label of the padding.
        mix: Which part of a second sample is pasted in; see `pspexp.data.augment.mixing.Mixing`. None: no mixing.
        mix_probability: Probability of mixing.
    """

    library = "torchvision.transforms.v2"
    random_crop = "torchvision.transforms.v2.RandomCrop and its pad_if_needed=true"

    def _apply(self, image: AnyImage, label: Image.Image, rng: np.random.Generator) -> Arrays:
        pixels, ids = to_tensors(image, label)
        both: Any = tv_tensors.Image(pixels), tv_tensors.Mask(ids)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed would seed devices, too
            for transform in self.transforms:
                both = transform(*both)
        return np.ascontiguousarray(both[0].numpy().transpose(1, 2, 0)), np.ascontiguousarray(both[1].numpy())

    def _pad_with_ignore_index(self) -> None:
        for transform in _with_nested(self.transforms):
            if isinstance(fill := getattr(transform, "_fill", None), dict):
                fill[tv_tensors.Mask] = self.ignore_index


def _with_nested(transforms: Iterable[Any]) -> Iterator[Any]:
    """The transforms, and those in their compositions."""
    for transform in transforms:
        yield transform
        nested = getattr(transform, "transforms", ())
        yield from _with_nested(nested if isinstance(nested, Iterable) else ())
