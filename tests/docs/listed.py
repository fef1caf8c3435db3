"""The documented commands that do not run in tests, why, and what is checked instead."""

import configparser
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra._internal.utils import get_args_parser

from pspexp.config import compose as composition
from pspexp.errors import UserError
from tests.docs.pages import CHECKOUT


class Listed(NamedTuple):
    """Commands that do not run here.

    Args:
        pattern: What they begin with or, after ``.*``, contain.
        reason: Why they do not run.
        check: What is checked instead.
    """

    pattern: str
    reason: str
    check: Callable[[str], None]


def run_tool(words: list[str]) -> None:
    """Run a script, of the working directory or the checkout, as the main program."""
    with pytest.MonkeyPatch.context() as patch:
        if words[1] == "-m":
            patch.setattr(sys, "argv", words[2:])
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            patch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1] if Path(words[1]).is_file() else str(CHECKOUT / words[1]), run_name="__main__")


def composes(command: str) -> None:
    """The configuration composes, unless a plugin of Hydra is missing."""
    arguments = get_args_parser().parse_args(shlex.split(command)[shlex.split(command).index("pspexp") + 1 :])
    try:
        composition.compose_checked(arguments.overrides, sweep=arguments.multirun)
    except UserError as error:
        if not all("is not installed; pip install" in problem for problem in error.problems):
            raise


def is_valid_bash(command: str) -> None:
    subprocess.run(["bash", "-n", "-c", command], check=True)


def is_a_target(command: str) -> None:
    target = command.split()[1]
    assert f"\n{target}:" in (CHECKOUT / "Makefile").read_text(), command


def installs_known_extras(command: str) -> None:
    settings = configparser.ConfigParser()
    settings.read(CHECKOUT / "setup.cfg")
    for extra in re.findall(r"\[([\w-]+)\]", command):
        assert extra in settings["options.extras_require"], command


def mlflow_knows(command: str) -> None:
    import click
    from mlflow.cli import cli

    program, *words = shlex.split(command)
    context = cli.make_context(program, words)
    while isinstance(context.command, click.Group):
        name, subcommand, words = context.command.resolve_command(context, words)
        context = subcommand.make_context(name, words)


def selects_tests(command: str) -> None:
    for file, _, test in re.findall(r"(tests/\S+?\.py)(::(\w+))?", command):
        assert not test or f"def {test}(" in (CHECKOUT / file).read_text(), command


def parses(command: str) -> None:
    """The tool knows the options: it prints its help once it has read them."""
    with pytest.raises(SystemExit) as end:
        run_tool([*shlex.split(command.partition(" -- ")[0]), "--help"])
    assert end.value.code == 0, command


LISTED = (
    Listed("mkdir ", "makes a folder for the commands that follow", is_valid_bash),
    Listed(".*device=cuda", "needs a GPU", composes),
    Listed(".*make ", "installs packages, or runs what has tests of its own", is_a_target),
    Listed("pip install", "downloads packages", installs_known_extras),
    Listed("srun .*pspexp", "needs SLURM", composes),
    Listed("srun ", "a part of a command", is_valid_bash),
    Listed(".*hydra/launcher=submitit_slurm", "needs SLURM", composes),
    Listed(".*hydra/launcher=ray", "needs an environment of its own: make test-ray", composes),
    Listed(".*launcher.nnodes=2", "needs two machines: tests/end_to_end/test_cluster.py", composes),
    Listed("(.venv/bin/)?mlflow ", "starts a server: tests/end_to_end/test_export.py", mlflow_knows),
    Listed("base64 ", "needs a server: tests/end_to_end/test_export.py", is_valid_bash),
    Listed("python -m tools.bench$", "takes an hour", parses),
    Listed("python -m tools.bench .*--device cuda", "needs a GPU", parses),
    Listed("python -m tools.bench compile", "compiles for minutes: tests/tools/test_bench.py", parses),
    Listed("python -m tools.load", "takes minutes", parses),
    Listed("python -m tools.compare_networks", "takes hours", parses),
    Listed("python -m tools.scaling", "takes minutes: tests/tools/test_scaling.py", parses),
    Listed("python -m tools.soak", "takes hours: tests/faults", parses),
    Listed("python -m tools.(messages|reference)", "writes a page: tests/tools", parses),
    Listed("(python -m )?pytest ", "has its own place in the test suite", selects_tests),
)


def listed(command: str) -> Listed | None:
    return next((one for one in LISTED if re.match(one.pattern, command)), None)
