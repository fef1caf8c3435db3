"""Files that are written completely or not at all, and what identifies a file."""

import errno
import hashlib
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
DISK_ERRORS = (*SPACE_ERRORS, errno.EIO, errno.ESTALE, errno.ENODEV)
# What libraries raise for a damaged file: nearly anything. MemoryError is not among it: it says nothing of the file.
DAMAGED_FILE = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError, LookupError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
    *(struct.error, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
)
MAX_RATIO, ANY_RATIO_BELOW = 100, 1 << 30  # of what a file unpacks to: times its size; bytes


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


def link_atomic(file: Path, target: Path) -> bool:
    """Replace ``target`` by a hard link to a file that is never changed in place; returns whether the disk can."""
    part = target.with_name(f"{target.name}.part")
    try:
        make_folders(target.parent)
        part.unlink(missing_ok=True)
        part.hardlink_to(file)
        part.replace(target)
        part.unlink(missing_ok=True)  # renaming one link of a file to another does nothing
    except OSError:  # another disk, or one without links
        return False
    return True


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


def disk_error(error: BaseException) -> OSError | None:
    """The error of the disk behind an exception: full, read-only, over a quota or limit, broken; None if there is none.

    ``torch.save`` hides it behind one about positions in the file.
    """
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        if isinstance(one, OSError) and one.errno in DISK_ERRORS:
            return one
        seen.append(one)
        one = one.__cause__ or one.__context__
    return None


def describe_disk_error(error: OSError, path: Path, size: int | None = None) -> str:
    """One line about a file that could not be written: why, the space that it needs, and the free space, in bytes."""
    if error.errno not in SPACE_ERRORS:  # the disk may as well have failed in reading
        return f"{path}: {error.strerror}"
    needed, free = "" if size is None else f", {mib(size)} are needed", free_space(path)
    return f"{path}: cannot be written: {error.strerror}{needed}" + ("" if free is None else f", {mib(free)} are free")


def free_space(path: Path) -> int | None:
    """Free bytes on the disk of a file or folder that need not exist; None if the disk does not say."""
    for place in (path.absolute(), *path.absolute().parents):
        with suppress(OSError):
            usage = shutil.disk_usage(place)
            return usage.free if usage.total else None  # some network disks report nothing
    return None


def max_unpacked(path: Path) -> int:
    """Bytes that a file may unpack to: images and weights hardly compress, and one of more is a decompression bomb."""
    return max(ANY_RATIO_BELOW, MAX_RATIO * path.stat().st_size)


def unpacks_to(size: str) -> str:
    """What is wrong with a file that unpacks to ``size`` bytes, more than `max_unpacked`."""
    return f"unpacks to {size} bytes, more than {MAX_RATIO} times its size"


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as messages and commands show it: relative to the current folder if it is below it, else absolute."""
    full = Path(path).absolute()
    with suppress(OSError):  # the current folder was removed
        if full.is_relative_to(Path.cwd()):
            return str(full.relative_to(Path.cwd()))
    return str(full)


def mib(size: float) -> str:
    """A number of bytes."""
    unit, divisor = ("GiB", 2**30) if size >= 2**30 else ("MiB", 2**20) if size >= 2**20 else ("KiB", 2**10)
    return f"{size / divisor:.1f} {unit}"


def sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:  # may be large
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
