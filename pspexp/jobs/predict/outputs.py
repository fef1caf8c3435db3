"""Output files of ``mode=predict``: masks, overlays, the table."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pspexp.data import masks
from pspexp.data.bands import AnyImage
from pspexp.data.dataset import DatasetInfo
from pspexp.errors import JobFailed, UserError
from pspexp.jobs.predict.inputs import KINDS
from pspexp.utils.files import atomic_write, write_text_atomic
from pspexp.utils.tables import csv_table

Row = dict[str, str]
Pixels = npt.NDArray[np.uint8]

TABLE, SUMMARY = "predictions.csv", "summary.json"
MAX_JPEG_SIDE = 65_500  # pixels; JPEG cannot store more


class Outputs:
    """The output folder of a prediction.

    Args:
        folder: The folder.
        kinds: What is written for each image: ids, labels, overlay, colour, probabilities.
        info: Names and colours of the classes.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], info: DatasetInfo) -> None:
        self.folder, self.kinds, self.info = folder, kinds, info
        self.replaces = False  # what is in the folder was made with other settings or from other images

    def exist(self, name: str) -> bool:
        """Whether all files of an image exist."""
        return all(self.file(kind, name) is not None for kind in self.kinds)

    def file(self, kind: str, name: str) -> Path | None:
        """A file of an image; None if it does not exist."""
        suffixes = {"ids": (".png",), "labels": (".png",), "probabilities": (".npz",)}.get(kind, (".jpg", ".png"))
        candidates = (self.folder / kind / f"{name}{suffix}" for suffix in suffixes)
        return next((file for file in candidates if file.is_file()), None)

    def save(self, name: str, image: AnyImage, ids: Pixels, probabilities: npt.NDArray[np.float32] | None) -> None:
        """Write the files of an image; each is complete or absent.

        Raises:
            JobFailed: A file cannot be written.
        """
        for kind in KINDS if self.replaces else ():
            if kind not in self.kinds and (stale := self.file(kind, name)):
                stale.unlink()
        if "ids" in self.kinds:
            self._write("ids", f"{name}.png", masks.palette_image(ids, self.info))
        if "labels" in self.kinds:
            self._write("labels", f"{name}.png", masks.label_image(ids, self.info))
        if "overlay" in self.kinds:
            self._write_picture("overlay", name, masks.overlay(image, ids, self.info))
        if "colour" in self.kinds:
            self._write("colour", f"{name}.png", Image.fromarray(masks.colour_table(self.info)[ids]))
        if probabilities is not None:
            content = io.BytesIO()
            np.savez_compressed(content, probabilities=probabilities)
            self._write("probabilities", f"{name}.npz", content.getbuffer())

    def _write_picture(self, kind: str, name: str, picture: Image.Image) -> None:
        suffix = ".png" if max(picture.size) > MAX_JPEG_SIDE else ".jpg"
        self._write(kind, f"{name}{suffix}", picture)

    def _write(self, kind: str, name: str, content: Image.Image | memoryview) -> None:
        file = self.folder / kind / name
        try:
            with atomic_write(file) as stream:
                if isinstance(content, Image.Image):
                    content.save(stream, format="PNG" if file.suffix == ".png" else "JPEG", quality=90)
                else:
                    stream.write(content)
        except OSError as error:
            raise cannot_write(file, error) from error


def cannot_write(file: Path, error: OSError) -> JobFailed:
    """The error to raise if a file cannot be written."""
    return JobFailed(
        f"{file}: cannot be written ({error.strerror or error}); finished results are kept: once this is fixed, "
        "run the same command again to continue"
    )


class Table:
    """``predictions.csv``: a row per image, up to date after every image, so that a prediction can be resumed.

    Args:
        folder: The output folder.
        class_names: For the columns.
        rank: Number of this process; each writes to a file of its own until `merge`.
    """

    def __init__(self, folder: Path, class_names: Sequence[str], rank: int) -> None:
        self._folder, self._own = folder, folder / f".{TABLE}.{rank}"
        self.header = ["image", "width", "height", "confidence", *class_names]
        self.measures = ["iou", "accuracy"]  # of images with a label

    def load(self) -> dict[str, Row]:
        """The rows of all processes, by image."""
        files = [self._folder / TABLE, *sorted(self._folder.glob(f".{TABLE}.*"))]
        return {row["image"]: row for file in files if file.is_file() for row in self._rows(file)}

    def _rows(self, file: Path) -> Iterator[Row]:
        columns = [*self.header, *self.measures]
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
        complete, _, _ = text.rpartition("\n")  # a row may have been cut off
        for row in csv.DictReader(complete.splitlines(), None if file.name == TABLE else columns):
            if None not in row:
                yield {column: row.get(column) or "" for column in columns}

    def add(self, row: Mapping[str, object]) -> None:
        """Add a row.

        Raises:
            JobFailed: It cannot be written.
        """
        try:
            with self._own.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
                file.write(csv_table([[row.get(column, "") for column in [*self.header, *self.measures]]]))
        except OSError as error:
            raise cannot_write(self._own, error) from error

    def clear(self, *, everything: bool = True) -> None:
        """Remove the table, or only the rows that are not in it yet."""
        for file in self._folder.glob(f".{TABLE}.*"):
            file.unlink()
        if everything:
            (self._folder / TABLE).unlink(missing_ok=True)

    def resume(self) -> dict[str, Row]:
        """The rows of an interrupted prediction, by image, in one file again.

        Raises:
            JobFailed: It cannot be written.
        """
        found = self.load()
        self._write(list(found.values()))
        return found

    def merge(self, names: Sequence[str]) -> list[Row]:
        """Write the table of ``names``, worst IoU first where there are labels, else in this order; returns its rows.

        Raises:
            JobFailed: It cannot be written.
        """
        found = self.load()
        rows = [found[name] for name in names if name in found]
        if any(row["iou"] for row in rows):
            rows.sort(key=lambda row: float(row["iou"] or 2))
        self._write(rows)
        return rows

    def _write(self, rows: Sequence[Row]) -> None:
        columns = list(self.header)
        if any(row["iou"] for row in rows):
            columns += self.measures
        try:
            write_text_atomic(self._folder / TABLE, csv_table([columns, *([row[c] for c in columns] for row in rows)]))
            self.clear(everything=False)
        except OSError as error:
            raise cannot_write(self._folder / TABLE, error) from error


def are_from(folder: Path, settings: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether the results in the folder were made with these settings from the same input.

    Raises:
        UserError: They were made with other settings, and are not to be overwritten.
    """
    try:
        before = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["settings"]
        changed = [key for key in settings if settings[key] != before.get(key)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        changed = ["input"]  # unknown
    if not overwrite and (others := [key for key in changed if key != "input"]):
        raise UserError(
            f"predict.output={folder}: holds results made with other settings ({', '.join(others)}); "
            "choose another folder, or replace them with predict.overwrite=true"
        )
    return not changed


def finish(folder: Path, status: str, settings: dict[str, Any], results: dict[str, Any]) -> None:
    """Write ``summary.json``.

    Raises:
        JobFailed: It cannot be written.
    """
    content = {"status": status, **results, "settings": settings}
    try:
        write_text_atomic(folder / SUMMARY, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise cannot_write(folder / SUMMARY, error) from error
