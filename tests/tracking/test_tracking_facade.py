import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from pspexp.metrics import Report
from pspexp.tracking import LocalTracker, Status, Tracker, no_views
from pspexp.tracking.local import read_records, read_summary
from pspexp.tracking.tracker import headline


class Recorder:
    """A view that remembers what it was shown and fails when asked to."""

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[tuple[str, object]] = []
        self._fails_at = fails_at

    def _take(self, name: str, content: object) -> None:
        self.calls.append((name, content))
        if name == self._fails_at:
            raise ConnectionError("nobody at http://me:secret@host")

    def open(self, *, run_id: str | None, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        self._take("open", (run_id, name, dict(params), dict(tags)))
        return run_id or "new-id"

    def metrics(self, values: Mapping[str, float], *, step: int, time_s: float) -> None:
        self._take("metrics", (dict(values), step))

    def files(self, folder: Path, paths: Sequence[str]) -> None:
        self._take("files", list(paths))

    def note(self, markdown: str) -> None:
        self._take("note", markdown)

    def close(self, status: Status) -> None:
        self._take("close", status)

    def got(self, name: str) -> list[object]:
        return [content for called, content in self.calls if called == name]


def start(tracker: Tracker, *, resume: bool = False) -> None:
    tracker.start(
        name="a run",
        config={"seed": 1, "optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}},
        config_text="seed: 1\n",
        overrides=["seed=1"],
        tags={"mode": "train"},
        resume=resume,
    )


def test_a_run_reaches_folder_and_view(tmp_path: Path, report: Report) -> None:
    view = Recorder()
    tracker = Tracker(LocalTracker(tmp_path), [view])
    start(tracker)
    tracker.metrics({"train/loss": 2.0, "train/nothing": math.nan}, step=5, epoch=1)
    tracker.report("val", report, step=10, epoch=2, extra={"val/loss": 1.5})
    ids = np.zeros((8, 8), np.uint8)
    picture = ("one", np.zeros((8, 8, 3), np.uint8), ids, ids)
    tracker.samples("val", [picture], palette=np.zeros((1, 3), np.uint8), class_names=["road"], ignore_index=255)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"weights")
    tracker.finish("FINISHED", best={"val/mean_iou": 0.5}, images_per_second=8.0)

    ((run_id, name, params, tags),) = view.got("open")  # type: ignore[misc]
    assert (run_id, name, params["optimizer.lr"], params["optimizer.betas"]) == (None, "a run", "0.1", "[0.9, 0.99]")
    assert set(tags) == {"mode", "git_commit"}
    train, val = view.got("metrics")
    assert train == ({"train/loss": 2.0}, 5)
    assert val == ({"val/loss": 1.5, **report.scalars("val")}, 10)
    assert [list(record)[:3] for record in read_records(tmp_path)] == [["step", "epoch", "time"]] * 2
    shown = {path for paths in view.got("files") for path in paths}  # type: ignore[attr-defined]
    assert shown == {
        "config.yaml",
        "overrides.txt",
        "summary.json",
        "tables/val_iou.csv",
        "plots/train_loss.png",
        "plots/val_loss.png",
        "plots/confusion_matrix.png",
        "plots/samples/one.png",
        "checkpoints/best.pt",
    }
    assert view.calls[-1] == ("close", "FINISHED")
    assert read_summary(tmp_path)["mlflow_run_id"] == tracker.run_id == "new-id"


def test_resume_goes_on_in_the_same_run_even_after_a_hard_kill(tmp_path: Path) -> None:
    first = Tracker(LocalTracker(tmp_path), [Recorder()])
    start(first)
    first.metrics({"train/loss": 1.0}, step=1, epoch=1)
    assert read_summary(tmp_path)["status"] == "RUNNING"

    view = Recorder()
    second = Tracker(LocalTracker(tmp_path), [view])
    start(second, resume=True)
    second.rewind(0, keep_evaluation=False)
    assert view.got("open")[0][0] == "new-id"  # type: ignore[index]
    assert second.run_id == "new-id"
    assert read_records(tmp_path) == []


def test_a_killed_run_does_not_wait_for_checkpoints(tmp_path: Path) -> None:
    view = Recorder()
    tracker = Tracker(LocalTracker(tmp_path), [view])
    start(tracker)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_bytes(b"weights")
    tracker.finish("KILLED")
    assert not any("checkpoints/last.pt" in paths for paths in view.got("files"))  # type: ignore[operator]
    assert read_summary(tmp_path)["status"] == "KILLED"


@pytest.mark.parametrize("fails_at", ["open", "metrics", "files", "note", "close"])
def test_a_failing_view_costs_one_warning_and_nothing_else(
    tmp_path: Path, report: Report, caplog: pytest.LogCaptureFixture, fails_at: str
) -> None:
    broken, sound = Recorder(fails_at), Recorder()
    tracker = Tracker(LocalTracker(tmp_path), [broken, sound])
    with caplog.at_level(logging.WARNING):
        start(tracker)
        tracker.metrics({"train/loss": 2.0}, step=5, epoch=1)
        tracker.report("val", report, step=10, epoch=2)
        tracker.finish("FINISHED")
    (warning,) = [r.getMessage() for r in caplog.records if "switched off" in r.getMessage()]
    assert str(tmp_path) in warning
    assert "secret" not in warning
    assert broken.calls[-1][0] == fails_at
    assert sound.calls[-1] == ("close", "FINISHED")
    assert len(read_records(tmp_path)) == 2


def test_ctrl_c_inside_a_view_is_not_swallowed(tmp_path: Path) -> None:
    class Slow(Recorder):
        def note(self, markdown: str) -> None:
            raise KeyboardInterrupt

    tracker = Tracker(LocalTracker(tmp_path), [Slow()])
    with pytest.raises(KeyboardInterrupt):
        tracker._each(lambda view: view.note(""))


def test_no_views() -> None:
    assert no_views() == []


def test_headline_is_a_table_in_percent(report: Report) -> None:
    text = headline("val", report, step=10, epoch=2)
    assert "| 50.00 | 75.00 | 66.67 | 50.00 |" in text
    assert "| road | 50.00 | 50.00 |" in text
    assert "| a+b | – | – |" in text
