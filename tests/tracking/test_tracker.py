import logging
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from pspexp.data.dataset import DatasetInfo, EvaluatedSample
from pspexp.metrics import Report
from pspexp.metrics.images import image_scores
from pspexp.tracking import other_loggers
from pspexp.tracking.delivery import Delivery
from pspexp.tracking.local import LocalTracker
from pspexp.tracking.logger import Status
from pspexp.tracking.manifest import read_manifest
from pspexp.tracking.run_folder import read_records, read_summary
from pspexp.tracking.tracker import Tracker, description
from tests.end_to_end.conftest import wait_until


class Recorder:
    """A logger that records its calls, and raises in the first ``attempts`` calls of one method."""

    def __init__(
        self, fails_at: str = "", new_id: str = "new-id", error: type[Exception] = ConnectionError, attempts: int = 99
    ) -> None:
        self.calls: list[tuple[str, object]] = []
        self._fails_at, self._new_id, self._error, self._attempts = fails_at, new_id, error, attempts

    def _record(self, name: str, content: object) -> None:
        self.calls.append((name, content))
        if name == self._fails_at and self._attempts:
            self._attempts -= 1
            raise self._error("no answer from http://me:secret@host")

    def received(self, name: str) -> list[object]:
        """What calls of a method have brought, without what was repeated."""
        found = self.contents(name)
        return [one for number, one in enumerate(found) if one not in found[:number]]

    def open(self, *, run_id: str | None, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        self._record("open", (run_id, name, dict(params), dict(tags)))
        return run_id or self._new_id

    def metrics(self, values: Mapping[str, float], *, step: int, time_s: float) -> None:
        self._record("metrics", (dict(values), step))

    def files(self, folder: Path, paths: Sequence[str]) -> None:
        self._record("files", list(paths))

    def note(self, markdown: str) -> None:
        self._record("note", markdown)

    def close(self, status: Status) -> None:
        self._record("close", status)

    def contents(self, name: str) -> list[object]:
        return [content for method, content in self.calls if method == name]


def start(tracker: Tracker, *, resume: bool = False) -> None:
    tracker.start(
        name="a run",
        config={"seed": 1, "optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}},
        config_text="seed: 1\n",
        overrides=["seed=1"],
        tags={"mode": "train"},
        resume=resume,
    )


def record_all(tracker: Tracker, report: Report) -> None:
    """A whole run: two records, an evaluation, and its end."""
    start(tracker)
    for step in (5, 6):
        tracker.metrics({"train/loss": 2.0}, step=step, epoch=1)
    tracker.report("val", report, step=10, epoch=2)
    tracker.finish("FINISHED")


def test_run_is_recorded_in_its_folder_and_in_loggers(tmp_path: Path, report: Report, dataset: DatasetInfo) -> None:
    logger = Recorder()
    tracker = Tracker(LocalTracker(tmp_path), {"mine": logger})
    start(tracker)
    tracker.metrics({"train/loss": 2.0, "train/nothing": math.nan}, step=5, epoch=1)
    tracker.report("val", report, step=10, epoch=2, extra={"val/loss": 1.5})
    ids = np.zeros((8, 8), np.uint8)
    sample = EvaluatedSample("one", np.zeros((8, 8, 3), np.uint8), ids, ids)
    tracker.samples("val", [sample], dataset)
    tracker.images("val", [image_scores("one", [64, 0], [64, 0], [64, 0])], [sample], dataset)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"weights")
    tracker.finish("FINISHED", best={"val/mean_iou": 0.5}, images_per_second=8.0)

    ((run_id, name, params, tags),) = logger.contents("open")  # type: ignore[misc]
    assert (run_id, name, params["optimizer.lr"], params["optimizer.betas"]) == (None, "a run", "0.1", "[0.9, 0.99]")
    assert set(tags) == {"mode", "folder", "git_commit", "pspexp.id"}
    train, val = logger.contents("metrics")
    assert train == ({"train/loss": 2.0}, 5)
    assert val == ({"val/loss": 1.5, **report.scalars("val")}, 10)
    assert [list(record)[:3] for record in read_records(tmp_path)] == [["step", "epoch", "time"]] * 2
    shown = {path for paths in logger.contents("files") for path in paths}  # type: ignore[attr-defined]
    assert shown == {
        "config.yaml",
        "overrides.txt",
        "summary.json",
        "tables/val_iou.csv",
        "tables/val_images.csv",
        "plots/train_loss.png",
        "plots/val_loss.png",
        "plots/confusion_matrix.png",
        "plots/samples/one.png",
        "plots/worst/val/one.png",
        "checkpoints/best.pt",
    }
    assert logger.calls[-1] == ("close", "FINISHED")
    summary = read_summary(tmp_path)
    assert (summary["mlflow_run_id"], summary["loggers"]) == (None, {"mine": "new-id"})


def test_files_are_sent_once_unless_they_change(tmp_path: Path, report: Report) -> None:
    logger = Recorder()
    tracker = Tracker(LocalTracker(tmp_path), {"mine": logger})
    record_all(tracker, report)
    first = [path for paths in logger.contents("files") for path in paths]  # type: ignore[attr-defined]
    assert len({*first}) == len(first)
    (tmp_path / "tables" / "val_iou.csv").write_text("changed")
    delivery, manifest = Delivery("mine", logger, tmp_path), read_manifest(tmp_path)
    assert manifest is not None
    delivery.deliver(manifest)
    assert [path for paths in logger.contents("files") for path in paths][len(first) :] == ["tables/val_iou.csv"]  # type: ignore[attr-defined]


def test_resume_after_a_hard_kill_restores_each_loggers_id(tmp_path: Path) -> None:
    first = Tracker(LocalTracker(tmp_path), {"mlflow": Recorder(new_id="a"), "csv": Recorder(new_id="b")})
    start(first)
    first.metrics({"train/loss": 1.0}, step=1, epoch=1)
    wait_until(lambda: len(read_summary(tmp_path)["loggers"]) == 2)
    summary = read_summary(tmp_path)
    assert (summary["status"], summary["mlflow_run_id"], summary["loggers"]) == (
        "RUNNING",
        "a",
        {"mlflow": "a", "csv": "b"},
    )

    loggers = {"csv": Recorder(new_id="?"), "new": Recorder(new_id="c"), "mlflow": Recorder("open", new_id="?")}
    second = Tracker(LocalTracker(tmp_path), loggers)
    start(second, resume=True)
    second.rewind(0, keep_evaluation=False)
    wait_until(lambda: len(second.ids) == 3 and bool(loggers["mlflow"].calls))
    given = {name: logger.contents("open")[0][0] for name, logger in loggers.items()}  # type: ignore[index]
    assert given == {"csv": "b", "new": None, "mlflow": "a"}
    # An ID survives a failure of its logger.
    assert read_summary(tmp_path)["loggers"] == second.ids == {"mlflow": "a", "csv": "b", "new": "c"}
    assert read_records(tmp_path) == []


def test_killed_run_does_not_upload_checkpoints(tmp_path: Path) -> None:
    logger = Recorder()
    tracker = Tracker(LocalTracker(tmp_path), {"mine": logger})
    start(tracker)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(b"weights")
    tracker.finish("KILLED")
    assert not any("checkpoints/last.pt" in paths for paths in logger.contents("files"))  # type: ignore[operator]
    assert read_summary(tmp_path)["status"] == "KILLED"


@pytest.mark.parametrize("method", ["metrics", "files", "note", "close"])
def test_what_a_logger_refuses_is_skipped_with_one_warning(
    tmp_path: Path, report: Report, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    broken, healthy = Recorder(method, error=ValueError), Recorder()
    tracker = Tracker(LocalTracker(tmp_path), {"a": broken, "c": healthy})
    with caplog.at_level(logging.WARNING):
        record_all(tracker, report)
    (warning,) = [record.getMessage() for record in caplog.records if "rejected" in record.getMessage()]
    assert warning.startswith("logger a rejected ")
    assert "secret" not in warning
    assert broken.contents("metrics") == healthy.contents("metrics")
    assert broken.calls[-1] == healthy.calls[-1] == ("close", "FINISHED")


@pytest.mark.parametrize("method", ["open", "metrics", "files", "note", "close"])
def test_outage_is_named_once_and_records_follow_in_order(
    tmp_path: Path, report: Report, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    away, healthy = Recorder(method, attempts=2), Recorder()
    tracker = Tracker(LocalTracker(tmp_path), {"a": away, "c": healthy}, wait_s=60)
    with caplog.at_level(logging.INFO):
        record_all(tracker, report)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("logger a")]
    assert lines[0] == (
        f"logger a is unavailable; records remain in {tmp_path} and are sent when it is back: "
        "ConnectionError: no answer from http://***@host"
    )
    assert [line.partition(" after ")[0] for line in lines[1:]] == ["logger a is back"]
    assert away.received("metrics") == healthy.received("metrics")
    assert away.calls[-1] == healthy.calls[-1] == ("close", "FINISHED")


def test_outage_that_does_not_end_is_left_to_sync(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(LocalTracker(tmp_path), {"a": Recorder("open", attempts=99)})
    with caplog.at_level(logging.WARNING):
        start(tracker)
        tracker.metrics({"train/loss": 2.0}, step=5, epoch=1)
        tracker.finish("FINISHED")
    away, missing = [record.getMessage() for record in caplog.records]
    assert "is unavailable" in away
    command = f"python -m pspexp mode=sync sync.runs={tmp_path}"
    assert missing == f"logger a has not received everything; send the rest with\n  {command}"
    assert read_summary(tmp_path)["status"] == "FINISHED"

    later, manifest = Recorder(), read_manifest(tmp_path)
    assert manifest is not None
    delivery = Delivery("a", later, tmp_path)
    assert not delivery.is_complete(manifest)
    delivery.deliver(manifest)
    assert later.contents("metrics") == [({"train/loss": 2.0}, 5)]
    assert later.calls[-1] == ("close", "FINISHED")
    assert Delivery("a", Recorder(), tmp_path).is_complete(manifest)


def test_hanging_logger_does_not_hold_up_the_run(tmp_path: Path, report: Report) -> None:
    answers = threading.Event()

    class Hanging(Recorder):
        def metrics(self, values: Mapping[str, float], *, step: int, time_s: float) -> None:
            assert answers.wait(60)
            super().metrics(values, step=step, time_s=time_s)

    hanging, healthy = Hanging(), Recorder()
    tracker = Tracker(LocalTracker(tmp_path), {"a": hanging, "c": healthy})
    start(tracker)
    for step in (5, 6):
        tracker.metrics({"train/loss": 2.0}, step=step, epoch=1)
    tracker.report("val", report, step=10, epoch=2)
    assert not hanging.contents("metrics")
    answers.set()
    tracker.finish("FINISHED")
    assert hanging.contents("metrics") == healthy.contents("metrics")


def test_steps_that_a_resume_repeats_are_named(tmp_path: Path) -> None:
    first = Tracker(LocalTracker(tmp_path), {"a": Recorder()})
    start(first)
    for step in (5, 10, 15):
        first.metrics({"train/loss": 1 / step}, step=step, epoch=1)
    first.finish("KILLED")

    logger = Recorder()
    second = Tracker(LocalTracker(tmp_path), {"a": logger})
    start(second, resume=True)
    second.rewind(7, keep_evaluation=False)
    for step in (10, 15, 20):
        second.metrics({"train/loss": 1 / step}, step=step, epoch=1)
    second.finish("FINISHED")
    assert [step for _, step in logger.contents("metrics")] == [10, 15, 20]  # type: ignore[misc]
    assert logger.contents("note") == ["Steps 6–15 were recorded again after a resume."]


def test_only_custom_loggers_without_mlflow() -> None:
    mine = Recorder()
    assert other_loggers(loggers={"mine": mine}) == {"mine": mine}


def test_description_is_a_table_in_percent(report: Report) -> None:
    text = description("val", report, step=10, epoch=2)
    assert "| 50.00 | 75.00 | 66.67 | 50.00 | 66.67 |" in text
    assert "| road | 50.00 | 50.00 |" in text
    assert "| a+b | – | – |" in text
