"""Write docs/troubleshooting.md: an introduction by hand (troubleshooting.md, beside this file), then all messages.

Fails if the introduction quotes a message that the package does not have.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.generated import write_or_check
from tools.messages.collect import ELLIPSIS, Message, collect

INTRODUCTION = Path(__file__).with_name("troubleshooting.md")
PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
PLACE = "MESSAGES\n"  # in the introduction, of the list
ROW = re.compile(r"^\| `(.+?)` \| ", re.MULTILINE)  # of a table: a message, and what it means
# The headings of the list, and the files they are for: the first that fits.
ROOMS = (
    ("Preparing and converting data", ("data/preparation",)),
    ("Data", ("data", "jobs/check")),
    ("Devices and precision", ("engine/device", "engine/precision", "engine/cpu", "utils/imports")),
    ("Processes", ("engine/distributed", "launchers")),
    ("Checkpoints and exported files", ("engine/checkpoint", "models/checkpoint", "models/exported", "models/file",
                                        "models/mismatches", "models/weights", "models/nonfinite")),
    ("Networks and pretrained weights", ("models", "config/network")),
    ("Resuming, reruns and the use of checkpoints", ("config/resume", "config/from", "config/trust", "config/class")),
    ("Command line and configuration", ("cli", "config", "errors", "utils/arguments")),
    ("Losses, optimizers, metrics and inference", ("losses", "optim", "metrics", "inference", "jobs/class_weights")),
    ("Training and evaluation", ("engine", "jobs/train", "jobs/test", "jobs/evaluate", "jobs/notebook")),
    ("Sweeps", ("sweep",)),
    ("Run folders and tracking", ("tracking", "utils", "jobs/records", "jobs/job", "jobs/sync", "jobs/clean",
                                  "jobs/disk")),
    ("Comparing runs", ("jobs/compare",)),
    ("Prediction", ("jobs/predict",)),
    ("Export and serving", ("jobs/export",)),
    ("Starting a project", ("jobs/init",)),
)  # fmt: skip
FROM_PYDANTIC = ("…=…: must …",)  # messages whose words are a library's


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or check it; returns the exit code."""
    messages = collect()
    if unknown := unknown_quotes(INTRODUCTION.read_text(encoding="utf-8"), messages):
        print(*(f"{INTRODUCTION}: no such message: {text}" for text in unknown), sep="\n", file=sys.stderr)
        return 1
    return write_or_check(PAGE, lambda: page(messages), "tools.messages", __doc__, arguments)


def page(messages: Sequence[Message]) -> str:
    """The page."""
    introduction = INTRODUCTION.read_text(encoding="utf-8")
    assert introduction.endswith(PLACE)
    return introduction.removesuffix(PLACE) + listing(messages)


def listing(messages: Sequence[Message]) -> str:
    """All messages under the headings of their rooms, each as an item of a list."""
    parts = []
    for heading, _ in ROOMS:
        here = [one for one in messages if room(one) == heading]
        lines = {f"- {code(one.text)}{' (warning)' if one.is_warning else ''}" for one in here}
        parts.append(f"### {heading}\n\n" + "\n".join(sorted(lines, key=words)) + "\n")
    return "\n".join(parts)


def words(line: str) -> tuple[str, str]:
    """What a line is sorted by: its words, from the first one on."""
    return re.sub("^[^A-Za-z]+", "", line).casefold(), line


def room(message: Message) -> str:
    """The heading under which a message is listed."""
    for heading, files in ROOMS:
        if message.file.startswith(files):
            return heading
    raise LookupError(f"{message.file}: belongs under no heading; add it to ROOMS in {__file__}")


def code(text: str) -> str:
    """A message as a code span on one line."""
    line = " ".join(text.split())
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def unknown_quotes(introduction: str, messages: Sequence[Message]) -> list[str]:
    """The messages in the introduction's tables that the package does not have.

    A quote may be the beginning of a message, or have values in place of all its ellipses.
    """
    known = [*(one.text for one in messages), *FROM_PYDANTIC]
    return [quote for quote in ROW.findall(introduction) if not any(fits(quote, text) for text in known)]


def fits(quote: str, text: str) -> bool:
    """Whether ``quote`` is the message ``text``, its beginning, or an example of the whole."""
    pieces, parts = ([re.escape(piece) for piece in one.split(ELLIPSIS)] for one in (quote, text))
    return bool(re.match(".*?".join(pieces), text) or re.fullmatch(".*?".join(parts), quote))


if __name__ == "__main__":
    sys.exit(main())
