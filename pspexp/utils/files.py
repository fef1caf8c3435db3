"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_atomic(file: Path, text: str) -> None:
    """Writes a whole text file, or leaves the old one untouched; makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    with part.open("w", encoding="utf-8", errors="surrogateescape") as handle:  # a diff may hold any bytes
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(file)
