"""CVAT's "Segmentation mask 1.1": RGB PNGs, and the colour of each label in ``labelmap.txt``."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pspexp.data.labels import Labels, count_colours, open_label
from pspexp.data.preparation.annotations.classes import BACKGROUND, Classes, clean_label, unknown_label
from pspexp.data.preparation.annotations.files import files_below, read_bytes, relative_name
from pspexp.data.preparation.annotations.items import Found, Options, Overlap
from pspexp.errors import UserError
from pspexp.utils.text import count, first_names

LABEL_MAP, _MASKS = "labelmap.txt", "SegmentationClass"
_BLACK = 0


class _ColourLabel(NamedTuple):
    """An image in the colours of a label map, packed as ``red << 16 | green << 8 | blue``."""

    source: str
    name: str
    label_of: dict[int, str]

    def labels(self) -> Iterable[str]:
        return ()  # known only when the image has been read

    def render(self, classes: Classes, overlap: Overlap) -> tuple[Labels, str]:
        """See `pspexp.data.preparation.annotations.items.Item`."""
        image = open_label(Path(self.source))
        if image.mode == "L":
            raise UserError(f"{self.source}: is grey, but {LABEL_MAP} defines RGB colours; export it again")
        rgb = np.asarray(image.convert("RGB"))
        packed = rgb.astype(np.int32) @ (1 << 16, 1 << 8, 1)
        pixels = np.zeros(packed.shape, np.uint8)
        unknown = np.ones(packed.shape, bool)
        for colour, label in self.label_of.items():
            mask = packed == colour
            unknown &= ~mask
            index = classes.value(label)
            if index is None and mask.any():
                raise UserError(unknown_label(label, classes.names, self.source))
            pixels[mask] = index or 0
        if unknown.any():
            colours = [f"{colour} ({count(number, 'pixel')})" for colour, number in count_colours(rgb[unknown]).items()]
            raise UserError(
                f"{self.source}: {count(len(colours), 'colour')} not in {LABEL_MAP}: {first_names(colours)}; add them"
            )
        return pixels, ""


def read_masks(source: Path, options: Options) -> Found:
    """Read a folder with ``labelmap.txt`` and ``SegmentationClass``, or the latter. See `Found`."""
    if not (source / LABEL_MAP).is_file():
        source = source.absolute().parent
    label_of = _label_map(source / LABEL_MAP)
    folder = source / _MASKS
    files = files_below(folder, ".png")
    items = [_ColourLabel(str(path), relative_name(path, folder, path.suffix), label_of) for path in files]
    return Found(list(items), list(dict.fromkeys(label_of.values())))


def _label_map(path: Path) -> dict[int, str]:
    """The label of each packed colour, in the order of the file; black is the background unless it says otherwise."""
    labels: dict[int, str] = {}
    problems = []
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; export it again") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            label, colour = _label_and_colour(line)
        except ValueError as error:
            problems.append(f"{path}: line {number}: {error}")
            continue
        if labels.setdefault(colour, label) != label:
            problems.append(f"{path}: line {number}: '{label}' has the colour of '{labels[colour]}'; change one")
    if problems:
        raise UserError(*problems)
    return labels if _BLACK in labels else {_BLACK: BACKGROUND, **labels}


def _label_and_colour(line: str) -> tuple[str, int]:
    """The first fields of ``label:red,green,blue:parts:actions``."""
    label, _, rest = line.partition(":")
    channels = rest.partition(":")[0].split(",")
    values = [int(channel) if channel.strip().isdecimal() else -1 for channel in channels]
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise ValueError(f"'{line.strip()}' is not label:red,green,blue::; correct it")
    return clean_label(label), values[0] << 16 | values[1] << 8 | values[2]
