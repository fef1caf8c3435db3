"""The blocks of the documentation: commands, Python, files, and what commands print."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]
PAGES = [*sorted(CHECKOUT.glob("README*.md")), *sorted((CHECKOUT / "docs").rglob("*.md"))]

FENCED = re.compile(r"^```(.*)\n((?s:.*?))^```$", re.MULTILINE)
# A code span of a program and its arguments.
INLINE = re.compile(r"(?<!`)`((?:python|pspexp|torchrun|srun|sbatch|mlflow|make|pip|pytest)\s(?:[^`\n]|\n(?!\n))*)`")
FILE_NAME = re.compile(r"(?:# @package .*\n)?# (\S+\.(?:py|yaml))\n")  # Hydra wants its comment to be the first
COMMANDS = ("", "sh", "bash")  # languages of blocks of commands


class Block(NamedTuple):
    """A fenced block, or a code span with a command.

    Args:
        page: Path of the page, relative to the checkout.
        line: Number of its first line.
        language: What follows the fence.
        text: Its contents.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that the block shows, from its first lines."""
        name = FILE_NAME.match(self.text)
        return name[1] if name else None

    @property
    def commands(self) -> list[str]:
        """The command lines, each on one line, without comments and ellipses."""
        lines = self.text.replace("\\\n", "").splitlines() if self.language in COMMANDS else []
        return [command for line in lines if (command := without_comment(line).replace("…", "").strip())]


def without_comment(line: str) -> str:
    """A line of shell without its comment, its quotes as they were."""
    for match in re.finditer(r"(?:^|\s)#", line):
        before = line[: match.start()]
        try:
            shlex.split(before)
        except ValueError:  # within quotes
            continue
        return before
    return line


def fenced(path: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text, page = path.read_text(encoding="utf-8"), path.relative_to(CHECKOUT).as_posix()
    found = FENCED.finditer(text)
    return [Block(page, text.count("\n", 0, one.start()) + 1, one[1].strip(), one[2]) for one in found]


def inline(path: Path) -> Iterator[Block]:
    """The commands in a page's text, each as a block."""
    page = path.relative_to(CHECKOUT).as_posix()
    text = FENCED.sub(lambda block: "\n" * block[0].count("\n"), path.read_text(encoding="utf-8"))
    for found in INLINE.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, "sh", " ".join(found[1].split()) + "\n")
