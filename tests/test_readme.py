"""The paths, keys and names in the documentation exist. tests/docs runs its commands."""

import re
from pathlib import Path

from hydra.utils import get_object

from pspexp.config import compose as composition
from pspexp.config.overrides import flat_keys

CHECKOUT = Path(__file__).parents[1]
DOCS = {page.stem: page.read_text() for page in (CHECKOUT / "docs").glob("*.md")}
README = (CHECKOUT / "README.md").read_text()
CONTRIBUTING = (CHECKOUT / "CONTRIBUTING.md").read_text()


def test_every_documented_key_exists() -> None:
    keys = set(flat_keys(composition.compose_checked([])))
    text = DOCS["train"]
    table = text[text.index("The keys most often changed") : text.index("## Recipes")]
    documented = re.findall(r"`((?:crop_size|loader|trainer|optimizer|model|checkpoint)[a-z_.]*)`", table)
    assert len(documented) > 10
    hooks_and_tracking = re.findall(
        r"`\+?((?:hooks|tracking)\.[a-z_.]+[a-z])=[^`]*`", README + DOCS["train"] + DOCS["tracking"]
    )
    assert "hooks.early_stopping.patience" in hooks_and_tracking
    custom = {"hooks.mine._target_"}  # added by the user
    assert [key for key in documented + hooks_and_tracking if key not in keys | custom] == []


def test_every_documented_python_name_exists() -> None:
    names = set(re.findall(r"`(pspexp(?:\.[a-z_]+)*\.[A-Z]\w+)`", README + CONTRIBUTING + "".join(DOCS.values())))
    assert "pspexp.losses.TensorLoss" in names
    for name in names:
        get_object(name)


def test_every_named_file_exists() -> None:
    files = set(re.findall(r"`([a-z_/]+\.py)`", CONTRIBUTING + DOCS["architecture"]))
    assert len(files) > 15
    found = {name: [*CHECKOUT.glob(f"pspexp/**/{name}"), *CHECKOUT.glob(name)] for name in files}
    assert [name for name, places in found.items() if not places] == []


def test_every_make_target_exists() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    named = set(re.findall(r"make ([a-z][a-z-]+) ", README)) | set(re.findall(r"`make ([a-z-]+)`", CONTRIBUTING))
    assert {"quickstart", "test"} <= named
    assert [target for target in named if f"\n{target}:" not in makefile] == []
