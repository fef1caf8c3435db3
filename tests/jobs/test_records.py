"""Loggers built from the configuration, and records of jobs that fail early."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from pspexp.jobs.records import Request, build_loggers, record_failure
from pspexp.tracking import MLflowLogger
from pspexp.tracking.run_folder import read_summary


class CustomLogger:
    def __init__(self, value: int = 1) -> None:
        if value < 0:
            raise ValueError("must be positive")


@pytest.fixture(autouse=True)
def custom_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mine")
    module.CustomLogger = CustomLogger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)


def test_loggers_that_cannot_be_built_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = {"a": {"_target_": "mine.CustomLogger"}, "b": {"_target_": "mine.CustomLogger", "value": -1}, "c": None}
    node = {"_target_": "pspexp.tracking.mlflow_loggers", "experiment": "x", "output_root": str(tmp_path)}
    loggers = build_loggers(OmegaConf.create({**node, "loggers": nodes}), tmp_path)
    assert {name: type(logger) for name, logger in loggers.items()} == {"mlflow": MLflowLogger, "a": CustomLogger}
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"logger b disabled; local records continue in {tmp_path}: ")
    assert "must be positive" in warning


def test_custom_loggers_remain_without_mlflow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = {"a": {"_target_": "mine.CustomLogger"}}
    node = OmegaConf.create({"_target_": "pspexp.tracking.mlflow_loggers", "wrong": 1, "loggers": nodes})
    assert list(build_loggers(node, tmp_path)) == ["a"]
    assert "logger mlflow disabled" in caplog.text


def test_early_failure_is_recorded(tmp_path: Path) -> None:
    config = {
        "mode": "train",
        "run_name": None,
        "rerun": None,
        "choices": {"model": "m", "dataset": "d", "device": "cpu"},
        "tracking": {"_target_": "pspexp.tracking.other_loggers", "loggers": {"mine": {"_target_": "mine.Missing"}}},
        "broken": "${missing}",
    }
    record_failure(Request(OmegaConf.create(config), tmp_path, ["seed=1"]))
    assert read_summary(tmp_path)["status"] == "FAILED"
    assert "broken" not in (tmp_path / "config.yaml").read_text()
