"""The picture of the packages is that of the imports."""

from pathlib import Path

import pytest

pytest.importorskip("grimp", reason="installed by import-linter")

from tools import architecture


def test_picture_is_up_to_date() -> None:
    assert architecture.main(["--check"]) == 0, "run python -m tools.architecture"


def test_stale_picture_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "architecture.svg"
    stale.write_text("<svg/>")
    monkeypatch.setattr(architecture, "CHECKOUT", tmp_path)
    monkeypatch.setattr(architecture, "PICTURE", stale)
    imports = architecture.Imports([["top"], ["left", "right"]], architecture.Counter(), architecture.Counter())
    monkeypatch.setattr(architecture, "read_imports", lambda: imports)
    assert architecture.main(["--check"]) == 1
    assert "architecture.svg is not up to date" in capsys.readouterr().err
    assert architecture.main([]) == 0
    assert architecture.main(["--check"]) == 0


def test_imports_are_those_of_the_source() -> None:
    imports = architecture.read_imports()
    assert imports.layers[0] == ["__main__"]
    assert imports.counts["__main__", "cli"] == 1
    rows = {name: number for number, layer in enumerate(imports.layers) for name in layer}
    assert [pair for pair in imports.counts if rows[pair[0]] >= rows[pair[1]]] == []  # none runs upwards
