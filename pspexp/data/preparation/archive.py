"""Safe extraction of untrusted tar and zip archives."""

import os
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from rich.progress import track

from pspexp.data.preparation.convert import remove_leftovers
from pspexp.data.preparation.members import Member, open_archive, too_large
from pspexp.errors import UserError
from pspexp.utils.files import DAMAGED_FILE, max_unpacked
from pspexp.utils.text import count, first_line, first_names, shorten, shorten_middle

_MAX_LINKS = 10
_SHOWN = 20
_BLOCK = 1 << 20


def extract(
    archive: Path,
    output_dir: Path,
    *,
    overwrite: bool = False,
    show_progress: bool = False,
    place: Callable[[PurePosixPath], PurePosixPath | None] = lambda path: path,
) -> list[PurePosixPath]:
    """Unpack the regular files of a tar or zip, and nothing else.

    Nothing is unpacked if any member has an absolute path or one with ``..``, is a device or pipe, or is a link that
    points outside. Other links become copies of the files they point to; no links are created. Owners and permissions
    are ignored. Each file appears only when it is complete. Existing files with the same content are kept; others are
    replaced only with ``overwrite``.

    Args:
        archive: The tar, compressed or not, or the zip.
        output_dir: Folder to unpack into; created if missing.
        overwrite: Whether to replace existing files with other contents.
        show_progress: Whether to show a progress bar.
        place: The path within ``output_dir`` for a path in the archive; None leaves that file out.

    Returns:
        The files' paths within ``output_dir``.

    Raises:
        UserError: The archive is unsafe, damaged or of another kind, the disk too small, or other files are there.
    """
    partial = output_dir / f".{archive.name}.{os.getpid()}.partial"
    try:
        with open_archive(archive, output_dir) as members:
            files = _safe_files(members, archive, place)
            _check_space(files, archive, output_dir)
            remove_leftovers(output_dir, archive.name)
            progress = track(files.items(), "Unpacking", disable=not show_progress, transient=True)
            different = [
                str(path) for path, member in progress if not _unpack(member, output_dir / path, partial, overwrite)
            ]
    except UserError:
        raise
    except DAMAGED_FILE as error:
        if not isinstance(error, OSError) or error.errno is None:  # gzip and bz2 raise OSError for damaged data
            reason = first_line(error).rstrip(":")
            raise UserError(f"{archive}: damaged, or not a tar or zip ({reason}); download it again") from error
        raise UserError(f"{archive}: cannot be unpacked into {output_dir} ({error}); choose another folder") from error
    if different:
        raise UserError(
            f"{output_dir}: {count(len(different), 'existing file')} with other contents than the archive's: "
            f"{first_names(different)}; remove them or use --overwrite"
        )
    return list(files)


def _safe_files(
    members: Sequence[Member], archive: Path, place: Callable[[PurePosixPath], PurePosixPath | None]
) -> dict[PurePosixPath, Member]:
    """The member with the content of each file; raises UserError if any member is unsafe."""
    safe: dict[PurePosixPath, Member] = {}
    problems = []
    for member in members:
        problem = _unsafe_name(member) or member.refused
        path = PurePosixPath(member.name)
        if problem:
            problems.append(f"{_shown(member.name)}: {shorten(problem, 300)}")
        elif member.kind == "folder" or _is_of_macos(path):
            continue
        elif path in safe:
            problems.append(f"{_shown(member.name)}: occurs twice in the archive")
        else:
            safe[path] = member
    files: dict[PurePosixPath, Member] = {}
    for path in safe:
        try:
            content = _content(safe, path)
        except ValueError as error:
            problems.append(f"{_shown(str(path))}: {error}")
            continue
        target = place(path)
        if target in files:
            problems.append(f"{_shown(str(path))}: occurs twice in the archive, as {_shown(str(target))}")
        elif target is not None:
            files[target] = content
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise UserError(f"{archive}: unsafe; nothing was unpacked:", *problems[:_SHOWN], *more)
    return files


def _shown(name: str) -> str:
    """A name in an archive, for messages: control characters are escaped, and it is not as long as it may be."""
    return shorten_middle(repr(name), 122)


def _is_of_macos(path: PurePosixPath) -> bool:
    """Whether a file stores the attributes of another, or a folder's icon."""
    return path.name.startswith("._") or path.name == "Icon\r"


def _unsafe_name(member: Member) -> str:
    """Why a member is unsafe, or an empty string. Unlike Python's filter, absolute paths are refused, not changed."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or PureWindowsPath(member.name).anchor or PureWindowsPath(member.name).drive:
        return "absolute path"
    if ".." in path.parts or "\\" in member.name:
        return "path with '..' or a backslash"
    if any(unicodedata.category(character) == "Cc" for character in str(path.parent if _is_of_macos(path) else path)):
        return "control character in its name"
    if not path.parts and member.kind != "folder":
        return "file without a name"
    if member.kind == "special":
        return "device, pipe or other special file"
    return ""


def _content(members: dict[PurePosixPath, Member], path: PurePosixPath) -> Member:
    """The regular file at the end of a chain of links; ValueError says why there is none."""
    member = members[path]
    for _ in range(_MAX_LINKS):
        if member.kind == "file":
            return member
        # A symbolic link is relative to its own folder, a hard link to the top of the archive.
        start = path.parent if member.kind == "symlink" else PurePosixPath()
        # Resolved by name only: links to folders are refused below.
        path = PurePosixPath(os.path.normpath(start / member.link))
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"link to {_shown(member.link)}, outside the archive")
        if path not in members:
            raise ValueError(f"link to {_shown(member.link)}, which is not a file in this archive")
        member = members[path]
    raise ValueError(f"chain of more than {_MAX_LINKS} links")


def _check_space(files: dict[PurePosixPath, Member], archive: Path, output_dir: Path) -> None:
    total = sum(member.size for member in files.values())
    if total > max_unpacked(archive):
        raise UserError(f"{archive}: {too_large(f'{total:,}')}")
    needed = sum(member.size for path, member in files.items() if not (output_dir / path).exists())
    there = next(folder for folder in [output_dir, *output_dir.absolute().parents] if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{output_dir}: needs {needed:,} bytes, but only {free:,} are free; choose another disk")


def _unpack(member: Member, target: Path, partial: Path, overwrite: bool) -> bool:
    """Write one file, completely or not at all; returns False if another file exists in its place."""
    with member.open() as content:
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
