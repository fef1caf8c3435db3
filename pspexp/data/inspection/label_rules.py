"""Rules about labels: what the values in the label files mean, and which classes occur."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pspexp.data.file_split import read_label
from pspexp.data.inspection.advice import is_object_void, suggest
from pspexp.data.inspection.findings import Finding, Level
from pspexp.data.inspection.inspected import (
    InspectedSample,
    InspectedSplit,
    Inspection,
    LabelFacts,
    total,
    understand,
)
from pspexp.data.label_values import Value, show_values
from pspexp.errors import setting
from pspexp.utils.text import count, first_names

MANY = 16  # different undeclared values, above which files are not told apart
MOSTLY_IN_FILE, MOSTLY_IN_SPLIT = 0.6, 0.5  # share of void pixels


def undeclared(data: Inspection) -> Iterator[Finding]:
    """Values without a meaning; files with the same ones together."""
    files: list[tuple[InspectedSplit, InspectedSample, LabelFacts]] = []
    for split in data.splits.values():
        files += [(split, sample, label) for sample, label in split.labels if label.undeclared]
    if not files:
        return
    together = len({value for *_, label in files for value in label.undeclared}) > MANY
    groups: dict[frozenset[Value], list[tuple[InspectedSplit, InspectedSample, LabelFacts]]] = defaultdict(list)
    for one in files:
        groups[frozenset() if together else frozenset(one[2].undeclared)].append(one)
    decoder = files[0][0].split.decoder
    overrides = suggest(data.values(), data.info.class_names, decoder)
    fix = f"add {' or '.join(overrides[:2])}" if overrides else ""
    if "#" in fix:
        fix += f", with the colours in the order of {', '.join(data.info.class_names)}"
    fix = fix or (
        f"add them to {setting('dataset.label_values')} or {setting('dataset.ignore_values')}, "
        "or save the masks as PNG, without loss"
    )
    for group in groups.values():
        pixels = total(label.undeclared for *_, label in group)
        noun = "value" if isinstance(next(iter(pixels)), int) else "colour"
        paths = list(dict.fromkeys(sample.files.mask for _, sample, _ in group))
        names = first_names([data.show(path) for path in paths])
        where = f" in {count(len(paths), 'file')}: {names}" if len(paths) > 1 else ""
        # Skipping them must leave something.
        level: Level = "warning" if data.skips and len(files) < data.num_labels() else "error"
        yield Finding(
            level,
            "undeclared values",
            paths[0],
            f"label {noun} {show_values(pixels)}{where}; there are {count(len(data.info.class_names), 'class')}, with "
            f"{decoder.describe()}",
            fix,
            group[0][0].name,
            len(paths),
        )


def void_objects(data: Inspection) -> Iterator[Finding]:
    """Masks of 0 and 255 whose object is ignored."""
    labels = [(split, sample, label) for split in data.splits.values() for sample, label in split.labels]
    if not labels:
        return
    decoder, values = labels[0][0].split.decoder, data.values()
    overrides = suggest(values, data.info.class_names, decoder)
    if overrides and is_object_void(values, decoder):
        split, sample, _ = next((one for one in labels if 255 in one[2].values), labels[0])
        names = first_names(data.info.class_names[1:])
        yield Finding(
            "error",
            "label values",
            sample.files.mask,
            f"the masks contain {show_values(values)} only, and 255 is ignored: {names} cannot be learned",
            f"add {overrides[0]}",
            split.name,
            len(labels),
        )


def void_labels(data: Inspection) -> Iterator[Finding]:
    """Labels in which everything is ignored, or most of it."""
    for split in data.splits.values():
        index = split.split.decoder.ignore_index
        if not any(label.labelled(index) for _, label in split.labels):  # found by `unlabelled_splits`
            continue
        for sample, label in split.labels:
            if label.undeclared:
                continue
            pixels, void = sum(label.ids.values()), _void(label, index)
            if not label.labelled(index):
                yield Finding(
                    "warning",
                    "nothing labelled",
                    sample.files.mask,
                    f"every pixel is ignored ({show_values(label.values, 3)})",
                    "label the image, or leave it out",
                    split.name,
                )
            elif void > MOSTLY_IN_FILE * pixels:
                yield Finding(
                    "warning",
                    "mostly void",
                    sample.files.mask,
                    f"{void / pixels:.0%} of the pixels are ignored",
                    f"label the rest, or check {setting('dataset.ignore_values')}",
                    split.name,
                )


def void_splits(data: Inspection) -> Iterator[Finding]:
    """Splits in which most pixels are ignored."""
    for split in data.splits.values():
        index = split.split.decoder.ignore_index
        pixels = sum(sum(label.values.values()) for _, label in split.labels)
        void = sum(_void(label, index) for _, label in split.labels)
        if void > MOSTLY_IN_SPLIT * pixels and any(label.labelled(index) for _, label in split.labels):
            yield Finding(
                "warning",
                "mostly void",
                None,
                f"{void / pixels:.0%} of all pixels of the split {split.name} are ignored",
                f"label more, or check {setting('dataset.ignore_values')}",
                split.name,
                len(split.labels),
            )


def _void(label: LabelFacts, ignore_index: int) -> int:
    """Ignored pixels, except for a background that is meant to be: value 0 or black."""
    return sum(
        pixels
        for value, pixels in label.values.items()
        if label.meanings.get(value) == ignore_index and value not in (0, (0, 0, 0))
    )


def unlabelled_splits(data: Inspection) -> Iterator[Finding]:
    """Splits without a labelled pixel."""
    for split in data.splits.values():
        index = split.split.decoder.ignore_index
        if not split.labels or any(label.labelled(index) or label.undeclared for _, label in split.labels):
            continue
        pixels = total(label.values for _, label in split.labels)
        yield Finding(
            "error",
            "nothing labelled",
            split.labels[0][0].files.mask,
            f"no mask of the split {split.name} has a labelled pixel: {show_values(pixels)}; all are ignored",
            f"check {setting('dataset.label_values')} and {setting('dataset.ignore_values')}",
            split.name,
            len(split.labels),
        )


def missing_classes(data: Inspection) -> Iterator[Finding]:
    """Classes that do not occur in the training or validation split, and training splits with a single class."""
    names, values = data.info.class_names, data.values()
    for split in data.splits.values():
        if is_object_void(values, split.split.decoder):  # found by `void_objects`
            continue
        pixels = split.pixels(len(names))
        absent = [name for name, number in zip(names, pixels.tolist(), strict=True) if not number]
        if not pixels.any() or not absent:
            continue
        where = "" if split.is_complete else f" among {len(split.labels)} masks that were read"
        undeclared = sum(bool(label.undeclared) for _, label in split.labels)  # perhaps these are the other classes
        if len(absent) == len(names) - 1 and split.name == "train" and not undeclared:
            only = names[int(np.argmax(pixels))]
            yield Finding(
                "error",
                "one class",
                split.labels[0][0].files.mask,
                f"{only} is the only class in the training split{where}: there is nothing to learn",
                f"check the labels and {setting('dataset.label_values')}",
                split.name,
                len(split.labels),
            )
        elif split.is_complete and undeclared <= len(split.labels) / 2:
            plural = "s" if len(absent) > 1 else ""
            fix = f"label examples, or remove the class{'es' if plural else ''} from {setting('dataset.class_names')}"
            if split.name != "train":
                fix = (
                    "their scores will be undefined; move images that contain them into this split"
                    if plural
                    else ("its score will be undefined; move an image that contains it into this split")
                )
            message = (
                f"no pixel of the class{'es' if plural else ''} {first_names(absent, 8)} in the split {split.name}"
            )
            yield Finding("warning", "missing class", None, message, fix, split.name)


def palettes(data: Inspection) -> Iterator[Finding]:
    """Indices with different colours in different files, where indices are what counts."""
    seen: dict[int, Counter[str]] = defaultdict(Counter)
    owners: dict[tuple[int, str], list[tuple[InspectedSplit, Path]]] = defaultdict(list)
    for split in data.splits.values():
        for sample, label in split.labels:
            by_index = all(isinstance(value, int) for value in label.values)
            for index, colour in (sample.mask.colours if sample.mask and by_index else {}).items():
                seen[index][colour] += 1
                owners[index, colour].append((split, sample.files.mask))
    reported: set[Path] = set()
    for index, colours in seen.items():
        (usual, _), *others = colours.most_common()
        for colour, number in others:
            split, path = owners[index, colour][0]
            if path in reported:
                continue
            reported.add(path)
            yield Finding(
                "warning",
                "palettes",
                path,
                f"index {index} has the colour #{colour} in {count(number, 'file')}, but #{usual} in {colours[usual]}; "
                "the indices count",
                f"check that index {index} means the same in all, or give colours in {setting('dataset.label_values')}",
                split.name,
                number,
            )


def snapped_values(data: Inspection) -> Iterator[Finding]:
    """Pixels taken for a declared value that they are only near to."""
    for split in data.splits.values():
        files = [(sample, label) for sample, label in split.labels if label.snapped]
        if files:
            pixels = sum(label.snapped for _, label in files)
            every = sum(sum(label.values.values()) for _, label in split.labels)
            tolerance = setting("dataset.label_tolerance", split.split.decoder.tolerance)
            yield Finding(
                "warning",
                "lossy labels",
                files[0][0].files.mask,
                f"{pixels:,} pixels ({pixels / every:.2%}) in {count(len(files), 'file')} have no declared value, and "
                f"are taken for the nearest ({tolerance})",
                "save the masks as PNG if you can: edges are unreliable in lossy files",
                split.name,
                len(files),
            )


def stale_copies(data: Inspection) -> Iterator[Finding]:
    """Labels in ``SegmentationClassGray`` that are not those in ``SegmentationClass``."""
    for split, sample in data.each():
        (mine, theirs), other = sample.stats, sample.other_path
        if other is None or not mine or not theirs or not sample.label or not _differs(split, sample):
            continue
        age = ", which is newer" if mine.mtime_ns < theirs.mtime_ns else ""
        yield Finding(
            "error",
            "stale copy",
            sample.files.mask,
            f"is used, but its labels differ from those in {data.show(other)}{age}",
            f"remove {sample.files.mask.parent.name}, or regenerate it with tools/convert_voc_label.py",
            split.name,
        )


def _differs(split: InspectedSplit, sample: InspectedSample) -> bool:
    """Whether the two files mean something different, as far as the other file can be understood."""
    mask, other, path = sample.mask, sample.other, sample.other_path
    assert mask
    assert path
    assert sample.label
    if other is None or other.error:
        return False
    label, _ = understand(path, other, split.split)
    if label is None or label.undeclared:  # in colours of its own: at least the areas can be compared
        return other.layout != mask.layout and len(other.values) == len(mask.values)
    if other.layout == mask.layout and label.sequence == sample.label.sequence:
        return False
    if label.ids != sample.label.ids or other.stored != mask.stored:
        return True
    first, second = (read_label(one, split.split.decoder) for one in (sample.files.mask, path))
    return not np.array_equal(first.ids, second.ids)
