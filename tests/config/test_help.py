"""The text of ``--help``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import pspexp
from pspexp.config.help import help_text
from pspexp.config.options import conf_dir
from pspexp.errors import UserError
from pspexp.utils.trees import flatten


def parts(*overrides: str, folders: tuple[str, ...] = ()) -> tuple[dict[str, list[str]], dict[str, object]]:
    """The groups in the text with their options, and the keys with their values."""
    text = help_text(overrides, folders, "config", resolve=True)
    _, _, rest = text.partition("\nGroups")
    groups, _, keys = rest.partition("\nKeys")
    lines = [line.split(maxsplit=1) for line in groups.strip().splitlines()[1:]]
    values = yaml.safe_load(keys.partition("\n")[2])
    return {group: options.split(", ") for group, options in lines}, flatten(values)


def test_every_option_and_key_is_listed() -> None:
    groups, keys = parts("dataset=shapes", "optimizer.lr=0.25")
    files = [file for file in Path(conf_dir()).glob("*/*.yaml") if file.parent.name != "hydra"]
    assert {(group, option) for group, options in groups.items() for option in options} >= {
        (file.parent.name, file.stem) for file in files
    }
    config = pspexp.compose(["dataset=shapes", "optimizer.lr=0.25"])
    expected = flatten(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    expected |= dict.fromkeys(("dataset.mean", "dataset.std", "augment.mean"))  # filled in when a job begins
    assert keys == {key: value for key, value in expected.items() if not key.startswith("choices")}


def test_own_options_are_listed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mine.Network\n")
    groups, _ = parts(folders=(str(tmp_path),))
    assert "mine" in groups["model"]


def test_invalid_override_is_refused() -> None:
    with pytest.raises(UserError, match="optimizer=adm: no such option"):
        help_text(["optimizer=adm"], [], "config")


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    code = "import sys; from pspexp.cli import main; sys.argv[1:] = ['--help']; main(); print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    assert shown.stdout.startswith("Train, test, apply and export")
    assert shown.stdout.endswith("False\n")
