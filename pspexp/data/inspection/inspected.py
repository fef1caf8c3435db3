"""The facts about splits, and what they mean under a configuration."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pspexp.data.dataset import DatasetInfo
from pspexp.data.file_split import FileSplit
from pspexp.data.inspection.facts import ImageFacts, MaskFacts, Stat
from pspexp.data.label_decoder import LabelDecoder
from pspexp.data.label_values import Value, pack, unpack, voc_colour
from pspexp.data.labels import check_palette
from pspexp.data.splits import SampleFiles


@dataclass(frozen=True)
class LabelFacts:
    """What a label file means.

    Attributes:
        ids: Number of pixels of each class id and of the ignore index, undeclared values excluded.
        values: Number of pixels of each value.
        meanings: The id of each value that has one.
        undeclared: Number of pixels of each value without a meaning.
        snapped: Number of pixels whose values are near a declared one.
        sequence: The ids of the values in the order of `MaskFacts.values`; -1 where there is none.
    """

    ids: dict[int, int]
    values: dict[Value, int]
    meanings: dict[Value, int]
    undeclared: dict[Value, int]
    snapped: int
    sequence: tuple[int, ...]

    def labelled(self, ignore_index: int) -> int:
        """Number of pixels of classes."""
        return sum(count for index, count in self.ids.items() if index != ignore_index)


@dataclass(frozen=True)
class InspectedSample:
    """A sample and the facts about its files; None where a file was not read.

    Attributes:
        files: Its name and files.
        image: Facts about the image.
        mask: Facts about the label file.
        label: What is in the label file; None if it cannot be understood.
        label_error: Why it cannot.
        other: Facts about the file that the label was made from, see `pspexp.data.inspection.collect.origin`.
        other_path: That file.
        stats: Sizes and times of the label and of that file.
    """

    files: SampleFiles
    image: ImageFacts | None
    mask: MaskFacts | None
    label: LabelFacts | None = None
    label_error: str | None = None
    other: MaskFacts | None = None
    other_path: Path | None = None
    stats: tuple[Stat | None, Stat | None] = (None, None)


@dataclass
class InspectedSplit:
    """A split: samples that were inspected, perhaps not all of them.

    Attributes:
        name: Name of the split, for messages.
        split: The split.
        samples: The inspected samples.
    """

    name: str
    split: FileSplit
    samples: list[InspectedSample]

    @property
    def is_complete(self) -> bool:
        """Whether all samples were inspected, as far as they can be read."""
        return len(self.samples) == len(self.split)

    @cached_property
    def labels(self) -> list[tuple[InspectedSample, LabelFacts]]:
        """The samples whose labels can be understood."""
        return [(sample, sample.label) for sample in self.samples if sample.label]

    def pixels(self, num_classes: int) -> npt.NDArray[np.int64]:
        """int64 ``[C]``, number of pixels of each class."""
        pixels: npt.NDArray[np.int64] = self.pixels_by_file(num_classes).sum(axis=0)
        return pixels

    def pixels_by_file(self, num_classes: int) -> npt.NDArray[np.int64]:
        """int64 ``[n, C]``, number of pixels of each class in each of `labels`."""
        rows = [[label.ids.get(index, 0) for index in range(num_classes)] for _, label in self.labels]
        return np.array(rows, np.int64).reshape(-1, num_classes)

    def ignored(self) -> int:
        """Number of ignored pixels."""
        return sum(label.ids.get(self.split.decoder.ignore_index, 0) for _, label in self.labels)


@dataclass
class Inspection:
    """What the rules judge.

    Attributes:
        splits: By role.
        info: Class names and so on.
        root: The folder that paths are shown relative to.
        crop_size: Side of the training crops; None: not trained on.
        skips: Whether samples that cannot be read are skipped.
        same: Roles whose splits are those of another role.
        gaps: Lines about missing files, by role.
        unmatched: Label files without an image.
    """

    splits: dict[str, InspectedSplit]
    info: DatasetInfo
    root: Path
    crop_size: int | None = None
    skips: bool = False
    same: dict[str, str] = field(default_factory=dict)
    gaps: Mapping[str, list[str]] = field(default_factory=dict)
    unmatched: list[Path] = field(default_factory=list)

    def show(self, path: Path) -> str:
        """A path, relative to the data set's folder if it is in there."""
        return os.path.relpath(path, self.root) if path.is_relative_to(self.root) else str(path)

    def each(self) -> Iterator[tuple[InspectedSplit, InspectedSample]]:
        """All samples."""
        for split in self.splits.values():
            for sample in split.samples:
                yield split, sample

    def num_labels(self) -> int:
        """Number of label files that were read."""
        return sum(len(split.labels) for split in self.splits.values())

    def values(self) -> dict[Value, int]:
        """Number of pixels of each value in all label files."""
        return total(label.values for split in self.splits.values() for _, label in split.labels)


def total(counts: Iterable[Mapping[Value, int]]) -> dict[Value, int]:
    """The sums of numbers by value."""
    summed: Counter[Value] = Counter()
    for one in counts:
        summed.update(one)
    return dict(summed)


def understand(path: Path, mask: MaskFacts, split: FileSplit) -> tuple[LabelFacts | None, str | None]:
    """What a label file means, or why it cannot be understood."""
    if mask.error or not mask.kind:
        return None, None
    try:
        return decode_facts(path, mask, split.decoder), None
    except ValueError as error:
        return None, str(error).removeprefix(f"{path}: ")


def decode_facts(path: Path, facts: MaskFacts, decoder: LabelDecoder) -> LabelFacts:
    """What the values in a label file mean.

    Raises:
        ValueError: Its palette contradicts its indices.
    """
    swatch = facts.swatch()
    if decoder.voc_colours and swatch.mode == "P":
        check_palette(path, swatch)
    decoded = decoder.decode(swatch)
    raw, ids = decoded.values.ravel().tolist(), decoded.ids.ravel().tolist()
    unknown = decoded.undeclared.ravel().tolist()
    exact = declared(decoder, decoded.are_colours)
    by_id: Counter[int] = Counter()
    values: Counter[Value] = Counter()
    undeclared: Counter[Value] = Counter()
    meanings: dict[Value, int] = {}
    snapped = 0
    for code, index, is_unknown, count in zip(raw, ids, unknown, facts.counts, strict=True):
        value: Value = unpack(code) if decoded.are_colours else code
        values[value] += count
        if is_unknown:
            undeclared[value] += count
            continue
        meanings[value] = index
        by_id[index] += count
        snapped += count if code not in exact else 0
    sequence = tuple(-1 if one else index for one, index in zip(unknown, ids, strict=True))
    return LabelFacts(dict(by_id), dict(values), meanings, dict(undeclared), snapped, sequence)


def declared(decoder: LabelDecoder, are_colours: bool) -> set[int]:
    """The declared numbers, or packed colours."""
    flat = [value for values in [*decoder.classes, decoder.ignored] for value in values]
    numbers = [value for value in flat if isinstance(value, int)]
    if not are_colours:
        return set(numbers)
    own = {pack(value) for value in flat if not isinstance(value, int)}
    return own | ({pack(voc_colour(number)) for number in numbers if number < 256} if decoder.voc_colours else set())
