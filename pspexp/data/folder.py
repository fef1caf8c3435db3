"""Data sets in any layout, described by two patterns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from pspexp.data import layout
from pspexp.data.dataset import Role
from pspexp.data.file_dataset import FileDataset, OnError
from pspexp.data.images import MAX_PIXELS
from pspexp.data.patterns import Key, Pattern
from pspexp.data.splits import SampleFiles, by_hash, find_samples, read_lines
from pspexp.errors import ArgumentError, UserError, did_you_mean, setting
from pspexp.utils.arguments import checked
from pspexp.utils.text import count, first_names

PARTS = ("train", "val")  # splits by val_fraction


class Listing(NamedTuple):
    """Images and masks by id."""

    images: dict[str, Path]
    masks: dict[str, Path]


class FolderDataset(FileDataset):
    """Images and masks found by patterns such as ``images/{id}.jpg`` and ``masks/{id}.png``; see `Pattern`.

    Splits are folders (``images/{split}/{id}.jpg``), files (``splits``), or a share of the images (``val_fraction``).

    Args:
        root: See `FileDataset`, as for the others that are not listed here.
        images: Pattern of the image files, below ``root``.
        masks: Pattern of the label files, below ``root``.
        splits: Pattern of the split files, with ``{split}``; a line is an id, an image, or an image and its mask.
        val_fraction: Share of the images to validate on, without split folders and split files; 0: do not validate.
    """

    @checked
    def __init__(
        self,
        root: str,
        images: str,
        masks: str,
        num_classes: int | None,
        class_names: Sequence[str] | None,
        ignore_index: int,
        train_split: str,
        val_split: str,
        test_split: str,
        mean: Sequence[float],
        std: Sequence[float],
        splits: str | None = None,
        val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        label_values: list[Any] | None = None,
        ignore_values: list[Any] | tuple[int, ...] = (255,),
        label_tolerance: Annotated[int, Field(ge=0, le=255)] | None = None,
        reduce_zero_label: bool = False,
        palette: list[Any] | None = None,
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
            palette=palette,
            max_image_pixels=max_image_pixels,
            on_error=on_error,
            class_map=class_map,
        )  # fmt: skip
        self._images, self._masks = Pattern("images", images), Pattern("masks", masks)
        self._split_files = None if splits is None else Pattern("splits", splits, needs="split")
        self._val_fraction = val_fraction
        check_patterns(self._images, self._masks, splits)
        self._files: tuple[dict[Key, Path], dict[Key, Path]] | None = None
        self._parts: dict[str, list[str]] | None = None  # the ids of each split by val_fraction

    def samples(self, role: Role) -> tuple[list[SampleFiles], list[str]]:
        """See `FileDataset.samples`."""
        split, key = self.splits[role], setting(f"dataset.{role}_split")
        images, masks = self._find_files()
        if self._split_files is not None:
            path = self.root / self._split_files.text.replace("{split}", split)
            listing = Listing(by_id(images, None), by_id(masks, split if self._masks.has_split else None))
            return find_samples(read_lines(path, key, split), *listing, self.root, path)
        if self._images.has_split:
            known = sorted({str(name) for name, _ in images})
            if split not in known:
                raise UserError(
                    f"{key}={split}: no images in {self.root / self._images.text.replace('{split}', split)}; "
                    f"there are {first_names(known, 20)}{did_you_mean(split, known)}; to validate on a share of the "
                    f"images of one split, write its name into the patterns instead of {{split}}"
                )
            listing = Listing(by_id(images, split), by_id(masks, split if self._masks.has_split else None))
            return self._pair(listing, sorted(listing.images))
        listing = Listing(by_id(images, None), by_id(masks, None))
        if split not in PARTS:
            share = setting("dataset.val_fraction", self._val_fraction)
            raise UserError(f"{key}={split}: {share} divides the images into train and val only; use one of these")
        found, gaps = self._pair(listing, sorted(listing.images))
        if self._parts is None:
            self._parts = by_hash((sample.name for sample in found), self._val_fraction)
        chosen = {*self._parts[split]}
        return [sample for sample in found if sample.name in chosen], gaps

    def masks_without_image(self) -> list[Path]:
        """See `FileDataset.masks_without_image`."""
        images, masks = self._find_files()
        both = self._images.has_split and self._masks.has_split
        names = {name for _, name in images}
        return sorted(path for key, path in masks.items() if (key not in images if both else key[1] not in names))

    def _find_files(self) -> tuple[dict[Key, Path], dict[Key, Path]]:
        """Images and masks by split and id.

        Raises:
            UserError: Nothing matches a pattern, or two files match for one id.
        """
        if self._files is not None:
            return self._files
        masks, images = self._masks.files(self.root), self._images.files(self.root)
        if self._images.may_match_in(self._masks):
            # Of a.png and a_mask.png in one folder, the latter is no image.
            labels = {path for paths in masks.values() for path in paths}
            images = {key: rest for key, paths in images.items() if (rest := [p for p in paths if p not in labels])}
        problems = [*ambiguous(images), *ambiguous(masks)]
        problems += [
            f"{setting(f'dataset.{name}', pattern.text)}: no file in {self.root} matches"
            for name, pattern, files in (("images", self._images, images), ("masks", self._masks, masks))
            if not files
        ]
        if not images or not masks:
            problems[-1] += unreadable_folder(self.root)
        if problems:
            raise UserError(*problems)
        self._files = tuple({key: paths[0] for key, paths in files.items()} for files in (images, masks))  # type: ignore[assignment]
        assert self._files is not None
        return self._files

    def _pair(self, listing: Listing, names: Sequence[str]) -> tuple[list[SampleFiles], list[str]]:
        """The samples with these names, and a line about images without masks."""
        missing = [name for name in names if name not in listing.masks]
        found = [
            SampleFiles(name, listing.images[name], listing.masks[name]) for name in names if name in listing.masks
        ]
        if not missing:
            return found, []
        total = len(listing.images)
        lists = "" if self._images.has_split else f", or list the images to use in {setting('dataset.splits')}"
        return found, [
            f"{self.root}: {count(len(missing), 'image')} of {total} without a mask ({self._masks.text}): "
            f"{first_names(missing)}; label them, or skip them with {setting('dataset.on_error', 'skip')}{lists}"
        ]


def check_patterns(images: Pattern, masks: Pattern, splits: str | None) -> None:
    """Raise ArgumentError unless the patterns of images, masks and split files go together."""
    if splits is not None and images.has_split:
        raise ArgumentError(f"splits={splits}: images={images.text} contains {{split}} already; remove one of them")
    if masks.has_split and not images.has_split and splits is None:
        raise ArgumentError(
            f"masks={masks.text}: contains {{split}}, but neither images={images.text} nor splits does; add it"
        )
    if masks.text == images.text:
        raise ArgumentError(f"masks={masks.text}: is the pattern of the images, too; the masks are other files")


def by_id(files: Mapping[Key, Path], split: str | None) -> dict[str, Path]:
    """The files of a split by id."""
    return {name: path for (part, name), path in files.items() if part == split}


def ambiguous(files: Mapping[Key, Sequence[Path]]) -> list[str]:
    """A line about ids with several files."""
    several = {name: paths for (_, name), paths in files.items() if len(paths) > 1}
    if not several:
        return []
    name, paths = next(iter(several.items()))
    others = f", and {count(len(several) - 1, 'more id')}" if len(several) > 1 else ""
    shown = first_names([path.name for path in paths])
    return [
        f"{paths[0].parent}: several files for one id: {name} has {shown}{others}; "
        "remove one of each, or make the pattern more specific"
    ]


def one_file_each(files: Mapping[Key, Sequence[Path]]) -> dict[str, Path]:
    """The files by id.

    Raises:
        UserError: An id has several files.
    """
    if problems := ambiguous(files):
        raise UserError(*problems)
    return {name: paths[0] for (_, name), paths in files.items()}


def unreadable_folder(root: Path) -> str:
    """What is in a folder that is not in the expected layout, and how it can be read, as the end of a message."""
    return f"; {layout.describe(root)}"
