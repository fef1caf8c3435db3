"""Data sets in files: what `pspexp.data.folder` and `pspexp.data.voc` have in common."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pspexp.data.class_files import read_class_names, read_label_values
from pspexp.data.dataset import DatasetInfo, Role, check_classes, check_mean_std
from pspexp.data.file_split import FileSplit
from pspexp.data.images import MAX_PIXELS
from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.label_values import Value, check_tolerance, parse_label_values, parse_values
from pspexp.data.labels import VOC_COLOURS
from pspexp.data.splits import SampleFiles
from pspexp.errors import ArgumentError, UserError

OnError = Literal["raise", "skip"]

log = logging.getLogger(__name__)


class FileDataset(ABC):
    """A data set in image files and label files.

    Args:
        root: The folder of the data set.
        num_classes: Number of classes; None counts the class names.
        class_names: Class names; None reads ``labelmap.txt`` or ``classes.txt`` in ``root``. Otherwise nothing is read
            before `open`.
        ignore_index: Label of ignored pixels.
        train_split: Name of the split to train on.
        val_split: Name of the split to validate on.
        test_split: Name of the split to test on.
        mean: Mean of each band of the images, as fractions of 255; three for RGB.
        std: Standard deviation of each band, likewise.
        label_values: For each class its value in the label files: a number, ``[r, g, b]``, ``'#rrggbb'`` or a list of
            these; None: 0, 1, 2, …, or VOC's colours for these numbers.
        ignore_values: Values of ignored pixels.
        label_tolerance: Largest absolute difference from these values, per channel, that is accepted: for lossy files.
        reduce_zero_label: Whether, without ``label_values``, 0 is ignored and k is class k - 1.
        palette: Colour of each class, ``'#rrggbb'`` or ``[r, g, b]``; None: those in ``label_values``, else VOC's.
        max_image_pixels: Largest number of pixels of an image; larger ones are refused before they are decoded.
        on_error: Whether a sample that cannot be read ends the job, or is skipped.
        class_map: What became of the classes of the files; the configuration has already changed ``label_values``
            accordingly.

    Raises:
        ArgumentError: Lists every argument that is wrong.
    """

    def __init__(
        self,
        root: str,
        num_classes: int | None,
        class_names: Sequence[str] | None,
        ignore_index: int,
        train_split: str,
        val_split: str,
        test_split: str,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        label_values: Sequence[Any] | None,
        ignore_values: Sequence[Any],
        label_tolerance: int | None,
        reduce_zero_label: bool,
        palette: Sequence[Any] | None,
        max_image_pixels: int = MAX_PIXELS,
        on_error: OnError = "raise",
        class_map: Mapping[str, str | None] | None = None,
    ) -> None:
        names = read_class_names(root) if class_names is None else list(class_names)
        if class_names is None and label_values is None:
            label_values = read_label_values(root)
        num_classes = len(names) if num_classes is None else num_classes
        check_classes(num_classes, names, ignore_index)
        check_mean_std(mean, std)
        if reduce_zero_label and label_values is not None:
            raise ArgumentError("label_values: states the value of every class; remove reduce_zero_label=true")
        first, tolerance = int(reduce_zero_label), label_tolerance or 0
        classes, ignored = parse_label_values(label_values, ignore_values, num_classes, first=first)
        check_tolerance(tolerance, classes, ignored)
        colours, values = class_colours(palette, classes, num_classes, first), file_values(classes)
        self.info = DatasetInfo(names, ignore_index, list(mean), list(std), colours, max_image_pixels, values)
        self.root, self.on_error = Path(root).expanduser(), on_error
        self.splits: dict[Role, str] = {"train": train_split, "val": val_split, "test": test_split}
        numbers_only = all(isinstance(value, int) for values in classes for value in values)
        voc = label_values is None or (class_map is not None and numbers_only)
        self.decoder = LabelDecoder(classes, ignored, ignore_index=ignore_index, tolerance=tolerance, voc_colours=voc)

    @staticmethod
    def class_names_from(root: str) -> list[str]:
        """The class names in the folder, for a configuration without class names."""
        return read_class_names(root)

    @staticmethod
    def label_values_from(root: str) -> list[Any] | None:
        """The label values in the folder that belong to `class_names_from`, or None."""
        return read_label_values(root)

    def open(self, role: Role) -> FileSplit:
        """The samples of a role; raises UserError with the number and first names of missing files."""
        samples, gaps = self.samples(role)
        if gaps and self.on_error == "raise":
            raise UserError(*gaps)
        for gap in gaps:
            log.warning("%s (skipped)", gap)
        return FileSplit(samples, self.decoder, self.info.max_image_pixels, self.info.num_bands)

    @abstractmethod
    def samples(self, role: Role) -> tuple[list[SampleFiles], list[str]]:
        """The samples of a role, and a line about each kind of files that are missing.

        Raises:
            UserError: The data set or the split cannot be found.
        """

    @abstractmethod
    def masks_without_image(self) -> list[Path]:
        """The mask files that belong to no image.

        Raises:
            UserError: The data set cannot be found.
        """


def file_values(classes: Sequence[Sequence[Value]]) -> list[Value] | None:
    """One value for each class, all of one kind, as a file could hold them; None if there are none."""
    for is_number in (not all(values and not isinstance(values[0], int) for values in classes), True, False):
        own = [next((one for one in values if isinstance(one, int) == is_number), None) for values in classes]
        chosen = [value for value in own if value is not None]
        if len(chosen) == len(classes):
            return chosen
    return None


def class_colours(
    palette: Sequence[Any] | None, classes: Sequence[Sequence[Value]], num_classes: int, first: int
) -> npt.NDArray[np.uint8]:
    """The colour of each class, uint8 ``[C, 3]``.

    Raises:
        ArgumentError: ``palette`` is not one colour per class.
    """
    if palette is None:
        own = [next((value for value in values if not isinstance(value, int)), None) for values in classes]
        if all(colour is not None for colour in own):
            return np.array(own, np.uint8).reshape(-1, 3)
        return VOC_COLOURS[first : first + num_classes]
    try:
        colours = [parse_values(entry)[0] for entry in palette]
    except (ValueError, IndexError) as error:
        raise ArgumentError(f"palette: {error}; give colours as '#rrggbb'") from error
    if len(colours) != num_classes or any(isinstance(colour, int) for colour in colours):
        raise ArgumentError(
            f"palette: {len(colours)} entries for {num_classes} classes; give one colour per class as '#rrggbb'"
        )
    return np.array(colours, np.uint8)
