"""The interface of data sets, and checks that they share."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pspexp.data.bands import AnyImage
from pspexp.data.images import MAX_PIXELS
from pspexp.errors import ArgumentError, setting

MAX_CLASSES = 255
MIN_STD = 1e-6  # smaller ones make images of numbers that overflow in float32
Role = Literal["train", "val", "test"]
Sample = tuple[AnyImage, Image.Image]  # image, "L" label of the same size


class Split(Protocol):
    """Raw samples in a fixed order; picklable, for worker processes."""

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The image and its label, whose values are class ids or ``ignore_index``."""
        ...

    def fingerprint(self) -> str:
        """Equal for the same samples in the same order, on any machine; fast, since file contents are not read."""
        ...


@dataclass(frozen=True)
class DatasetInfo:
    """What the rest of the package needs to know about a data set besides its samples.

    Attributes:
        class_names: One name for each class id.
        ignore_index: Label of pixels that are neither trained on nor scored.
        mean: Mean of each band of the images, as a fraction of 255.
        std: Standard deviation of each band of the images, as a fraction of 255.
        palette: uint8 ``[C, 3]``, the RGB colour of each class.
        max_image_pixels: Largest number of pixels of an image.
        label_values: Value of each class in the label files, a number or an RGB colour; None: the class ids.
    """

    class_names: list[str]
    ignore_index: int
    mean: list[float]
    std: list[float]
    palette: npt.NDArray[np.uint8]
    max_image_pixels: int = MAX_PIXELS
    label_values: Sequence[int | tuple[int, int, int]] | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    @property
    def num_bands(self) -> int:
        """The number of bands of the images."""
        return len(self.mean)


class EvaluatedSample(NamedTuple):
    """One evaluated image: uint8 ``image [H, W, 3]`` for display, ``label [H, W]`` and ``prediction [H, W]``."""

    name: str
    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    prediction: npt.NDArray[np.uint8]


class SegmentationDataset(Protocol):
    """A data set, as built from ``conf/dataset/*.yaml``."""

    info: DatasetInfo

    def open(self, role: Role) -> Split:
        """The samples of a role.

        Raises:
            UserError: Lists all missing files.
        """
        ...


def fingerprint(entries: Iterable[object]) -> str:
    """SHA-256, in hexadecimal digits, of a sequence of plain values."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{json.dumps(entry)}\n".encode())
    return digest.hexdigest()


def identity(path: Path) -> tuple[str, int]:
    """A file's folder and name, and its size in bytes; -1 if it is missing, which reading it will report."""
    try:
        return f"{path.parent.name}/{path.name}", path.stat().st_size
    except OSError:
        return f"{path.parent.name}/{path.name}", -1


def check_classes(num_classes: int, class_names: Sequence[str], ignore_index: int) -> None:
    """Raise ArgumentError, with every problem, unless names, count and ignore index are consistent."""
    problems = []
    if 1 in (num_classes, len(class_names)):
        problems.append(
            f"num_classes={num_classes}: a network that knows one class predicts it everywhere; add the background as "
            f"a class: {setting('dataset.class_names')}=[background,<name>]"
        )
    elif len(class_names) != num_classes:
        problems.append(f"num_classes={num_classes}: class_names has {len(class_names)} names; make them equal")
    repeated = sorted({name for name in class_names if list(class_names).count(name) > 1})
    if repeated:
        problems.append(f"class_names: {', '.join(repeated)} is given twice; class names must differ")
    if odd := [repr(name) for name in class_names if name != name.strip() or not name]:
        problems.append(f"class_names: {', '.join(odd)} begins or ends with a space, or is empty; correct it")
    if num_classes > MAX_CLASSES:
        problems.append(
            f"num_classes={num_classes}: must be at most {MAX_CLASSES}, since class ids have 8 bits and one id is for "
            "ignored pixels"
        )
    elif not num_classes <= ignore_index <= 255:
        problems.append(f"ignore_index={ignore_index}: must be between num_classes={num_classes} and 255; use 255")
    if problems:
        raise ArgumentError(*problems)


def check_mean_std(mean: Sequence[float], std: Sequence[float], num_bands: int | None = None) -> None:
    """Raise ArgumentError, with every problem, unless there is a mean and a positive std for each band.

    Args:
        mean, std: See `DatasetInfo`.
        num_bands: Number of bands of the images, if it is known.
    """
    problems = []
    if num_bands is not None:
        problems = [
            f"{key}={list(values)}: needs {num_bands} values, one per band of the images, as fractions of 255"
            for key, values in (("mean", mean), ("std", std))
            if len(values) != num_bands
        ]
    elif not mean or len(mean) != len(std):
        problems = [f"mean={list(mean)}, std={list(std)}: each needs one value per band, as fractions of 255"]
    if min(std, default=1.0) < MIN_STD:
        problems.append(f"std={list(std)}: must be at least {MIN_STD:g}, as fractions of 255")
    if problems:
        raise ArgumentError(*problems)
