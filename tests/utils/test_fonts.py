"""Fonts for characters that the default font lacks."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.font_manager import fontManager
from PIL import Image

from pspexp.data import masks
from pspexp.data.dataset import DatasetInfo
from pspexp.utils import fonts

KNOWN, UNKNOWN = "\U000f1234", "\U000f4567"  # for private use: no other font has them


def make_font(file: Path, name: str, characters: str) -> Path:
    """A font with a square for each character."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 700), (700, 700), (700, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    square, names = pen.glyph(), [f"glyph{number}" for number, _ in enumerate(characters)]
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", *names])
    font.setupCharacterMap({ord(one): glyph for one, glyph in zip(characters, names, strict=True)})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(names, square)})
    font.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": name, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(file)
    return file


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fonts, "_warned", False)
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fonts._covering_fonts.cache_clear()
    fontManager.addfont(make_font(tmp_path / "private.ttf", "Private", f"a{KNOWN}"))
    fontManager.addfont(make_font(tmp_path / "blank.ttf", "Blank Private", f"a{KNOWN}{UNKNOWN}"))
    yield
    fonts._covering_fonts.cache_clear()


def test_default_font_needs_no_other() -> None:
    assert fonts.fallback_fonts("road – Bäume ×\n\t") == []


def test_installed_font_with_the_characters_is_found(caplog: pytest.LogCaptureFixture) -> None:
    assert [font.name for font in fonts.fallback_fonts(f"road {KNOWN}")] == ["Private"]
    assert caplog.text == ""


def test_characters_without_a_font_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [font.name for font in fonts.fallback_fonts(f"{KNOWN}{UNKNOWN}")] == ["Private"]
            fonts.fallback_fonts(f"x{UNKNOWN}")
    (record,) = caplog.records
    assert f"no installed font has the characters {UNKNOWN}:" in record.getMessage()
    assert "install Noto Sans (Debian: fonts-noto-core)" in record.getMessage()


@pytest.mark.parametrize(
    ("text", "fonts_to_install"),
    [
        ("道路", "install Noto Sans CJK (Debian: fonts-noto-cjk)"),
        (f"도로{UNKNOWN}", "install Noto Sans CJK (Debian: fonts-noto-cjk) and Noto Sans (Debian: fonts-noto-core)"),
    ],
)
def test_warning_names_fonts_of_the_script(
    text: str, fonts_to_install: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fontManager, "ttflist", [one for one in fontManager.ttflist if one.name == "DejaVu Sans"])
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    assert fonts.fallback_fonts(text) == []
    assert fonts_to_install in caplog.text


def test_font_installed_after_matplotlib_listed_the_others_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    new = make_font(tmp_path / "new.ttf", "New", UNKNOWN)
    (tmp_path / "damaged.ttf").write_bytes(b"none")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "damaged.ttf"), str(new)])
    assert [font.name for font in fonts.fallback_fonts(UNKNOWN)] == ["New"]
    assert caplog.text == ""


def test_removed_font_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "private.ttf").unlink()
    assert fonts.fallback_fonts(KNOWN) == []


def test_legend_is_drawn_in_a_font_with_its_characters() -> None:
    ids = np.zeros((20, 200), np.uint8)
    palette = np.array([[200, 0, 0]], np.uint8)

    def ink(name: str) -> int:
        info = DatasetInfo([name], 255, [0.5] * 3, [0.2] * 3, palette)
        drawn = np.asarray(masks.overlay(Image.new("RGB", (200, 20)), ids, info))[20:]
        return int((drawn < 100).all(2).sum())

    assert ink(KNOWN * 4) > ink("") + 4 * 50  # filled squares
