"""The one place that trainer and evaluation report to: it writes the run folder, then calls the loggers."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pspexp.data.dataset import DatasetInfo, EvaluatedSample
from pspexp.metrics import Report, percent
from pspexp.metrics.images import ImageScores
from pspexp.tracking.local import LocalTracker, optional
from pspexp.tracking.logger import Logger, Status
from pspexp.tracking.manifest import ID_TAG, Manifest, read_manifest
from pspexp.tracking.provenance import origin_tags, short_fingerprint, uncommitted
from pspexp.tracking.run_folder import finite
from pspexp.tracking.senders import Senders, warn_missing
from pspexp.utils.files import write_text_atomic
from pspexp.utils.tables import escape_markdown, markdown_table
from pspexp.utils.trees import flatten

FILES = (
    "config.yaml", "overrides.txt", "provenance.json", "uncommitted*", "tables/*.csv", "plots/*.png",
    "plots/samples/*.png",
)  # fmt: skip
LAST_FILES = ("summary.json", "run.log", "plots/worst/*/*.png")
CHECKPOINTS = ("checkpoints/best.pt", "checkpoints/last.pt")
KILLED_S = 5.0  # a killed run has only seconds left


class Tracker:
    """Records a run in its folder; threads bring the records to each logger.

    Args:
        local: Writes the run folder.
        loggers: By name; none for local files only. None of them can fail the run or hold it up.
        wait_s: How long the end of the run waits for a logger that is unavailable, since the outage began.
        failure_s: How long a run that has failed waits for anything: if it has several processes, the others end it.
    """

    def __init__(
        self,
        local: LocalTracker,
        loggers: Mapping[str, Logger] | None = None,
        *,
        wait_s: float = 0.0,
        failure_s: float = math.inf,
    ) -> None:
        self._local, self._wait_s = local, wait_s
        self._limits_s = {"KILLED": KILLED_S, "FAILED": failure_s}
        self._senders = Senders(loggers or {}, local.folder)
        self._manifest = Manifest(local.folder.name, {}, {})

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._local.folder

    @property
    def ids(self) -> Mapping[str, str]:
        """The run's id in each logger that has opened it, by the logger's name."""
        return self._senders.ids

    def start(
        self,
        *,
        name: str,
        config: Mapping[str, object],
        config_text: str,
        overrides: Sequence[str],
        tags: Mapping[str, str],
        resume: bool = False,
        provenance: Mapping[str, Any] | None = None,
        rerun_of: str | None = None,
    ) -> None:
        """Write the configuration and open the loggers.

        Args:
            name: The run's name.
            config: Nested plain values; loggers get them flattened (``optimizer.lr``). The caller masks secrets.
            config_text: The same as YAML, for ``config.yaml``.
            overrides: The command line's overrides.
            tags: Data set, model, device, mode; folder, commit, host, data and the repeated run are added here.
            resume: Continue the records in this folder and the runs that its loggers have opened. Otherwise the records
                of an earlier run in this folder are moved aside.
            provenance: From `pspexp.tracking.provenance.record`; None if nothing is run.
            rerun_of: The run that this one repeats.
        """
        self._local.begin(resume)
        self._local.config(config_text, overrides)
        params = {key: str(value) for key, value in flatten(config).items()}
        tags = {**tags, **origin_tags(self.folder)}
        if provenance is not None:
            self._local.provenance(provenance, uncommitted(), rerun_of, resume=resume)
            tags |= {"host": provenance["host"]["name"], "data": short_fingerprint(provenance["data"])}
        if rerun_of is not None:
            tags["rerun_of"] = rerun_of
        before = read_manifest(self.folder)
        tags[ID_TAG] = before.tags.get(ID_TAG, uuid4().hex) if before else uuid4().hex
        tracking = config.get("tracking")
        self._manifest = Manifest(
            name, params, tags, files=FILES, tracking=tracking if isinstance(tracking, Mapping) else {}
        )
        self._manifest.save(self.folder)
        self._senders.start(self._manifest)
        self._local.summary("RUNNING", loggers=self.ids)  # not only at the end: a run that is killed can be found

    def rewind(self, step: int, *, keep_evaluation: bool) -> None:
        """Remove local records that are newer than the checkpoint at ``step``, see `LocalTracker.rewind`.

        Loggers keep what they have received (MLflow cannot delete a metric); the description names the steps that
        appear twice.
        """
        if (kept := self._local.rewind(step, keep_evaluation)) is not None:
            self._senders.rewind(*kept)

    def metrics(self, values: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Record values, in one line. Non-finite values are skipped.

        Args:
            values: By metric name, such as ``train/loss``.
            step: Optimizer steps done, from 1.
            epoch: From 1.
        """
        self._local.metrics(finite(values), step=step, epoch=epoch, time_s=time.time())
        self._senders.wake()

    def sync(self) -> None:
        """Have the records on the disk, see `LocalTracker.sync`."""
        self._local.sync()

    def report(
        self, split: str, report: Report, *, step: int, epoch: int, extra: Mapping[str, float] | None = None
    ) -> None:
        """Record an evaluation: metrics, table, confusion matrix, curves and the description.

        Args:
            split: ``val`` or ``test``, the prefix of the metric names.
            report: The result.
            step: Optimizer step of the evaluated weights.
            epoch: From 1.
            extra: Values for the same record, by full name (``val/loss``, ``best/mean_iou``, ``best/epoch``).
        """
        self.metrics({**(extra or {}), **report.scalars(split)}, step=step, epoch=epoch)
        self._local.report(split, report)
        self._local.curves()
        text = description(split, report, step=step, epoch=epoch, extra=extra)
        with optional("the description"):
            write_text_atomic(self.folder / self._manifest.note, text + "\n", durable=False)
        self._senders.wake()

    def samples(self, split: str, samples: Sequence[EvaluatedSample], dataset: DatasetInfo) -> None:
        """Draw image, ground truth and prediction side by side in ``plots/samples/<name>.png``.

        Args:
            split: For the title.
            samples: Evaluated images.
            dataset: Names and colours of the classes.
        """
        self._local.samples(split, samples, dataset)

    def images(
        self, split: str, images: Sequence[ImageScores], worst: Sequence[EvaluatedSample], dataset: DatasetInfo
    ) -> None:
        """Record the metrics of single images, and draw the worst: image, ground truth and prediction.

        The loggers get the pictures at the end: each evaluation has others.

        Args:
            split: ``val`` or ``test``.
            images: Worst first.
            worst: The first of them, to be drawn.
            dataset: Names and colours of the classes.
        """
        self._local.images(split, images, worst, dataset)

    def finish(
        self,
        status: Status,
        *,
        best: Mapping[str, float] | None = None,
        last: Mapping[str, float] | None = None,
        images_per_second: float | None = None,
    ) -> None:
        """Draw the curves, write ``summary.json`` and let the loggers have the rest.

        Args:
            status: How the run ended.
            best: Metrics of the best validation.
            last: Metrics of the last validation (or of the test).
            images_per_second: Training throughput, without evaluation.
        """
        ended = replace(
            self._manifest,
            status=status,
            files=(*FILES, *LAST_FILES, *(CHECKPOINTS if status == "FINISHED" else ())),
            # After a failure, this process may be ended at any time because another one has failed. The checkpoints of
            # a killed run follow when it is resumed.
            late_files=CHECKPOINTS if status == "FAILED" else (),
        )
        try:
            if self.folder.exists():  # else its disk is gone, and a new folder would be in the way when it is back
                ended.save(self.folder)
                self._local.curves()
                self._local.summary(status, best=best, last=last, images_per_second=images_per_second, loggers=self.ids)
        finally:  # the disk may be full, but the loggers are to know how the run ended
            for delivery in self._senders.finish(ended, self._wait_s, self._limits_s.get(status, math.inf)):
                warn_missing(delivery)


class SilentTracker(Tracker):
    """The tracker of the other processes: it ignores every call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The run folder, which the main process writes."""
        return self._folder

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    start = rewind = metrics = sync = report = samples = images = finish = _ignore


def description(split: str, report: Report, *, step: int, epoch: int, extra: Mapping[str, float] | None = None) -> str:
    """An evaluation in Markdown: the best so far, the means, then the classes; percent, ``–`` where undefined."""
    means = [report.mean_iou, report.mean_acc, report.overall_acc, report.freqw_acc, report.mean_dice]
    lines = []
    if extra and "best/mean_iou" in extra:
        lines = [f"Best mean IoU **{percent(extra['best/mean_iou'])} %** (epoch {extra['best/epoch']:.0f})", ""]
    lines += [
        f"**{split}**, epoch {epoch}, step {step} (percent)",
        "",
        *markdown_table(
            ["mean IoU", "mean accuracy", "overall accuracy", "frequency-weighted IoU", "mean Dice"],
            [[percent(value) for value in means]],
            right_aligned=range(5),
        ),
        "",
        *(text for line in report.other_lines() for text in (escape_markdown(line), "")),
        "**Classes**",
        "",
        *markdown_table(
            ["class", "IoU", "accuracy"],
            [[escape_markdown(name), percent(iou), percent(accuracy)] for name, iou, accuracy, _ in report.rows()],
            right_aligned=(1, 2),
        ),
    ]
    return "\n".join(lines)
