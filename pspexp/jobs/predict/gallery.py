"""``gallery.html``: all predictions on one self-contained page."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from pspexp.data.images import any_size
from pspexp.jobs.predict.outputs import Outputs, Row, cannot_write
from pspexp.utils.files import atomic_write

FILE = "gallery.html"
THUMBNAIL = (320, 240)  # largest width and height in pixels


def write_gallery(written: Outputs, rows: Sequence[Row], names: Mapping[str, str]) -> None:
    """Write the page, one image after another.

    Args:
        written: The files of the images.
        rows: The table, one row per image.
        names: Path of an image's results, by image.

    Raises:
        JobFailed: The page cannot be written.
    """
    template = (Path(__file__).parent / "gallery.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    stream = page.from_string(template).stream(
        images=(describe(written, row, names[row["image"]]) for row in rows),
        count=len(rows),
        class_names=written.info.class_names,
        scored=any(row["iou"] for row in rows),
    )
    try:
        with atomic_write(written.folder / FILE) as file:
            stream.dump(file, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise cannot_write(written.folder / FILE, error) from error


def describe(written: Outputs, row: Row, name: str) -> dict[str, Any]:
    """What the page shows of an image."""
    shares = {index: float(row[column]) for index, column in enumerate(written.info.class_names)}
    present = sorted((index for index in shares if shares[index]), key=lambda index: -shares[index])
    return {
        "image": row["image"],
        "source": thumbnail(written, name),
        "confidence": float(row["confidence"]),
        "iou": float(row["iou"]) if row["iou"] else None,
        "classes": present,
        "largest": ", ".join(f"{written.info.class_names[index]} {shares[index]:.0%}" for index in present[:3]),
    }


def thumbnail(written: Outputs, name: str) -> str:
    """An image's overlay, or its mask if there is none, as a data URL; empty if neither was written."""
    kinds = [kind for kind in ("overlay", "colour", "ids") if kind in written.kinds]
    file = next((found for kind in kinds if (found := written.file(kind, name))), None)
    if file is None:
        return ""
    with any_size():
        opened = Image.open(file)
    with opened as image:
        image.draft("RGB", THUMBNAIL)  # a JPEG is decoded at a fraction of its size
        small = image.convert("RGB")
    small.thumbnail(THUMBNAIL)
    content = BytesIO()
    small.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(content.getvalue()).decode()}"
