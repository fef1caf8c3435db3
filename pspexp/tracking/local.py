"""The run folder: the truth about a run."""

import csv
import io
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pspexp.data.dataset import DatasetInfo
from pspexp.tracking import figures
from pspexp.tracking.provenance import Uncommitted, git_commit, versions
from pspexp.utils.files import write_text_atomic

if TYPE_CHECKING:
    from pspexp.metrics import Report

logger = logging.getLogger(__name__)


class LocalTracker:
    """Writes the files of a run folder.

    Args:
        folder: made when missing, with its parents.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._records = self.folder / "metrics.jsonl"

    def begin(self, resume: bool) -> str | None:
        """Makes ready to append.

        Args:
            resume: go on with this folder's records; otherwise they are moved to ``metrics.previous.jsonl``.

        Returns:
            The MLflow run id to go on with; None for a fresh start or when the folder knows of none.
        """
        if resume:
            self.rewind(None, keep_evaluation=True)  # an unfinished last line would spoil the next one
            return read_summary(self.folder).get("mlflow_run_id")
        if self._records.exists():
            kept = self._records.with_name("metrics.previous.jsonl")
            self._records.replace(kept)
            logger.warning("%s held records of an earlier run: moved to %s", self.folder, kept.name)
        return None

    def config(self, text: str, overrides: Sequence[str]) -> None:
        """Writes ``config.yaml`` and ``overrides.txt`` (one override a line)."""
        write_text_atomic(self.folder / "config.yaml", text)
        write_text_atomic(self.folder / "overrides.txt", "".join(f"{word}\n" for word in overrides))

    def provenance(
        self, attempt: Mapping[str, Any], changes: Uncommitted | None, rerun_of: str | None, *, resume: bool
    ) -> None:
        """Writes ``provenance.json`` and what was not committed.

        Args:
            attempt: of `pspexp.tracking.provenance.attempt`.
            changes: goes into a file of its own.
            rerun_of: the run that this one repeats.
            resume: keep the earlier attempts, and the file of each one's changes.
        """
        earlier = read_provenance(self.folder) if resume else {}
        attempts = list(earlier.get("attempts", []))
        diff = None
        if changes is not None:
            same = [str(one.get("diff")) for one in attempts if one.get("uncommitted") == changes.fingerprint]
            number = f"-{len(attempts) + 1}" if attempts else ""
            diff = same[0] if same else changes.file.replace(".", f"{number}.")
            write_text_atomic(self.folder / diff, changes.text)
        attempts.append({**attempt, "diff": diff})
        content = {"rerun_of": earlier.get("rerun_of", rerun_of), "attempts": attempts}
        write_text_atomic(self.folder / "provenance.json", json.dumps(content, indent=2) + "\n")

    def metrics(self, values: Mapping[str, float], *, step: int, epoch: int, time_s: float) -> None:
        """Appends one flat JSON line to ``metrics.jsonl``; non-finite values are left out."""
        values = finite(values)
        if not values:
            return
        line = json.dumps({"step": step, "epoch": epoch, "time": round(time_s, 3), **values}, allow_nan=False)
        with self._records.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def rewind(self, step: int | None, keep_evaluation: bool) -> None:
        """Cuts records that are younger than a save.

        Args:
            step: of the save; records after it go. None cuts nothing but an unfinished last line.
            keep_evaluation: False also cuts the validation at exactly `step`: the save was made before it.
        """
        if not self._records.exists():
            return

        def stays(record: dict[str, Any]) -> bool:
            if step is None or record["step"] < step:
                return True
            return record["step"] == step and (keep_evaluation or not _is_evaluation(record))

        kept = [json.dumps(record) + "\n" for record in read_records(self.folder) if stays(record)]
        write_text_atomic(self._records, "".join(kept))

    def report(self, split: str, report: "Report") -> None:
        """Writes ``tables/{split}_iou.csv`` and ``plots/confusion_matrix.png``."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["class", "iou", "accuracy", "pixels"])
        table.writerows(report.rows())  # None, undefined, becomes an empty field
        write_text_atomic(self.folder / "tables" / f"{split}_iou.csv", text.getvalue())
        with harmless("the confusion matrix"):
            figure = figures.confusion_matrix(np.asarray(report.confusion), report.class_names, split)
            figures.save(figure, self.folder / "plots" / "confusion_matrix.png")

    def curves(self) -> None:
        """Draws ``plots/train_loss.png`` and ``plots/val_loss.png``, each once there is something to draw."""
        records = read_records(self.folder)
        with harmless("the loss curves"):
            if train := _series(records, "train/loss"):
                figures.save(figures.train_loss(train), self.folder / "plots" / "train_loss.png")
            if loss := _series(records, "val/loss"):
                figure = figures.val_loss(loss, _series(records, "val/mean_iou"))
                figures.save(figure, self.folder / "plots" / "val_loss.png")

    def samples(
        self,
        split: str,
        samples: Sequence[figures.EvaluatedSample],
        dataset: DatasetInfo,
    ) -> None:
        """Draws ``plots/samples/<name>.png`` (image | truth | prediction); see `Tracker.samples`."""
        with harmless("the samples"):
            for sample in samples:
                figure = figures.sample(split, sample, dataset)
                name = sample.name.replace("/", "_").replace("\\", "_")
                figures.save(figure, self.folder / "plots" / "samples" / f"{name}.png")

    def summary(
        self,
        status: str,
        *,
        best: Mapping[str, float] | None = None,
        last: Mapping[str, float] | None = None,
        images_per_second: float | None = None,
        run_id: str | None = None,
    ) -> None:
        """Writes ``summary.json``. Its status is ``RUNNING`` until the run ends."""
        content = {
            "status": status,
            "best": finite(best or {}),
            "last": finite(last or {}),
            "images_per_second": finite({"it": images_per_second or math.nan}).get("it"),
            "mlflow_run_id": run_id,
            "git_commit": git_commit(),
            "versions": versions(),
        }
        write_text_atomic(self.folder / "summary.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder, in order; what a crash left unfinished is left out with a warning."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()  # a crash of the disk leaves any bytes
    found = [_parse(line) for line in lines]
    if None in found:
        logger.warning("%s: %d unfinished line(s) left out", file, found.count(None))
    return [record for record in found if record is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a run folder; empty when there is none."""
    file = folder / "summary.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def read_provenance(folder: Path) -> dict[str, Any]:
    """``provenance.json`` of a run folder; empty when there is none that can be read."""
    try:
        return dict(json.loads((folder / "provenance.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """`values` without NaN and infinities: JSON has no word for them and they break MLflow's charts."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _series(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, int, float]]:
    return [(record["step"], record["epoch"], record[name]) for record in records if name in record]


def _is_evaluation(record: Mapping[str, Any]) -> bool:
    return any(name.startswith("val/") for name in record)


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """Warn when drawing fails: a picture can be drawn again from the files, hours of training cannot."""
    try:
        yield
    except Exception:
        logger.warning("%s could not be drawn", what, exc_info=True)
