"""Files by pattern: ``images/{split}/{id}.jpg``."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pspexp.data.images import SUFFIXES
from pspexp.errors import ArgumentError

FIELD = re.compile(r"\{(\w*)\}")
FIELDS = {"id": "(?P<id>.+)", "split": "(?P<split>[^/]+?)"}

Key = tuple[str | None, str]  # split, if the pattern has one, and id


class Pattern:
    """A path below a folder, with placeholders.

    ``{id}`` stands for the name of a sample and may contain ``/``, ``{split}`` for the name of a folder or a part of
    it, and ``*`` for any characters but ``/``. A placeholder that occurs twice stands for the same text. Suffixes match
    in any case.

    Args:
        name: Name of the argument, for messages.
        text: The pattern.
        needs: The placeholder that it must contain.

    Raises:
        ArgumentError: It is not a relative path, contains an unknown placeholder or lacks a needed one.
    """

    def __init__(self, name: str, text: str, needs: str = "id") -> None:
        self.text = text.removeprefix("./")
        unknown = sorted({field for field in FIELD.findall(text) if field not in FIELDS})
        problems = [
            f"{name}={text}: unknown placeholder {{{field}}}; there are {{id}} and {{split}}" for field in unknown
        ]
        if f"{{{needs}}}" not in text:
            problems.append(f"{name}={text}: contains no {{{needs}}}; put it in the place of the part that varies")
        if Path(text).is_absolute() or ".." in Path(text).parts:
            problems.append(f"{name}={text}: must be a path below the data set's root, without '..'")
        if problems:
            raise ArgumentError(*problems)
        self.has_split = "{split}" in text
        parts = self.text.split("/")
        self._fixed = parts[: next(index for index, part in enumerate(parts) if FIELD.search(part) or "*" in part)]
        self._any_suffix = text.endswith("*")

    def files(self, root: Path) -> dict[Key, list[Path]]:
        """The files below ``root`` that match, sorted, except hidden ones. Each folder is listed once.

        Where ``*`` stands for the suffix, only files with an image's suffix match.
        """
        fixed, rest = self._fixed, self.text.split("/")[len(self._fixed) :]
        start = root.joinpath(*fixed)
        match = re.compile(self._expression("/".join(rest))).fullmatch
        found: dict[Key, list[Path]] = defaultdict(list)
        for relative in walk(start, None if any("{id}" in part for part in rest) else len(rest)):
            if (matched := match(relative)) and (not self._any_suffix or relative.lower().endswith(SUFFIXES)):
                groups = matched.groupdict()
                # Some systems store é as one character, others as two.
                name = unicodedata.normalize("NFC", groups.get("id", ""))
                found[groups.get("split"), name].append(start / relative)
        return dict(found)

    def may_match_in(self, other: "Pattern") -> bool:
        """Whether both patterns look for files in the same folder, or one below the other."""
        return all(mine == theirs for mine, theirs in zip(self._fixed, other._fixed, strict=False))

    def _expression(self, text: str) -> str:
        """A regular expression for the part of the pattern from the first placeholder on."""
        seen: set[str] = set()

        def piece(part: str) -> str:
            if part == "*":
                return "[^/]*"
            if not (field := FIELD.fullmatch(part)):
                return re.escape(part)
            name = field[1]
            if name in seen:
                return f"(?P={name})"
            seen.add(name)
            return FIELDS[name]

        pieces = [piece(part) for part in re.split(r"(\{\w*\}|\*)", text)]
        before, dot, suffix = pieces[-1].rpartition(re.escape("."))
        pieces[-1] = f"{before}{dot}(?i:{suffix})"
        return "".join(pieces)


def walk(folder: Path, depth: int | None = None) -> Iterator[str]:
    """The files below a folder as relative paths, in order, except hidden ones and those in hidden folders.

    Symbolic links are followed, but to no folder twice on one path.

    Args:
        folder: The folder; one that cannot be read contains nothing.
        depth: Number of levels to descend; None: all.
    """

    def below(path: str, prefix: str, level: int, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        try:
            with os.scandir(path) as entries:
                listed = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError:
            return
        for entry in listed:
            if entry.is_dir():
                if depth is not None and level >= depth:
                    continue
                stat = entry.stat()
                identity = (stat.st_dev, stat.st_ino)
                if identity not in above:
                    yield from below(entry.path, f"{prefix}{entry.name}/", level + 1, above | {identity})
            else:
                yield f"{prefix}{entry.name}"

    with suppress(OSError):  # no such folder
        stat = folder.stat()
        yield from below(str(folder), "", 1, frozenset({(stat.st_dev, stat.st_ino)}))
