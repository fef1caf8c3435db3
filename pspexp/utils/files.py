"""Files that are written completely or not at all, and what identifies a file."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces ``path`` at the end of the block, or not at all if the block raises.

    Missing parent folders are created. The content is on the disk before it gets its name, so that not even a power
    failure leaves half a file. The unfinished file always has the same name: what a killed process left is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file, see `atomic_write`. Bytes that were decoded with ``surrogateescape`` are restored."""
    with atomic_write(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:  # may be large
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
