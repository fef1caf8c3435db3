"""Facts about image and label files that do not depend on the configuration."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageStat, UnidentifiedImageError

from pspexp.data.band_files import NO_TIFFFILE, TiffHeader, is_tiff, tiff_header
from pspexp.data.images import BROKEN_IMAGE, TURNS, any_size, check_depth, orientation, to_rgb
from pspexp.data.label_decoder import as_label
from pspexp.data.labels import palette_colours
from pspexp.errors import UserError

THUMBNAIL = (16, 16)  # pixels of the perceptual signature
MAX_VALUES = 16_384  # different values kept of a label file, the most frequent ones: a lossy one may have any number
ANIMATED = ("GIF", "TIFF", "WEBP", "PNG")  # formats whose further frames are no thumbnails or depth maps of the first
_SWAPPED = tuple(turn for turn in TURNS if turn >= 5)  # EXIF orientations that exchange width and height

Size = tuple[int, int]


class Stat(NamedTuple):
    """Size in bytes and time of the last modification of a file."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        error: Why the file cannot be read; None if it can, as far as it was read.
        width: Width as stored, in pixels.
        height: Height as stored.
        mode: Pillow's mode.
        format: Pillow's name of the format.
        orientation: EXIF orientation.
        frames: Number of images in the file.
        bands: Number of bands of a TIFF file that Pillow cannot read, or 0.
    """

    error: str | None = None
    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    orientation: int = 1
    frames: int = 1
    bands: int = 0

    @property
    def stored(self) -> Size:
        """Width and height as stored."""
        return self.width, self.height

    @property
    def shown(self) -> Size:
        """Width and height with the orientation applied."""
        return (self.height, self.width) if self.orientation in _SWAPPED else (self.width, self.height)


@dataclass(frozen=True)
class ImageFacts(Header):
    """Facts about an image file.

    Attributes:
        is_decoded: Whether the pixels were decoded; else the attributes below are empty.
        refused: Why the image has no defined conversion to RGB, or None.
        digest: Hash of the file's bytes.
        thumbnail: 16×16 grey values in hexadecimal digits.
        mean: Mean of red, green and blue, 0 to 255.
        std: Standard deviation, likewise.
    """

    is_decoded: bool = False
    refused: str | None = None
    digest: str = ""
    thumbnail: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class MaskFacts(Header):
    """Facts about a label file.

    Attributes:
        kind: Mode of the values: ``1``, ``L``, ``P``, ``I`` (numbers) or ``RGB`` (packed colours).
        values: The values in the file, in the order of their first pixels.
        counts: Number of pixels of each value.
        palette: Colours of a palette, RGB in hexadecimal digits.
        layout: Hash of the areas, whatever their values.
    """

    kind: str = ""
    values: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    palette: str = ""
    layout: str = ""

    @property
    def colours(self) -> dict[int, str]:
        """The colour, in six hexadecimal digits, of each used index of a palette image."""
        found = {value: self.palette[6 * value : 6 * value + 6] for value in self.values} if self.kind == "P" else {}
        return {value: colour for value, colour in found.items() if colour}

    def swatch(self) -> Image.Image:
        """An image of one pixel per value, which a decoder understands as it does the file."""
        values = np.array([self.values], np.int32)
        if self.kind == "RGB":
            return Image.fromarray(np.stack([values >> 16, values >> 8 & 255, values & 255], axis=2).astype(np.uint8))
        if self.kind == "I":
            return Image.fromarray(values)
        if self.kind == "1":
            return Image.fromarray((values * 255).astype(np.uint8)).convert("1")
        image = Image.fromarray(values.astype(np.uint8))
        if self.kind == "P":
            image.putpalette(bytes.fromhex(self.palette))
        return image


def read_image_facts(path: Path, max_pixels: int, *, decode: bool) -> ImageFacts:
    """Facts about an image file.

    Args:
        path: The file.
        max_pixels: Larger images are not decoded.
        decode: Whether to decode any.
    """
    header = tiff_header(path)
    if header is not None and header.bands > 4:  # Pillow would log an error
        return _tiff_facts(path, header, decode=decode)
    facts = _pillow_facts(path, max_pixels, decode=decode)
    if facts.error and header is not None:
        return _tiff_facts(path, header, decode=decode)
    return ImageFacts(error=NO_TIFFFILE) if facts.error and is_tiff(path) and find_spec("tifffile") is None else facts


def _tiff_facts(path: Path, header: TiffHeader, *, decode: bool) -> ImageFacts:
    """Facts about a file that only tifffile can read; its pixels are not looked at."""
    facts = ImageFacts(**header._asdict(), mode=f"{header.bands} bands", format="TIFF", is_decoded=decode)
    if decode:
        with _errors() as problem:
            facts = replace(facts, digest=hashlib.blake2b(_bytes(path), digest_size=16).hexdigest())
        return replace(facts, error=problem.text)
    return facts


def _pillow_facts(path: Path, max_pixels: int, *, decode: bool) -> ImageFacts:
    facts = ImageFacts()
    if not decode:  # the header alone: the rest of the file is not transferred from a network drive
        with _errors() as problem, _opened(path) as image:
            facts = ImageFacts(**_header(image))
        return replace(facts, error=problem.text)
    with _errors() as problem:
        data = _bytes(path)
        facts = replace(facts, digest=hashlib.blake2b(data, digest_size=16).hexdigest())
        with _opened(BytesIO(data)) as image:
            facts = replace(facts, **_header(image))
            if image.width * image.height > max_pixels:
                return facts
            image.load()
            facts = replace(facts, is_decoded=True)
            try:
                rgb = to_rgb(image, "")
            except UserError as error:
                return replace(facts, refused=str(error).removeprefix(": "))
            stat = ImageStat.Stat(rgb)
            grey = rgb.convert("L").resize(THUMBNAIL, Image.Resampling.BOX)
            mean, std = (tuple(round(value, 3) for value in values) for values in (stat.mean, stat.stddev))
            facts = replace(facts, thumbnail=grey.tobytes().hex(), mean=mean, std=std)
    return replace(facts, error=problem.text)


def read_mask_facts(path: Path, max_pixels: int) -> MaskFacts:
    """Facts about a label file; one with more than ``max_pixels`` pixels is not decoded."""
    facts = MaskFacts()
    with _errors() as problem, _opened(BytesIO(_bytes(path))) as image:
        facts = MaskFacts(**_header(image))
        if image.width * image.height > max_pixels:
            return facts
        check_depth(image, "", "mask")
        image.load()
        image = as_label(image)
        facts = replace(facts, width=image.width, height=image.height, orientation=1)
        kind, pixels, palette = raw_values(image)
        values, counts, layout = _areas(pixels)
        facts = replace(facts, kind=kind, values=values, counts=counts, palette=palette, layout=layout)
    return replace(facts, error=problem.text)


def raw_values(image: Image.Image) -> tuple[str, npt.NDArray[Any], str]:
    """The kind of a label image, its values and its palette; see `MaskFacts`."""
    if image.mode in ("P", "PA"):
        indices = image if image.mode == "P" else image.convert("P")
        return "P", np.asarray(indices), palette_colours(indices).tobytes().hex()
    if image.mode == "1":
        return "1", np.asarray(image).astype(np.uint8), ""
    if image.mode in ("L", "LA"):
        return "L", np.asarray(image if image.mode == "L" else image.getchannel(0)), ""
    if image.mode.startswith("I"):
        return "I", np.asarray(image).astype(np.int32), ""
    rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return "RGB", rgb.astype(np.int32) @ np.array([65536, 256, 1], np.int32), ""


def _areas(pixels: npt.NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """Values in the order of their first pixels, their numbers of pixels, and a hash of their areas."""
    flat = pixels.ravel()
    if flat.dtype == np.uint8:
        counts = np.bincount(flat, minlength=256)
        used = np.flatnonzero(counts)
        first = np.array([int((flat == value).argmax()) for value in used], np.int64)
        order = np.argsort(first)
        table = np.zeros(256, np.uint16)
        table[used[order]] = np.arange(len(used))
        ranks, values, numbers = table[flat], used[order], counts[used[order]]
    else:
        found, first, inverse, totals = np.unique(flat, return_index=True, return_inverse=True, return_counts=True)
        order = np.argsort(first)
        table = np.zeros(len(found), np.int64)
        table[order] = np.arange(len(found))
        ranks, values, numbers = table[inverse.reshape(-1)], found[order], totals[order]
        if len(values) <= 65536:
            ranks = ranks.astype(np.uint16)  # the same hash, whatever the type of the values
    if len(values) > MAX_VALUES:
        kept = np.sort(np.argsort(-numbers, kind="stable")[:MAX_VALUES])
        values, numbers = values[kept], numbers[kept]
    digest = hashlib.blake2b(ranks.tobytes(), digest_size=16).hexdigest()
    return tuple(values.tolist()), tuple(numbers.tolist()), digest


def _header(image: Image.Image) -> dict[str, Any]:
    kind = image.format or ""
    frames = int(getattr(image, "n_frames", 1)) if kind in ANIMATED else 1
    turn = orientation(image)
    return {
        "width": image.width,
        "height": image.height,
        "mode": image.mode,
        "format": kind,
        "orientation": turn if turn in TURNS else 1,
        "frames": frames,
    }


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if not data:
        raise OSError("empty")
    return data


@contextmanager
def _opened(file: Path | BytesIO) -> Iterator[Image.Image]:
    if isinstance(file, Path) and not file.stat().st_size:
        raise OSError("empty")
    with any_size():
        image = Image.open(file)
    with image:
        yield image


class _Problem:
    text: str | None = None


@contextmanager
def _errors() -> Iterator[_Problem]:
    """Note what Pillow raises for a file that it cannot read."""
    problem = _Problem()
    try:
        yield problem
    except UnidentifiedImageError:
        problem.text = "unknown format"
    except BROKEN_IMAGE as error:
        text = str(getattr(error, "strerror", None) or error) or type(error).__name__
        problem.text = text.removeprefix(": ")
