"""docs/configuration.md is that of conf/ and the signatures of what it names."""

from pathlib import Path

import pytest

from pspexp.config.reference import Key
from tools import reference


@pytest.mark.slow
def test_page_is_up_to_date() -> None:
    assert reference.main(["--check"]) == 0, "run python -m tools.reference"


def test_stale_page_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "CHECKOUT", tmp_path)
    monkeypatch.setattr(reference, "PAGE", tmp_path / "configuration.md")
    monkeypatch.setattr(reference, "page", lambda: "# Configuration\n")
    assert reference.main(["--check"]) == 1
    assert "configuration.md is not up to date" in capsys.readouterr().err
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0


def test_row_of_a_key() -> None:
    key = Key("loss.class_weights", "list of float | null", ["???", 1], "for *all* classes <C>, with `code`")
    *_, row = "".join(reference.key_table([key])).splitlines()
    cells = row.split(" | ")
    assert cells[0] == "| `loss.class_weights`"
    assert cells[1] == "<code>list of float &#124; null</code>"  # a | would divide the cell
    assert cells[3] == "for \\*all\\* classes &lt;C>, with `code` |"


def test_required_and_long_values() -> None:
    assert reference.default("???") == "required"
    assert reference.default(None) == "`null`"
    assert reference.default(list(range(100))).endswith("… (100 values)`")
