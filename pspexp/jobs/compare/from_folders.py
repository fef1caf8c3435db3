"""Reads runs from their folders."""

import csv
import math
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from pspexp.errors import UserError
from pspexp.jobs.compare.run_set import (
    SPLITS,
    Run,
    RunSet,
    Table,
    as_text,
    compared_metrics,
    explicit_settings,
    is_complete,
)
from pspexp.tracking.manifest import read_manifest
from pspexp.tracking.run_folder import read_records, read_summary
from pspexp.utils.text import one_line

T = TypeVar("T")
COPIES = {"mlartifacts", "mlruns"}  # MLflow's folders
PARTS = {"checkpoints", "plots", "tables", "predictions", "export"}  # of a run folder; some have a summary of their own


def read_below(place: str) -> RunSet:
    """The runs at or below a folder.

    Raises:
        UserError: There are none, or a run's file cannot be read.
    """
    root = Path(place).expanduser()
    if not root.is_dir():
        raise UserError(
            f"compare.runs={place}: no such folder (looked in {root.absolute()}); give run folders, folders that "
            "contain some, or runs:/<MLflow run id>"
        )
    folders, ended_early = run_folders(root)
    if not folders:
        early = f"; folders of runs that never started, with only a run.log: {len(ended_early)}" if ended_early else ""
        raise UserError(f"compare.runs={place}: no run folder at or below it (looked for summary.json){early}")
    runs: list[Run] = []
    problems: list[str] = []
    for folder in folders:
        try:
            runs.append(read_folder(folder))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    notes = [f"Omitted, ended before its configuration was written: {printable(folder)}" for folder in ended_early]
    return RunSet(runs, notes, place)


def run_folders(root: Path) -> tuple[list[Path], list[Path]]:
    """The run folders at or below ``root``, and the folders of runs that ended early; both sorted by name."""
    runs, ended_early = [], []
    seen: set[Path] = set()  # links may lead to a folder twice, or in a circle
    for place, names, files in os.walk(root, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        if "predictions.csv" in files:  # results of mode=predict, which are within the run folder by default
            names.clear()
            continue
        is_run = "summary.json" in files or {"config.yaml", "overrides.txt"} <= set(files)
        skipped = COPIES | PARTS if is_run else COPIES
        wanted = [name for name in names if name not in skipped and not name.startswith(".")]
        links = {name for name in wanted if (Path(place) / name).is_symlink()}
        names[:] = sorted(wanted, key=links.__contains__)  # a folder before any link to it
        if is_run:
            runs.append(Path(place))
        elif "run.log" in files and not names:
            ended_early.append(Path(place))
    return sorted(runs, key=natural), sorted(ended_early, key=natural)


def natural(path: Path) -> list[tuple[int, str]]:
    """A sort key that puts ``9`` before ``10``."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def read_folder(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        UserError: A file cannot be read.
    """
    config, summary, tables = read_files(folder)
    records = parsed(folder / "metrics.jsonl", checked_records) or []
    status = summary.get("status", "UNKNOWN")
    finished = status == "FINISHED"
    complete, keys = (
        is_complete(config, status, began=(folder / "provenance.json").exists()),
        read_explicit_keys(folder),
    )
    name, manifest = config.get("run_name", "null"), read_manifest(folder)
    if name == "null":  # as in MLflow, or of a folder from elsewhere
        name = manifest.name if manifest else printable(folder.resolve().name)
    return Run(
        name=name,
        where=printable(folder),
        status=status,
        config=config if complete else explicit_settings(config, keys),
        is_complete=complete,
        metrics=compared_metrics(last_losses(records) | scores(summary)) if finished else {},
        tables=tables if finished else {},
        started_s=records[0]["time"] if records else folder.stat().st_mtime,
        folder=folder.resolve(),
        mlflow_id=summary.get("mlflow_run_id"),
        explicit_keys=keys,
    )


def printable(path: str | Path) -> str:
    """A path as text that can be printed, even if its name is not valid UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def read_files(folder: Path) -> tuple[dict[str, str], dict[str, Any], dict[str, Table]]:
    """Configuration, ``summary.json`` and tables of a run folder, or of copies of its files; empty where missing.

    Raises:
        UserError: A file cannot be read.
    """
    config = parsed(folder / "config.yaml", read_config) or {}
    summary = parsed(folder / "summary.json", checked_summary) or {}
    files = {split: folder / "tables" / f"{split}_iou.csv" for split in SPLITS}
    tables = {split: parsed(file, read_table) for split, file in files.items()}
    return config, summary, {split: table for split, table in tables.items() if table}


def parsed(file: Path, parse: Callable[[Path], T]) -> T | None:
    """The result of ``parse``, or None if the file does not exist.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return parse(file) if file.exists() else None
    except Exception as error:  # from YAML, JSON, CSV or the file system
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise UserError(f"{file}: cannot be read ({reason}); fix it, or remove this run from compare.runs") from error


def checked_summary(file: Path) -> dict[str, Any]:
    """``summary.json``; fails if a metric is not a number."""
    summary = read_summary(file.parent)
    compared_metrics(scores(summary))
    return summary


def checked_records(file: Path) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl`` that have a time; fails if the time or a loss is not a number."""
    records = [record for record in read_records(file.parent) if "time" in record]
    for record in records[:1]:
        datetime.fromtimestamp(record["time"])
    compared_metrics(last_losses(records))
    return records


def read_explicit_keys(folder: Path) -> frozenset[str]:
    """The dotted keys in ``overrides.txt``.

    Raises:
        UserError: It cannot be read.
    """
    overrides = parsed(folder / "overrides.txt", lambda file: file.read_text(encoding="utf-8", errors="replace")) or ""
    return frozenset(line.lstrip("+~").partition("=")[0] for line in overrides.splitlines())


def read_config(file: Path) -> dict[str, str]:
    """``config.yaml``, see `as_text`."""
    content = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(content, dict):
        raise ValueError("has no keys")
    return as_text({str(key): value for key, value in content.items()})


def read_table(file: Path) -> Table:
    """The IoU of each class; None where undefined."""
    with file.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        if not {"class", "iou"} <= set(table.fieldnames or ()):
            raise ValueError("has no columns class and iou")
        found = {row["class"]: float(row["iou"] or "nan") for row in table}
    return {name: iou if math.isfinite(iou) else None for name, iou in found.items()}


def scores(summary: dict[str, Any]) -> dict[str, float]:
    """The metrics in ``summary.json``: those of the last evaluation and ``best/…``."""
    best = {name: value for name, value in summary.get("best", {}).items() if name.startswith("best/")}
    return {**summary.get("last", {}), **best}


def last_losses(records: list[dict[str, Any]]) -> dict[str, float]:
    """The losses of the last evaluations, which ``summary.json`` lacks. Losses that were not finite are missing."""
    found = {}
    for split in SPLITS:
        evaluations = [record for record in records if f"{split}/mean_iou" in record]
        if evaluations and f"{split}/loss" in evaluations[-1]:
            found[f"{split}/loss"] = evaluations[-1][f"{split}/loss"]
    return found
