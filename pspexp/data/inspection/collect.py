"""Reads the facts about the files of splits, in parallel."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from pspexp.data.file_split import FileSplit
from pspexp.data.inspection.cache import FactsCache
from pspexp.data.inspection.facts import (
    Header,
    ImageFacts,
    MaskFacts,
    Stat,
    read_image_facts,
    read_mask_facts,
)
from pspexp.data.inspection.inspected import InspectedSample, InspectedSplit, LabelFacts, understand
from pspexp.data.splits import SampleFiles
from pspexp.data.voc import GREY_LABELS, LABELS
from pspexp.utils.progress import SLOW_S, Progress

CHUNK = 100  # samples between two looks at the classes seen so far
OnDone = Callable[[int], None]
Read = TypeVar("Read")


def common_root(splits: Iterable[FileSplit]) -> Path:
    """The folder that contains all files of the splits."""
    folders = {str(path.parent.absolute()) for split in splits for _, *paths in split.samples for path in paths}
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:  # there are no files, or they are on several drives
        return Path(min(folders, default="."))


class Reader:
    """Reads facts, or takes them from the cache.

    Args:
        cache: The cache, which the caller saves.
        on_done: Called with the number of samples that were inspected since the last call.
    """

    def __init__(self, cache: FactsCache, on_done: OnDone = lambda _: None) -> None:
        self._cache, self._on_done = cache, on_done

    def inspect(self, split: FileSplit, indices: Sequence[int], *, decode_images: bool) -> list[InspectedSample]:
        """Facts about some samples of a split, images and labels."""

        def one(index: int) -> InspectedSample:
            return self._sample(split.samples[index], split, decode_images)

        return self._each(one, indices)

    def labels(self, split: FileSplit, indices: Sequence[int]) -> list[LabelFacts | None]:
        """What is in some label files of a split; None for one that cannot be read or understood."""

        def one(index: int) -> LabelFacts | None:
            path = split.samples[index].mask
            return understand(path, self._mask(path, split.max_pixels)[0], split)[0]

        return self._each(one, indices)

    def _each(self, read: Callable[[int], Read], indices: Sequence[int]) -> list[Read]:
        # Pillow decodes without Python's lock. More threads than cores, for network drives.
        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            found = []
            for result in pool.map(read, indices):
                found.append(result)
                self._on_done(1)
        return found

    def _sample(self, files: SampleFiles, split: FileSplit, decode_images: bool) -> InspectedSample:
        image, _ = self._image(files.image, split.max_pixels, decode_images)
        mask, mask_stat = self._mask(files.mask, split.max_pixels)
        other_path, other, other_stat = origin(files.mask), None, None
        if other_path is not None:
            other, other_stat = self._mask(other_path, split.max_pixels)
        label, error = understand(files.mask, mask, split)
        return InspectedSample(files, image, mask, label, error, other, other_path, (mask_stat, other_stat))

    def _image(self, path: Path, max_pixels: int, decode: bool) -> tuple[ImageFacts, Stat | None]:
        try:
            stat = stat_of(path)
        except OSError as error:
            return ImageFacts(error=error.strerror), None
        known = self._cache.get(ImageFacts, path, stat)
        if known is None or (decode and not complete(known, max_pixels)):
            known = read_image_facts(path, max_pixels, decode=decode)
            self._keep(path, stat, known)
        return known, stat

    def _mask(self, path: Path, max_pixels: int) -> tuple[MaskFacts, Stat | None]:
        try:
            stat = stat_of(path)
        except OSError as error:
            return MaskFacts(error=error.strerror), None
        known = self._cache.get(MaskFacts, path, stat)
        if known is None or not (known.error or known.kind or known.width * known.height > max_pixels):
            known = read_mask_facts(path, max_pixels)
            self._keep(path, stat, known)
        return known, stat

    def _keep(self, path: Path, stat: Stat, facts: Header) -> None:
        if facts.error in (None, "unknown format", "empty") or facts.width:  # not: permissions, lost connections
            self._cache.put(path, stat, facts)


def complete(facts: ImageFacts, max_pixels: int) -> bool:
    """Whether decoding would bring nothing new."""
    failed = facts.error is not None and bool(facts.digest or not facts.width)
    return facts.is_decoded or failed or facts.width * facts.height > max_pixels


def origin(mask: Path) -> Path | None:
    """The file in ``SegmentationClass`` that a label in ``SegmentationClassGray`` was made from, or None."""
    if mask.parent.name != GREY_LABELS:
        return None
    path = mask.parent.parent / LABELS / f"{mask.stem}.png"
    return path if path.is_file() else None


def stat_of(path: Path) -> Stat:
    """Size and time of modification."""
    found = path.stat()
    return Stat(found.st_size, found.st_mtime_ns)


def inspect_all(
    splits: Mapping[str, FileSplit], cache: FactsCache, on_done: OnDone = lambda _: None
) -> dict[str, InspectedSplit]:
    """All samples of all splits, images decoded."""
    reader = Reader(cache, on_done)
    found = {
        role: InspectedSplit(role, split, reader.inspect(split, range(len(split)), decode_images=True))
        for role, split in splits.items()
    }
    cache.save()
    return found


def inspect_quickly(
    splits: Mapping[str, FileSplit], num_classes: int, cache: FactsCache, limit: int
) -> dict[str, InspectedSplit]:
    """Headers of images, and labels: all of a split, or if it is larger, in a fixed random order some of it.

    Of a split with more than ``limit`` samples, labels are read until each class was seen, at most ``limit``.
    """
    found = {}
    sizes = [min(len(split), limit) for split in splits.values()]
    with Progress(sum(sizes), "checking the labels", unit="image", delay_s=SLOW_S) as progress:
        reader = Reader(cache, progress.add)
        for role, split in splits.items():
            found[role] = InspectedSplit(role, split, look_at(reader, split, num_classes, limit))
    cache.save()
    return found


def look_at(reader: Reader, split: FileSplit, num_classes: int, limit: int) -> list[InspectedSample]:
    """The samples of a split that `inspect_quickly` looks at."""
    samples: list[InspectedSample] = []
    order = range(len(split)) if len(split) <= limit else np.random.default_rng(0).permutation(len(split)).tolist()
    seen: set[int] = set()
    for start in range(0, min(len(order), limit), CHUNK):
        new = reader.inspect(split, order[start : min(start + CHUNK, limit)], decode_images=False)
        samples += new
        seen.update(index for one in new if one.label for index in one.label.ids if index < num_classes)
        if len(split) > limit and len(seen) == num_classes:
            break
    return samples
