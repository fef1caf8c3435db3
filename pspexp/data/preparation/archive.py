"""Safe extraction of untrusted tar archives."""

import os
import shutil
import tarfile
import zlib
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from rich.progress import track

from pspexp.data.preparation.convert import remove_leftovers
from pspexp.errors import UserError
from pspexp.utils.text import count, first_names

_DAMAGED = (tarfile.TarError, EOFError, zlib.error, LZMAError)
_MAX_LINKS = 10
_SHOWN = 20
_BLOCK = 1 << 20


def extract(
    archive: Path, output_dir: Path, *, overwrite: bool = False, show_progress: bool = False
) -> list[PurePosixPath]:
    """Unpack the regular files of a tar, and nothing else.

    Nothing is unpacked if any member has an absolute path or one with ``..``, is a device or pipe, or is a link that
    points outside. Other links become copies of the files they point to; no links are created. Owners and permissions
    are ignored. Each file appears only when it is complete. Existing files with the same content are kept; others are
    replaced only with ``overwrite``.

    Args:
        archive: The tar, compressed or not.
        output_dir: Folder to unpack into; created if missing.
        overwrite: Whether to replace existing files with other contents.
        show_progress: Whether to show a progress bar.

    Returns:
        The files' paths within ``output_dir``.

    Raises:
        UserError: The archive is unsafe, damaged or not a tar; files with other contents exist; the disk is too small.
    """
    partial = output_dir / f".{archive.name}.{os.getpid()}.partial"
    try:
        with tarfile.open(archive) as tar:
            files = _safe_files(tar, archive, output_dir)
            _check_space(files, output_dir)
            remove_leftovers(output_dir, archive.name)
            different = [
                str(path)
                for path, member in track(files.items(), "Unpacking", disable=not show_progress, transient=True)
                if not _unpack(tar, member, output_dir / path, partial, overwrite)
            ]
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise UserError(f"{archive}: damaged, or not a tar ({reason}); download it again") from error
    except OSError as error:
        raise UserError(f"{archive}: cannot be unpacked into {output_dir} ({error}); choose another folder") from error
    if different:
        raise UserError(
            f"{output_dir}: {count(len(different), 'existing file')} with other contents than the archive's: "
            f"{first_names(different)}; remove them or use --overwrite"
        )
    return list(files)


def _safe_files(tar: tarfile.TarFile, archive: Path, output_dir: Path) -> dict[PurePosixPath, tarfile.TarInfo]:
    """The member with the content of each file; raises UserError if any member is unsafe."""
    members: dict[PurePosixPath, tarfile.TarInfo] = {}
    problems = []
    for member in tar.getmembers():
        problem = _unsafe_name(member) or _refused_by_python(member, output_dir)
        path = PurePosixPath(member.name)
        if problem:
            problems.append(f"{member.name!r}: {problem}")
        elif member.isdir() or path.name.startswith("._"):  # macOS stores attributes in these
            continue
        elif path in members:
            problems.append(f"{member.name!r}: occurs twice in the archive")
        else:
            members[path] = member
    files = {}
    for path in members:
        try:
            files[path] = _content(members, path)
        except ValueError as error:
            problems.append(f"{str(path)!r}: {error}")
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise UserError(f"{archive}: unsafe; nothing was unpacked:", *problems[:_SHOWN], *more)
    return files


def _unsafe_name(member: tarfile.TarInfo) -> str:
    """Why a member is unsafe, or an empty string. Unlike Python's filter, absolute paths are refused, not changed."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or PureWindowsPath(member.name).anchor or PureWindowsPath(member.name).drive:
        return "absolute path"
    if ".." in path.parts or "\\" in member.name:
        return "path with '..' or a backslash"
    if not path.parts and not member.isdir():
        return "file without a name"
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return "device, pipe or other special file"
    return ""


def _refused_by_python(member: tarfile.TarInfo, output_dir: Path) -> str:
    """Why Python's own filter refuses a member, in versions that have one (3.12, and late 3.10 and 3.11)."""
    if not hasattr(tarfile, "data_filter"):
        return ""
    try:
        tarfile.data_filter(member, str(output_dir))
    except tarfile.FilterError as error:
        return str(error)
    return ""


def _content(members: dict[PurePosixPath, tarfile.TarInfo], path: PurePosixPath) -> tarfile.TarInfo:
    """The regular file at the end of a chain of links; ValueError says why there is none."""
    member = members[path]
    for _ in range(_MAX_LINKS):
        if member.isreg():
            return member
        # A symbolic link is relative to its own folder, a hard link to the top of the archive.
        start = path.parent if member.issym() else PurePosixPath()
        # Resolved by name only: links to folders are refused below.
        path = PurePosixPath(os.path.normpath(start / member.linkname))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"link to {member.linkname!r}, outside the archive")
        if path not in members:
            raise ValueError(f"link to {member.linkname!r}, which is not a file in this archive")
        member = members[path]
    raise ValueError(f"chain of more than {_MAX_LINKS} links")


def _check_space(files: dict[PurePosixPath, tarfile.TarInfo], output_dir: Path) -> None:
    needed = sum(member.size for path, member in files.items() if not (output_dir / path).exists())
    there = next(folder for folder in [output_dir, *output_dir.absolute().parents] if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{output_dir}: needs {needed:,} bytes, but only {free:,} are free; choose another disk")


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, partial: Path, overwrite: bool) -> bool:
    """Write one file, completely or not at all; returns False if another file exists in its place."""
    content = tar.extractfile(member)
    assert content is not None  # it is a regular file
    with content:
        if target.exists():
            if _same(content, target):
                return True
            if not overwrite:
                return False
            content.seek(0)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                shutil.copyfileobj(content, file, _BLOCK)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return True


def _same(content: IO[bytes], path: Path) -> bool:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if block != content.read(len(block)):
                return False
    return not content.read(1)
