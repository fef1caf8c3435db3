"""Rules about files: whether they can be read, fit together and occur once."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from pspexp.data.inspection.facts import THUMBNAIL, Header
from pspexp.data.inspection.findings import Finding, Level
from pspexp.data.inspection.inspected import InspectedSample, InspectedSplit, Inspection
from pspexp.errors import setting
from pspexp.utils.text import count, first_names

SMALL = 0.25  # of the crop's area
UNLIKE = 16  # factor between an image's area and the median
# Largest mean and single difference of the grey values in two thumbnails of the same image, which a change of size or
# of quality leaves. Consecutive frames of a video differ by more.
SAME_MEAN, SAME_MAX = 1.0, 8
FLAT = 4.0  # standard deviation of a thumbnail without content


def unreadable(data: Inspection) -> Iterator[Finding]:
    """Files that are empty, damaged or of another kind."""
    for split, sample in data.each():
        for path, facts in ((sample.files.image, sample.image), (sample.files.mask, sample.mask)):
            if facts is None:
                continue
            fix = "replace the file"
            if not data.skips:
                fix += f", or leave the sample out with {setting('dataset.on_error', 'skip')}"
            if facts.error == "empty":
                yield _bad(data, split, "empty", path, "is empty (0 bytes)", fix)
            elif facts.error:
                yield _bad(data, split, "unreadable", path, f"cannot be read ({facts.error})", fix)
            elif facts.width * facts.height > split.split.max_pixels:
                message = f"{facts.width}×{facts.height} pixels are more than the limit"
                limit = setting("dataset.max_image_pixels", facts.width * facts.height)
                yield _bad(data, split, "too large", path, message, f"set {limit}, or resize the image")
            elif path == sample.files.image and facts.bands not in (0, split.split.num_bands):
                message = (
                    f"has {facts.bands} bands, but {setting('dataset.mean')} {count(split.split.num_bands, 'value')}"
                )
                fix = f"give {setting('dataset.mean')} and {setting('dataset.std')} one value per band"
                yield _bad(data, split, "bands", path, message, fix)
        if sample.label_error:
            fix = "save the labels again with palette and indices that agree"
            yield _bad(data, split, "palette", sample.files.mask, sample.label_error, fix)


def nothing_readable(data: Inspection) -> Iterator[Finding]:
    """Splits without a single sample that can be read, which skipping would leave empty."""
    for split in data.splits.values() if data.skips else ():
        seen = [sample for sample in split.samples if sample.image or sample.mask]
        if seen and all(facts is not None and facts.error for one in seen for facts in [worst(one)]):
            message = f"none of the {count(len(seen), 'sample')} of the split {split.name} can be read"
            yield Finding("error", "nothing readable", seen[0].files.image, message, "replace the files", split.name)


def worst(sample: InspectedSample) -> Header | None:
    """The facts about the file of a sample that cannot be read, else about any."""
    known = [facts for facts in (sample.image, sample.mask) if facts is not None]
    return next((facts for facts in known if facts.error), known[0] if known else None)


def refused_modes(data: Inspection) -> Iterator[Finding]:
    """Images whose pixels have no defined range."""
    for split, sample in data.each():
        if sample.image and sample.image.refused:
            message = sample.image.refused.partition(";")[0]
            yield _bad(data, split, "image mode", sample.files.image, message, "convert it to 8 or 16 bits per channel")


def different_sizes(data: Inspection) -> Iterator[Finding]:
    """Labels that do not have the size of their image."""
    for split, sample in data.each():
        image, mask = sample.image, sample.mask
        if not (image and mask and image.width and mask.width) or image.shown == mask.stored:
            continue
        (width, height), shown = mask.stored, image.shown
        if image.stored == mask.stored:
            yield Finding(
                "warning",
                "orientation",
                sample.files.image,
                f"its EXIF orientation {image.orientation} is ignored, since the mask has the size of the image as "
                f"stored ({width}×{height}), not as shown ({shown[0]}×{shown[1]})",
                "remove the EXIF tag if image and mask match as stored; else rotate the mask",
                split.name,
            )
            continue
        other = sample.files.image.name
        message = f"{width}×{height} pixels, but its image {other} has {shown[0]}×{shown[1]}"
        fix = "export the mask in the size of the image (nearest neighbour)"
        if (width, height) == (shown[1], shown[0]):
            fix = "rotate the mask or the image by 90°"
        yield _bad(data, split, "size", sample.files.mask, message, fix)


def several_frames(data: Inspection) -> Iterator[Finding]:
    """Animations and image stacks."""
    for split, sample in data.each():
        for path, facts in ((sample.files.image, sample.image), (sample.files.mask, sample.mask)):
            if facts and facts.frames > 1:
                fix = "save the frames as files of their own if the others matter"
                yield Finding(
                    "warning", "frames", path, f"has {facts.frames} frames; only the first is used", fix, split.name
                )


def missing_files(data: Inspection) -> Iterator[Finding]:
    """Samples without an image or label, and labels without an image."""
    for role, lines in data.gaps.items():
        for line in lines:
            head, _, rest = line.partition(": ")
            message, _, fix = rest.partition("; ")
            fix = fix or "add the files, or remove the lines"
            path = Path(head) if head else None
            yield Finding("warning" if data.skips else "error", "missing files", path, message, fix, role)
    if data.unmatched:
        names = first_names([path.name for path in data.unmatched])
        yield Finding(
            "warning",
            "missing files",
            data.unmatched[0],
            f"{count(len(data.unmatched), 'mask')} without an image: {names}",
            "add the images, or remove the masks",
            number=len(data.unmatched),
        )


def shared_samples(data: Inspection) -> Iterator[Finding]:
    """Samples in two splits."""
    for role, other in data.same.items():
        if {role, other} == {"train", "val"}:
            message = f"{role} and {other} are the same split: the scores say nothing about other images"
            keys = f"{setting('dataset.train_split')} and {setting('dataset.val_split')}"
            yield Finding("warning", "in two splits", None, message, f"choose different {keys}", role)
    for first, second in _pairs(list(data.splits.values())):
        # Not by name: folders of splits may number their images alike.
        images = {sample.image for sample in first.split.samples}
        both = [one for one in second.split.samples if one.image in images]
        for sample in both:
            yield Finding(
                "error",
                "in two splits",
                sample.image,
                f"{sample.name} is in both {first.name} and {second.name}",
                "remove it from one of them: scores on training images mean nothing"
                if first.name == "train"
                else "remove it from one of them",
                second.name,
            )


def duplicates(data: Inspection) -> Iterator[Finding]:
    """Files with the same bytes."""
    groups: dict[str, list[tuple[InspectedSplit, InspectedSample]]] = defaultdict(list)
    seen: set[Path] = set()
    for split, sample in data.each():
        if sample.image and sample.image.digest and sample.image.error is None and sample.files.image not in seen:
            seen.add(sample.files.image)  # the same file in two splits is another finding
            groups[sample.image.digest].append((split, sample))
    for group in groups.values():
        (split, sample), *others = group
        if not others:
            continue
        roles = list(dict.fromkeys(one.name for one, _ in group))
        level: Level = "error" if "train" in roles and len(roles) > 1 else "warning"
        other = first_names([data.show(one.files.image) for _, one in others])
        where = f"in {' and '.join(roles)}" if len(roles) > 1 else f"all in {roles[0]}"
        message = f"has the same bytes as {other} ({where})"
        yield Finding(level, "duplicate", sample.files.image, message, "keep one of them", split.name, len(others))


def near_duplicates(data: Inspection) -> Iterator[Finding]:
    """The same image twice, in another size, format or quality."""
    splits = list(data.splits.values())
    for first, second in [*_pairs(splits), *zip(splits, splits, strict=True)]:
        fix = "remove one of them" if first is second else "keep both in one split, or remove one of them"
        for one, other in _similar(first, second):
            message = f"looks like {data.show(one.files.image)}, which is in {first.name}"
            yield Finding("warning", "near-duplicate", other.files.image, message, fix, second.name)


def _similar(first: InspectedSplit, second: InspectedSplit) -> Iterator[tuple[InspectedSample, InspectedSample]]:
    """Pairs of samples with the same signature, except those with the same bytes or file; of one split each once."""
    from scipy.spatial import cKDTree  # takes half a second to import

    (ours, a), (theirs, b) = _signatures(first), _signatures(second)
    if not len(a) or not len(b):
        return
    # Sixteen means of 4×4 values each cannot differ by more than the values do.
    coarse = [cKDTree(one.reshape(-1, 4, 4, 4, 4).mean(axis=(2, 4)).reshape(-1, 16)) for one in (a, b)]
    for index, candidates in enumerate(coarse[0].query_ball_tree(coarse[1], SAME_MAX, p=np.inf)):
        for candidate in candidates:
            difference = np.abs(a[index] - b[candidate])
            one, other = ours[index], theirs[candidate]
            if first is second and candidate <= index:
                continue
            if difference.mean() > SAME_MEAN or difference.max() > SAME_MAX:
                continue
            assert one.image
            assert other.image
            if one.image.digest != other.image.digest and one.files.image != other.files.image:
                yield one, other


def _signatures(
    split: InspectedSplit,
) -> tuple[list[InspectedSample], "np.ndarray[tuple[int, int], np.dtype[np.float32]]"]:
    samples = [sample for sample in split.samples if sample.image and sample.image.thumbnail]
    rows = [list(bytes.fromhex(sample.image.thumbnail)) for sample in samples if sample.image]
    values = np.array(rows, np.float32).reshape(len(rows), THUMBNAIL[0] * THUMBNAIL[1])
    kept = np.flatnonzero(values.std(axis=1) >= FLAT) if rows else np.array([], np.int64)
    return [samples[index] for index in kept], values[kept] if rows else np.zeros((0, 256), np.float32)


def small_images(data: Inspection) -> Iterator[Finding]:
    """Training images of which most of a crop is padding."""
    split = data.splits.get("train")
    if split is None or data.crop_size is None:
        return
    side, shown = data.crop_size, [one for one in split.samples if one.image and one.image.width]
    small = [one for one in shown if one.image and np.minimum(one.image.shown, side).prod() < SMALL * side * side]
    if small and small[0].image:
        width, height = small[0].image.shown
        yield Finding(
            "warning",
            "small images",
            small[0].files.image,
            f"{count(len(small), 'image')} of {len(shown)} ({len(small) / len(shown):.0%}), such as this one of "
            f"{width}×{height} pixels, fill less than a quarter of a crop; the rest is padding",
            f"choose a {setting('crop_size')} below {side}, or leave these images out",
            split.name,
            len(small),
        )


def unlike_sizes(data: Inspection) -> Iterator[Finding]:
    """Images that are much larger or smaller than most."""
    for split in data.splits.values():
        areas = [(one.image.width * one.image.height, one) for one in split.samples if one.image and one.image.width]
        if not areas:
            continue
        usual = median(area for area, _ in areas)
        for area, sample in areas:
            assert sample.image
            if not usual / UNLIKE <= area <= usual * UNLIKE:
                width, height = sample.image.shown
                side = round(usual**0.5)
                yield Finding(
                    "warning",
                    "unusual size",
                    sample.files.image,
                    f"{width}×{height} pixels; most images are about as large as {side}×{side}",
                    "bring objects to a similar size: resize the image, or leave it out",
                    split.name,
                )


def _bad(data: Inspection, split: InspectedSplit, kind: str, path: Path, message: str, fix: str) -> Finding:
    """A sample that cannot be read: an error, unless such samples are skipped."""
    skipped = " (skipped)" if data.skips else ""
    return Finding("warning" if data.skips else "error", kind, path, message + skipped, fix, split.name)


def _pairs(splits: Sequence[InspectedSplit]) -> Iterator[tuple[InspectedSplit, InspectedSplit]]:
    for index, first in enumerate(splits):
        for second in splits[index + 1 :]:
            yield first, second
