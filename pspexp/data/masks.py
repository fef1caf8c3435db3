"""Class ids as palette images, and as colours over the image with a legend."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pspexp.data.dataset import DatasetInfo

Pixels = npt.NDArray[np.uint8]

WHITE, INK = (255, 255, 255), (31, 41, 51)
STRIP_PIXELS = 1_000_000  # blended at once: a large image would otherwise take several times its size in memory
MAX_LEGEND = 30  # entries
FONT_SIZE = 13  # pixels


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


def overlay(image: Image.Image, ids: Pixels, info: DatasetInfo) -> Image.Image:
    """Class colours over an image, and below it a legend: the classes in it with their shares, largest first."""
    picture = Image.fromarray(blend(np.asarray(image), ids, info, opacity=0.5))
    entries = legend_entries(ids, info)
    font = _font()
    height = round(1.6 * FONT_SIZE)
    widths = [round(font.getlength(text)) + 2 * height for text, _ in entries]
    width = max([picture.width, *widths])
    places, x, y = [], 0, 0
    for one in widths:
        if x and x + one > width:
            x, y = 0, y + height
        places.append((x, y))
        x += one
    canvas = Image.new("RGB", (width, picture.height + y + height), WHITE)
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for (text, colour), (left, top) in zip(entries, places, strict=True):
        top += picture.height + (height - FONT_SIZE) // 2
        draw.rectangle((left + 4, top, left + 4 + FONT_SIZE, top + FONT_SIZE), colour, INK)
        draw.text((left + FONT_SIZE + 9, top - 1), text, INK, font)
    return canvas


def legend_entries(ids: Pixels, info: DatasetInfo) -> list[tuple[str, tuple[int, int, int]]]:
    """Text and colour of each class in ``ids``, largest first, and of ignored pixels."""
    pixels = np.array(Image.fromarray(ids).histogram())
    shares = pixels / max(ids.size, 1)
    names = dict(enumerate(info.class_names)) | {info.ignore_index: "not predicted"}
    seen = sorted((index for index in names if pixels[index]), key=lambda index: -pixels[index])
    colours = colour_table(info)
    entries = []
    for index in seen[:MAX_LEGEND]:
        red, green, blue = colours[index].tolist()
        entries.append((f"{names[index]} {shares[index]:.1%}", (red, green, blue)))
    return entries


def _font() -> ImageFont.FreeTypeFont:
    import matplotlib  # only for its font, which has more characters than Pillow's

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), FONT_SIZE)
