"""Completion in the shell of what Hydra's leaves out: flags, and keys with a choice of values."""

from collections.abc import Sequence

from hydra._internal.utils import get_args_parser

from pspexp.config.annotations import choices
from pspexp.config.reference import Reference

REFUSED = ("--config-path",)


def flags(before: Sequence[str], word: str) -> list[str]:
    """The flags that begin with ``word``, or the values of the flag before it that do."""
    actions = {name: action for action in get_args_parser()._actions for name in action.option_strings}
    if before and (flag := actions.get(before[-1])) is not None and flag.choices:
        return [value for value in flag.choices if value.startswith(word)]
    if not word.startswith("-"):
        return []
    return [name for name in actions if name.startswith("--") and name.startswith(word) and name not in REFUSED]


def values(word: str, overrides: Sequence[str], folders: Sequence[str]) -> list[str]:
    """``mode=train``, ``mode=test``, … for ``mode=``; empty for the options of a group, which Hydra completes.

    Args:
        word: The unfinished word.
        overrides: The overrides before it.
        folders: The user's own YAML folders.

    Raises:
        UserError: An override is invalid.
    """
    key, _, begun = word.partition("=")
    if "=" not in word:
        return []
    reference = Reference(overrides, folders)
    if key.lstrip("+") in reference.groups:
        return []
    named = choices(reference.annotation(key.lstrip("+")))
    return [f"{key}={value}" for value in named if value.startswith(begun)]
