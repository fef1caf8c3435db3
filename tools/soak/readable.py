"""Checks that every file under its final name can be read."""

import csv
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image

UNFINISHED = (".part", ".partial")  # of files and folders


def read_json_lines(file: Path) -> None:
    """A file that is appended to: only its last line may be unfinished."""
    *lines, last = file.read_text(encoding="utf-8").split("\n")
    for line in lines:
        json.loads(line)
    del last


def read_image(file: Path) -> None:
    """Decode an image."""
    with Image.open(file) as image:
        image.load()


def read_database(file: Path) -> None:
    """Check a database."""
    connection = sqlite3.connect(file)
    try:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()


READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": lambda file: torch.load(file, weights_only=True, map_location="cpu"),
    ".json": lambda file: json.loads(file.read_text(encoding="utf-8")),
    ".jsonl": read_json_lines,
    ".yaml": OmegaConf.load,
    ".png": read_image,
    ".jpg": read_image,
    ".csv": lambda file: list(csv.reader(file.open(encoding="utf-8", newline=""), strict=True)),
    ".db": read_database,
    ".onnx": lambda file: __import__("onnx").load(file),
}


def unreadable(home: Path) -> list[str]:
    """Each file below ``home`` that has its final name and cannot be read, with the reason."""
    found = []
    for file in sorted(home.rglob("*")):
        reader = READERS.get(file.suffix)
        if reader is None or not file.is_file() or any(part.endswith(UNFINISHED) for part in file.parts):
            continue
        try:
            reader(file)
        except Exception as error:
            found.append(f"{file.relative_to(home)}: {type(error).__name__}: {error}")
    return found
