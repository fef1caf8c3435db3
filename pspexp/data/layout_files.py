"""Which files are below a folder that may be of any size."""

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath

MAX_FILES, MAX_FOLDERS, MAX_DEPTH = 20_000, 2_000, 8
BATCH = 1_000  # names read from a folder before its neighbours get their turn
JUNK = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")  # of macOS, Synology and Windows


def list_files(root: Path) -> tuple[list[str], bool]:
    """The files below a folder as sorted relative paths, without hidden ones, and whether these are all."""
    files: list[str] = []
    batches = _batches(str(root), "", 0)
    for batch in islice(batches, MAX_FOLDERS):
        files += batch
        if len(files) >= MAX_FILES:
            return sorted(files[:MAX_FILES]), False
    return sorted(files), next(batches, None) is None


def _batches(path: str, prefix: str, depth: int) -> Iterator[list[str]]:
    """The files of a folder, then those below it: of each folder some in turn, so that none uses up the limit."""
    folders: list[str] = []
    with suppress(OSError), os.scandir(path) as entries:
        while batch := list(islice(entries, BATCH)):
            shown = [entry for entry in batch if is_shown(entry.name)]
            below = {entry.name for entry in shown if entry.is_dir() and not _is_loop(entry)}
            folders += below
            yield [prefix + entry.name for entry in shown if not entry.is_dir()]
    if depth == MAX_DEPTH:
        return
    waiting = deque(_batches(f"{path}/{name}", f"{prefix}{name}/", depth + 1) for name in sorted(folders))
    while waiting:
        one = waiting.popleft()
        if (files := next(one, None)) is not None:
            yield files
            waiting.append(one)


def is_shown(name: str) -> bool:
    """Whether a file or folder is neither hidden nor left by an operating system."""
    return name[0] != "." and name.lower() not in JUNK


def _is_loop(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is a link to one above it."""
    if not entry.is_symlink():
        return False
    above = os.path.realpath(os.path.dirname(entry.path))  # noqa: PTH120
    return f"{above}/".startswith(f"{os.path.realpath(entry.path)}/")


def list_folders(root: Path) -> list[str]:
    try:
        return sorted(path.name for path in root.iterdir() if path.is_dir() and is_shown(path.name))
    except OSError:
        return []


def describe_files(paths: Iterable[str], limit: int = 3) -> str:
    """``20 .jpg in train/images, 5 .jpg in val/images``, most first."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        found[PurePosixPath(path).suffix.lower()].append(str(PurePosixPath(path).parent))
    texts: list[str] = []
    for suffix, parents in sorted(found.items(), key=lambda one: (-len(one[1]), one[0])):
        what, folders = suffix or "without suffix", Counter(parents)
        if len(folders) > limit:
            above = os.path.commonpath(folders) if "." not in folders else ""
            below = f" below {above}" if above else ""
            texts.append(f"{len(parents)} {what} in {len(folders)} folders{below}")
        else:
            texts += [f"{n} {what}{'' if name == '.' else f' in {name}'}" for name, n in sorted(folders.items())]
    return ", ".join(texts[: limit + 1]) + (", …" if len(texts) > limit + 1 else "")
