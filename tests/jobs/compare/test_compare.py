"""Comparing runs from hand-written run folders: the terminal output and the files."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from pspexp.jobs.compare import report
from pspexp.jobs.compare.report import as_rich_table
from pspexp.jobs.compare.tables import Cell, Column, ComparisonTable
from tests.conftest import Cli

Iou = Mapping[str, float | None]
CLASSES = ("cat", "dog")
CONFIG: dict[str, Any] = {
    "mode": "train",
    "seed": 1,
    "crop_size": 33,
    "run_name": None,
    "output_root": "outputs",
    "loader": {"batch_size": 4},
    "checkpoint": {"resume": None, "path": None, "every_steps": None, "keep": 0, "keep_last": True},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
    "dataset": {"class_names": list(CLASSES), "num_classes": 2},
    "model": {"num_classes": 2},
    "inference": {"crop_size": 33},
    "choices": {"dataset": "shapes", "optimizer": "adam", "experiment": None},
}


def make_run(
    folder: Path,
    mean_iou: float | None,
    iou: Iou | None = None,
    *,
    split: str = "val",
    status: str = "FINISHED",
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run folder with the files a comparison reads; `config` holds dotted keys that differ from CONFIG."""
    (folder / "tables").mkdir(parents=True)
    whole = OmegaConf.create(CONFIG)
    for key, value in (config or {}).items():
        OmegaConf.update(whole, key, value)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(whole))
    (folder / "overrides.txt").write_text("")
    scores = {} if mean_iou is None else {f"{split}/mean_iou": mean_iou, f"{split}/mean_acc": mean_iou / 2}
    best = {"best/mean_iou": mean_iou, "best/epoch": 3.0} if split == "val" and mean_iou is not None else {}
    (folder / "summary.json").write_text(json.dumps({"status": status, "best": best, "last": scores}))
    losses = {"step": 1, "epoch": 1, "time": 1.7e9, f"{split}/loss": 0.75, f"{split}/mean_iou": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(losses) + "\n")
    rows = [f"{name},{'' if value is None else value},,10\n" for name, value in (iou or {}).items()]
    (folder / "tables" / f"{split}_iou.csv").write_text("".join(["class,iou,accuracy,pixels\n", *rows]))
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


class Page(HTMLParser):
    """The text of a page's table cells, and the attributes of all its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self._cell: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None


def compared(cli: Cli, *overrides: str) -> Path:
    """Compare runs and return the output folder."""
    assert cli("mode=compare", "hydra.run.dir=out", *overrides) == 0
    return Path("out")


def test_runs_are_ranked_with_differing_settings_and_metrics(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", 0.25, {"cat": 0.25})
    changes = {
        "optimizer.lr": 0.01,
        "crop_size": 49,
        "inference.crop_size": 49,
        "run_name": "named",
        "output_root": "x",
    }
    make_run(tmp_path / "runs" / "b", 0.5, {"cat": 0.5}, config={**changes, "checkpoint.resume": "auto"})
    make_run(tmp_path / "runs" / "c", None, status="FAILED", config={"optimizer.lr": 0.1})
    found = rows(compared(cli, "compare.runs=runs") / "compare.csv")
    metrics = ["best/mean_iou", "best/epoch", "val/mean_iou", "val/mean_acc", "val/loss"]
    assert list(found[0]) == ["run", "where", "status", "started", "crop_size", "optimizer.lr", *metrics]
    columns = ("run", "where", "status", "crop_size", "optimizer.lr", "best/mean_iou", "val/mean_acc", "val/loss")
    assert [tuple(row[name] for name in columns) for row in found] == [
        ("named", "runs/b", "FINISHED", "49", "0.01", "0.5", "0.25", "0.75"),
        ("a", "runs/a", "FINISHED", "33", "0.001", "0.25", "0.125", "0.75"),
        ("c", "runs/c", "FAILED", "33", "0.1", "", "", ""),
    ]


def test_columns_have_short_names_unless_ambiguous(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5, config={"optimizer.lr": 0.1, "loader.size": 1, "model.size": 5})
    make_run(tmp_path / "b", 0.5, config={"optimizer.lr": 0.2, "loader.size": 2, "model.size": 5.5})
    text = (compared(cli, "compare.runs=[a,b]") / "compare.md").read_text()
    assert "\n| run | loader.size | lr | model.size | status |" in text


def test_settings_implied_by_an_option_are_omitted(cli: Cli, tmp_path: Path) -> None:
    sgd = {"choices.optimizer": "sgd", "optimizer._target_": "torch.optim.SGD", "optimizer.momentum": 0.9}
    make_run(tmp_path / "a", 0.5)
    make_run(tmp_path / "b", 0.4, config={**sgd, "optimizer.lr": 0.1})
    found = rows(compared(cli, "compare.runs=[a,b]") / "compare.csv")
    assert [key for key in found[0] if "optimizer" in key] == ["choices.optimizer", "optimizer.lr"]
    # Two values of momentum are no longer implied by the option.
    make_run(tmp_path / "c", 0.3, config={**sgd, "optimizer.momentum": 0.8})
    found = rows(compared(cli, "compare.runs=[a,b,c]") / "compare.csv")
    assert [row["optimizer.momentum"] for row in found] == ["", "0.9", "0.8"]


def test_classes_are_sorted_by_difference_from_the_baseline(cli: Cli, tmp_path: Path) -> None:
    names = ("same", "rises", "falls", "gone", "never")
    make_run(tmp_path / "base", 0.4, dict(zip(names, (0.5, 0.25, 0.75, 0.5, None), strict=True)))
    make_run(tmp_path / "other", 0.6, dict(zip(names, (0.5, 0.375, 0.25, None, None), strict=True)))
    folder = compared(cli, "compare.runs=[base,other]")
    found = [tuple(row.values()) for row in rows(folder / "classes.csv")]
    assert found == [
        ("falls", "0.75", "0.25", "-0.5"),
        ("rises", "0.25", "0.375", "0.125"),
        ("same", "0.5", "0.5", "0.0"),
        ("gone", "0.5", "", ""),
        ("never", "", "", ""),
    ]
    assert list(rows(folder / "classes.csv")[0]) == ["class", "base", "other", "other - base"]
    text = (folder / "compare.md").read_text()
    assert "| falls | 75.00 | 25.00 (-50.00) |" in text
    assert "| rises | 25.00 | 37.50 (+12.50) |" in text
    assert "| gone | 50.00 | – |" in text


@pytest.mark.parametrize("baseline", ["other", "runs/other", "unique"])
def test_baseline_can_be_chosen(baseline: str, cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "base", 0.75, {"cat": 0.75})
    make_run(
        tmp_path / "runs" / "other", 0.5, {"cat": 0.5}, config={"run_name": "unique"} if baseline == "unique" else {}
    )
    (row,) = rows(compared(cli, "compare.runs=runs", f"compare.baseline={baseline}") / "classes.csv")
    assert list(row.values()) == ["cat", "0.5", "0.75", "0.25"]


@pytest.mark.parametrize(
    ("overrides", "columns"),
    [
        (["compare.runs=runs", "compare.baseline=3"], ["3", "0", "0.5", "lr=0.1"]),
        (["compare.runs=runs", "compare.baseline=4"], ["lr=0.1", "0", "0.5", "3"]),
        (["compare.runs=runs", "compare.baseline=0.5"], ["0.5", "0", "3", "lr=0.1"]),
        (["compare.runs=[runs/3,0]"], ["3", "named", "x"]),
        (["compare.runs=0"], ["named", "x"]),
    ],
)
def test_names_may_be_numbers(overrides: list[str], columns: list[str], cli: Cli, tmp_path: Path) -> None:
    for name in ("0", "0.5", "3"):
        make_run(tmp_path / "runs" / name, 0.5, {"cat": 0.5})
    make_run(tmp_path / "runs" / "4", 0.5, {"cat": 0.5}, config={"run_name": "lr=0.1"})  # like the jobs of a sweep
    make_run(tmp_path / "0", 0.5, {"cat": 0.5}, config={"run_name": "named"})
    make_run(tmp_path / "0" / "x", 0.5, {"cat": 0.5})
    found = list(rows(compared(cli, *overrides) / "classes.csv")[0])
    assert [name for name in found if " - " not in name] == ["class", *columns]


def test_runs_that_differ_only_in_seed_are_averaged(cli: Cli, tmp_path: Path) -> None:
    for seed, value in enumerate((0.25, 0.5, 0.75), start=1):
        make_run(
            tmp_path / f"s{seed}", value, {"cat": value, "dog": None if seed == 3 else value}, config={"seed": seed}
        )
    make_run(tmp_path / "other", 0.875, {"cat": 0.875, "dog": 0.5}, config={"optimizer.lr": 0.1})
    make_run(tmp_path / "s4", None, status="KILLED", config={"seed": 4})
    folder = compared(cli, "compare.runs=[s1,s2,s3,s4,other]")
    (group,) = rows(folder / "groups.csv")
    # (0.25 + 0.5 + 0.75) / 3, and the root of (0.0625 + 0 + 0.0625) / 2
    assert [group[f"best/mean_iou {what}"] for what in ("mean", "std", "n")] == ["0.5", "0.25", "3"]
    assert group["group"] == "lr=0.001"
    classes = rows(folder / "classes.csv")
    label = "lr=0.001, mean of 3"
    assert [list(row.values()) for row in classes] == [
        ["cat", "0.5", "0.875", "0.375"],
        ["dog", "0.375", "0.5", "0.125"],
    ]
    assert list(classes[0]) == ["class", label, "other", f"other - {label}"]
    assert [row["run"] for row in rows(folder / "compare.csv")] == ["other", "s3", "s2", "s1", "s4"]
    assert "| 0.001 | 3 | 50.00 ± 25.00 |" in (folder / "compare.md").read_text()
    assert (
        f"> {label}: some classes are defined in fewer of the runs, dog in 2\n" in (folder / "compare.md").read_text()
    )


def test_single_seed_has_no_standard_deviation(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "s1", 0.25, {"cat": 0.25}, config={"seed": 1})
    make_run(tmp_path / "s2", None, status="RUNNING", config={"seed": 2})
    folder = compared(cli, "compare.runs=[s1,s2]")
    (group,) = rows(folder / "groups.csv")
    assert [group[f"best/mean_iou {what}"] for what in ("mean", "std", "n")] == ["0.25", "", "1"]
    assert [row["status"] for row in rows(folder / "compare.csv")] == ["FINISHED", "RUNNING"]
    assert "25.00 ± –" in (folder / "compare.md").read_text()
    assert list(rows(folder / "classes.csv")[0]) == ["class", "s1"]


def test_unfinished_runs_have_no_metrics(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.25, {"cat": 0.25})
    make_run(tmp_path / "b", 0.9, {"cat": 0.9}, status="FAILED")
    folder = compared(cli, "compare.runs=[a,b]")
    assert [(row["run"], row["best/mean_iou"]) for row in rows(folder / "compare.csv")] == [("a", "0.25"), ("b", "")]
    assert list(rows(folder / "classes.csv")[0]) == ["class", "a"]


def test_runs_without_class_tables_are_compared(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        make_run(tmp_path / name, None, status="FAILED")
    folder = compared(cli, "compare.runs=[a,b]")
    assert sorted(file.name for file in folder.iterdir()) == ["compare.csv", "compare.html", "compare.md"]
    assert "No run has per-class results" in capsys.readouterr().out


TESTED = {"mode": "test", "checkpoint.path": "a.pt"}
UNREADABLE = {
    "mode": "test",
    "checkpoint.path": "bad.pt",
    "choices.dataset": "voc",
    "crop_size": 513,
    "optimizer.lr": 0.5,
}


def test_settings_from_an_unreadable_checkpoint_are_unknown(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", 0.5, {"cat": 0.5}, split="test", config=TESTED)
    make_run(tmp_path / "bad", None, status="FAILED", config=UNREADABLE)
    (tmp_path / "bad" / "overrides.txt").write_text("mode=test\ncheckpoint.path=bad.pt\n")
    found = rows(compared(cli, "compare.runs=[a,bad]") / "compare.csv")
    assert list(found[0])[:6] == ["run", "where", "status", "started", "checkpoint.path", "test/mean_iou"]
    assert [row["checkpoint.path"] for row in found] == ["a.pt", "bad.pt"]
    assert "different data sets" not in capsys.readouterr().out
    # Overrides are known.
    (tmp_path / "bad" / "overrides.txt").write_text("mode=test\ncheckpoint.path=bad.pt\ndataset=voc\n+crop_size=513\n")
    found = rows(compared(cli, "compare.runs=[a,bad]") / "compare.csv")
    assert list(found[0])[4:8] == ["choices.dataset", "crop_size", "checkpoint.path", "test/mean_iou"]
    assert [(row["choices.dataset"], row["crop_size"]) for row in found] == [("shapes", "33"), ("voc", "513")]
    # Settings that differ between other runs stay unknown.
    make_run(tmp_path / "b", 0.25, {"cat": 0.5}, split="test", config={**TESTED, "optimizer.lr": 0.25})
    found = rows(compared(cli, "compare.runs=[bad,a,b]") / "compare.csv")
    assert [(row["run"], row["optimizer.lr"]) for row in found] == [("a", "0.001"), ("b", "0.25"), ("bad", "")]


def test_settings_of_a_rerun_of_an_unreadable_run_are_unknown(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5, {"cat": 0.5})
    make_run(tmp_path / "bad", None, status="FAILED", config={"rerun": "gone", "seed": 2, "optimizer.lr": 0.5})
    (tmp_path / "bad" / "overrides.txt").write_text("rerun=gone\nseed=2\n")
    found = rows(compared(cli, "compare.runs=[a,bad]") / "compare.csv")
    assert list(found[0])[4:6] == ["seed", "best/mean_iou"]


def test_settings_of_configured_runs_without_results_are_known(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", 0.5, {"cat": 0.5}, split="test", config=TESTED)
    began = make_run(tmp_path / "began", None, status="FAILED", config=UNREADABLE)
    (began / "provenance.json").write_text("{}")
    make_run(tmp_path / "running", None, status="RUNNING", config=UNREADABLE)
    make_run(tmp_path / "train", None, status="FAILED", config={"choices.dataset": "zoo", "crop_size": 49})
    found = rows(compared(cli, "compare.runs=[a,began,running,train]") / "compare.csv")
    assert [(row["run"], row["choices.dataset"], row["crop_size"]) for row in found] == [
        ("a", "shapes", "33"),
        ("began", "voc", "513"),
        ("running", "voc", "513"),
        ("train", "zoo", "49"),
    ]
    assert "optimizer.lr" not in found[0]  # one training only
    assert "different data sets" not in capsys.readouterr().out


def test_only_evaluated_runs_count_in_the_mean_over_seeds(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        make_run(tmp_path / name, 0.5, {"cat": 0.5}, config={"seed": seed})
    make_run(tmp_path / "killed", None, status="KILLED", config={"seed": 2})
    compared(cli, "compare.runs=[a,b,killed]")
    assert "have seed" not in capsys.readouterr().out
    make_run(tmp_path / "again", 0.5, {"cat": 0.5}, config={"seed": 2})
    compared(cli, "compare.runs=[a,b,killed,again]")
    assert "2 runs have seed 2; all of them count in the mean" in capsys.readouterr().out


def test_finished_run_without_class_table_is_reported(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        make_run(tmp_path / name, 0.5, {"cat": 0.5})
    (tmp_path / "b" / "tables" / "val_iou.csv").unlink()
    (tmp_path / "c" / "tables" / "val_iou.csv").write_text("class,iou,accuracy,pixels\n")
    make_run(tmp_path / "killed", None, status="KILLED")
    folder = compared(cli, "compare.runs=[a,b,c,killed]")
    assert list(rows(folder / "classes.csv")[0]) == ["class", "a"]
    note = "Not in the class table, no per-class results: b, c"
    assert note in capsys.readouterr().out.splitlines()[-2]
    assert f"> {note}\n" in (folder / "compare.md").read_text()


def test_splits_are_not_mixed_in_one_table(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "v1", 0.25, {"cat": 0.25})
    for name, value in (("t1", 0.5), ("t2", 0.75)):
        changes = {"mode": "test", "checkpoint.path": f"{name}.pt"}
        make_run(tmp_path / name, value, {"cat": value}, split="test", config=changes)
    folder = compared(cli, "compare.runs=[v1,t1,t2]")
    (row,) = rows(folder / "classes.csv")
    assert row == {"class": "cat", "t1": "0.5", "t2": "0.75", "t2 - t1": "0.25"}
    assert "Not in the class table, which is for test: v1" in capsys.readouterr().out
    found = rows(folder / "compare.csv")
    columns = ("run", "mode", "checkpoint.path", "best/mean_iou", "val/mean_iou", "test/mean_iou")
    assert [tuple(row[name] for name in columns) for row in found] == [
        ("t2", "test", "t2.pt", "", "", "0.75"),
        ("t1", "test", "t1.pt", "", "", "0.5"),
        ("v1", "train", "null", "0.25", "0.25", ""),
    ]


def test_training_settings_of_a_test_do_not_count(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A test has the defaults, whatever its network was trained with."""
    make_run(tmp_path / "a", 0.5, config={"optimizer.lr": 0.1, "trainer.epochs": 9})
    make_run(tmp_path / "b", 0.75, config={"optimizer.lr": 0.2, "trainer.epochs": 9})
    make_run(tmp_path / "tested", 0.625, split="test", config={"mode": "test", "checkpoint.path": "a/best.pt"})
    found = rows(compared(cli, "compare.runs=[a,b,tested]") / "compare.csv")
    assert [(row["run"], row["optimizer.lr"]) for row in found] == [("b", "0.2"), ("a", "0.1"), ("tested", "")]
    assert "trainer.epochs" not in found[0]
    assert "Best mean IoU: b" in capsys.readouterr().out.splitlines()


def test_runs_with_different_classes_are_compared_on_common_ones(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", 0.5, {"cat": 0.5, "dog": 0.5})
    zoo = {"choices.dataset": "zoo", "dataset.class_names": ["cat", "emu"]}
    make_run(tmp_path / "b", 0.25, {"cat": 0.25, "emu": 0.25}, config=zoo)
    folder = compared(cli, "compare.runs=[a,b]")
    assert [row["class"] for row in rows(folder / "classes.csv")] == ["cat"]
    output = " ".join(capsys.readouterr().out.split())
    assert "Compared: 1 in common; omitted: dog, emu" in output
    assert "evaluated on different data sets: shapes, zoo" in output
    assert "class_names" not in (folder / "compare.md").read_text()


def test_runs_are_found_once_at_any_depth(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = tmp_path / "outputs"
    for number in (0, 2, 10):
        make_run(outputs / "sweeps" / "lr" / str(number), 0.5, {"cat": 0.5}, config={"optimizer.lr": number})
    make_run(outputs / "mlartifacts" / "0" / "artifacts", 0.5)  # MLflow's copy
    (outputs / "sweeps" / "lr" / "3").mkdir()
    (outputs / "sweeps" / "lr" / "3" / "run.log").write_text("bad value\n")
    folder = compared(cli, "compare.runs=[outputs,outputs/sweeps/lr/10]")
    assert [row["run"] for row in rows(folder / "compare.csv")] == ["0", "2", "10"]
    assert "ended before its configuration was written: outputs/sweeps/lr/3" in capsys.readouterr().out


def test_predictions_are_not_runs(cli: Cli, tmp_path: Path) -> None:
    for number in (0, 1):
        predictions = make_run(tmp_path / str(number), 0.5, {"cat": 0.5}) / "predictions"
        (predictions / "ids").mkdir(parents=True)
        for name, text in (("predictions.csv", "image\n"), ("summary.json", '{"status": "FINISHED"}'), ("run.log", "")):
            (predictions / name).write_text(text)
    assert [row["run"] for row in rows(compared(cli, "compare.runs=.") / "compare.csv")] == ["0", "1"]


def test_runs_of_an_experiment_named_like_a_part_of_a_run_are_found(cli: Cli, tmp_path: Path) -> None:
    for number in "01":
        make_run(tmp_path / "outputs" / "export" / number, 0.5, {"cat": 0.5})
    assert [row["run"] for row in rows(compared(cli, "compare.runs=outputs") / "compare.csv")] == ["0", "1"]


def test_runs_with_equal_names_get_distinct_labels(cli: Cli, tmp_path: Path) -> None:
    for parent in "xy":
        make_run(tmp_path / parent / "0", 0.5, {"cat": 0.5})
    folder = compared(cli, "compare.runs=[x,y]")
    assert [row["run"] for row in rows(folder / "compare.csv")] == ["0 (x)", "0 (y)"]
    assert cli("mode=compare", "compare.runs=[x,y]", "compare.baseline='0'") == 2


def test_run_listed_twice_keeps_its_first_position(cli: Cli, tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        make_run(tmp_path / "s" / name, 0.5, {"cat": 0.5}, config={"optimizer.lr": number})
    folder = compared(cli, "compare.runs=[s/c,s]")
    assert list(rows(folder / "classes.csv")[0]) == ["class", "c", "a", "b", "a - c", "b - c"]


def test_machine_settings_do_not_count_as_differences(cli: Cli, tmp_path: Path) -> None:
    machine = {
        **{"device.index": 1, "dataset.root": "/b", "loader.num_workers": 8, "loader.cache_mib": 10},
        **{"trainer.log_every": 5, "checkpoint.path": "unused.pt", "optimizer.lr": 1, "optimizer.eps": 1e-08},
    }
    same = {"dataset.root": "/a", "optimizer.lr": 1.0, "optimizer.eps": "1.0e-8"}
    make_run(tmp_path / "s1", 0.25, {"cat": 0.25}, config={"seed": 1, **same})
    make_run(tmp_path / "s2", 0.75, {"cat": 0.75}, config={"seed": 2, **machine})
    folder = compared(cli, "compare.runs=[s1,s2]")
    assert list(rows(folder / "compare.csv")[0])[:6] == ["run", "where", "status", "started", "seed", "best/mean_iou"]
    (group,) = rows(folder / "groups.csv")
    assert group["best/mean_iou n"] == "2"


def test_equal_numbers_in_different_notation_do_not_differ(cli: Cli, tmp_path: Path) -> None:
    for name, lr in (("a", 1), ("b", 1.0), ("c", 2)):
        make_run(tmp_path / name, 0.5, {"cat": 0.5}, config={"optimizer.lr": lr})
    text = (compared(cli, "compare.runs=[a,b,c]") / "compare.html").read_text()
    assert text.count('class="key differs"') == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_only_finite_values_count(value: float, cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "s1", value, {"cat": value}, config={"seed": 1})
    make_run(tmp_path / "s2", 0.5, {"cat": 0.5}, config={"seed": 2})
    make_run(tmp_path / "s3", 0.25, {"cat": 0.25}, config={"seed": 3})
    make_run(tmp_path / "other", 0.75, {"cat": 0.75}, config={"optimizer.lr": 1})
    folder = compared(cli, "compare.runs=[s1,s2,s3,other]", "compare.baseline=other")
    table = [(row["run"], row["best/mean_iou"]) for row in rows(folder / "compare.csv")]
    assert table == [("other", "0.75"), ("s2", "0.5"), ("s3", "0.25"), ("s1", "")]
    (group,) = rows(folder / "groups.csv")
    assert (group["best/mean_iou mean"], group["best/mean_iou n"]) == ("0.375", "2")
    assert list(rows(folder / "classes.csv")[0].values()) == ["cat", "0.75", "0.375", "-0.375"]


@pytest.mark.parametrize(("overrides", "shown"), [([], ["s1", "s2"]), (["compare.baseline=s2"], ["s2", "s1"])])
def test_seeds_are_not_averaged_if_nothing_else_differs(
    overrides: list[str], shown: list[str], cli: Cli, tmp_path: Path
) -> None:
    for seed in (1, 2):
        make_run(tmp_path / f"s{seed}", seed / 4, {"cat": seed / 4}, config={"seed": seed})
    folder = compared(cli, "compare.runs=[s1,s2]", *overrides)
    assert list(rows(folder / "classes.csv")[0]) == ["class", *shown, f"{shown[1]} - {shown[0]}"]


@pytest.mark.parametrize("baseline", ["s2", "named", "lr=0.001, mean of 2"])
def test_baseline_may_be_one_run_or_a_mean_over_seeds(baseline: str, cli: Cli, tmp_path: Path) -> None:
    for seed in (1, 2):
        config = {"seed": seed, "run_name": "named"} if baseline == "named" else {"seed": seed}
        make_run(tmp_path / f"s{seed}", seed / 4, {"cat": seed / 4}, config=config)
        make_run(tmp_path / f"o{seed}", 0.5, {"cat": 0.5}, config={"seed": seed, "optimizer.lr": 0.1})
    folder = compared(cli, "compare.runs=[s1,s2,o1,o2]", f"compare.baseline='{baseline}'")
    found = [name for name in rows(folder / "classes.csv")[0] if " - " not in name]
    other_mean = "lr=0.1, mean of 2"
    shown = ["s2", other_mean, "s1"] if baseline == "s2" else ["lr=0.001, mean of 2", other_mean]
    assert found == ["class", *shown]


def test_explicit_overrides_are_not_omitted_as_implied(cli: Cli, tmp_path: Path) -> None:
    sgd = {"choices.optimizer": "sgd", "optimizer._target_": "torch.optim.SGD", "optimizer.momentum": 0.5}
    make_run(tmp_path / "a", 0.5)
    make_run(tmp_path / "b", 0.4, config=sgd)
    (tmp_path / "b" / "overrides.txt").write_text("optimizer=sgd\n++optimizer.momentum=0.5\n")
    found = rows(compared(cli, "compare.runs=[a,b]") / "compare.csv")
    assert [row["optimizer.momentum"] for row in found] == ["", "0.5"]


def test_corrupt_record_lines_are_skipped(cli: Cli, tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path / name, 0.5, {"cat": 0.5})
    with (tmp_path / "a" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "val/lo\xff\n5\n[1]\n')
    assert [row["val/loss"] for row in rows(compared(cli, "compare.runs=[a,b]") / "compare.csv")] == ["0.75", "0.75"]


@pytest.mark.parametrize("record", ["[]", '[["time", "x"]]', "{}"])
def test_lines_that_are_not_records_are_skipped(record: str, cli: Cli, tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path / name, 0.5, {"cat": 0.5})
    file = tmp_path / "a" / "metrics.jsonl"
    file.write_text(f"{record}\n{file.read_text()}")
    first, second = rows(compared(cli, "compare.runs=[a,b]") / "compare.csv")
    assert (first["started"], first["val/loss"]) == (second["started"], second["val/loss"])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metrics.jsonl", '{"time": "x"}', "TypeError"),
        ("metrics.jsonl", '{"time": [1]}', "TypeError"),
        ("metrics.jsonl", '{"time": 1e99}', ""),
        ("metrics.jsonl", '{"time": NaN}', "ValueError"),
        ("metrics.jsonl", '{"time": 1, "val/mean_iou": 0.5, "val/loss": "x"}', "ValueError"),
        ("tables/val_iou.csv", "garbage", "ValueError: has no columns class and iou"),
        ("tables/val_iou.csv", "", "ValueError: has no columns class and iou"),
        ("tables/val_iou.csv", "class,iou\ncat,high", "ValueError"),
    ],
)
def test_damaged_files_of_a_run_are_named(
    name: str, text: str, reason: str, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in "ab":
        make_run(tmp_path / run, 0.5, {"cat": 0.5})
    (tmp_path / "b" / name).write_text(text)
    assert cli("mode=compare", "compare.runs=[a,b]") == 2
    stderr = capsys.readouterr().err
    assert f"b/{name}: cannot be read ({reason}" in stderr
    assert "; fix it, or remove this run from compare.runs" in stderr
    assert "Traceback" not in stderr


def test_loss_is_that_of_the_last_evaluation(cli: Cli, tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path / name, 0.5, {"cat": 0.5})
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:  # without a loss, because it was infinite
        file.write('{"step": 2, "epoch": 2, "time": 1.7e9, "val/mean_iou": 0.5}\n')
    assert [row["val/loss"] for row in rows(compared(cli, "compare.runs=[a,b]") / "compare.csv")] == ["", "0.75"]


def test_symlinked_folders_are_found_once(cli: Cli, tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        make_run(tmp_path / "elsewhere" / name, 0.5, {"cat": 0.5}, config={"optimizer.lr": number})
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "runs" / "all").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "round").symlink_to(tmp_path / "runs")
    assert [row["run"] for row in rows(compared(cli, "compare.runs=runs") / "compare.csv")] == ["a", "b"]


def test_folder_with_a_non_utf8_name_is_linked(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", 0.75, {"cat": 0.75})
    make_run(tmp_path / "runs" / os.fsdecode(b"caf\xe9"), 0.5, {"cat": 0.5})
    folder = compared(cli, "compare.runs=runs")
    assert [row["where"] for row in rows(folder / "compare.csv")] == ["runs/a", "runs/caf\ufffd"]
    page = Page((folder / "compare.html").read_text(encoding="utf-8"))
    links = [value for tag, key, value in page.attributes if (tag, key) == ("a", "href")]
    assert links == ["../runs/a/", "../runs/caf%E9/"]


def test_long_names_are_shortened_in_the_printed_table(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "begins" + "-" * 123 + "ends"
    make_run(tmp_path / "a", 0.75, {"cat": 0.75, long: 0.5}, config={"run_name": long, "optimizer.lr": 0.125})
    make_run(tmp_path / "b", 0.5, {"cat": 0.5, long: 0.5})
    folder = compared(cli, "compare.runs=[a,b]")
    lines = capsys.readouterr().out.splitlines()
    assert any("begins" in line and "ends" in line and "0.125" in line and "75.00" in line for line in lines)
    assert max(map(len, lines[:-1])) <= 120
    assert rows(folder / "compare.csv")[0]["run"] == long
    assert f"| {long} | 0.125" in (folder / "compare.md").read_text()


def test_html_page_is_self_contained_and_escapes_run_names(cli: Cli, tmp_path: Path) -> None:
    name = '<script>alert("1|2")</script>'
    make_run(tmp_path / "a", 0.25, {"cat": 0.25, "<dog>": 0.5}, config={"run_name": name})
    make_run(tmp_path / "b=1", 0.5, {"cat": 0.5, "<dog>": 0.5}, config={"optimizer.lr": 0.1})
    folder = compared(cli, "compare.runs=['a','b=1']")
    text = (folder / "compare.html").read_text(encoding="utf-8")
    page = Page(text)
    runs, classes = page.tables
    assert [row[:4] for row in runs] == [
        ["run", "lr", "status", "best mean IoU %"],
        ["b=1", "0.1", "FINISHED", "50.00"],
        [name, "0.001", "FINISHED", "25.00"],
    ]
    assert classes == [
        ["class", f"{name} (baseline)", "b=1"],
        ["cat", "25.00", "50.00 (+25.00)"],
        ["<dog>", "50.00", "50.00 (+0.00)"],
    ]
    assert "<script>alert" not in text
    assert not [attribute for attribute in page.attributes if attribute[1] == "src"]
    assert "http" not in text
    links = [value for tag, key, value in page.attributes if (tag, key) == ("a", "href")]
    assert links == ["../b%3D1/", "../a/"]
    assert ("td", "class", "key differs") in page.attributes
    assert r"&lt;script>alert(" in (folder / "compare.md").read_text()
    assert r"1\|2" in (folder / "compare.md").read_text()


def test_printed_output_fits_and_names_the_output_folder(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        changes = {"optimizer.lr": number, "loader.batch_size": 10 + number, "run_name": f"2030-01-01_00-00-{number}"}
        make_run(tmp_path / "runs" / str(number), 0.5, {"cat": 0.1 * number}, config=changes)
    assert cli("mode=compare", "compare.runs=runs") == 0
    lines = capsys.readouterr().out.splitlines()
    (folder,) = (tmp_path / "outputs" / "compare").iterdir()
    assert lines[-1].startswith(f"Written to {folder}: compare.csv")
    assert max(map(len, lines[:-1])) <= 120
    assert any("2030-01-01_00-00-5" in line and "15" in line and "50.00" in line for line in lines)
    assert not (folder / "run.log").exists()
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compare.runs=nowhere"], "compare.runs=nowhere: no such folder"),
        (["compare.runs=empty"], "compare.runs=empty: no run folder at or below it"),
        (["compare.runs=a"], "needs at least two runs, found one (a)"),
        (["compare.runs=[a,a]"], "needs at least two runs, found one (a)"),
        (
            ["compare.runs=[a,b]", "compare.baseline=bb"],
            "compare.baseline=bb: matches none of the runs; did you mean 'b'?",
        ),
        (["compare.runs=[a,c]", "compare.baseline=c"], "compare.baseline=c: has no per-class results"),
        (
            ["compare.runs=[c,d]", "compare.baseline=dd"],
            "compare.baseline=dd: matches none of the runs; did you mean 'd'?",
        ),
        (["compare.runs=[a,broken]"], "broken/summary.json: cannot be read (JSONDecodeError"),
        (["compare.runs=[nowhere,broken]"], "compare.runs=nowhere"),
        (
            ["compare.runs=[a,b]", "compare.baseline=7"],
            "compare.baseline=7: matches none of the runs; set a name or folder",
        ),
        (["compare.runs=[a,b]", "compare.baseline=[a]"], "compare.baseline=[a]: must be a valid string"),
        (["compare.runs=[a,b]", "compare.sweep=x"], "compare.sweep=x: selects runs from MLflow"),
        (["compare.run=[a,b]"], "compare.run"),
        ([], "there are no MLflow records at"),
        (["compare.runs=runs:/123"], "there are no MLflow records at"),
    ],
)
def test_invalid_comparisons_are_explained_and_leave_no_files(
    overrides: list[str], message: str, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "broken"):
        make_run(tmp_path / name, 0.5, {"cat": 0.5})
    for name in ("c", "d"):
        make_run(tmp_path / name, None, status="FAILED")
    (tmp_path / "broken" / "summary.json").write_text("{")
    (tmp_path / "empty").mkdir()
    assert cli("mode=compare", *overrides) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert "Traceback" not in stderr
    assert not list(tmp_path.glob("outputs/compare/*"))
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


def test_compare_settings_need_mode_compare(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("compare.runs=[a,b]", "dataset=shapes", "model=pspnet18") == 2
    assert "compare.runs=['a', 'b']: has no effect on mode=train; add mode=compare" in capsys.readouterr().err


def test_terminal_shows_as_many_of_a_thousand_columns_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping them one at a time took minutes."""
    built: list[int] = []

    def counted(table: ComparisonTable, columns: Sequence[int]) -> Table:
        built.append(len(columns))
        return as_rich_table(table, columns)

    monkeypatch.setattr(report, "as_rich_table", counted)
    columns = [
        Column("class"),
        *(Column(f"run {index}", is_number=True, drop_order=1 + index) for index in range(1000)),
    ]
    table = ComparisonTable("Classes", "", columns, [[Cell("cat"), *[Cell("50.00")] * 1000]])
    printed, omitted = report.fitting(table, Console(width=40))
    assert sum(built) < 5 * len(columns)
    assert [str(column.header) for column in printed.columns] == ["class", *(f"run {index}" for index in range(5))]
    assert omitted[:2] == ["run 999", "run 998"]
    assert omitted[-1] == "975 more columns"
