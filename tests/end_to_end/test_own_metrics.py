"""Metrics beside those of the confusion matrix, chosen on the command line: built in, user-defined, of torchmetrics."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, Cli

METRIC = """
import torch

from pspexp.metrics import Metric


class WrongPixels(Metric):
    def __init__(self, ignore_index: int) -> None:
        self.ignore_index = ignore_index

    def reset(self):
        self.state = torch.zeros(2, dtype=torch.int64)

    def update(self, prediction, target):
        labelled = target != self.ignore_index
        self.add(torch.stack([(labelled & (prediction != target)).sum(), labelled.sum()]))

    def compute(self):
        wrong, labelled = self.state.tolist()
        return wrong / labelled


class NoMetric:
    def reset(self):
        pass


class Matrix(WrongPixels):
    def compute(self):
        return [[1.0, 2.0]]
"""
MINE = "+metrics.wrong._target_=my_metrics.WrongPixels", "+metrics.wrong.ignore_index=${dataset.ignore_index}"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the metrics, in the working directory."""
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "my_metrics.py"
    file.write_text(METRIC)
    return file


def evaluations(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name[name.index("/") + 1 :]: record[name] for name in record if name.startswith(("val/", "test/"))}
            for record in records if {"val/loss", "test/loss"} & record.keys()]  # fmt: skip


def table(run: Path, name: str) -> list[dict[str, str]]:
    with (run / "tables" / name).open() as file:
        return list(csv.DictReader(file))


def test_own_metric_boundary_iou_and_torchmetrics_in_training_and_test(
    cli: Cli, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kappa = "+metrics.kappa._target_=torchmetrics.classification.MulticlassCohenKappa"
    more = (kappa, "+metrics.kappa.num_classes=${dataset.num_classes}", "+metrics.kappa.ignore_index=255")
    stopping = ("hooks.early_stopping.metric=val/wrong", "hooks.early_stopping.mode=min")
    assert cli(*TINY, "metrics=boundary_iou", *MINE, *more, *stopping, "hydra.run.dir=run") == 0
    last = evaluations(tmp_path / "run")[-1]
    assert last["wrong"] == pytest.approx(1 - last["overall_acc"])
    assert -1 <= last["kappa"] <= 1
    rows = table(tmp_path / "run", "val_iou.csv")
    known = [float(row["boundary_iou"]) for row in rows if row["boundary_iou"]]
    assert last["mean_boundary_iou"] == pytest.approx(sum(known) / len(known))
    assert "wrong: " in (tmp_path / "run" / "run.log").read_text()

    # The checkpoint's metrics are tested, too, and the result is the same.
    assert cli("mode=test", "checkpoint.path=run/checkpoints/last.pt", "tracking=none", "hydra.run.dir=tested") == 0
    assert evaluations(tmp_path / "tested") == [last]
    for name in ("iou", "images"):
        found, expected = (table(tmp_path / run, f"{split}_{name}.csv")
                           for run, split in (("tested", "test"), ("run", "val")))  # fmt: skip
        assert [{**row, "picture": ""} for row in found] == [{**row, "picture": ""} for row in expected]

    # Images need no metrics, nor their file.
    own.unlink()
    monkeypatch.delitem(sys.modules, own.stem)
    predict = ("mode=predict", "checkpoint.path=run/checkpoints/last.pt", "predict.input=split:val", "tracking=none")
    assert cli(*predict, "predict.output=predicted") == 0


def test_images_are_listed_worst_first_with_pictures(cli: Cli, tmp_path: Path) -> None:
    assert cli(*TINY, "dataset.num_val=12", "trainer.epochs=1", "hydra.run.dir=run") == 0
    rows = table(tmp_path / "run", "val_images.csv")
    assert list(rows[0]) == [
        *("image", "mean_iou", "overall_acc", "pixels"),
        *(row["class"] for row in table(tmp_path / "run", "val_iou.csv")),
        "picture",
    ]
    assert len(rows) == 12
    ious = [float(row["mean_iou"]) for row in rows]
    assert ious == sorted(ious)
    pictures = [row["picture"] for row in rows if row["picture"]]
    assert pictures == [f"plots/worst/val/{row['image']}.png" for row in rows[:10]]
    drawn = {file.relative_to(tmp_path / "run").as_posix() for file in (tmp_path / "run/plots/worst").rglob("*.png")}
    assert drawn == set(pictures)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+metrics.x._target_=my_metrics.Missing"], "metrics.x._target_=my_metrics.Missing: cannot be imported"),
        (["+metrics.x.start=1"], "metrics.x: no _target_; name a class with +metrics.x._target_=<module.Class>"),
        (["+metrics.x._target_=my_metrics.WrongPixels"], "metrics.x.ignore_index: missing; give it a value"),
        (["+metrics.x._target_=my_metrics.NoMetric"], "metrics.x: NoMetric has no method update; derive it from"),
        ([MINE[0].replace("wrong", "mean_iou"), MINE[1].replace("wrong", "mean_iou")],
         "metrics.mean_iou: is the name of another result; choose another one"),
        (["metrics=boundary_iou", "metrics.boundary_iou.dilation_ratio=2.0"],
         "metrics.boundary_iou.dilation_ratio=2.0: must be less than 1"),
        (["hooks.early_stopping.metric=val/mean_dise"],
         "hooks.early_stopping.metric=val/mean_dise: is not a validation metric; did you mean 'val/mean_dice'?"),
    ],
)  # fmt: skip
def test_invalid_metric_is_refused_before_the_run(
    cli: Cli, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert cli(*TINY, *overrides, "hydra.run.dir=run") == 2
    shown = capsys.readouterr()
    assert message in shown.err + shown.out
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_result_of_another_kind_is_refused(
    cli: Cli, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [override.replace("WrongPixels", "Matrix") for override in MINE]
    assert cli(*TINY, *overrides, "hydra.run.dir=run") == 2
    shown = capsys.readouterr()
    assert "metrics.wrong: compute returned list; let it return a number, 5 numbers (one for" in shown.err + shown.out
