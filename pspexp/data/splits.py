"""Which samples a split consists of: split files, or a share by a hash of the id."""

import codecs
import hashlib
import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pspexp.errors import UserError, did_you_mean, setting
from pspexp.utils.text import count, first_names

BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# A name, then columns of numbers, from its end: forwards, a long line takes time that grows with its square.
NUMBERS_REVERSED = re.compile(r"(?:\d+[-+]?[\s,;]+)+(.+)")
MAX_COMPARED = 5000  # ids that a missing one is compared with
MAX_PATH = 4096  # characters; systems allow no more
SEPARATOR = re.compile(r"\s*[\t,;]\s*|\s+")  # between image and mask in a line

log = logging.getLogger(__name__)


class SampleFiles(NamedTuple):
    """A sample's name and files."""

    name: str
    image: Path
    mask: Path


def text_lines(path: Path) -> list[str]:
    """The lines of a file in UTF-8, or in UTF-16 with a byte order mark, without blank ones and surrounding space.

    Raises:
        UserError: It cannot be read; only the reason, for a longer message.
    """
    try:
        data = path.read_bytes()
        encoding = next((name for bom, name in BOMS.items() if data.startswith(bom)), "utf-8")
        text = data.decode(encoding).removeprefix("\ufeff")
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text; save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without a byte order mark, or UTF-32
        raise UserError("not UTF-8 text; save it as UTF-8")
    # Not splitlines(), which splits at characters that names may contain.
    return [line.strip() for line in re.split(r"\r\n?|\n", text) if line.strip()]


def read_lines(path: Path, key: str, split: str) -> list[str]:
    """The lines of a split file, without blank ones and surrounding white space.

    Args:
        path: The file.
        key: The setting that names the split, for messages.
        split: The name of the split.

    Raises:
        UserError: It cannot be read or is empty; the message lists the splits there are.
    """
    try:
        lines = text_lines(path)
    except UserError as error:
        known = sorted(file.stem for file in path.parent.glob(f"*{path.suffix}") if file.name[0] != ".")
        there = f"{path.parent} contains {', '.join(known) or 'no split files'}"
        raise UserError(f"{key}={split}: cannot read {path} ({error}); {there}{did_you_mean(split, known)}") from error
    if not lines:
        raise UserError(f"{key}={split}: {path} is empty; list one sample per line")
    return lines


class _Lookup:
    """Finds files by id, by path below ``root`` or by name."""

    def __init__(self, files: Mapping[str, Path], root: Path) -> None:
        self.files, self._root = files, root

    def __call__(self, text: str) -> str | None:
        """The id of the file that ``text`` names."""
        if text in self.files:
            return text
        named = self._by_name.get(text, [])
        return self._by_path.get(text) or (named[0] if len(named) == 1 else None)

    def is_ambiguous(self, text: str) -> bool:
        """Whether several files have this name."""
        return len(self._by_name.get(text, [])) > 1

    @cached_property
    def _by_path(self) -> dict[str, str]:
        root = self._root
        return {file.relative_to(root).as_posix(): name for name, file in self.files.items() if root in file.parents}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name, file in self.files.items():
            found[file.name].append(name)
        return dict(found)


def find_samples(
    lines: Sequence[str], images: Mapping[str, Path], masks: Mapping[str, Path], root: Path, path: Path
) -> tuple[list[SampleFiles], list[str]]:
    """The samples in the lines of a split file, and the problems with them.

    A line is an id, the name or path of an image, or an image and its mask. If all lines end in columns of numbers,
    such as class numbers, these are ignored.

    Args:
        lines: The lines of the file.
        images: Image files by id.
        masks: Mask files by id.
        root: The folder of the data set.
        path: The split file, for messages.
    """
    found: dict[Path, SampleFiles] = {}
    repeated: list[str] = []
    no_image: list[str] = []
    no_mask: list[str] = []
    image_of, mask_of = _Lookup(images, root), _Lookup(masks, root)
    exists = _Existence()
    for line, text in zip(lines, _first_columns(lines, root, image_of), strict=True):
        name = image_of(text)
        if name is None:
            sample = _pair(text, image_of, mask_of, root, exists)
        else:
            sample = SampleFiles(name, images[name], masks[name]) if name in masks else None
        if sample is None:
            (no_image if name is None else no_mask).append(line)
        elif sample.image in found:
            repeated.append(sample.name)
        else:
            found[sample.image] = sample
    without_both = [line for line in no_image if mask_of(below(root, line)) is None]
    if len(without_both) < len(no_image):  # else the names are wrong, and saying so once is enough
        without_mask = {*no_mask, *without_both}
        no_mask = [line for line in lines if line in without_mask]
    problems = []
    if no_image:
        problems.append(_missing_images(no_image, images, image_of, root, path))
    if no_mask:
        problems.append(f"{path}: {count(len(no_mask), 'mask')} missing: {first_names(no_mask)}")
    if repeated:
        names = first_names(sorted({*repeated}))
        problems.append(f"{path}: lists {names} more than once; remove the repetitions")
    return [*found.values()], problems


def _first_columns(lines: Sequence[str], root: Path, image_of: _Lookup) -> list[str]:
    """What the lines name, relative to ``root``, without the numbers behind it if all lines have some."""
    texts = [below(root, unicodedata.normalize("NFC", line)) for line in lines]
    without = [
        match[1][::-1] for text in texts if image_of(text) is None and (match := NUMBERS_REVERSED.fullmatch(text[::-1]))
    ]
    return without if len(without) == len(texts) and any(map(image_of, without)) else texts


def _missing_images(lines: Sequence[str], images: Mapping[str, Path], image_of: _Lookup, root: Path, path: Path) -> str:
    """A message about lines that name no image."""
    several = f" ({first_names(lines[:1])} is in several folders)" if image_of.is_ambiguous(lines[0]) else ""
    hint = did_you_mean(lines[0], [*images][:MAX_COMPARED])
    return (
        f"{path}: {count(len(lines), 'image')} missing: {first_names(lines)}{several}{hint}; a line is an id, an "
        f"image, or an image and its mask, as paths below {root}"
    )


def below(root: Path, text: str) -> str:
    """A path in a split file, relative to ``root``."""
    text = text.replace("\\", "/").removeprefix(f"{root.absolute()}/").removeprefix(f"{root}/")
    return text.removeprefix("./").removeprefix("/")


def _pair(line: str, image_of: _Lookup, mask_of: _Lookup, root: Path, exists: "_Existence") -> SampleFiles | None:
    """The sample that an image and its mask in a line are; both may contain spaces."""
    if len(line) > 2 * MAX_PATH:
        return None
    for match in SEPARATOR.finditer(line):
        parts = [below(root, part.strip("\"' ")) for part in (line[: match.start()], line[match.end() :])]
        if not all(parts):
            continue
        name, mask = image_of(parts[0]), mask_of(parts[1])
        if name is not None and mask is not None:
            return SampleFiles(name, image_of.files[name], mask_of.files[mask])
        if exists(root / parts[0]) and exists(root / parts[1]):
            return SampleFiles(str(Path(parts[0]).with_suffix("")), root / parts[0], root / parts[1])
    return None


class _Existence:
    """Whether files exist. Each folder is listed once, since a query per file is slow on network drives."""

    def __init__(self) -> None:
        self._files: dict[Path, frozenset[str]] = {}

    def __call__(self, path: Path) -> bool:
        if path.parent not in self._files:
            names: frozenset[str] = frozenset()
            with suppress(OSError), os.scandir(path.parent) as entries:
                names = frozenset(entry.name for entry in entries if entry.is_file())
            self._files[path.parent] = names
        return path.name in self._files[path.parent]


def by_hash(ids: Iterable[str], val_fraction: float) -> dict[str, list[str]]:
    """The ids of the splits ``train`` and ``val``, in order.

    An id belongs to ``val`` if a hash of it, read as a fraction, is below ``val_fraction``: further ids move no other,
    unless a split would be empty. The id whose hash is nearest to the fraction is then moved there.
    """
    position = {name: hash_fraction(name) for name in ids}
    split = {name: "val" if where < val_fraction else "train" for name, where in position.items()}
    if 0 < val_fraction < 1 and len(position) > 1 and len({*split.values()}) == 1:
        nearest = min(position, key=lambda name: (abs(position[name] - val_fraction), name))
        other = {"train": "val", "val": "train"}[split[nearest]]
        split[nearest] = other
        log.info(
            "%s: no image's hash is in %s; %s is moved there",
            setting("dataset.val_fraction", val_fraction),
            other,
            nearest,
        )
    return {part: sorted(name for name in position if split[name] == part) for part in ("train", "val")}


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name only, the same on every machine."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
