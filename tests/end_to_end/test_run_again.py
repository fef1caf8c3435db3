"""Reruns: bit-identical results, and a message for everything that has changed since the original run."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import TINY, Cli, last, run_commands
from tests.engine.test_trainer import assert_same

TIMES = ("time", "train/images_per_second", "train/data_time", "train/step_time")


def records(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def provenance(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    return found


def rerun_messages(folder: Path) -> list[str]:
    """Return the log's messages about the rerun."""
    return re.findall(r"\brerun(?: of|:) .*", (folder / "run.log").read_text())


def assert_same_run(one: Path, other: Path, *, stopped: bool = False) -> None:
    """Check that weights, optimizer state and recorded values are bit-identical.

    Args:
        stopped: one of the runs was also validated where ``trainer.max_steps`` stopped it.
    """
    left, right = last(one), last(other)
    for key in ("model", "training"):
        assert_same(left[key], right[key], key)
    left_records, right_records = (
        [line for line in records(run) if not stopped or "train/loss" in line] for run in (one, other)
    )
    assert left_records == right_records


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with overrides, tracked in MLflow, that tests only read."""
    home = tmp_path_factory.mktemp("trained")
    overrides = ["optimizer=sgd", "optimizer.momentum=0.8", "trainer.ema=0.9", "seed=7", "run_name=first"]
    run_commands(home, (*TINY, "tracking=mlflow", *overrides, "hydra.run.dir=outputs/shapes/run"))
    return home / "outputs" / "shapes" / "run"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run's records, for tests to modify."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.yaml", "provenance.json", "summary.json"):
        (folder / name).write_text((trained / name).read_text())
    return folder


def test_run_records_its_provenance(trained: Path) -> None:
    (attempt,) = provenance(trained)["attempts"]
    assert attempt["command"].startswith("pspexp dataset=shapes dataset.num_train=5")
    assert attempt["command"].endswith("run_name=first hydra.run.dir=outputs/shapes/run")
    assert torch.__version__.startswith(attempt["versions"]["torch"])
    assert {"python", "pspexp", "numpy", "pillow", "omegaconf"} <= attempt["versions"].keys()
    assert {"name", "os", "cpu", "cores", "device"} <= attempt["host"].keys()
    assert attempt["host"]["threads"] == torch.get_num_threads()
    assert [(name, split["images"]) for name, split in attempt["data"].items()] == [("train", 5), ("val", 3)]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", attempt["started"])
    assert (attempt["diff"] is not None) == (attempt["uncommitted"] is not None) == attempt["dirty"]
    assert provenance(trained)["rerun_of"] is None

    summary = json.loads((trained / "summary.json").read_text())
    assert summary["git_commit"] == attempt["git_commit"]


def test_rerun_is_bit_identical(trained: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("mode=train", f"rerun={trained}") == 0
    (folder,) = (tmp_path / "outputs" / "shapes").iterdir()
    assert_same_run(folder, trained)
    assert provenance(folder)["rerun_of"] == str(trained)
    assert rerun_messages(folder)[-1].endswith("code, versions, machine and data are unchanged")
    config, before = (yaml.safe_load((one / "config.yaml").read_text()) for one in (folder, trained))
    changed = {"rerun", "run_name"}
    assert {key for key in config if config[key] != before[key]} == changed
    assert config["run_name"] is None


def test_changed_initial_weights_are_reported(trained: Path, cli: Cli, tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    shutil.copy(trained / "checkpoints" / "best.pt", weights)
    assert cli(*TINY, "model.weights=w.pt", "trainer.max_steps=1", "hydra.run.dir=first") == 0
    (attempt,) = provenance(tmp_path / "first")["attempts"]
    assert attempt["weights"] == {"model.weights": hashlib.sha256(weights.read_bytes()).hexdigest()}
    shutil.copy(trained / "checkpoints" / "last.pt", weights)
    assert cli("rerun=first", "hydra.run.dir=again") == 0
    assert any("weights: the file of model.weights differs" in line for line in rerun_messages(tmp_path / "again"))


def test_rerun_of_an_mlflow_run(trained: Path, cli: Cli, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run_id = json.loads((trained / "summary.json").read_text())["mlflow_run_id"]
    uri = f"sqlite:///{trained.parents[1] / 'mlflow.db'}"
    assert cli(f"rerun=runs:/{run_id}", f"tracking.tracking_uri={uri}", "hydra.run.dir=again") == 0
    again = tmp_path / "again"
    assert_same_run(again, trained)
    assert rerun_messages(again)[-1].endswith("are unchanged")

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(json.loads((again / "summary.json").read_text())["mlflow_run_id"])
    first = client.get_run(run_id)
    assert run.data.tags["rerun_of"] == f"runs:/{run_id}"
    assert run.data.tags["folder"] == str(again.resolve())
    for tag in ("host", "data", "git_commit"):
        assert run.data.tags[tag] == first.data.tags[tag]
    assert "provenance.json" in {file.path for file in client.list_artifacts(run_id)}


def test_overrides_win_over_the_original_run(trained: Path, cli: Cli, tmp_path: Path) -> None:
    overrides = ("optimizer=adamw", "seed=8", "dataset.image_size=64", "trainer.max_steps=1", "tracking=none")
    assert cli(f"rerun={trained}", *overrides, "hydra.run.dir=again") == 0
    config = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert config["optimizer"]["_target_"] == "pspexp.optim.adamw"
    assert "momentum" not in config["optimizer"]
    assert (config["seed"], config["dataset"]["image_size"], config["dataset"]["num_train"]) == (8, 64, 5)
    assert config["choices"]["optimizer"] == "adamw"
    assert config["trainer"]["ema"] == 0.9
    lines = "\n".join(rerun_messages(tmp_path / "again"))
    assert "as overridden, seed: 7 then, 8 now" in lines
    assert "data: train: 5 images then and now, but their names, sizes or order differ" in lines


@pytest.mark.slow
def test_rerun_of_a_resumed_run_of_an_experiment(cli: Cli, tmp_path: Path) -> None:
    tiny = [override for override in TINY if not override.startswith(("dataset=", "model=", "inference="))]
    overrides = ("experiment=quickstart", *tiny, "optimizer.lr=0.01", "scheduler.warmup_steps=1", "hydra.run.dir=first")
    assert cli(*overrides, "trainer.max_steps=3") == 0
    assert cli(*overrides, "checkpoint.resume=auto") == 0
    first, second = provenance(tmp_path / "first")["attempts"]
    assert first["command"].endswith("trainer.max_steps=3")
    assert second["command"].endswith("checkpoint.resume=auto")

    assert cli("rerun=first") == 0
    (folder,) = (tmp_path / "outputs" / "quickstart").iterdir()
    assert_same_run(folder, tmp_path / "first", stopped=True)
    assert yaml.safe_load((folder / "config.yaml").read_text())["choices"]["experiment"] == "quickstart"


@pytest.mark.slow
def test_rerun_resumes_its_own_run(cli: Cli, tmp_path: Path) -> None:
    assert cli(*TINY) == 0
    (first,) = (tmp_path / "outputs" / "shapes").iterdir()
    (first / "summary.json").write_text('{"status": "KILLED"}')  # as if the original were unfinished
    overrides = ("rerun=" + str(first), "checkpoint.resume=auto", "optimizer.lr=5e-5")
    assert cli(*overrides, "trainer.max_steps=1", "hydra.run.dir=outputs/shapes/again") == 0
    again = tmp_path / "outputs" / "shapes" / "again"
    (again / "summary.json").write_text('{"status": "KILLED"}')
    assert cli(*overrides) == 0
    assert sorted((tmp_path / "outputs" / "shapes").iterdir()) == sorted([first, again])
    assert_same_run(again, first, stopped=True)
    assert provenance(again)["rerun_of"] == str(first)


def test_every_difference_is_reported(copy: Path, cli: Cli, tmp_path: Path) -> None:
    content = provenance(copy)
    (then,) = content["attempts"]
    commit = str(then["git_commit"]).removesuffix("-dirty")
    then |= {"git_commit": "0" * 40, "uncommitted": "1" * 64, "diff": "uncommitted.diff", "processes": 2}
    then["versions"] |= {"torch": "1.0", "oldlib": "3"}
    then["host"]["threads"] = 99
    then["data"]["train"] = {"images": 4, "fingerprint": "2" * 64}
    then["data"]["val"]["fingerprint"] = "3" * 64
    (copy / "provenance.json").write_text(json.dumps(content))
    (copy / "uncommitted.diff").write_text("diff --git a/x b/x\n")

    assert cli(f"rerun={copy}", "trainer.max_steps=1", "tracking=none", "hydra.run.dir=again") == 0
    lines = "\n".join(rerun_messages(tmp_path / "again"))
    expected = [
        f"code: commit {'0' * 40} then, {commit} now (git checkout {'0' * 40})",
        f"git apply {copy / 'uncommitted.diff'}",
        "version: torch 1.0 then, ",
        "version: oldlib 3 then, missing now",
        f"machine: threads 99 then, {torch.get_num_threads()} now",
        "machine: 2 processes then, 1 now",
        "data: train: 4 images then, 5 now (222222222222 then, ",
        "data: val: 3 images then and now, but their names, sizes or order differ (333333333333 then, ",
    ]
    assert [one for one in expected if one not in lines] == [], lines
    assert "are unchanged" not in lines


def test_unknown_facts_of_older_runs_are_reported(copy: Path, cli: Cli, tmp_path: Path) -> None:
    (copy / "provenance.json").unlink()
    config = yaml.safe_load((copy / "config.yaml").read_text())
    del config["rerun"], config["trainer"]["compile"]
    config["trainer"]["old_key"] = 3
    config["optimizer"]["older_key"] = 4
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert cli(f"rerun={copy}", "trainer.max_steps=1", "tracking=none", "hydra.run.dir=again") == 0
    warned = [line for line in rerun_messages(tmp_path / "again") if "as overridden" not in line]
    assert warned == [
        "rerun: there is no provenance.json: uncommitted changes, machine and data of the repeated run are unknown",
        "rerun: configuration: optimizer.older_key=4 no longer exists and is ignored",
        "rerun: configuration: trainer.compile did not exist then; it is False by default",
        "rerun: configuration: trainer.old_key=3 no longer exists and is ignored",
    ]


def test_rerun_of_a_test(trained: Path, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("mode=test", "tracking=none")
    assert cli(*overrides, f"checkpoint.path={trained}", "dataset.num_val=2", "hydra.run.dir=first") == 0
    assert cli(*overrides, "rerun=first", "hydra.run.dir=again") == 0
    assert records(tmp_path / "again") == records(tmp_path / "first")
    assert rerun_messages(tmp_path / "again")[-1].endswith("are unchanged")

    assert cli("rerun=first") == 2
    assert "mode=train: rerun=first is a run of mode=test; set mode=test" in capsys.readouterr().err
    assert cli(*overrides, f"rerun={trained}") == 2
    assert "is a run of mode=train; set mode=train" in capsys.readouterr().err


@pytest.mark.slow
def test_rerun_with_two_processes(cli: Cli, tmp_path: Path) -> None:
    overrides = (*TINY, "dataset.num_train=9", "launcher=ddp", "launcher.nproc_per_node=2", "hydra.run.dir=first")
    assert cli(*overrides) == 0
    (attempt,) = provenance(tmp_path / "first")["attempts"]
    assert attempt["command"].endswith("launcher=ddp launcher.nproc_per_node=2 hydra.run.dir=first")
    assert attempt["processes"] == 2
    assert cli("rerun=first", "hydra.run.dir=again") == 0
    assert_same_run(tmp_path / "again", tmp_path / "first")
    assert rerun_messages(tmp_path / "again")[-1].endswith("are unchanged")


@pytest.mark.slow
def test_sweep_over_seeds_of_a_rerun(trained: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # the last bits depend on it
    overrides = ("-m", f"rerun={trained}", "seed=7,8", "tracking=none", "hydra.sweep.dir=sweep")
    assert cli(*overrides) == 0
    assert_same_run(tmp_path / "sweep" / "0", trained)
    assert records(tmp_path / "sweep" / "1") != records(trained)
