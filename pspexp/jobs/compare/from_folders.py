"""Runs from their folders."""

import csv
import math
import os
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from pspexp.errors import UserError
from pspexp.jobs.compare.run_set import SPLITS, Run, RunSet, Table, as_text, compared_metrics, is_whole, typed_part
from pspexp.tracking.run_folder import read_records, read_summary

T = TypeVar("T")
# MLflow's copies of runs, and what lies in run folders.
PASSED_BY = {"mlartifacts", "mlruns", "checkpoints", "plots", "tables"}


def read(places: Sequence[str], uri: str) -> RunSet:
    """The runs that ``places`` name, each once.

    Args:
        places: run folders, folders that hold some at any depth, ``runs:/<MLflow run id>``.
        uri: of MLflow's records.

    Raises:
        UserError: a place has no runs, or a file of a run cannot be read.
    """
    runs: list[Run] = []
    notes: list[str] = []
    problems: list[str] = []
    for place in places:
        try:
            found = read_place(place, uri)
        except UserError as error:
            problems += error.problems
            continue
        runs += found.runs
        notes += found.notes
    if problems:
        raise UserError(*problems)
    return RunSet(each_once(runs), notes, ", ".join(map(readable, places)))


def each_once(runs: list[Run]) -> list[Run]:
    """``runs`` without repetitions, each where it was named first.

    A folder stands in for what MLflow knows about the run, since it can be linked to.
    """
    folders = {run.mlflow_id: run for run in runs if run.folder and run.mlflow_id}
    chosen = [run if run.folder else folders.get(run.mlflow_id or "", run) for run in runs]
    return list({run.folder or run.mlflow_id: run for run in chosen}.values())


def read_place(place: str, uri: str) -> RunSet:
    """The runs of one of the places of `read`."""
    if place.startswith("runs:/"):
        from pspexp.jobs.compare.from_mlflow import get  # MLflow takes seconds to import

        return get(uri, place.removeprefix("runs:/").strip("/"))
    root = Path(place).expanduser()
    if not root.is_dir():
        raise UserError(
            f"compare.runs={place}: no such folder (looked in {root.absolute()}); give run folders, folders that hold "
            "some, or runs:/<MLflow run id>"
        )
    folders, ended_early = run_folders(root)
    if not folders:
        early = f"; {len(ended_early)} in it hold a run.log only: those ended before they began" if ended_early else ""
        raise UserError(f"compare.runs={place}: no run folder there or below (looked for summary.json){early}")
    runs: list[Run] = []
    problems: list[str] = []
    for folder in folders:
        try:
            runs.append(read_folder(folder))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    notes = [
        f"Left out, since it ended before its configuration was written: {readable(folder)}" for folder in ended_early
    ]
    return RunSet(runs, notes, place)


def run_folders(root: Path) -> tuple[list[Path], list[Path]]:
    """The run folders at or below ``root`` in order of their names, and folders of jobs that ended before that."""
    runs, ended_early = [], []
    seen: set[Path] = set()  # links may lead to one folder twice, or round in circles
    for place, names, files in os.walk(root, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        wanted = [name for name in names if name not in PASSED_BY and not name.startswith(".")]
        links = {name for name in wanted if (Path(place) / name).is_symlink()}
        names[:] = sorted(wanted, key=links.__contains__)  # the folder itself goes before a link to it
        if "summary.json" in files or {"config.yaml", "overrides.txt"} <= set(files):
            runs.append(Path(place))
        elif "run.log" in files and not names:
            ended_early.append(Path(place))
    return sorted(runs, key=natural), sorted(ended_early, key=natural)


def natural(path: Path) -> list[tuple[int, str]]:
    """A sort key by which ``9`` comes before ``10``."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def read_folder(folder: Path) -> Run:
    """The run of a folder.

    Raises:
        UserError: names the file that cannot be read.
    """
    config, summary, tables = read_files(folder)
    records = parsed(folder / "metrics.jsonl", checked_records) or []
    status = summary.get("status", "UNKNOWN")
    finished = status == "FINISHED"
    whole, typed = is_whole(config, status, began=(folder / "provenance.json").exists()), read_typed(folder)
    return Run(
        name=known_name(config) or readable(folder.resolve().name),
        where=readable(folder),
        status=status,
        config=config if whole else typed_part(config, typed),
        is_whole=whole,
        metrics=compared_metrics(last_losses(records) | scores(summary)) if finished else {},
        tables=tables if finished else {},
        started_s=records[0]["time"] if records else folder.stat().st_mtime,
        folder=folder.resolve(),
        mlflow_id=summary.get("mlflow_run_id"),
        typed=typed,
    )


def readable(path: str | Path) -> str:
    """A path as text that can be printed, whatever its bytes are."""
    return os.fsencode(path).decode(errors="replace")


def read_files(folder: Path) -> tuple[dict[str, str], dict[str, Any], dict[str, Table]]:
    """Configuration, ``summary.json`` and tables of a run folder, or of copies of its files; empty where missing.

    Raises:
        UserError: names the file that cannot be read.
    """
    config = parsed(folder / "config.yaml", read_config) or {}
    summary = parsed(folder / "summary.json", checked_summary) or {}
    files = {split: folder / "tables" / f"{split}_iou.csv" for split in SPLITS}
    tables = {split: parsed(file, read_table) for split, file in files.items()}
    return config, summary, {split: table for split, table in tables.items() if table}


def parsed(file: Path, parse: Callable[[Path], T]) -> T | None:
    """What ``parse`` makes of a file; None without one.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    try:
        return parse(file) if file.exists() else None
    except Exception as error:  # of YAML, JSON, CSV and the file system
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{file}: cannot be read ({reason}); mend it, or leave this run out of compare.runs") from error


def checked_summary(file: Path) -> dict[str, Any]:
    """``summary.json``, with numbers where they are expected."""
    summary = read_summary(file.parent)
    compared_metrics(scores(summary))
    return summary


def checked_records(file: Path) -> list[dict[str, Any]]:
    """The records with a time in ``metrics.jsonl``, with numbers where they are expected."""
    records = [record for record in read_records(file.parent) if "time" in record]
    for record in records[:1]:
        datetime.fromtimestamp(record["time"])
    compared_metrics(last_losses(records))
    return records


def read_typed(folder: Path) -> frozenset[str]:
    """The dotted keys in ``overrides.txt``.

    Raises:
        UserError: it cannot be read.
    """
    words = parsed(folder / "overrides.txt", lambda file: file.read_text(encoding="utf-8", errors="replace")) or ""
    return frozenset(word.lstrip("+~").partition("=")[0] for word in words.splitlines())


def read_config(file: Path) -> dict[str, str]:
    """``config.yaml`` as dotted keys and texts."""
    content = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(content, dict):
        raise ValueError("holds no keys")
    return as_text({str(key): value for key, value in content.items()})


def read_table(file: Path) -> Table:
    """The IoU of each class; None where undefined."""
    with file.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        if not {"class", "iou"} <= set(table.fieldnames or ()):
            raise ValueError("has no columns class and iou")
        found = {row["class"]: float(row["iou"] or "nan") for row in table}
    return {name: iou if math.isfinite(iou) else None for name, iou in found.items()}


def known_name(config: dict[str, str]) -> str | None:
    """The run's name, if its configuration gives it one."""
    name = config.get("run_name", "null")
    return None if name == "null" else name


def scores(summary: dict[str, Any]) -> dict[str, float]:
    """The metrics in ``summary.json``: all of the last evaluation and ``best/…``."""
    best = {name: value for name, value in summary.get("best", {}).items() if name.startswith("best/")}
    return {**summary.get("last", {}), **best}


def last_losses(records: list[dict[str, Any]]) -> dict[str, float]:
    """The losses of the last evaluations, which ``summary.json`` does not tell; none if they were not finite."""
    found = {}
    for split in SPLITS:
        evaluations = [record for record in records if f"{split}/mean_iou" in record]
        if evaluations and f"{split}/loss" in evaluations[-1]:
            found[f"{split}/loss"] = evaluations[-1][f"{split}/loss"]
    return found
