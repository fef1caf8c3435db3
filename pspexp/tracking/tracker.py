"""One door for every record of a run: the run folder first, then whoever looks on."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pspexp.data.dataset import DatasetInfo
from pspexp.metrics import Report, percent
from pspexp.tracking.figures import EvaluatedSample
from pspexp.tracking.local import LocalTracker, finite
from pspexp.tracking.markdown import markdown_table, plain
from pspexp.tracking.provenance import git_commit, short_fingerprint, uncommitted
from pspexp.tracking.secrets import mask_logins
from pspexp.utils.trees import flatten

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Logger(Protocol):
    """Shows a run elsewhere (MLflow, say). It may raise at any time: `Tracker` then goes on without it."""

    def open(self, *, run_id: str | None, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Starts a run, or goes on with `run_id`; returns the run's id."""
        ...

    def metrics(self, values: Mapping[str, float], *, step: int, time_s: float) -> None:
        """Shows finite values, measured at `time_s` (seconds since 1970)."""
        ...

    def files(self, folder: Path, paths: Sequence[str]) -> None:
        """Shows files, given relative to the run folder; newer versions replace older ones."""
        ...

    def note(self, markdown: str) -> None:
        """Shows a text at the head of the run."""
        ...

    def close(self, status: Status) -> None:
        """Ends the run."""
        ...


class Tracker:
    """What the trainer and the evaluation tell about a run.

    Every call reaches the run folder first and then each view. A view that raises is warned about once and
    switched off: a dead server costs nobody a run.

    Args:
        local: writes the run folder.
        views: shown the same records; none for local files only.
    """

    def __init__(self, local: LocalTracker, views: Sequence[Logger] = ()) -> None:
        self._local = local
        self._views = list(views)
        self._run_id: str | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._local.folder

    @property
    def run_id(self) -> str | None:
        """The id a view gave to this run (MLflow's run id); None without one."""
        return self._run_id

    def start(
        self,
        *,
        name: str,
        config: Mapping[str, object],
        config_text: str,
        overrides: Sequence[str],
        tags: Mapping[str, str],
        resume: bool = False,
        attempt: Mapping[str, Any] | None = None,
        rerun_of: str | None = None,
    ) -> None:
        """Writes the configuration and opens the views.

        Args:
            name: what people call the run.
            config: nested plain values; shown flattened (``optimizer.lr``) as parameters.
            config_text: the same as YAML, for ``config.yaml``. Secrets are masked by the caller, in both.
            overrides: the command line's ``key=value`` words.
            tags: dataset, model, device, mode; git commit, host, data and the run repeated are added here.
            resume: go on with the records and the view's run that this folder already knows. Otherwise the
                records of an earlier run in this folder are moved aside.
            attempt: where the run comes from, see `pspexp.tracking.provenance.attempt`; None if nothing is run.
            rerun_of: the run that this one repeats.
        """
        self._run_id = self._local.begin(resume)
        self._local.config(config_text, overrides)
        params = {key: str(value) for key, value in flatten(config).items()}
        tags = {**tags, "git_commit": git_commit() or "unknown"}
        if attempt is not None:
            self._local.provenance(attempt, uncommitted(), rerun_of, resume=resume)
            tags |= {"host": attempt["host"]["name"], "data": short_fingerprint(attempt["data"])}
        if rerun_of is not None:
            tags["rerun_of"] = rerun_of

        def open_view(view: Logger) -> None:
            self._run_id = view.open(run_id=self._run_id, name=name, params=params, tags=tags)

        self._each(open_view)
        # Not only at the end: a run that is killed outright must be found, and resumed in the same view.
        self._local.summary("RUNNING", run_id=self._run_id)
        self._files("config.yaml", "overrides.txt", "provenance.json", "uncommitted*")

    def rewind(self, step: int, *, keep_evaluation: bool) -> None:
        """Cuts local records younger than the save at `step` (see `LocalTracker.rewind`).

        Views keep theirs (MLflow cannot take back a metric): repeated steps are shown twice there.
        """
        self._local.rewind(step, keep_evaluation)

    def metrics(self, values: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Records values: one line, one call to each view. Non-finite ones are left out.

        Args:
            values: by metric name, such as ``train/loss``.
            step: finished optimizer steps, from 1.
            epoch: from 1.
        """
        now_s = time.time()
        values = finite(values)
        self._local.metrics(values, step=step, epoch=epoch, time_s=now_s)
        if values:
            self._each(lambda view: view.metrics(values, step=step, time_s=now_s))

    def report(
        self,
        split: str,
        report: Report,
        *,
        step: int,
        epoch: int,
        extra: Mapping[str, float] | None = None,
    ) -> None:
        """Records an evaluation: metrics, table, confusion matrix, curves and the headline note.

        Args:
            split: ``val`` or ``test``, the prefix of the metric names.
            report: the result.
            step: optimizer step of the evaluated weights.
            epoch: from 1.
            extra: values for the same record, by full name (``val/loss``, ``best/mean_iou``, ``best/epoch``).
        """
        self.metrics({**(extra or {}), **report.scalars(split)}, step=step, epoch=epoch)
        self._local.report(split, report)
        self._local.curves()
        text = headline(split, report, step=step, epoch=epoch, extra=extra)
        self._each(lambda view: view.note(text))
        self._files("tables/*.csv", "plots/*.png")

    def samples(
        self,
        split: str,
        samples: Sequence[EvaluatedSample],
        dataset: DatasetInfo,
    ) -> None:
        """Draws image | truth | prediction into ``plots/samples/<name>.png``.

        Args:
            split: shown in the title.
            samples: what to draw.
            dataset: names and colours of the classes.
        """
        self._local.samples(split, samples, dataset)
        self._files("plots/samples/*.png")

    def finish(
        self,
        status: Status,
        *,
        best: Mapping[str, float] | None = None,
        last: Mapping[str, float] | None = None,
        images_per_second: float | None = None,
    ) -> None:
        """Draws the curves, writes ``summary.json``, shows everything and closes the views.

        Args:
            status: how the run ended.
            best: metrics of the best validation.
            last: metrics of the last validation (or of the test).
            images_per_second: training throughput, without evaluation.
        """
        self._local.curves()
        self._local.summary(status, best=best, last=last, images_per_second=images_per_second, run_id=self._run_id)
        self._files("summary.json", "run.log", "tables/*.csv", "plots/*.png", "plots/samples/*.png")
        if status == "FINISHED":
            self._files("checkpoints/best.pt", "checkpoints/last.pt")
        self._each(lambda view: view.close(status))
        # Afterwards: of several processes the one that records may be ended because another failed. A killed run
        # has only seconds left; the run that resumes it shows its checkpoints.
        if status == "FAILED":
            self._files("checkpoints/best.pt", "checkpoints/last.pt")

    def _files(self, *patterns: str) -> None:
        found = sorted(path for pattern in patterns for path in self.folder.glob(pattern))
        paths = [path.relative_to(self.folder).as_posix() for path in found]
        if paths:
            self._each(lambda view: view.files(self.folder, paths))

    def _each(self, call: Callable[[Logger], None]) -> None:
        self._views = [view for view in self._views if self._tell(view, call)]

    def _tell(self, view: Logger, call: Callable[[Logger], None]) -> bool:
        """Whether the view could be told."""
        try:
            call(view)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            text = f"{view} is switched off, records of this run go on in {self.folder}: {reason}"
            logger.warning("%s", mask_logins(text))
            return False
        return True


class SilentTracker(Tracker):
    """The tracker of a process beside the one that records: every call is ignored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The run folder, which the recording process writes."""
        return self._folder

    def _ignore(self, *_: Any, **__: Any) -> None:
        pass

    start = rewind = metrics = report = samples = finish = _ignore


def headline(split: str, report: Report, *, step: int, epoch: int, extra: Mapping[str, float] | None = None) -> str:
    """An evaluation in Markdown: the best so far, the four means, then the classes; percent, ``–`` where undefined."""

    means = [report.mean_iou, report.mean_acc, report.overall_acc, report.freqw_acc]
    lines = []
    if extra and "best/mean_iou" in extra:
        lines = [f"Best mean IoU **{percent(extra['best/mean_iou'])} %** (epoch {extra['best/epoch']:.0f})", ""]
    lines += [
        f"**{split}**, epoch {epoch}, step {step} (percent)",
        "",
        *markdown_table(
            ["mean IoU", "mean accuracy", "overall accuracy", "frequency-weighted accuracy"],
            [[percent(value) for value in means]],
            numbers=range(4),
        ),
        "",
        "**Classes**",
        "",
        *markdown_table(
            ["class", "IoU", "accuracy"],
            [
                [plain(name), percent(iou), percent(accuracy)]
                for name, iou, accuracy in zip(report.class_names, report.iou, report.accuracy, strict=True)
            ],
            numbers=(1, 2),
        ),
    ]
    return "\n".join(lines)
