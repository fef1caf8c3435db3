"""Errors that end a command, and how their messages name settings and values."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

WRONG_INPUT = 2  # the command's exit code


class UserError(ValueError):
    """The user's input is wrong; the command line turns it into exit code 2 without a traceback.

    Args:
        problems: one line each, naming key or file, value, limit and fix. All that were found, not only the first.
        shared: every process of the job raises the same error; the first one tells it.
    """

    def __init__(self, *problems: str, shared: bool = False) -> None:
        super().__init__(*problems)
        self.problems, self.shared = problems, shared

    def __str__(self) -> str:
        return "\n".join(self.problems)


class ArgumentError(UserError):
    """An argument of a configurable class or function cannot be used.

    Args:
        problems: ``name=value: must be …; fix``, with the bare name of the argument. `pspexp.config.build.build` puts
            the key of the configuration node in front (``loss.`` and so on).
    """


def setting(key: str, *value: object) -> str:
    """The key of a setting, as ``optimizer.lr``, or with a value, as ``optimizer.lr=0.1``.

    The one way in which code that does not know the configuration refers to it in a message. A test looks up every
    key that is named through this function.
    """
    return f"{key}={as_yaml(value[0])}" if value else key


def as_yaml(value: object) -> str:
    """A value as it is typed on the command line: ``null``, ``true``, ``[1, 2]``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_yaml(item) for item in value)}]"
    return str(value)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest candidate, or an empty string."""
    close = get_close_matches(word, list(candidates), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


class Interrupted(Exception):  # noqa: N818 - not an error: somebody asked to stop
    """A signal ended the job; what can be saved has been saved.

    Args:
        signal_number: the command exits with 128 + this.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class JobFailed(Exception):  # noqa: N818 - reads as what happened
    """Another process of the job failed; the message holds its traceback, or what killed it."""


def essence(error: BaseException) -> str:
    """One line for people about what an error says; of a traceback in its message the exception."""
    lines = str(error).strip().splitlines()
    if isinstance(error, UserError):
        return lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")
    if isinstance(error, JobFailed):
        inner = max((number for number, line in enumerate(lines) if line.startswith(" ")), default=-1)
        return re.sub(r"^([a-z_]\w*\.)+(?=\w+: )", "", lines[min(inner + 1, len(lines) - 1)])
    return ": ".join([type(error).__name__, *lines[:1]])
