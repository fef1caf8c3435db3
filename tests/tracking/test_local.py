import csv
import gc
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pspexp.data.dataset import DatasetInfo, EvaluatedSample
from pspexp.metrics import Report
from pspexp.metrics.images import image_scores
from pspexp.tracking.local import LocalTracker, set_ids
from pspexp.tracking.run_folder import read_records, read_summary


@pytest.fixture
def tracker(tmp_path: Path) -> LocalTracker:
    return LocalTracker(tmp_path / "a" / "run")


def lines(tracker: LocalTracker) -> list[str]:
    return (tracker.folder / "metrics.jsonl").read_text().splitlines()


def log(tracker: LocalTracker, step: int, **values: float) -> None:
    named = {name.replace("_", "/", 1): value for name, value in values.items()}
    tracker.metrics(named, step=step, epoch=1 + step // 10, time_s=1000.0 + step)


def test_metrics_are_flat_json_lines_without_undefined_values(tracker: LocalTracker) -> None:
    values = {"train/loss": 0.5, "train/lr": 1e-3, "val/iou/a": math.nan, "train/x": math.inf}
    tracker.metrics(values, step=5, epoch=2, time_s=12.34567)
    (line,) = lines(tracker)
    assert json.loads(line) == {"step": 5, "epoch": 2, "time": 12.346, "train/loss": 0.5, "train/lr": 1e-3}


def test_record_without_finite_values_is_skipped(tracker: LocalTracker) -> None:
    tracker.metrics({"val/mean_iou": math.nan}, step=5, epoch=2, time_s=0.0)
    assert read_records(tracker.folder) == []


def test_rewind_drops_records_after_the_step(tracker: LocalTracker) -> None:
    for step in (5, 10, 15):
        log(tracker, step, train_loss=1.0)
    log(tracker, 10, val_loss=2.0)
    kept = lines(tracker)
    tracker.rewind(10, keep_evaluation=True)
    assert lines(tracker) == [kept[0], kept[1], kept[3]]
    tracker.rewind(10, keep_evaluation=False)
    assert lines(tracker) == [kept[0], kept[1]]


def test_rewind_without_records_does_nothing(tracker: LocalTracker) -> None:
    tracker.rewind(10, keep_evaluation=False)
    assert not (tracker.folder / "metrics.jsonl").exists()


def test_resume_drops_an_unfinished_line(tracker: LocalTracker, caplog: pytest.LogCaptureFixture) -> None:
    log(tracker, 5, train_loss=1.0)
    with (tracker.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "train/lo')
    tracker.begin(resume=True)
    log(tracker, 10, train_loss=2.0)
    assert [record["step"] for record in read_records(tracker.folder)] == [5, 10]
    assert "unfinished" in caplog.text


def test_fresh_start_moves_old_records_aside(tracker: LocalTracker) -> None:
    log(tracker, 5, train_loss=1.0)
    old = lines(tracker)
    (tracker.folder / "tracking").mkdir()
    (tracker.folder / "tracking" / "note.md").write_text("of the earlier run")
    tracker.begin(resume=False)
    assert not (tracker.folder / "tracking" / "note.md").exists()
    assert read_records(tracker.folder) == []
    assert (tracker.folder / "metrics.previous.jsonl").read_text().splitlines() == old


def test_report_writes_table_and_confusion_matrix(tracker: LocalTracker, report: Report) -> None:
    tracker.report("val", report)
    with (tracker.folder / "tables" / "val_iou.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["class", "iou", "accuracy", "pixels", "dice", "precision", "recall"]
    two_thirds = str(2 / 3)
    assert rows == [
        ["road", "0.5", "0.5", "2", two_thirds, "1.0", "0.5"],
        ["sky", "0.5", "1.0", "1", two_thirds, "0.5", "1.0"],
        ["a+b", "", "", "0", "", "", ""],
    ]
    with Image.open(tracker.folder / "plots" / "confusion_matrix.png") as image:
        assert min(image.size) > 600


def test_curves_are_drawn_from_the_records(tracker: LocalTracker) -> None:
    plots = tracker.folder / "plots"
    tracker.curves()
    assert not plots.exists()
    log(tracker, 5, train_loss=1.0)
    tracker.curves()
    assert {file.name for file in plots.iterdir()} == {"train_loss.png"}
    log(tracker, 5, val_loss=1.0, val_mean_iou=0.1)
    tracker.curves()
    assert {file.name for file in plots.iterdir()} == {"train_loss.png", "val_loss.png"}


def test_no_figure_of_an_evaluation_stays_in_memory(tracker: LocalTracker, report: Report) -> None:
    """Figures are cycles of references, which Python collects late in a large process: they piled up to 200 MiB."""
    log(tracker, 5, train_loss=1.0, val_loss=1.0, val_mean_iou=0.1)
    gc.collect()
    gc.disable()
    try:
        tracker.report("val", report)
        tracker.curves()
        assert not [one for one in gc.get_objects() if isinstance(one, Figure)]
    finally:
        gc.enable()


def test_samples_have_safe_file_names(tracker: LocalTracker, dataset: DatasetInfo) -> None:
    image, ids = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    tracker.samples("val", [EvaluatedSample("seq/01", image, ids, ids)], dataset)
    assert [file.name for file in (tracker.folder / "plots" / "samples").iterdir()] == ["seq_01.png"]


def evaluated(name: str) -> EvaluatedSample:
    return EvaluatedSample(
        name, np.zeros((8, 12, 3), np.uint8), np.zeros((8, 12), np.uint8), np.ones((8, 12), np.uint8)
    )


IMAGES = [
    image_scores("seq/01", [0, 0], [96, 0], [0, 96]),
    image_scores("seq_01", [30, 0], [90, 0], [90, 0]),
    image_scores("good", [5, 91], [5, 91], [5, 91]),
    image_scores("unlabelled", [0, 0], [0, 0], [0, 0]),
]


def image_rows(tracker: LocalTracker) -> list[list[str]]:
    with (tracker.folder / "tables" / "val_images.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_images_are_listed_with_pictures_of_the_worst(tracker: LocalTracker, dataset: DatasetInfo) -> None:
    tracker.images("val", IMAGES, [evaluated("seq/01"), evaluated("seq_01")], dataset)
    first, second = "plots/worst/val/seq_01.png", "plots/worst/val/seq_01_2.png"
    assert image_rows(tracker) == [
        ["image", "mean_iou", "overall_acc", "pixels", "road", "sky", "picture"],
        ["seq/01", "0.0", "0.0", "96", "0.0", "0.0", first],
        ["seq_01", "0.2", "0.333333", "90", "0.2", "", second],
        ["good", "1.0", "1.0", "96", "1.0", "1.0", ""],
        ["unlabelled", "", "", "0", "", "", ""],
    ]
    with Image.open(tracker.folder / first) as picture:
        image, truth, prediction = (picture.getpixel((x, 100)) for x in (120, 364, 608))  # enlarged
        assert picture.height > 160 + 2 * 13  # the titles and the legend
    assert image == (0, 0, 0)
    assert truth == pytest.approx((161, 21, 21), abs=1)  # red: road
    assert prediction == pytest.approx((21, 161, 21), abs=1)


def test_next_evaluation_replaces_table_and_pictures(tracker: LocalTracker, dataset: DatasetInfo) -> None:
    tracker.images("val", IMAGES[:2], [evaluated("seq/01"), evaluated("seq_01")], dataset)
    tracker.images("test", IMAGES[:1], [evaluated("seq/01")], dataset)
    tracker.images("val", IMAGES[2:], [evaluated("good")], dataset)
    assert [row[0] for row in image_rows(tracker)] == ["image", "good", "unlabelled"]
    found = {file.relative_to(tracker.folder).as_posix() for file in tracker.folder.rglob("*.png")}
    assert found == {"plots/worst/val/good.png", "plots/worst/test/seq_01.png"}


def test_picture_that_cannot_be_drawn_is_not_in_the_table(
    tracker: LocalTracker, dataset: DatasetInfo, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = evaluated("seq/01")._replace(label=np.zeros((3, 3), np.uint8))
    tracker.images("val", IMAGES, [wrong, evaluated("seq_01")], dataset)
    assert [row[-1] for row in image_rows(tracker)[1:3]] == ["", "plots/worst/val/seq_01_2.png"]
    assert "picture of seq/01 could not be written" in caplog.text


def test_figure_that_cannot_be_drawn_is_not_fatal(
    tracker: LocalTracker, dataset: DatasetInfo, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = np.zeros((8, 8), np.uint8)
    tracker.samples("val", [EvaluatedSample("x", wrong, wrong, wrong)], dataset)
    assert "could not be written" in caplog.text


def test_summary(tracker: LocalTracker) -> None:
    best = {"val/mean_iou": 0.5, "val/mean_acc": math.nan}
    tracker.summary("FINISHED", best=best, last={}, images_per_second=math.nan, loggers={"mlflow": "abc"})
    found = read_summary(tracker.folder)
    assert {key: found[key] for key in ("status", "best", "last", "images_per_second", "mlflow_run_id", "loggers")} == {
        "status": "FINISHED",
        "best": {"val/mean_iou": 0.5},
        "last": {},
        "images_per_second": None,
        "mlflow_run_id": "abc",
        "loggers": {"mlflow": "abc"},
    }
    assert {"python", "pspexp", "torch"} <= set(found["versions"])
    assert "git_commit" in found
    set_ids(tracker.folder, {"mine": "x"})
    assert read_summary(tracker.folder) == {**found, "loggers": {"mlflow": "abc", "mine": "x"}}


def test_no_temporary_files_remain(tracker: LocalTracker, report: Report) -> None:
    tracker.config("a: 1\n", ["a=1", "b=2"])
    tracker.report("val", report)
    tracker.summary("FINISHED")
    assert (tracker.folder / "overrides.txt").read_text() == "a=1\nb=2\n"
    assert not list(tracker.folder.rglob("*.part"))
