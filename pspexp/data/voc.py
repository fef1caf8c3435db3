"""Data sets in VOC's layout: ``JPEGImages``, ``SegmentationClass[Gray]``, ``ImageSets/Segmentation``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pspexp.data.dataset import Role
from pspexp.data.file_dataset import FileDataset, OnError
from pspexp.data.folder import Listing, one_file_each, unreadable_folder
from pspexp.data.images import MAX_PIXELS
from pspexp.data.patterns import Pattern
from pspexp.data.splits import SampleFiles, find_samples, read_lines
from pspexp.errors import UserError, setting
from pspexp.utils.arguments import checked

IMAGES, SPLITS = "JPEGImages", "ImageSets/Segmentation"
LABELS, GREY_LABELS = "SegmentationClass", "SegmentationClassGray"


class VocDataset(FileDataset):
    """A folder in VOC's layout. Labels in ``SegmentationClassGray`` take precedence over ``SegmentationClass``.

    Args:
        root: The folder that contains ``subfolder``, the one above it (``root/VOCdevkit/VOC2007``), or ``subfolder``
            itself.
        num_classes: See `FileDataset`, as for the others that are not listed here.
        train_split: Name of the file in ``ImageSets/Segmentation`` to train on.
        val_split: Name of the file to validate on.
        test_split: Name of the file to test on.
        subfolder: Name of the data set's own folder, such as ``VOC2007``; None if ``root`` is that folder.
    """

    @checked
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
        subfolder: str | None = None,
        reduce_zero_label: bool = False,
        label_values: list[Any] | None = None,
        ignore_values: list[Any] | tuple[int, ...] = (255,),
        label_tolerance: Annotated[int, Field(ge=0, le=255)] | None = None,
        max_image_pixels: int = MAX_PIXELS,
        on_error: OnError = "raise",
        class_map: dict[str, str | None] | None = None,
    ) -> None:
        super().__init__(
            root, num_classes, class_names, ignore_index, train_split, val_split, test_split, mean, std,
            label_values=label_values,
            ignore_values=ignore_values,
            label_tolerance=label_tolerance,
            reduce_zero_label=reduce_zero_label,
            palette=None,
            max_image_pixels=max_image_pixels,
            on_error=on_error,
            class_map=class_map,
        )  # fmt: skip
        self._subfolder = subfolder
        self._listing: Listing | None = None
        self._described = False  # whether a message has said what is in the folder

    def samples(self, role: Role) -> tuple[list[SampleFiles], list[str]]:
        """See `FileDataset.samples`."""
        folder = find_tree(str(self.root), self._subfolder)
        split = self.splits[role]
        path = folder / SPLITS / f"{split}.txt"
        lines = read_lines(path, setting(f"dataset.{role}_split"), split)
        if self._listing is None:
            self._listing = list_tree(folder)
        found, gaps = find_samples(lines, *self._listing, folder, path)
        if gaps and not found and not self._described:
            gaps[-1] += unreadable_folder(folder)
            self._described = True
        return found, gaps

    def masks_without_image(self) -> list[Path]:
        """See `FileDataset.masks_without_image`."""
        images, masks = list_tree(find_tree(str(self.root), self._subfolder))
        return sorted(path for name, path in masks.items() if name not in images)


def list_tree(folder: Path) -> Listing:
    """Images and labels in VOC's layout by id."""
    images = Pattern("images", f"{IMAGES}/{{id}}.*").files(folder)
    labels = Pattern("masks", f"{LABELS}/{{id}}.*").files(folder)
    grey = Pattern("masks", f"{GREY_LABELS}/{{id}}.*").files(folder)
    return Listing(one_file_each(images), one_file_each(labels | grey))


def find_tree(root: str, subfolder: str | None) -> Path:
    """The folder that contains ``JPEGImages``.

    Raises:
        UserError: There is no such folder; lists the places that were tried, and says what is there.
    """
    base = Path(root).expanduser()
    places = [base]
    if subfolder is not None:
        places = [base / subfolder, base / "VOCdevkit" / subfolder]
        if base.resolve().name == subfolder:
            places.insert(0, base)
    for place in places:
        if (place / IMAGES).is_dir():
            return place
    tried = ", ".join(str(place / IMAGES) for place in places)
    hint = "; unpack a VOC tar with tools/prepare_voc.py" if subfolder else ""
    raise UserError(
        f"{setting('dataset.root', root)}: contains no data set in VOC's layout (looked for {tried}){hint}"
        f"{unreadable_folder(base)}"
    )
