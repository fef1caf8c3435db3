"""Fonts for text in any script: those that the default font cannot show, and that are installed."""

import logging
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

# Loads every glyph, but as blanks or boxes.
PLACEHOLDERS = re.compile("blank|last ?resort", re.IGNORECASE)
EAST_ASIAN = re.compile("CJK|HIRAGANA|KATAKANA|HANGUL|BOPOMOFO|FULLWIDTH")  # how names of characters begin

log = logging.getLogger(__name__)
_warned = False


def default_font() -> str:
    """The file of matplotlib's default font, which has more characters than Pillow's."""
    from matplotlib import font_manager  # slow to import

    return str(font_manager.findfont(font_manager.FontProperties()))


def missing_glyphs(font: str, text: Iterable[str]) -> set[str]:
    """The characters of a text that a font file lacks, without white space."""
    from matplotlib.font_manager import get_font  # as above

    loaded: Any = get_font(font)
    return {one for one in {*text} if not one.isspace() and not loaded.get_char_index(ord(one))}


def fallback_fonts(text: Iterable[str]) -> list[Any]:
    """Matplotlib's entries of installed fonts for the characters that its default font lacks, as few as possible.

    The first time that no installed font has a character, a warning is logged.
    """
    global _warned
    missing = missing_glyphs(default_font(), text)
    if not missing:
        return []
    found, left = _covering_fonts(frozenset(missing))
    if left and not _warned:
        _warned = True
        shown = " ".join(sorted(left)[:10])
        log.warning("no installed font has the characters %s: figures show boxes; install %s", shown, _remedy(left))
    return list(found)


def _remedy(characters: Iterable[str]) -> str:
    """Fonts with all of the characters, and Debian's package of them."""
    kinds = {bool(EAST_ASIAN.match(unicodedata.name(one, ""))) for one in characters}
    fonts = {True: "Noto Sans CJK (Debian: fonts-noto-cjk)", False: "Noto Sans (Debian: fonts-noto-core)"}
    return " and ".join(name for kind, name in fonts.items() if kind in kinds)


@cache
def _covering_fonts(wanted: frozenset[str]) -> tuple[tuple[Any, ...], frozenset[str]]:
    """Entries of fonts that together have as many of the characters as possible, and the characters they lack."""
    found, left = _covering_listed(wanted)
    return _covering_listed(wanted) if left and _list_new_fonts() else (found, left)


def _list_new_fonts() -> bool:
    """Let matplotlib, which remembers what is installed, list fonts that are new; returns whether there are any."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known, is_new = {entry.fname for entry in fontManager.ttflist}, False
    for file in findSystemFonts():
        if file not in known:
            with suppress(OSError, RuntimeError):  # damaged, or of a format that it cannot read
                fontManager.addfont(file)
                is_new = True
    return is_new


def _covering_listed(wanted: frozenset[str]) -> tuple[tuple[Any, ...], frozenset[str]]:
    """`_covering_fonts` among those that matplotlib has listed."""
    from matplotlib.font_manager import fontManager

    lacking: list[tuple[Any, set[str]]] = []
    for entry in fontManager.ttflist:
        upright = entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
        if upright and not PLACEHOLDERS.search(entry.name) and not getattr(entry, "index", 0):
            try:
                lacking.append((entry, missing_glyphs(entry.fname, wanted)))
            except (OSError, RuntimeError):  # removed since matplotlib listed it, or damaged
                continue
    found, left = [], {*wanted}
    while left and lacking:
        best, lacks = min(lacking, key=lambda pair: len(left & pair[1]))
        if left <= lacks:
            break
        found.append(best)
        left &= lacks
    return tuple(found), frozenset(left)
