"""The arguments of a command: flags, overrides, and the topics of ``--help``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser

from pspexp.config.compose import unknown_flags
from pspexp.config.modes import uses_checkpoint
from pspexp.config.overrides import readable_overrides
from pspexp.errors import UserError


def parse_arguments(command: Sequence[str]) -> argparse.Namespace:
    """Parse the command line like Hydra; flags may stand between overrides.

    Raises:
        UserError: Flags are unknown or contradict each other.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        arguments, unknown = parser.parse_known_intermixed_args(list(command))
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}; see --hydra-help") from error
    if flags := [text for text in unknown if text.startswith("-")]:
        raise UserError(*unknown_flags(flags, command))
    if arguments.config_path:
        raise UserError("--config-path: cannot be changed; add a folder of options with --config-dir")
    if arguments.config_dir and not Path(arguments.config_dir).is_dir():
        raise UserError(f"--config-dir={arguments.config_dir}: no such folder; give the one that contains your options")
    if arguments.resolve and not (arguments.cfg or arguments.help):
        raise UserError("--resolve: has no effect without --cfg; add --cfg job, or remove it")
    chosen = [name for name in ("multirun", "run", "cfg", "info") if getattr(arguments, name)]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]}: cannot be combined with --{chosen[1]}; remove one of them")
    arguments.topics = [text for text in arguments.overrides if arguments.help and is_topic(text)]
    arguments.overrides = readable_overrides([text for text in arguments.overrides if text not in arguments.topics])
    return arguments


def is_topic(text: str) -> bool:
    """Whether a word beside ``--help`` names what to explain, instead of setting a value."""
    return "=" not in text[:-1] and not text.startswith(("+", "~"))


def needs_resolving(arguments: argparse.Namespace) -> bool:
    """Whether ``--cfg`` must show values that Hydra does not know: resolved ones, or those of a checkpoint or run."""
    modes = [text.removeprefix("mode=") for text in arguments.overrides if text.startswith("mode=")]
    from_a_run = any(sets(arguments.overrides, key) for key in ("rerun", "checkpoint.resume"))
    from_a_run = from_a_run or any(map(uses_checkpoint, modes))
    return arguments.cfg == "job" and not arguments.package and (arguments.resolve or from_a_run)


def sets(overrides: Sequence[str], key: str) -> bool:
    """Whether one of the overrides sets ``key``."""
    return any(text.lstrip("+").startswith(f"{key}=") for text in overrides)


def is_non_main(overrides: Sequence[str]) -> bool:
    """Whether this is probably not the main process of several that were started with the same command."""
    variables = {"launcher=torchrun": "RANK", "launcher=slurm": "SLURM_PROCID"}
    return any(os.environ.get(variables[text], "0") != "0" for text in overrides if text in variables)
