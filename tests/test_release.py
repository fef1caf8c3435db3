"""The version is the same wherever it is written."""

import re
from pathlib import Path

from omegaconf import OmegaConf

import pspexp

CHECKOUT = Path(__file__).parents[1]


def test_version_and_date_agree() -> None:
    changelog = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d{2}-\d{2})$", changelog, re.MULTILINE)[0]
    citation = OmegaConf.load(CHECKOUT / "CITATION.cff")
    assert {version, citation.version} == {pspexp.__version__}
    assert str(citation["date-released"]) == date
