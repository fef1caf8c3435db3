"""The fuzzing tool, as far as it works without atheris."""

import random
import sys
from pathlib import Path

import pytest

from pspexp.utils import files
from tools.fuzz.__main__ import TARGETS, Findings, main

pytest.importorskip("hypothesis")  # of the tests that the first files come from


@pytest.mark.filterwarnings("ignore")  # Pillow's and torch's about damaged files
@pytest.mark.parametrize("name", TARGETS)
def test_readers_and_changes_of_each_target(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ANY_RATIO_BELOW", files.ANY_RATIO_BELOW)  # which the reader sets
    for folder in ("findings", "work"):
        (tmp_path / folder).mkdir()
    target, rng = TARGETS[name], random.Random(0)
    findings = Findings(tmp_path / "findings", target.read, tmp_path / "work")
    seeds = target.seeds()
    changed = [target.change(seed, rng, lambda part: part[::-1]) for seed in seeds]
    assert sum(one != seed for one, seed in zip(changed, seeds, strict=True)) > len(seeds) // 2
    for one in [*seeds[:20], *changed[:20]]:
        findings(one)
    assert not [*(tmp_path / "findings").iterdir()]


def test_a_finding_is_kept_once_and_as_its_smallest_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def read(work: Path, data: bytes) -> None:
        raise KeyError(len(data))

    findings = Findings(tmp_path, read, tmp_path)
    for data in (b"abc", b"a", b"ab"):
        findings(data)
    file, report = sorted(tmp_path.iterdir())
    assert file.read_bytes() == b"a"
    assert "KeyError: 1" in report.read_text()
    assert capsys.readouterr().out.count("FOUND") == 1


def test_without_atheris_the_tool_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    monkeypatch.setattr(sys, "argv", ["fuzz", "split"])
    assert main() == 2
    assert "pip install atheris" in capsys.readouterr().err
