"""Class ids as palette images, and as colours over the image with a legend."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import groupby

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pspexp.data.bands import AnyImage, visible
from pspexp.data.dataset import DatasetInfo
from pspexp.utils.fonts import default_font, fallback_fonts, missing_glyphs
from pspexp.utils.text import printable, shorten, shorten_middle

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

WHITE, INK = (255, 255, 255), (31, 41, 51)
STRIP_PIXELS = 1_000_000  # blended at once: a large image would otherwise take several times its size in memory
MAX_LEGEND = 30  # entries
MAX_CHARACTERS = 60  # of a class name
MAX_TITLE = 200  # characters
FONT_SIZE = 13  # pixels
LINE = round(1.6 * FONT_SIZE)  # height of a line of text


def colour_table(info: DatasetInfo) -> Pixels:
    """The colour of each of the 256 possible ids, uint8 ``[256, 3]``; white where there is no class."""
    colours = np.full((256, 3), 255, np.uint8)
    colours[: info.num_classes] = info.palette
    colours[info.ignore_index] = 255
    return colours


def palette_image(ids: Pixels, info: DatasetInfo) -> Image.Image:
    """Ids ``[H, W]`` as a palette image: its pixels are the ids, shown in the colours of the classes."""
    image = Image.fromarray(ids)
    image.putpalette(colour_table(info).tobytes())
    return image


def label_image(ids: Pixels, info: DatasetInfo) -> Image.Image:
    """Ids ``[H, W]`` as a label file of the data set: with its own values, numbers or colours, for its classes.

    Pixels that were not predicted are 255, or white.
    """
    values = list(range(info.num_classes)) if info.label_values is None else info.label_values
    if any(isinstance(value, int) for value in values):
        table = np.full(256, 255, np.uint16)
        table[: len(values)] = [value if isinstance(value, int) else 0 for value in values]
        return Image.fromarray(table[ids] if table.max() > 255 else table[ids].astype(np.uint8))
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(values)] = values
    return Image.fromarray(colours[ids])


def blend(image: Pixels, ids: Pixels, info: DatasetInfo, opacity: float = 0.7) -> Pixels:
    """Class colours over an image in grey.

    Args:
        image: ``[H, W, 3]``.
        ids: ``[H, W]``; ignored pixels are drawn white.
        info: Colours of the classes.
        opacity: Of the colours.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    colours = colour_table(info)
    blended = np.empty_like(image)
    rows = -(-STRIP_PIXELS // max(image.shape[1], 1))
    for top in range(0, len(image), rows):
        strip = slice(top, top + rows)
        # Mid greys keep the hues of the classes recognisable.
        grey = 70 + 0.6 * image[strip].mean(axis=2, keepdims=True)
        blended[strip] = ((1 - opacity) * grey + opacity * colours[ids[strip]]).round()
    return blended


def overlay(image: AnyImage, ids: Pixels, info: DatasetInfo) -> Image.Image:
    """Class colours over an image, and below it a legend: the classes in it with their shares, largest first."""
    picture = Image.fromarray(blend(visible(np.asarray(image)), ids, info, opacity=0.5))
    entries = legend_entries([ids], info, ignored="not predicted")
    return with_legend(picture, [(f"{name} {share:.1%}", colour) for name, share, colour in entries])


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """A picture above a legend of texts and colours."""
    texts = [_runs(text) for text, _ in entries]
    widths = [round(_length(runs)) + 2 * LINE for runs in texts]
    width = max([picture.width, *widths])
    places, x, y = [], 0, 0
    for one in widths:
        if x and x + one > width:
            x, y = 0, y + LINE
        places.append((x, y))
        x += one
    canvas = Image.new("RGB", (width, picture.height + y + LINE), WHITE)
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for (_, colour), runs, (left, top) in zip(entries, texts, places, strict=True):
        top += picture.height + (LINE - FONT_SIZE) // 2
        draw.rectangle((left + 4, top, left + 4 + FONT_SIZE, top + FONT_SIZE), colour, INK)
        _write(draw, runs, left + FONT_SIZE + 9, top + FONT_SIZE - 1)
    return canvas


def title(text: str, width: int) -> Image.Image:
    """A line of text in the middle of a white strip of this width, shortened if necessary."""
    text = shorten_middle(printable(text), MAX_TITLE)
    limits = range(1, len(text) + 1)
    fitting = bisect_left(limits, True, key=lambda limit: _length(_runs(shorten_middle(text, limit))) > width)
    runs = _runs(shorten_middle(text, max(fitting, 1)))
    strip = Image.new("RGB", (width, LINE), WHITE)
    _write(ImageDraw.Draw(strip), runs, max(width - _length(runs), 0) / 2, (LINE + FONT_SIZE) // 2 - 1)
    return strip


def legend_entries(ids: Sequence[Pixels], info: DatasetInfo, ignored: str) -> list[tuple[str, float, Colour]]:
    """Name, share of the pixels and colour of each class in maps of ids, largest first; the last one sums up the rest.

    Args:
        ids: The maps.
        info: Names and colours of the classes.
        ignored: Name of ignored pixels.
    """
    # Unlike NumPy's bincount, Pillow's histogram makes no copy in int64, eight times as large.
    pixels = np.sum([Image.fromarray(one).histogram() for one in ids], axis=0)
    shares = pixels / max(sum(one.size for one in ids), 1)
    names = dict(enumerate(info.class_names)) | {info.ignore_index: ignored}
    seen = sorted((index for index in names if pixels[index]), key=lambda index: -pixels[index])
    colours = colour_table(info)
    entries: list[tuple[str, float, Colour]] = [
        (printable(shorten(names[index], MAX_CHARACTERS)), float(shares[index]), (red, green, blue))
        for index in seen[:MAX_LEGEND]
        for red, green, blue in [colours[index].tolist()]
    ]
    if rest := seen[MAX_LEGEND:]:
        entries.append((f"and {len(rest)} more", float(shares[rest].sum()), WHITE))
    return entries


def _write(draw: ImageDraw.ImageDraw, runs: Sequence[tuple[Font, str]], left: float, baseline: int) -> None:
    for font, part in runs:
        draw.text((left, baseline), part, INK, font, anchor="ls")
        left += font.getlength(part)


def _length(runs: Sequence[tuple[Font, str]]) -> float:
    """The width of a text in pixels."""
    return sum(font.getlength(part) for font, part in runs)


def _runs(text: str) -> list[tuple[Font, str]]:
    """The parts of a text and their fonts: Pillow draws a text in one font, whether or not it has the characters."""
    files = [default_font(), *(font.fname for font in fallback_fonts(text))]
    runs = groupby(text, lambda one: next((file for file in files if not missing_glyphs(file, one)), files[0]))
    return [(_font(file), "".join(part)) for file, part in runs]


@cache
def _font(file: str) -> Font:
    try:
        return ImageFont.truetype(file, FONT_SIZE)
    except OSError:  # a format that only matplotlib reads
        return ImageFont.load_default(FONT_SIZE)
