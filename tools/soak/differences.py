"""How the results of a command differ from those of the undisturbed one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def same_training(home: Path, reference: Path, run_dir: str = "run") -> list[str]:
    """How weights, training state and records differ."""
    found = []
    for name in ("last.pt", "best.pt"):
        states = [torch.load(place / run_dir / "checkpoints" / name, weights_only=True) for place in (home, reference)]
        for state in states:
            state.pop("config")
            state.get("training", {}).pop("timer", None)
        found += [f"{run_dir}/{name}: {key}" for key in different(*states)]
    records = [losses(place / run_dir / "metrics.jsonl") for place in (home, reference)]
    if records[0] != records[1]:
        found.append(f"{run_dir}/metrics.jsonl: {records[0]} instead of {records[1]}")
    status = json.loads((home / run_dir / "summary.json").read_text())["status"]
    return found + ([f"{run_dir}: {status}"] if status != "FINISHED" else []) + missing_in_mlflow(home, run_dir)


def missing_in_mlflow(home: Path, run_dir: str) -> list[str]:
    """Values of a run that MLflow does not have; steps that were repeated may be there twice."""
    from mlflow import MlflowClient

    database = home / "outputs" / "mlflow.db"
    run_id = json.loads((home / run_dir / "summary.json").read_text())["mlflow_run_id"]
    if run_id is None:
        return [f"{run_dir}: not in MLflow"]
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    there = {(one.step, one.value) for one in client.get_metric_history(run_id, "train/loss")}
    here = {(step, value) for step, name, value in losses(home / run_dir / "metrics.jsonl") if name == "train/loss"}
    status = client.get_run(run_id).info.status
    return [f"{run_dir}: not in MLflow: {here - there}"] * (not here <= there) + [f"MLflow says {status}"] * (
        status != "FINISHED"
    )


def losses(file: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of what a run recorded, without times."""
    found = []
    for line in file.read_text().splitlines():
        record = json.loads(line)
        found += [
            (record["step"], key, value)
            for key, value in record.items()
            if key in ("train/loss", "train/lr") or key.startswith(("val/", "best/"))
        ]
    return found


def different(one: Any, other: Any, key: str = "") -> list[str]:
    """The keys of nested values that are not the same, bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [key]
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found
            for name in one.keys() | other.keys()
            for found in different(one.get(name), other.get(name), f"{key}.{name}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            found
            for index, pair in enumerate(zip(one, other, strict=True))
            for found in different(*pair, f"{key}.{index}")
        ]
    return [] if one == other else [key]


def same_sweep(home: Path, reference: Path) -> list[str]:
    """How the jobs of a sweep differ."""
    return [line for job in ("0", "1", "2") for line in same_training(home, reference, f"sweep/{job}")]


def same_files(*patterns: str) -> Callable[[Path, Path], list[str]]:
    """A comparison of all files that match one of the patterns, byte by byte."""

    def differences(home: Path, reference: Path) -> list[str]:
        found = []
        for pattern in patterns:
            here, there = (
                {file.relative_to(place): file for file in place.glob(pattern)} for place in (home, reference)
            )
            if not there:
                found.append(f"{pattern}: nothing to compare")
            for name in sorted(here.keys() | there.keys()):
                if name not in here or name not in there:
                    found.append(f"{name}: {'missing' if name not in here else 'not expected'}")
                elif here[name].read_bytes() != there[name].read_bytes():
                    found.append(f"{name}: other contents")
        return found

    return differences
