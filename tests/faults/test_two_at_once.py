"""Two commands at once: no damage, and a clear word."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, Cli
from tests.end_to_end.conftest import Start, wait_for

RUN = (*TINY[:-1], "tracking.experiment=trials", "trainer.max_steps=2")


def statuses(database: Path) -> list[str]:
    from mlflow import MlflowClient

    client: Any = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("trials")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


@pytest.mark.slow
def test_the_same_command_twice_in_the_same_second(tmp_path: Path, start: Start) -> None:
    """Both find no database, and would get the same folder."""
    codes, _, errors = wait_for([start(*RUN), start(*RUN)])
    assert codes == [0, 0], errors
    runs = list((tmp_path / "outputs" / "shapes").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert json.loads((run / "summary.json").read_text())["status"] == "FINISHED"
        assert torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"] == 2
    assert statuses(tmp_path / "outputs" / "mlflow.db") == ["FINISHED"] * 2


@pytest.mark.slow
def test_two_processes_in_one_run_folder(tmp_path: Path, start: Start) -> None:
    long = ("trainer.max_steps=null", "trainer.epochs=300", "trainer.validate_every=300", "trainer.log_every=100")
    command = (*RUN, *long, "hydra.run.dir=run", "checkpoint.resume=auto")
    processes = [start(*command), start(*command)]
    codes, _, errors = wait_for(processes)
    assert sorted(codes) == [0, 2], errors
    refused = errors[codes.index(2)]
    assert refused.splitlines()[-1].endswith("run: another process is writing there; wait, or choose another folder")
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["step"] == 600
    assert statuses(tmp_path / "outputs" / "mlflow.db") == ["FINISHED"]


def test_compare_while_a_run_writes(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        assert cli(*TINY, "trainer.max_steps=2", f"hydra.run.dir=runs/{name}") == 0
    summary = json.loads((tmp_path / "runs" / "c" / "summary.json").read_text())
    (tmp_path / "runs" / "c" / "summary.json").write_text(json.dumps({**summary, "status": "RUNNING", "best": {}}))
    with (tmp_path / "runs" / "c" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train/lo')  # half a line
    (tmp_path / "runs" / "c" / "tables" / "val_iou.csv.part").write_text("class,io")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli("mode=compare", "compare.runs=runs") == 0
    assert "RUNNING" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert after == before  # the reading side changes nothing


@pytest.mark.parametrize("reads", [1, 2, 3])
def test_predict_while_the_checkpoint_is_replaced(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reads: int
) -> None:
    """After one of the times that it is read, another network's gets its name."""
    for name, channels in (("a", 8), ("b", 16)):
        assert cli(*TINY, f"model.head_channels={channels}", f"hydra.run.dir={name}") == 0
    other = tmp_path / "b" / "checkpoints" / "best.pt"
    load, counted = torch.load, [0]

    def replaced_after_reading(file: Any, *arguments: Any, **options: Any) -> Any:
        found = load(file, *arguments, **options)
        counted[0] += 1
        if counted[0] == reads:
            other.replace(tmp_path / "a" / "checkpoints" / "best.pt")
        return found

    monkeypatch.setattr("torch.load", replaced_after_reading)
    capsys.readouterr()
    code = cli("mode=predict", "checkpoint.path=a", "predict.input=split:val", "predict.output=found")
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert len(list((tmp_path / "found").glob("ids/*.png"))) == (3 if code == 0 else 0)
    assert code == 0 or (code == 2 and "a/checkpoints/best.pt" in message)
