"""The commands of the README and of docs/sweeps.md exist as they stand."""

import re
import shlex
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from pspexp.config import compose as composition
from pspexp.config.overrides import flat_keys
from pspexp.errors import UserError

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text()
PAGES = README + (CHECKOUT / "docs" / "sweeps.md").read_text()
COMMANDS = re.findall(r"^python -m pspexp(.*)$", PAGES, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_composes(command: str) -> None:
    arguments = get_args_parser().parse_args(shlex.split(command, comments=True))
    try:
        composition.compose_checked(arguments.overrides, sweep=arguments.multirun)
    except UserError as error:
        if all("is not installed; pip install" in problem for problem in error.problems):
            pytest.skip(str(error))
        raise


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 7


def test_every_documented_key_exists() -> None:
    config = composition.compose_checked([])
    keys = set(flat_keys(config))
    table = README[README.index("The keys most often changed") : README.index("Ctrl-C and SIGTERM")]
    documented = re.findall(r"`((?:crop_size|loader|trainer|optimizer|model|checkpoint)[a-z_.]*)`", table)
    assert len(documented) > 10
    assert [key for key in documented if key not in keys] == []


def test_every_make_target_is_listed_by_help() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    named = set(re.findall(r"`?make ([a-z][a-z-]+)", README)) - {"help"}
    assert {"quickstart", "test"} <= named
    assert [target for target in named if f"\n{target}:" not in makefile] == []
