"""The run folder: the record of a run that always exists, from which everything else is derived."""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from pspexp.data.dataset import DatasetInfo, EvaluatedSample
from pspexp.metrics import Report
from pspexp.metrics.images import ImageScores
from pspexp.metrics.report import defined
from pspexp.tracking.manifest import forget_delivered, run_ids
from pspexp.tracking.pictures import picture_names, save_picture, side_by_side
from pspexp.tracking.provenance import Uncommitted, git_commit, versions
from pspexp.tracking.run_folder import finite, read_provenance, read_records, read_summary
from pspexp.utils.files import disk_error, write_text_atomic
from pspexp.utils.memory import garbage_collected
from pspexp.utils.progress import slow_loop
from pspexp.utils.tables import csv_table

# The figures are imported in functions: matplotlib is slow to import, and most processes draw nothing.

log = logging.getLogger(__name__)

_SUMMARY = Lock()  # loggers are opened in threads


class LocalTracker:
    """Writes the files of a run folder.

    Args:
        folder: Created if missing, with its parents.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._records = self.folder / "metrics.jsonl"
        self._drawn_records = 0

    def begin(self, resume: bool) -> None:
        """Prepare to append records.

        Args:
            resume: Continue this folder's records; otherwise they are moved to ``metrics.previous.jsonl``.
        """
        if resume:
            self.rewind(None, keep_evaluation=True)  # the next line must not be appended to an unfinished one
            return
        forget_delivered(self.folder)
        if self._records.exists():
            kept = self._records.with_name("metrics.previous.jsonl")
            self._records.replace(kept)
            log.warning("%s held records of an earlier run: moved to %s", self.folder, kept.name)

    def config(self, text: str, overrides: Sequence[str]) -> None:
        """Write ``config.yaml`` and ``overrides.txt`` (one override per line)."""
        write_text_atomic(self.folder / "config.yaml", text)
        write_text_atomic(self.folder / "overrides.txt", "".join(f"{override}\n" for override in overrides))

    def provenance(
        self, record: Mapping[str, Any], changes: Uncommitted | None, rerun_of: str | None, *, resume: bool
    ) -> None:
        """Write ``provenance.json`` and the uncommitted changes.

        Args:
            record: From `pspexp.tracking.provenance.record`.
            changes: Written to a file of their own.
            rerun_of: The run that this one repeats.
            resume: Keep the records of earlier attempts, and the file of each one's changes.
        """
        earlier = read_provenance(self.folder) if resume else {}
        attempts = list(earlier.get("attempts", []))
        diff = None
        if changes is not None:
            same = [str(one.get("diff")) for one in attempts if one.get("uncommitted") == changes.fingerprint]
            number = f"-{len(attempts) + 1}" if attempts else ""
            diff = same[0] if same else changes.file.replace(".", f"{number}.")
            write_text_atomic(self.folder / diff, changes.text)
        attempts.append({**record, "diff": diff})
        content = {"rerun_of": earlier.get("rerun_of", rerun_of), "attempts": attempts}
        write_text_atomic(self.folder / "provenance.json", json.dumps(content, indent=2) + "\n")

    def metrics(self, values: Mapping[str, float], *, step: int, epoch: int, time_s: float) -> None:
        """Append one flat JSON line to ``metrics.jsonl``; non-finite values are skipped."""
        values = finite(values)
        if not values:
            return
        line = json.dumps({"step": step, "epoch": epoch, "time": round(time_s, 3), **values}, allow_nan=False)
        try:
            with self._records.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._records)) from error

    def sync(self) -> None:
        """Have the records on the disk: a checkpoint saved later must not survive a power failure that they do not."""
        with suppress(OSError), self._records.open("rb") as file:
            os.fsync(file.fileno())

    def rewind(self, step: int | None, keep_evaluation: bool) -> tuple[int, int] | None:
        """Remove records that are newer than a checkpoint.

        Args:
            step: Step of the checkpoint; later records are removed. None removes only an unfinished last line.
            keep_evaluation: False also removes the validation at ``step``, for a checkpoint that was saved before it.

        Returns:
            The number of records that are left, and the step of the last one; None if there is no file of records.
        """
        if not self._records.exists():
            return None

        def stays(record: dict[str, Any]) -> bool:
            if step is None or record["step"] < step:
                return True
            return record["step"] == step and (keep_evaluation or not _is_evaluation(record))

        kept = [record for record in read_records(self.folder) if stays(record)]
        write_text_atomic(self._records, "".join(json.dumps(record) + "\n" for record in kept))
        return len(kept), int(kept[-1]["step"]) if kept else 0

    def report(self, split: str, report: Report) -> None:
        """Write ``tables/{split}_iou.csv`` and ``plots/confusion_matrix.png``."""
        columns = report.columns()
        table = csv_table([list(columns), *zip(*columns.values(), strict=True)])
        with optional("the table of classes"):
            write_text_atomic(self.folder / "tables" / f"{split}_iou.csv", table)
        with optional("the confusion matrix"):
            from pspexp.tracking import figures

            with garbage_collected():  # a figure is full of cycles
                figures.save(
                    figures.confusion_matrix(np.asarray(report.confusion), report.class_names, split),
                    self.folder / "plots" / "confusion_matrix.png",
                )

    def curves(self) -> None:
        """Draw ``plots/train_loss.png`` and ``plots/val_loss.png``, as far as there are records of them."""
        records = read_records(self.folder)
        if len(records) == self._drawn_records:
            return
        self._drawn_records = len(records)
        with optional("the loss curves"):
            from pspexp.tracking import figures

            train, loss, mean_iou = (_series(records, name) for name in ("train/loss", "val/loss", "val/mean_iou"))
            with garbage_collected():  # a figure is full of cycles
                if train:
                    figures.save(figures.train_loss(train), self.folder / "plots" / "train_loss.png")
                if loss:
                    figures.save(figures.val_loss(loss, mean_iou), self.folder / "plots" / "val_loss.png")

    def samples(self, split: str, samples: Sequence[EvaluatedSample], dataset: DatasetInfo) -> None:
        """Draw ``plots/samples/<name>.png``, see `Tracker.samples`."""
        with optional("the samples"):
            for sample in slow_loop(samples, len(samples), "drawing samples"):
                (name,) = picture_names([sample.name])
                save_picture(side_by_side(sample, dataset, split), self.folder / "plots" / "samples" / name)

    def images(
        self, split: str, images: Sequence[ImageScores], worst: Sequence[EvaluatedSample], dataset: DatasetInfo
    ) -> None:
        """Write ``tables/{split}_images.csv`` and ``plots/worst/{split}/<name>.png``, see `Tracker.images`."""
        folder = self.folder / "plots" / "worst" / split
        drawn: list[str | None] = []
        names = picture_names([sample.name for sample in worst])
        for sample, name in zip(slow_loop(worst, len(worst), "drawing the worst images"), names, strict=True):
            drawn.append(None)
            with optional(f"the picture of {sample.name}"):
                save_picture(side_by_side(sample, dataset, split), folder / name)
                drawn[-1] = (folder / name).relative_to(self.folder).as_posix()
        table = images_table(images, drawn, dataset.class_names)
        with optional("the table of images"):
            write_text_atomic(self.folder / "tables" / f"{split}_images.csv", table)
            for file in folder.glob("*.png"):  # of earlier evaluations; last: the table must not name a missing one
                if file.relative_to(self.folder).as_posix() not in drawn:
                    file.unlink()

    def summary(
        self,
        status: str,
        *,
        best: Mapping[str, float] | None = None,
        last: Mapping[str, float] | None = None,
        images_per_second: float | None = None,
        loggers: Mapping[str, str] | None = None,
    ) -> None:
        """Write ``summary.json``: arguments of `Tracker.finish`, ``RUNNING`` until then; ``loggers``: ids by name."""
        with _SUMMARY:  # a logger may just be opened in its thread
            ids = run_ids(self.folder) | dict(loggers or {})
            content = {
                "status": status,
                "best": finite(best or {}),
                "last": finite(last or {}),
                "images_per_second": finite({"it": images_per_second or math.nan}).get("it"),
                "mlflow_run_id": ids.get("mlflow"),
                "loggers": ids,
                "git_commit": git_commit(),
                "versions": versions(),
            }
            write_text_atomic(self.folder / "summary.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def set_ids(folder: Path, loggers: Mapping[str, str]) -> None:
    """Add the ids of a run in loggers to its ``summary.json``, if it has one."""
    with _SUMMARY:
        content = read_summary(folder)
        known = content.get("loggers", {})
        if content and (found := known | loggers) != known:
            content |= {"loggers": found, "mlflow_run_id": found.get("mlflow")}
            write_text_atomic(folder / "summary.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def _series(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, int, float]]:
    return [(record["step"], record["epoch"], record[name]) for record in records if name in record]


def _is_evaluation(record: Mapping[str, Any]) -> bool:
    return any(name.startswith("val/") for name in record)


def images_table(images: Sequence[ImageScores], pictures: Sequence[str | None], class_names: Sequence[str]) -> str:
    """The metrics of images as CSV; ``pictures`` are paths in the run folder, of the first images."""
    header: list[object] = ["image", "mean_iou", "overall_acc", "pixels", *class_names, "picture"]
    rows = [header]
    for image, picture in zip_longest(images, pictures):
        mean_iou, overall_acc, *iou = (
            None if value is None else round(value, 6)
            for value in defined([image.mean_iou, image.overall_acc, *image.iou])
        )
        rows.append([image.name, mean_iou, overall_acc, image.pixels, *iou, picture])
    return csv_table(rows)


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Turn errors into a warning: a figure or table can be made again from the files, hours of training cannot."""
    try:
        yield
    except Exception as error:
        if cause := disk_error(error):
            log.warning("%s could not be written: %s", what, cause)
        else:
            log.warning("%s could not be written", what, exc_info=True)
