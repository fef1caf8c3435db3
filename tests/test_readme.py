"""The paths, keys and names in the documentation exist. tests/docs runs its commands."""

import re
from pathlib import Path

from hydra.utils import get_object

from pspexp.config import compose as composition
from pspexp.config.overrides import flat_keys

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text()
CONTRIBUTING = (CHECKOUT / "CONTRIBUTING.md").read_text()


def test_every_documented_key_exists() -> None:
    keys = set(flat_keys(composition.compose_checked([])))
    table = README[README.index("The keys most often changed") : README.index("Ctrl-C and SIGTERM")]
    documented = re.findall(r"`((?:crop_size|loader|trainer|optimizer|model|checkpoint)[a-z_.]*)`", table)
    assert len(documented) > 10
    hooks_and_tracking = re.findall(r"`\+?((?:hooks|tracking)\.[a-z_.]+[a-z])=[^`]*`", README)
    assert "hooks.early_stopping.patience" in hooks_and_tracking
    custom = {"hooks.mine._target_"}  # added by the user
    assert [key for key in documented + hooks_and_tracking if key not in keys | custom] == []


def test_every_documented_python_name_exists() -> None:
    names = set(re.findall(r"`(pspexp(?:\.[a-z_]+)*\.[A-Z]\w+)`", README + CONTRIBUTING))
    assert "pspexp.tracking.Logger" in names
    for name in names:
        get_object(name)


def test_every_file_in_contributing_exists() -> None:
    files = set(re.findall(r"`([a-z_/]+\.py)`", CONTRIBUTING)) - {"job.py"}
    assert len(files) > 15
    assert [name for name in files if not any((CHECKOUT / base / name).exists() for base in ("pspexp", "."))] == []


def test_every_make_target_exists() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    named = set(re.findall(r"make ([a-z][a-z-]+) ", README)) | set(re.findall(r"`make ([a-z-]+)`", CONTRIBUTING))
    assert {"quickstart", "test"} <= named
    assert [target for target in named if f"\n{target}:" not in makefile] == []
