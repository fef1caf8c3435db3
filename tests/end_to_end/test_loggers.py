"""User-defined loggers, added on the command line."""

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import TINY, Cli

MODULE = '''
"""Records every run's metrics in one table."""

import csv
from pathlib import Path


class CsvLogger:
    def __init__(self, file, fails=False):
        self.file = Path(file)
        if fails:
            raise RuntimeError("no such table")

    def open(self, *, run_id, name, params, tags):
        self.run_id = run_id or f"{name}-{params['seed']}"
        self.row("open", tags["mode"])
        return self.run_id

    def metrics(self, values, *, step, time_s):
        self.row("metrics", step, values.get("train/loss", ""))

    def files(self, folder, paths):
        assert all((folder / path).is_file() for path in paths)

    def note(self, markdown):
        self.row("note", markdown.splitlines()[0])

    def close(self, status):
        self.row("close", status)

    def row(self, *cells):
        with self.file.open("a", newline="") as file:
            csv.writer(file).writerow([self.run_id, *cells])


class FailingLogger(CsvLogger):
    def metrics(self, values, *, step, time_s):
        raise ConnectionError("the table is gone")
'''


def test_custom_loggers_from_the_command_line(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_logger.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def logger_overrides(name: str, target: str, **arguments: object) -> list[str]:
        values = {"_target_": f"my_logger.{target}", "file": f"{name}.csv", **arguments}
        return [f"+tracking.loggers.{name}.{key}={value}" for key, value in values.items()]

    command = [
        *TINY,
        *logger_overrides("csv", "CsvLogger"),
        *logger_overrides("failing", "FailingLogger"),
        *logger_overrides("unbuildable", "CsvLogger", fails=True),
        "tracking.wait_s=0",
        "run_name=mine",
        "hydra.run.dir=run",
    ]
    assert cli(*command, "trainer.max_steps=2") == 0
    log = (tmp_path / "run" / "run.log").read_text()
    (unbuildable,) = [line for line in log.splitlines() if "disabled; local records continue in" in line]
    assert "logger unbuildable disabled" in unbuildable
    assert "no such table" in unbuildable
    (failing,) = [line for line in log.splitlines() if "is unavailable" in line]
    assert "logger failing is unavailable" in failing
    assert "ConnectionError: the table is gone" in failing
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    seed = f"mine-{summary['loggers']['csv'].rpartition('-')[2]}"
    assert summary["loggers"] == {"csv": seed, "failing": seed}
    assert summary["mlflow_run_id"] is None

    assert cli(*command, "run_name=other", "trainer.max_steps=null", "checkpoint.resume=auto") == 0
    with (tmp_path / "csv.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert {row[0] for row in rows} == {seed}
    assert [row[2] for row in rows if row[1] == "open"] == ["train"] * 2
    assert [row[2] for row in rows if row[1] == "close"] == ["FINISHED"] * 2
    losses = {int(row[2]): float(row[3]) for row in rows if row[1] == "metrics" and row[3]}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses == {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert list(losses) == [1, 2, 3, 4]
