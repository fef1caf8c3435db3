"""What the tests of tools/convert_labels.py share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspexp.data.preparation.annotations.convert import Converted, convert_annotations
from pspexp.data.preparation.annotations.items import Options
from pspexp.errors import UserError


def convert(kind: str, source: Path, output_dir: Path, **options: Any) -> Converted:
    """Convert in this process."""
    return convert_annotations(kind, source, output_dir, Options(**{"num_workers": 1, **options}))


def labels(folder: Path) -> dict[str, list[list[int]]]:
    """The pixels of each index PNG in a folder, at any depth."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            assert image.mode == "L"
            found[path.relative_to(folder).as_posix()] = np.asarray(image).tolist()
    return found


def converted(kind: str, source: Path, tmp_path: Path, **options: Any) -> dict[str, list[list[int]]]:
    """Convert to a new folder and read the results."""
    output_dir = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    convert(kind, source, output_dir, **options)
    return labels(output_dir)


def problems(kind: str, source: Path, tmp_path: Path, **options: Any) -> list[str]:
    """The problems of a conversion, which must write nothing."""
    with pytest.raises(UserError) as caught:
        convert(kind, source, tmp_path / "nothing", **options)
    assert not list(tmp_path.glob("*nothing*"))
    return list(caught.value.problems)


def mask(width: int, height: int, *areas: tuple[slice, slice, int], start: int = 0) -> list[list[int]]:
    """A label with areas of rows and columns, later ones on top."""
    pixels = np.full((height, width), start, np.uint8)
    for rows, columns, value in areas:
        pixels[rows, columns] = value
    return pixels.tolist()


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def labelme(path: Path, *shapes: tuple[str, str, Any], width: int = 10, height: int = 8, **more: Any) -> Path:
    """Write a labelme file; shapes are label, type and points."""
    keys = ("label", "shape_type", "points")
    content = {"shapes": [dict(zip(keys, shape, strict=True)) for shape in shapes], "imagePath": f"{path.stem}.jpg"}
    return write_json(path, {**content, "imageWidth": width, "imageHeight": height, **more})
