"""Runs that do not finish: invalid overrides, signals and crashes; and how they are resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import pspexp
from tests.conftest import TINY, Cli, default_signals, last
from tests.engine.test_trainer import assert_same


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_invalid_overrides_are_refused_before_anything_is_created(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("optimizer=adm", "crop_size=470", "dataset=shapes", "trainer.epoch=3") == 2
    output = capsys.readouterr().err
    assert "did you mean 'adam'?" in output
    assert "try 473" in output
    assert "did you mean 'trainer.epochs'?" in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("--lr", "0.1"),
            "--lr: no such option; settings are written key=value, without dashes; write optimizer.lr=0.1",
        ),
        (("--seed=3",), "--seed=3: no such option; settings are written key=value, without dashes; write seed=3"),
        (("--cfg", "jobs"), "--cfg/-c: invalid choice: 'jobs'"),
        (("--config-dir", "nowhere", *TINY), "--config-dir=nowhere: no such folder"),
        (("--resolve", *TINY), "--resolve: has no effect without --cfg"),
        ((), "experiment=quickstart"),
    ],
)
def test_invalid_command_line_is_explained(
    overrides: tuple[str, ...], message: str, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*overrides) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert "usage" not in err
    assert len(err.splitlines()) <= 2
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_version_is_that_of_the_package(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--version") == 0
    assert capsys.readouterr().out == f"pspexp {pspexp.__version__}\n"


def test_flags_may_be_mixed_with_overrides(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("seed=3", "--cfg", "job", "--resolve", *TINY) == 0
    assert "seed: 3" in capsys.readouterr().out


def test_refused_run_leaves_no_files(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*TINY, "scheduler.warmup_steps=9999") == 2
    out, err = capsys.readouterr()
    assert "scheduler.warmup_steps" in err
    assert "warmup" not in out
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    assert list(tmp_path.glob("outputs/*/*")) == []


def test_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = f"{sys.executable} -m pspexp --cfg job dataset=shapes | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_missing_data_set_is_named(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("dataset=camvid", "dataset.root=nowhere", "inference=whole") == 2
    assert "dataset.root=nowhere: no such file or folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_check_writes_its_report_only(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=check", *TINY) == 0
    output = capsys.readouterr().out
    assert "torch" in output
    assert "device=cpu" in output
    assert "configuration is valid" in output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["report.csv", "report.html"]
    assert files[0].parent.parent.parent == tmp_path / "outputs" / "check"


def test_check_reports_what_cannot_be_built(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=check", *TINY, "device=cuda") == 2
    assert "device=cuda: not available here" in capsys.readouterr().err


def test_hydra_flags_work(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--cfg", "job", "--resolve", *TINY) == 0
    assert "crop_size: 33" in capsys.readouterr().out
    assert cli("--help") == 0
    assert " pspnet50*" in capsys.readouterr().out
    assert cli("-m", "--cfg", "job", *TINY) == 2
    assert "--multirun: cannot be combined with --cfg; remove one of them" in capsys.readouterr().err


def test_cfg_shows_the_configuration_that_would_run(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Including what comes from a rerun or a checkpoint."""
    assert cli(*TINY, "trainer.epochs=1", "seed=7", "hydra.run.dir=run") == 0
    capsys.readouterr()
    for overrides in (["rerun=run"], ["mode=test", "checkpoint.path=run", "tracking=none"]):
        assert cli("--cfg", "job", *overrides) == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["model"]["pyramid_channels"] == 4
        assert shown["choices"]["dataset"] == "shapes"
        assert shown["seed"] == (7 if "rerun=run" in overrides else 1122)
    command = [sys.executable, "-m", "pspexp", "--info", "defaults", "rerun=run"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert (
        "dataset/shapes" in subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    )
    assert cli("--cfg", "job", "rerun=nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


def test_crash_is_logged_and_the_run_is_marked_failed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pspexp.engine.trainer import Trainer

    def crash(*_: object) -> float:
        raise RuntimeError("out of something")

    monkeypatch.setattr(Trainer, "fit", crash)
    assert cli(*TINY, "hydra.run.dir=run") == 1
    log = (tmp_path / "run" / "run.log").read_text()
    assert "Traceback" in log
    assert "out of something" in log
    assert summary(tmp_path / "run")["status"] == "FAILED"


def test_different_configuration_is_not_resumed(cli: Cli, tmp_path: Path) -> None:
    overrides = (*TINY, "hydra.run.dir=run")
    assert cli(*overrides, "trainer.max_steps=1") == 0
    assert cli(*overrides, "checkpoint.resume=auto", "optimizer.lr=1e-3") == 2
    log = (tmp_path / "run" / "run.log").read_text()
    assert "optimizer.lr=0.001: the saved run has 5e-05" in log


def test_run_is_not_overwritten(cli: Cli, tmp_path: Path) -> None:
    overrides = (*TINY, "hydra.run.dir=run", "trainer.max_steps=1")
    assert cli(*overrides) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert cli(*overrides) == 2
    assert cli("mode=test", "checkpoint.path=run", "hydra.run.dir=run", "tracking=none") == 2
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_resume_does_not_overwrite_another_run(cli: Cli, tmp_path: Path) -> None:
    overrides = (*TINY, "trainer.max_steps=1")
    assert cli(*overrides, "hydra.run.dir=a") == cli(*overrides, "hydra.run.dir=b", "seed=5") == 0
    before = (tmp_path / "b" / "checkpoints" / "last.pt").read_bytes()
    assert cli(*TINY, "checkpoint.resume=a", "hydra.run.dir=b") == 2
    assert (tmp_path / "b" / "checkpoints" / "last.pt").read_bytes() == before


def test_values_out_of_range_are_reported_together(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("model.dropout=2", "augment.scale_min=-1", "loss.main_weight=-1")
    assert cli("mode=check", *TINY, *overrides) == 2
    output = capsys.readouterr().err
    assert [name for name in ("dropout", "scale_min", "main_weight") if name not in output] == []
    assert cli("mode=check", *TINY, "optimizer.lr=-1", "trainer.grad_clip=1.0") == 2
    assert "optimizer.lr=-1: must be greater than 0" in capsys.readouterr().err
    assert cli("mode=check", *TINY, "scheduler.warmup_steps=9999") == 2
    assert "scheduler.warmup_steps" in capsys.readouterr().err


def test_passwords_are_not_written_to_the_run_folder(cli: Cli, tmp_path: Path) -> None:
    address = "tracking.tracking_uri='http://user:hunter2@127.0.0.1:9'"
    overrides = [override for override in TINY if not override.startswith("tracking")]
    assert cli(*overrides, address, "trainer.max_steps=1", "hydra.run.dir=run") == 0
    texts = [file for file in (tmp_path / "run").rglob("*") if file.is_file() and file.suffix != ".png"]
    assert len(texts) > 5
    assert [file.name for file in texts if b"hunter2" in file.read_bytes()] == []


def test_option_from_config_dir(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own" / "optimizer").mkdir(parents=True)
    (tmp_path / "own" / "optimizer" / "mine.yaml").write_text("defaults: [sgd]\nlr: 0.5\n")
    overrides = (*TINY, "trainer.max_steps=1", "optimizer=mine", "hydra.run.dir=run")
    assert cli("--config-dir", "own", *overrides) == 0
    assert "lr: 0.5" in (tmp_path / "run" / "config.yaml").read_text()


LONG = (*TINY, "dataset.num_train=60", "trainer.log_every=2", "trainer.epochs=1")


def wait_for_step(process: "subprocess.Popen[bytes]", folder: Path, step: int) -> None:
    """Return once ``metrics.jsonl`` shows the step; fail if the run ends first."""
    file = folder / "metrics.jsonl"
    while not (file.is_file() and any(f'"step": {step},' in line for line in file.read_text().splitlines())):
        assert process.poll() is None, "ended too early"
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_resume_is_bit_exact(
    number: signal.Signals, code: int, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli(*LONG, "hydra.run.dir=whole") == 0

    command = [sys.executable, "-m", "pspexp", *LONG, "tracking=mlflow", "loader.num_workers=1"]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": threads}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=default_signals,
    )
    runs = tmp_path / "outputs" / "shapes"
    while not (runs.is_dir() and any(runs.iterdir())):
        assert process.poll() is None
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    (folder,) = runs.iterdir()
    wait_for_step(process, folder, 4)
    os.killpg(process.pid, number)  # as a terminal does: workers get it too
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error.decode()
    assert summary(folder)["status"] == "KILLED"
    stopped = last(folder)["step"]
    assert 4 <= stopped < 30

    assert cli(*LONG, "tracking=mlflow", "checkpoint.resume=auto") == 0
    assert list(runs.iterdir()) == [folder]
    assert summary(folder)["status"] == "FINISHED"
    whole, resumed = last(tmp_path / "whole"), last(folder)
    for key in ("model", "training", "metrics"):
        assert_same(resumed[key], whole[key], key)

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("pspexp").experiment_id])
    assert [run.info.run_id for run in found] == [summary(folder)["mlflow_run_id"]]
    assert found[0].info.status == "FINISHED"


def test_refused_run_leaves_no_parent_folders(cli: Cli, tmp_path: Path) -> None:
    assert cli(*TINY, "loader.batch_size=500") == 2  # detected when everything is built
    assert list(tmp_path.iterdir()) == []
