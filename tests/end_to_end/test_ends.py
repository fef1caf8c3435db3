"""How a run can end other than well: invalid overrides, signals, crashes; and how it is resumed."""

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

from tests.conftest import TINY, Cli, default_signals, last
from tests.engine.test_trainer import assert_same


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_wrong_words_end_before_anything_is_made(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("optimizer=adm", "crop_size=470", "dataset=shapes", "trainer.epoch=3") == 2
    said = capsys.readouterr().err
    assert "did you mean 'adam'?" in said
    assert "try 473" in said
    assert "did you mean 'trainer.epochs'?" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--lr", "0.1"),
            "--lr: no such option; settings are written key=value, without dashes; write optimizer.lr=0.1",
        ),
        (("--seed=3",), "--seed=3: no such option; settings are written key=value, without dashes; write seed=3"),
        (("--cfg", "jobs"), "--cfg/-c: invalid choice: 'jobs'"),
        (("--config-dir", "nowhere", *TINY), "--config-dir=nowhere: no such folder"),
        (("--resolve", *TINY), "--resolve: goes with --cfg only"),
        ((), "experiment=quickstart"),
    ],
)
def test_a_wrong_command_is_explained(
    words: tuple[str, ...], said: str, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*words) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert "usage" not in err
    assert len(err.splitlines()) <= 2
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_that_of_the_package(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--version") == 0
    assert capsys.readouterr().out == "pspexp 0.1.0\n"


def test_flags_may_stand_between_overrides(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("seed=3", "--cfg", "job", "--resolve", *TINY) == 0
    assert "seed: 3" in capsys.readouterr().out


def test_a_refused_run_leaves_nothing(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*TINY, "scheduler.warmup_steps=9999") == 2
    out, err = capsys.readouterr()
    assert "scheduler.warmup_steps" in err
    assert "warmup" not in out
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    assert list(tmp_path.glob("outputs/*/*")) == []


def test_a_reader_that_has_read_enough(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = f"{sys.executable} -m pspexp --cfg job dataset=shapes | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_missing_data_is_named(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("dataset=camvid", "dataset.root=nowhere", "inference=whole") == 2
    assert "dataset.root=nowhere: no such file or folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_check_trains_nothing_and_leaves_nothing(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=check", *TINY) == 0
    said = capsys.readouterr().out
    assert "torch" in said
    assert "device=cpu" in said
    assert "configuration is valid" in said
    assert list(tmp_path.iterdir()) == []


def test_check_names_what_cannot_be_built(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=check", *TINY, "device=cuda") == 2
    assert "device=cuda: not available here" in capsys.readouterr().err


def test_hydras_own_flags_work(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--cfg", "job", "--resolve", *TINY) == 0
    assert "crop_size: 33" in capsys.readouterr().out
    assert cli("--help") == 0
    assert "model:" in capsys.readouterr().out
    assert cli("-m", "--cfg", "job", *TINY) == 2
    assert "--multirun: does not go with --cfg; leave one of them out" in capsys.readouterr().err


def test_what_is_shown_is_what_would_run(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run or its checkpoint brings, too."""
    assert cli(*TINY, "trainer.epochs=1", "seed=7", "hydra.run.dir=run") == 0
    capsys.readouterr()
    for words in (["rerun=run"], ["mode=test", "checkpoint.path=run", "tracking=none"]):
        assert cli("--cfg", "job", *words) == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["model"]["pyramid_channels"] == 4
        assert shown["choices"]["dataset"] == "shapes"
        assert shown["seed"] == (7 if "rerun=run" in words else 1122)
    command = [sys.executable, "-m", "pspexp", "--info", "defaults", "rerun=run"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert (
        "dataset/shapes" in subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    )
    assert cli("--cfg", "job", "rerun=nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_crash_is_in_the_log_and_the_run_is_marked(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pspexp.engine.trainer import Trainer

    def crash(*_: object) -> float:
        raise RuntimeError("out of something")

    monkeypatch.setattr(Trainer, "fit", crash)
    assert cli(*TINY, "hydra.run.dir=run") == 1
    log = (tmp_path / "run" / "run.log").read_text()
    assert "Traceback" in log
    assert "out of something" in log
    assert summary(tmp_path / "run")["status"] == "FAILED"


def test_another_configuration_is_not_resumed(cli: Cli, tmp_path: Path) -> None:
    words = (*TINY, "hydra.run.dir=run")
    assert cli(*words, "trainer.max_steps=1") == 0
    assert cli(*words, "checkpoint.resume=auto", "optimizer.lr=1e-3") == 2
    log = (tmp_path / "run" / "run.log").read_text()
    assert "optimizer.lr=0.001: the saved run has 5e-05" in log


def test_a_run_is_not_overwritten(cli: Cli, tmp_path: Path) -> None:
    words = (*TINY, "hydra.run.dir=run", "trainer.max_steps=1")
    assert cli(*words) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert cli(*words) == 2
    assert cli("mode=test", "checkpoint.path=run", "hydra.run.dir=run", "tracking=none") == 2
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_another_run_is_not_continued_over(cli: Cli, tmp_path: Path) -> None:
    words = (*TINY, "trainer.max_steps=1")
    assert cli(*words, "hydra.run.dir=a") == cli(*words, "hydra.run.dir=b", "seed=5") == 0
    before = (tmp_path / "b" / "checkpoints" / "last.pt").read_bytes()
    assert cli(*TINY, "checkpoint.resume=a", "hydra.run.dir=b") == 2
    assert (tmp_path / "b" / "checkpoints" / "last.pt").read_bytes() == before


def test_ranges_are_told_all_at_once(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("model.dropout=2", "augment.scale_min=-1", "loss.main_weight=-1")
    assert cli("mode=check", *TINY, *words) == 2
    said = capsys.readouterr().err
    assert [word for word in ("dropout", "scale_min", "main_weight") if word not in said] == []
    assert cli("mode=check", *TINY, "optimizer.lr=-1", "trainer.grad_clip=1.0") == 2
    assert "optimizer.lr=-1: must be greater than 0" in capsys.readouterr().err
    assert cli("mode=check", *TINY, "scheduler.warmup_steps=9999") == 2
    assert "scheduler.warmup_steps" in capsys.readouterr().err


def test_passwords_are_written_nowhere(cli: Cli, tmp_path: Path) -> None:
    address = "tracking.tracking_uri='http://user:hunter2@127.0.0.1:9'"
    words = [word for word in TINY if not word.startswith("tracking")]
    assert cli(*words, address, "trainer.max_steps=1", "hydra.run.dir=run") == 0
    texts = [file for file in (tmp_path / "run").rglob("*") if file.is_file() and file.suffix != ".png"]
    assert len(texts) > 5
    assert [file.name for file in texts if b"hunter2" in file.read_bytes()] == []


def test_the_users_own_folder_of_options(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "own" / "optimizer").mkdir(parents=True)
    (tmp_path / "own" / "optimizer" / "mine.yaml").write_text("defaults: [sgd]\nlr: 0.5\n")
    words = (*TINY, "trainer.max_steps=1", "optimizer=mine", "hydra.run.dir=run")
    assert cli("--config-dir", "own", *words) == 0
    assert "lr: 0.5" in (tmp_path / "run" / "config.yaml").read_text()


LONG = (*TINY, "dataset.num_train=60", "trainer.log_every=2", "trainer.epochs=1")


def wait_for_step(process: "subprocess.Popen[bytes]", folder: Path, step: int) -> None:
    """Return as soon as ``metrics.jsonl`` shows the step; fails if the run ends first."""
    file = folder / "metrics.jsonl"
    while not (file.is_file() and any(f'"step": {step},' in line for line in file.read_text().splitlines())):
        assert process.poll() is None, "ended too early"
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_auto_goes_on_exactly(
    number: signal.Signals, code: int, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli(*LONG, "hydra.run.dir=whole") == 0

    words = [sys.executable, "-m", "pspexp", *LONG, "tracking=mlflow", "loader.num_workers=1"]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": threads}
    process = subprocess.Popen(
        words,
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


def test_a_refused_run_leaves_no_folder_above_it_either(cli: Cli, tmp_path: Path) -> None:
    assert cli(*TINY, "loader.batch_size=500") == 2  # found when everything is built
    assert list(tmp_path.iterdir()) == []
