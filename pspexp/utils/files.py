"""Files that are written completely or not at all, and what identifies a file."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that replaces ``path`` at the end of the block, or not at all if the block raises.

    Missing parent folders are created. The unfinished file always has the same name: what a killed process left is
    replaced.

    Args:
        path: The file.
        durable: The content is on the disk before it gets its name, and the name before the block ends, so that not
            even a power failure leaves half a file, or an older one than a file written later. False saves
            milliseconds.
    """
    make_folders(path.parent)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # the disk may be what fails
            part.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_text_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a UTF-8 text file, see `atomic_write`. Bytes that were decoded with ``surrogateescape`` are restored."""
    with atomic_write(path, durable=durable) as file:
        file.write(text.encode(errors="surrogateescape"))


def make_folders(folder: Path) -> None:
    """Create a folder and its missing parents, and have their names on the disk."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        sync_folder(one.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk; does nothing where the system cannot (Windows, some network disks)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:  # may be large
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
