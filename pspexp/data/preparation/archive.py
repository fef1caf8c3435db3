"""Unpacking a tar that may come from anyone."""

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
from pspexp.utils.text import first_names

_DAMAGED = (tarfile.TarError, EOFError, zlib.error, LZMAError)
_MAX_LINKS = 10
_SHOWN = 20
_BLOCK = 1 << 20


def extract(
    archive: Path, output_dir: Path, *, overwrite: bool = False, show_progress: bool = False
) -> list[PurePosixPath]:
    """Unpack the regular files of a tar, and nothing else.

    Nothing is unpacked if any member has an absolute path or ``..`` in it, is a device or pipe, or is a link that
    leads out; other links become copies of what they point to, so that no link is ever made. Owners and
    permissions are not taken over. Each file appears when it is complete; files that are there already with the
    same content are kept, others are replaced only with ``overwrite``.

    Returns:
        The files' paths within ``output_dir``.

    Raises:
        UserError: unsafe, damaged or no tar; other files in the way; not enough space.
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
        raise UserError(f"{archive}: not a tar, or a damaged one ({reason}); get it again") from error
    except OSError as error:
        raise UserError(f"{archive}: cannot be unpacked into {output_dir} ({error})") from error
    if different:
        raise UserError(
            f"{output_dir}: {len(different)} files differ from the archive's: {first_names(different)}; "
            "remove them or use --overwrite"
        )
    return list(files)


def _safe_files(tar: tarfile.TarFile, archive: Path, output_dir: Path) -> dict[PurePosixPath, tarfile.TarInfo]:
    """The member that holds the content of each file; raises UserError if any member is unsafe."""
    members: dict[PurePosixPath, tarfile.TarInfo] = {}
    problems = []
    for member in tar.getmembers():
        problem = _unsafe_name(member) or _refused_by_python(member, output_dir)
        path = PurePosixPath(member.name)
        if problem:
            problems.append(f"{member.name!r}: {problem}")
        elif member.isdir() or path.name.startswith("._"):  # ._x: attributes that macOS adds
            continue
        elif path in members:
            problems.append(f"{member.name!r}: is in the archive twice")
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
        raise UserError(f"{archive}: unsafe, nothing was unpacked:", *problems[:_SHOWN], *more)
    return files


def _unsafe_name(member: tarfile.TarInfo) -> str:
    """Python's own filter turns absolute paths into relative ones; here they are a reason to stop."""
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
    """A second opinion, where this version of Python has one (3.12, and late 3.10 and 3.11)."""
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
        # a symbolic link starts at its own folder, a hard link at the top of the archive
        start = path.parent if member.issym() else PurePosixPath()
        # purely by name, as if no folder were a link: links to folders are refused below
        path = PurePosixPath(os.path.normpath(start / member.linkname))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"link that leads out, to {member.linkname!r}")
        if path not in members:
            raise ValueError(f"link to {member.linkname!r}, which is no file of this archive")
        member = members[path]
    raise ValueError("link to a link to a link …")


def _check_space(files: dict[PurePosixPath, tarfile.TarInfo], output_dir: Path) -> None:
    needed = sum(member.size for path, member in files.items() if not (output_dir / path).exists())
    there = next(folder for folder in [output_dir, *output_dir.absolute().parents] if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{output_dir}: the files take {needed:,} bytes, but only {free:,} are free there")


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, partial: Path, overwrite: bool) -> bool:
    """Write one file, complete or not at all; False if another file is in the way."""
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
