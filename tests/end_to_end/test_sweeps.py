"""Sweeps: results, failing jobs and resuming."""

import csv
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, Cli
from tests.end_to_end.conftest import CHECKOUT, Start, children, wait_for, wait_until
from tests.engine.test_trainer import assert_same

GRID = ("-m", *TINY, "dataset.num_val=1", "trainer.max_steps=2", "hydra.sweep.dir=sweep")  # plus what varies
SABOTEUR = "+device.plugin=math,tests.end_to_end.saboteur"
Row = dict[str, str]


def rows(sweep: Path) -> list[Row]:
    """Return the rows of the sweep's table."""
    with (sweep / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def column(sweep: Path, name: str) -> list[str]:
    return [row[name] for row in rows(sweep)]


def weights(run: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return {key: saved[key] for key in ("model", "metrics")}


def block_saving(job: Path) -> Path:
    """Keep a job from saving, with a file in place of its checkpoint folder."""
    job.mkdir(parents=True)
    obstacle = job / "checkpoints"
    obstacle.touch()
    return obstacle


@pytest.mark.slow
def test_failing_jobs_are_reported_and_do_not_stop_the_sweep(
    cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An invalid value, one that only building refuses, a loss that is not finite, and a valid job."""
    values = ["optimizer.lr=-1,1e30,1e-3", "loader.batch_size=1,2", "run_name=trial"]
    assert cli(*GRID, *values, "trainer.max_steps=3", "trainer.log_every=1") == 1
    output = capfd.readouterr()
    assert "HYDRA_FULL_ERROR" not in output.err
    assert "hydra.sweep.dir" in output.out
    statuses = dict(zip(column(tmp_path / "sweep", "job"), column(tmp_path / "sweep", "status"), strict=True))
    assert statuses == dict.fromkeys("01234", "FAILED") | {"5": "FINISHED"}
    errors = column(tmp_path / "sweep", "error")
    assert "optimizer.lr=-1" in errors[0]
    assert "1 more" in errors[0]  # loader.batch_size=1
    assert all("loader.batch_size=1" in error for error in errors[1:3])
    assert "optimizer.lr=-1" in errors[3]
    assert "loss" in errors[4]
    for job in "01234":
        assert "Traceback" in (tmp_path / "sweep" / job / "run.log").read_text()
        assert json.loads((tmp_path / "sweep" / job / "summary.json").read_text())["status"] == "FAILED"
        assert "run_name: trial lr=" in (tmp_path / "sweep" / job / "config.yaml").read_text()


@pytest.mark.slow
def test_killed_process_fails_only_its_job(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The sweep is rerun with retry_failed, first with another failure, then without any."""
    overrides = (*GRID, SABOTEUR, "tracking=mlflow")
    monkeypatch.setenv("SABOTAGE", "kill")
    assert cli(*overrides) == 1
    sweep = tmp_path / "sweep"
    assert column(sweep, "status") == ["FINISHED", "FAILED"]
    assert "killed by SIGKILL" in rows(sweep)[1]["error"]
    assert "killed by SIGKILL" in (sweep / "1" / "run.log").read_text()
    before = (sweep / "0" / "checkpoints" / "last.pt").stat().st_mtime_ns

    monkeypatch.setenv("SABOTAGE", "memory")
    assert cli(*overrides, "sweep.retry_failed=true") == 1
    assert "memory" in rows(sweep)[1]["error"].lower()
    monkeypatch.delenv("SABOTAGE")
    assert cli(*overrides) == 1  # not retried without the option
    assert "sweep.retry_failed=true" in capfd.readouterr().out
    assert column(sweep, "status") == ["FINISHED", "FAILED"]
    assert cli(*overrides, "sweep.retry_failed=true") == 0
    assert column(sweep, "status") == ["FINISHED", "FINISHED"]
    assert (sweep / "0" / "checkpoints" / "last.pt").stat().st_mtime_ns == before
    runs = tracked(tmp_path)
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 3  # retried in the same MLflow runs
    assert (
        len({run.data.tags.get("sweep") for run in runs}) == 2
    )  # one for the jobs and the overview, one without the tag


def tracked(home: Path) -> list[Any]:
    """Return the MLflow runs."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'outputs' / 'mlflow.db'}")
    return list(client.search_runs([client.get_experiment_by_name("pspexp").experiment_id]))


@pytest.mark.slow
def test_mlflow_filter_in_the_overview_finds_the_jobs(cli: Cli, tmp_path: Path) -> None:
    overrides = (*GRID, "tracking=mlflow", "optimizer.lr=1e-3,1e-4", "loader.batch_size=2,3")
    assert cli(*overrides) == 0
    runs = tracked(tmp_path)
    (overview,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    assert Path(overview.data.tags["folder"], "sweep.csv").is_file()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    note = overview.data.tags["mlflow.note.content"]
    (line,) = re.findall(r"filter `(.*?)`\.", note)
    found = client.search_runs([overview.info.experiment_id], line, order_by=["metrics.`best/mean_iou` DESC"])
    names = {"lr=0.001,batch_size=2", "lr=0.001,batch_size=3", "lr=0.0001,batch_size=2", "lr=0.0001,batch_size=3"}
    assert {run.info.run_name for run in found} == names
    assert all("mlflow.parentRunId" not in run.data.tags for run in runs)
    assert all({"best/mean_iou", "best/epoch"} <= run.data.metrics.keys() for run in found)
    best = max(rows(tmp_path / "sweep"), key=lambda row: float(row["best/mean_iou"]))
    assert found[0].data.metrics["best/mean_iou"] == float(best["best/mean_iou"])
    assert f"| 1 | **lr={best['optimizer.lr']},batch_size={best['loader.batch_size']}** |" in note
    files = [file.path for file in client.list_artifacts(overview.info.run_id)]
    images = [file.path for file in client.list_artifacts(overview.info.run_id, "plots")]
    assert "sweep.csv" in files
    assert images == ["plots/heat_map.png", "plots/parallel_coordinates.png"]

    assert cli(*overrides) == 0  # nothing left to run
    assert len(tracked(tmp_path)) == 5


@pytest.mark.slow
def test_job_equals_a_run_outside_the_sweep(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier job leaves no state behind: no random numbers and no process group."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # the last bits depend on it
    assert cli(*GRID, "seed=1,2", "augment=semseg") == 0
    assert (
        cli(*TINY, "dataset.num_val=1", "trainer.max_steps=2", "seed=2", "augment=semseg", "hydra.run.dir=alone") == 0
    )
    assert_same(weights(tmp_path / "sweep" / "1"), weights(tmp_path / "alone"), "run")
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_killed_sweep_resumes_to_the_same_results(start: Start, tmp_path: Path) -> None:
    overrides = ("-m", *TINY, "dataset.num_train=200", "seed=1,2")
    whole = start(*overrides, "hydra.sweep.dir=whole")
    assert wait_for([whole])[0] == [0]
    killed = start(*overrides, "hydra.sweep.dir=killed")
    records = tmp_path / "killed" / "1" / "metrics.jsonl"
    wait_until(lambda: records.is_file() and '"step": 4,' in records.read_text(), killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = (tmp_path / "killed" / "0" / "checkpoints" / "last.pt").stat().st_mtime_ns
    again = start(*overrides, "hydra.sweep.dir=killed")
    codes, outs, errors = wait_for([again])
    assert codes == [0], errors
    assert "job 0 (seed=1) is already finished" in outs[0]
    assert "resuming from step" in outs[0]

    def table(sweep: str) -> list[Row]:
        return [row | {"seconds": ""} for row in rows(tmp_path / sweep)]

    assert table("killed") == table("whole")
    assert (tmp_path / "killed" / "0" / "checkpoints" / "last.pt").stat().st_mtime_ns == kept
    for job in "01":
        assert_same(weights(tmp_path / "killed" / job), weights(tmp_path / "whole" / job), job)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_sweep_saves_and_says_how_to_resume(
    number: signal.Signals, code: int, start: Start, tmp_path: Path
) -> None:
    overrides = ("-m", *TINY, "dataset.num_train=2000", "optimizer.lr=1e-3,1e-4", "hydra.sweep.dir=sweep")
    process = start(*overrides)
    records = tmp_path / "sweep" / "0" / "metrics.jsonl"
    wait_until(lambda: records.is_file() and '"step": 2,' in records.read_text(), process)
    os.killpg(process.pid, number)  # as a terminal does
    codes, outs, errors = wait_for([process])
    assert codes == [code], errors
    assert column(tmp_path / "sweep", "status") == ["KILLED"]
    assert (tmp_path / "sweep" / "0" / "checkpoints" / "last.pt").is_file()
    assert "to resume, rerun the command with: hydra.sweep.dir=" in outs[0]
    assert children(process.pid) == []


@pytest.mark.slow
def test_stopped_parallel_jobs_save(start: Start, tmp_path: Path) -> None:
    """Only the main process gets the signal: the jobs run in joblib's workers."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra 'joblib'")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    overrides = ("-m", *TINY, *joblib, "dataset.num_train=2000", "seed=1,2,3", "hydra.sweep.dir=sweep")
    process = start(*overrides, TMPDIR=str(tmp_path))
    records = [tmp_path / "sweep" / job / "metrics.jsonl" for job in "01"]
    wait_until(lambda: all(file.is_file() and '"step": 2,' in file.read_text() for file in records), process)
    process.terminate()
    codes, _, errors = wait_for([process])
    assert codes == [143], errors
    assert column(tmp_path / "sweep", "status") == ["KILLED", "KILLED", "NOT STARTED"]
    for job in "01":
        assert json.loads((tmp_path / "sweep" / job / "summary.json").read_text())["status"] == "KILLED"
        assert (tmp_path / "sweep" / job / "checkpoints" / "last.pt").is_file()


@pytest.mark.slow
def test_jobs_sharing_a_folder_are_refused(cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli(*GRID, "trainer.max_steps=1", "seed=1,2", "hydra.sweep.subdir=${crop_size}") == 1
    assert "hydra.sweep.subdir: jobs 0 and 1 share" in capfd.readouterr().err
    assert column(tmp_path / "sweep", "status") == ["FINISHED"]


@pytest.mark.slow
def test_fail_fast_ends_the_sweep(cli: Cli, tmp_path: Path) -> None:
    overrides = (*GRID, "optimizer.lr=1e-3,-1,1e-4,1e-5", "sweep.fail_fast=true")
    assert cli(*overrides) == 1
    assert column(tmp_path / "sweep", "status") == ["FINISHED", "FAILED", "NOT STARTED", "NOT STARTED"]
    assert not (tmp_path / "sweep" / "2" / "summary.json").exists()


@pytest.mark.slow
def test_different_sweep_is_not_resumed(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*GRID, "seed=1,2") == 0
    before = (tmp_path / "sweep" / "sweep.csv").read_text()
    assert cli(*GRID, "seed=1") == 2
    assert "seed=one value: was 1,2" in capsys.readouterr().err
    assert cli(*GRID, "seed=1,2", "optimizer.lr=1e-3", "trainer.epochs=3") == 2
    stderr = capsys.readouterr().err
    assert "optimizer.lr=0.001: was 5e-05" in stderr
    assert "trainer.epochs=3: was 2" in stderr
    assert (tmp_path / "sweep" / "sweep.csv").read_text() == before
    assert cli(*GRID, "seed=1,2", "loader.num_workers=1", "trainer.log_every=2") == 0  # does not change the results


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_sweep_with_more_values_runs_the_missing_jobs(
    launcher: str, cli: Cli, start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Further values in any order, fewer values, then a further key: finished jobs keep folder, number and result."""
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra 'joblib'")
    sweep = tmp_path / "sweep"

    def run(*varied: str) -> str:
        command = (*GRID, "trainer.max_steps=1", f"hydra/launcher={launcher}", *varied)
        if launcher == "joblib":  # whose workers write to the terminal of the process that started them
            codes, outs, errors = wait_for([start(*command, "hydra.launcher.n_jobs=2", TMPDIR=str(tmp_path))])
            assert codes == [0], errors
            return outs[0]
        assert cli(*command) == 0
        return capfd.readouterr().out

    run("optimizer.lr=1e-3,1e-4")
    kept = [(sweep / job / "checkpoints" / "last.pt").stat().st_mtime_ns for job in "01"]
    log = run("optimizer.lr=1e-5,1e-4,1e-3")
    assert log.count("already finished") == 2
    assert column(sweep, "optimizer.lr") == ["0.001", "0.0001", "1e-05"]
    assert column(sweep, "folder") == ["0", "1", "2"]
    assert run("optimizer.lr=1e-6,1e-3").count("already finished") == 1
    assert column(sweep, "optimizer.lr") == ["0.001", "0.0001", "1e-05", "1e-06"]
    run("optimizer.lr=1e-3,1e-4", "seed=7,1122")
    assert [tuple(row[key] for key in ("job", "optimizer.lr", "seed")) for row in rows(sweep)] == [
        *((str(job), lr, "1122") for job, lr in enumerate(("0.001", "0.0001", "1e-05", "1e-06"))),
        ("4", "0.001", "7"),
        ("5", "0.0001", "7"),
    ]
    assert column(sweep, "status") == ["FINISHED"] * 6
    assert [(sweep / job / "checkpoints" / "last.pt").stat().st_mtime_ns for job in "01"] == kept
    for job, lr in (("2", "1.0e-05"), ("3", "1.0e-06"), ("5", "0.0001")):
        assert f"lr: {lr}" in (sweep / job / "config.yaml").read_text()


def test_two_sweeps_cannot_share_a_folder(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pspexp.tracking.runs import run_dir_lock

    with run_dir_lock(tmp_path / "sweep"):
        assert cli(*GRID, "seed=1,2") == 2
    assert "another process is writing there" in capsys.readouterr().err


@pytest.mark.slow
def test_parallel_jobs_get_one_card_each(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra 'joblib'")
    pytest.importorskip("torch_sdaa", reason="needs a C++ compiler for the stand-in card")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.max_steps=1", "device=sdaa")
    path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests" / "stand_in")])
    codes, _, errors = wait_for([start(*GRID, *joblib, "seed=1,2", PYTHONPATH=path, TMPDIR=str(tmp_path))])
    assert codes == [0], errors
    logs = [(tmp_path / "sweep" / job / "run.log").read_text() for job in "01"]
    assert sorted(re.findall(r"SDAA_VISIBLE_DEVICES=(\d)", "".join(logs))) == ["0", "1"]
    assert all("sdaa:0" in log for log in logs)  # the only card it sees


@pytest.mark.slow
def test_parallel_jobs_get_their_own_cpu_cores(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra 'joblib'")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "sweep.cores_per_job=1", "trainer.max_steps=1")
    codes, _, errors = wait_for([start(*GRID, *joblib, "seed=1,2", TMPDIR=str(tmp_path))])
    assert codes == [0], errors
    logs = [(tmp_path / "sweep" / job / "run.log").read_text() for job in "01"]
    assert len(set(re.findall(r"processor cores: (\d+)\n", "".join(logs)))) == min(2, len(os.sched_getaffinity(0)))
    assert all("cpu (1 thread)" in log for log in logs)


@pytest.mark.slow
def test_resumed_search_keeps_its_trials(start: Start, tmp_path: Path) -> None:
    """One trial is forced to fail; Optuna records the failure, and resuming suggests the same trials."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra 'optuna'")
    overrides = ("+sweep=optuna", *GRID[1:], "trainer.max_steps=1", "hydra.sweeper.n_trials=3")
    sweep = tmp_path / "sweep"
    block_saving(sweep / "1")
    codes, outs, errors = wait_for([start(*overrides)])
    assert codes == [1], errors
    assert column(sweep, "status") == ["FINISHED", "FAILED", "FINISHED"]
    assert len(set(column(sweep, "optimizer.lr"))) == 3
    first = (sweep / "sweep.csv").read_text()
    codes, outs, _ = wait_for([start(*overrides)])
    assert codes == [1]
    assert outs[0].count("is already finished") == 2
    assert (sweep / "sweep.csv").read_text() == first
