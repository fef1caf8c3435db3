"""Comparing real runs from their folders and from MLflow gives the same table, with the runs' own values."""

import csv
import json
import statistics
from pathlib import Path

import pytest

from tests.conftest import TINY, Cli, run_commands

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with three finished runs: two seeds of one configuration, and one other optimizer."""
    home = tmp_path_factory.mktemp("trained")
    run_overrides = (["seed=1"], ["seed=2"], ["seed=1", "optimizer=sgd", "run_name=with-sgd"])
    run_commands(home, *((*TINY, "tracking=mlflow", *overrides) for overrides in run_overrides))
    return home


def rows(file: Path) -> Rows:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def compared(cli: Cli, trained: Path, name: str, *overrides: str) -> Path:
    folder = trained / name
    assert cli("mode=compare", f"output_root={trained / 'outputs'}", f"hydra.run.dir={folder}", *overrides) == 0
    return folder


def test_folders_and_mlflow_give_the_same_table(cli: Cli, trained: Path) -> None:
    local = compared(cli, trained, "local", f"compare.runs={trained / 'outputs'}")
    remote = compared(cli, trained, "remote")
    locations = {"where", "started"}

    def without_locations(table: Rows) -> Rows:
        return [{key: value for key, value in row.items() if key not in locations} for row in table]

    assert without_locations(rows(local / "compare.csv")) == without_locations(rows(remote / "compare.csv"))
    for name in ("classes.csv", "groups.csv"):
        assert (local / name).read_bytes() == (remote / name).read_bytes()
    assert [row["where"][:6] for row in rows(remote / "compare.csv")] == ["runs:/"] * 3

    table = rows(local / "compare.csv")
    summaries = [json.loads((Path(row["where"]) / "summary.json").read_text()) for row in table]
    assert [float(row["best/mean_iou"]) for row in table] == [summary["best"]["best/mean_iou"] for summary in summaries]
    for metric in ("mean_iou", "mean_acc", "overall_acc", "freqw_acc"):
        assert [float(row[f"val/{metric}"]) for row in table] == [
            summary["last"][f"val/{metric}"] for summary in summaries
        ]
    losses = [(Path(row["where"]) / "metrics.jsonl").read_text().splitlines() for row in table]
    last = [[json.loads(line)["val/loss"] for line in lines if "val/loss" in line][-1] for lines in losses]
    assert [float(row["val/loss"]) for row in table] == last
    assert sorted((row["choices.optimizer"], row["seed"]) for row in table) == [
        ("adam", "1"),
        ("adam", "2"),
        ("sgd", "1"),
    ]
    assert not {"run_name", "optimizer._target_"} & set(table[0])


def test_class_table_matches_the_runs_own_tables(cli: Cli, trained: Path) -> None:
    folder = compared(cli, trained, "classes", f"compare.runs={trained / 'outputs'}", "compare.baseline=with-sgd")
    own: dict[str, list[dict[str, float]]] = {"adam": [], "sgd": []}
    for row in rows(folder / "compare.csv"):
        table = rows(Path(row["where"]) / "tables" / "val_iou.csv")
        own[row["choices.optimizer"]].append({one["class"]: float(one["iou"]) for one in table if one["iou"]})
    (sgd,) = own["sgd"]
    found = rows(folder / "classes.csv")
    label = list(found[0])[2]
    assert label.endswith("mean of 2")
    assert {row["class"]: float(row["with-sgd"]) for row in found if row["with-sgd"]} == sgd
    for row in found:
        values = [one[row["class"]] for one in own["adam"] if row["class"] in one]
        assert row[label] == (str(statistics.mean(values)) if values else "")
        if values and row["class"] in sgd:
            assert float(row[f"{label} - with-sgd"]) == statistics.mean(values) - sgd[row["class"]]
    changes = [abs(float(row[f"{label} - with-sgd"])) for row in found if row[f"{label} - with-sgd"]]
    assert changes == sorted(changes, reverse=True)


def test_comparing_does_not_change_mlflow(cli: Cli, trained: Path) -> None:
    from mlflow import MlflowClient

    compared(cli, trained, "again")
    client = MlflowClient(tracking_uri=f"sqlite:///{trained}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("pspexp")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 3
    assert not [key for run in runs for key in run.data.params if key.startswith("compare")]


def test_comparing_needs_no_data_set_device_or_weights(cli: Cli, trained: Path) -> None:
    overrides = ["dataset=voc2007", "dataset.root=nowhere", "device=sdaa", "model.weights=gone.pt"]
    assert compared(cli, trained, "bare", f"compare.runs={trained / 'outputs'}", *overrides)
