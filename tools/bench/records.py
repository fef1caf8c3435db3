"""Time of one record of metrics, and of one of an evaluation."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import (
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from functools import partial
from itertools import count
from pathlib import Path

import torch

import pspexp
from pspexp.jobs.records import Request, open_tracker
from pspexp.metrics import ConfusionMatrix
from pspexp.tracking.tracker import Tracker
from tools.bench.options import Options
from tools.bench.results import Row, Table
from tools.bench.timing import take_turns
from tools.bench.works import CLASSES, IGNORE, random_labels

MLFLOW_S = 60.0  # for the run to be opened there
RECORDS = 20  # consecutive records per measurement


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Redirect logging and printed output to ``run.log`` in ``folder``."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with (folder / "run.log").open("w", encoding="utf-8") as file:
        root.handlers[:] = [logging.StreamHandler(file)]
        root.setLevel(logging.INFO)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


def bench_logging(options: Options) -> Iterator[Table]:
    """The time that a record takes."""
    with tempfile.TemporaryDirectory() as name, quiet(Path(name)):
        folder = Path(name)
        trackers = {"files only": new_tracker(folder / "files", "tracking=none")}
        uri = f"tracking.tracking_uri=sqlite:///{folder / 'mlflow.db'}"
        both = new_tracker(folder / "mlflow", "tracking=mlflow", uri)
        deadline = time.monotonic() + MLFLOW_S
        while not both.ids and time.monotonic() < deadline:
            time.sleep(0.1)
        if both.ids:  # else MLflow could not be reached
            trackers["files and MLflow"] = both
        samplers: dict[str, Callable[[], float]] = {}
        for label, tracker in trackers.items():
            samplers[f"metrics, {label}"] = partial(record_metrics, tracker, count(1))
            samplers[f"report, {label}"] = partial(record_report, tracker, count(1))
        rows = {label: Row() for label in samplers}
        take_turns(samplers, rows, options.repeats)
        for tracker in trackers.values():
            tracker.finish("FINISHED")
    facts = {} if both.ids else {"MLflow": "could not be started"}
    yield Table(f"one record; {CLASSES} classes", rows, facts=facts)


def new_tracker(folder: Path, *overrides: str) -> Tracker:
    """A tracker that records into ``folder`` and whatever ``overrides`` configure."""
    overrides = ("model=pspnet18", "dataset=shapes", "crop_size=96", "device=cpu", f"output_root={folder}", *overrides)
    return open_tracker(Request(pspexp.compose(overrides), folder / "run", list(overrides)), "cpu", resume=False)


def record_metrics(tracker: Tracker, steps: Iterator[int]) -> float:
    """Mean seconds to record training metrics once."""
    values = {"loss": 0.5, "lr": 1e-4, "images_per_second": 10.0, "data_time": 0.01, "step_time": 0.2}
    values = {f"train/{name}": value for name, value in values.items()}
    start = time.perf_counter()
    for _ in range(RECORDS):
        tracker.metrics(values, step=next(steps), epoch=1)
    return (time.perf_counter() - start) / RECORDS


def record_report(tracker: Tracker, epochs: Iterator[int]) -> float:
    """Seconds to record one evaluation: metrics, table, figures."""
    epoch = next(epochs)
    matrix = ConfusionMatrix(CLASSES, IGNORE)
    matrix.update(torch.randint(0, CLASSES, (1, 64, 64)), random_labels(1, 64, "cpu"))
    report = matrix.report([f"class {index}" for index in range(CLASSES)])
    start = time.perf_counter()
    tracker.report("val", report, step=epoch, epoch=epoch, extra={"val/loss": 1 / epoch})
    return time.perf_counter() - start
