"""Reads the records in a run folder, see `pspexp.tracking.local` for how they are written."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder, in order. Lines that a crash left unfinished are skipped with a warning."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()  # after a disk failure, any bytes
    found = [parse_record(line) for line in lines]
    if None in found:
        log.warning("%s: skipped %d unfinished line(s)", file, found.count(None))
    return [record for record in found if record is not None]


def parse_record(line: str) -> dict[str, Any] | None:
    """A line of ``metrics.jsonl``; None if it was left unfinished."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of a run folder; empty if there is none."""
    file = folder / "summary.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def read_provenance(folder: Path) -> dict[str, Any]:
    """``provenance.json`` of a run folder; empty if there is none that can be read."""
    return read_json(folder / "provenance.json")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty if it cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The finite ones of ``values``: JSON cannot express the others, and they break MLflow's charts."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
