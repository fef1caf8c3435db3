"""Errors that end a command, and how messages name settings and values."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

EXIT_USER_ERROR = 2  # exit code of the command
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # characters that terminals obey, except tab and line feed


class UserError(ValueError):
    """The user's input is wrong; the command line turns it into exit code 2 without a traceback.

    Args:
        problems: All problems found, one line each, naming key or file, value, limit and fix.
        shared: Whether every process of the job raises the same error, so that only the main process has to report it.
    """

    def __init__(self, *problems: str, shared: bool = False) -> None:
        # Messages quote names and texts in files, from whomever.
        self.problems = tuple(CONTROL.sub(lambda found: repr(found[0])[1:-1], problem) for problem in problems)
        super().__init__(*self.problems)
        self.shared = shared

    def __str__(self) -> str:
        return "\n".join(self.problems)


class ArgumentError(UserError):
    """A configurable class or function refuses an argument.

    Args:
        problems: ``name=value: must be …; fix``, with the bare name of the argument. `pspexp.config.build.build`
            prefixes the key of the configuration node (``loss.`` and so on).
    """


def setting(key: str, *value: object) -> str:
    """The key of a setting, as ``optimizer.lr``, or with a value, as ``optimizer.lr=0.1``.

    Code that does not know the configuration names its keys in messages only through this function. A test checks that
    every such key exists.
    """
    return f"{key}={as_yaml(value[0])}" if value else key


def as_yaml(value: object) -> str:
    """A value as it is written on the command line: ``null``, ``true``, ``[1, 2]``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_yaml(item) for item in value)}]"
    return str(value)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest candidate, or an empty string."""
    close = get_close_matches(word, list(candidates), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


class Interrupted(Exception):  # noqa: N818 - not an error: a stop was requested
    """A signal ended the job, after everything that could be saved was saved.

    Args:
        signal_number: Number of the signal; the exit code of the command is 128 plus this number.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class JobFailed(Exception):  # noqa: N818 - names what happened
    """The job failed, and the message says why: a full disk, or the traceback of another of its processes."""


def summarize(error: BaseException) -> str:
    """An error in one line: its type and the first line of its message, or the exception of a traceback in that."""
    lines = str(error).strip().splitlines()
    if isinstance(error, UserError):
        return lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")
    if isinstance(error, JobFailed):
        inner = max((number for number, line in enumerate(lines) if line.startswith(" ")), default=-1)
        return re.sub(r"^([a-z_]\w*\.)+(?=\w+: )", "", lines[min(inner + 1, len(lines) - 1)])
    return ": ".join([type(error).__name__, *lines[:1]])
