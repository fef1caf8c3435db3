"""Synthetic data: textured shapes drawn on the fly, for tests and first steps without any files.

Each class is a combination of a shape and a texture, and all combinations occur, so that neither alone determines the
class. Colours are random.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from pspexp.data.dataset import DatasetInfo, Role, Sample, check_classes, check_mean_std, fingerprint
from pspexp.data.images import MAX_PIXELS
from pspexp.data.labels import VOC_COLOURS
from pspexp.errors import ArgumentError
from pspexp.utils.arguments import checked

SHAPES, TEXTURES = ("disc", "triangle"), ("striped", "checked")
SHAPES_CLASSES = ("background", *(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES))
_SETS = ("train", "val")

_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]


class ShapesSplit:
    """Images with one to three shapes; the same ``(seed, name, index)`` gives the same pixels on every platform.

    They are computed with + - * / only: sines and cosines could differ in the last bit between platforms.
    """

    def __init__(self, name: str, length: int, image_size: int, seed: int, ignore_index: int) -> None:
        self.names = [f"{name}_{index:05d}" for index in range(length)]
        self._set = _SETS.index(name)
        self._size, self._seed, self._ignore_index = image_size, seed, ignore_index

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng([self._seed, self._set, index])
        image = _background(self._size, rng)
        label = np.zeros((self._size, self._size), np.uint8)
        for _ in range(rng.integers(1, 4)):
            _draw(image, label, rng)
        image += rng.integers(-10, 11, image.shape)
        edge = np.zeros(label.shape, np.bool_)
        edge[1:] |= label[1:] != label[:-1]
        edge[:, 1:] |= label[:, 1:] != label[:, :-1]
        label[edge] = self._ignore_index
        return Image.fromarray(image.clip(0, 255).astype(np.uint8)), Image.fromarray(label)

    def fingerprint(self) -> str:
        """A hash of the parameters that determine the images."""
        return fingerprint([_SETS[self._set], len(self), self._size, self._seed, self._ignore_index])


class ShapesDataset:
    """Textured shapes on a shaded background, which is a class of its own: five classes, in VOC's colours.

    Args:
        num_classes: Number of classes; must be 5.
        class_names: One name per class, such as `SHAPES_CLASSES`.
        ignore_index: Label of the one-pixel boundary of every shape.
        train_split: Set to train on.
        val_split: Set to validate on.
        test_split: Set to test on.
        mean: Mean of the RGB channels, as fractions of 255.
        std: Standard deviation of the RGB channels, likewise.
        num_train: Number of images in the set ``train``.
        num_val: Number of images in the set ``val``.
        image_size: Width and height in pixels.
        seed: Seed that determines the images.
        max_image_pixels: Largest number of pixels of an image to predict.
    """

    @checked
    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str],
        ignore_index: int,
        train_split: Literal["train", "val"],
        val_split: Literal["train", "val"],
        test_split: Literal["train", "val"],
        mean: Sequence[float],
        std: Sequence[float],
        num_train: Annotated[int, Field(ge=1)],
        num_val: Annotated[int, Field(ge=1)],
        image_size: Annotated[int, Field(ge=48)],  # textures are not visible in smaller images
        seed: Annotated[int, Field(ge=0)],
        max_image_pixels: Annotated[int, Field(gt=0)] = MAX_PIXELS,
    ) -> None:
        check_classes(num_classes, class_names, ignore_index)
        check_mean_std(mean, std, num_bands=3)
        self.info = DatasetInfo(
            list(class_names), ignore_index, list(mean), list(std), VOC_COLOURS[:num_classes], max_image_pixels
        )
        self._splits = {"train": train_split, "val": val_split, "test": test_split}
        self._lengths = {"train": num_train, "val": num_val}
        self._image_size, self._seed = image_size, seed
        if num_classes != len(SHAPES_CLASSES):
            raise ArgumentError(f"num_classes={num_classes}: must be {len(SHAPES_CLASSES)}, as in the images")

    def open(self, role: Role) -> ShapesSplit:
        """The images of a role, drawn on access."""
        name = self._splits[role]
        return ShapesSplit(name, self._lengths[name], self._image_size, self._seed, self.info.ignore_index)


def _background(size: int, rng: np.random.Generator) -> _Floats:
    """float64 ``[size, size, 3]``: four corner colours, interpolated bilinearly."""
    corners = rng.integers(30, 226, (2, 2, 3)).astype(np.float64)
    down = (np.arange(size) / size)[:, None, None]
    right = (np.arange(size) / size)[None, :, None]
    top = corners[0, 0] * (1 - right) + corners[0, 1] * right
    bottom = corners[1, 0] * (1 - right) + corners[1, 1] * right
    return np.asarray(top * (1 - down) + bottom * down)


def _draw(image: _Floats, label: npt.NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Draw one shape, which may extend beyond the image, into both arrays."""
    size = len(label)
    shape, texture = rng.integers(len(SHAPES)), rng.integers(len(TEXTURES))
    radius = rng.uniform(0.16, 0.28) * size
    cx, cy = rng.uniform(0.2 * size, 0.8 * size, 2)
    # A rotation without trigonometric functions: (1 - t²)/(1 + t²) and 2t/(1 + t²) are on the unit circle.
    t = rng.uniform(-1, 1)
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    reach = 1.6 * radius  # to the triangle's corners
    rows = slice(max(0, int(cy - reach)), int(cy + reach) + 1)
    columns = slice(max(0, int(cx - reach)), int(cx + reach) + 1)
    x, y = np.arange(size)[None, columns] - cx, np.arange(size)[rows, None] - cy
    u, v = cos * x + sin * y, cos * y - sin * x
    inside = _inside(int(shape), u, v, radius)
    period = rng.uniform(0.045, 0.065) * size
    odd = np.floor(u / period)
    if TEXTURES[texture] == "checked":
        odd = odd + np.floor(v / period)
    first = rng.integers(0, 256, 3).astype(np.float64)
    second = (first + rng.integers(80, 177, 3)) % 256  # far from the first in every channel
    image[rows, columns][inside] = np.where(odd[..., None] % 2 == 0, first, second)[inside]
    label[rows, columns][inside] = 1 + shape * len(TEXTURES) + texture


def _inside(shape: int, u: _Floats, v: _Floats, radius: float) -> _Mask:
    """The pixels inside a shape. Both shapes have about the same area; ``radius`` is the disc's."""
    if SHAPES[shape] == "disc":
        return u * u + v * v < radius * radius
    # Equilateral with area π·radius², hence an inscribed circle of radius 0.778·radius.
    return np.maximum(v, 0.8660254 * np.abs(u) - 0.5 * v) < 0.778 * radius
