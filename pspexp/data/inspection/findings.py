"""Findings: what is wrong with a data set, and how to fix it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pspexp.data.inspection.inspected import Inspection
from pspexp.utils.text import first_names

Level = Literal["error", "warning"]
MAX_PER_KIND = 5  # findings of one kind and split that are shown one by one


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        level: ``error``: training on it makes no sense; ``warning``: it may be intended.
        kind: What it is, in a word or two.
        file: The file, the first of several, or None.
        message: What is wrong, with values and numbers.
        fix: What to do about it.
        split: The split that it is in.
        number: How many files it stands for.
    """

    level: Level
    kind: str
    file: Path | None
    message: str
    fix: str
    split: str = ""
    number: int = 1

    def line(self, show: Callable[[Path], str] = str) -> str:
        """The finding in one line; ``show`` writes the file's name."""
        where = show(self.file) if self.file is not None else self.split
        return f"{where}: {self.message}; {self.fix}" if where else f"{self.message}; {self.fix}"


Rule = Callable[[Inspection], Iterable[Finding]]


def find(inspection: Inspection, rules: Sequence[Rule]) -> list[Finding]:
    """The findings of all rules, errors first."""
    found = [finding for rule in rules for finding in rule(inspection)]
    return sorted(found, key=lambda finding: finding.level)


def summarised(findings: Iterable[Finding], show: Callable[[Path], str], limit: int = MAX_PER_KIND) -> list[Finding]:
    """The first findings of each kind, level and split, and one that counts the others."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.level, finding.kind, finding.split), []).append(finding)
    return [one for group in groups.values() for one in _summarised(group, show, limit)]


def _summarised(group: Sequence[Finding], show: Callable[[Path], str], limit: int) -> Iterator[Finding]:
    if len(group) <= limit + 1:
        yield from group
        return
    yield from group[:limit]
    rest = group[limit:]
    names = first_names([show(finding.file) for finding in rest if finding.file is not None], 3)
    message = f"and {len(rest)} more, {names}" if names else f"and {len(rest)} more"
    head = rest[0]
    yield Finding(head.level, head.kind, None, message, head.fix, head.split, sum(one.number for one in rest))
