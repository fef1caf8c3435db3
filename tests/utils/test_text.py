"""Lines broken to fit a terminal, and paths in overrides."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from pspexp.utils.text import quoted, wrapped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short", "short"),
        ("one two three four five", "one two three\n  four five"),
        ("a long/path/that/is/not/broken b", "a\n  long/path/that/is/not/broken\n  b"),
        ("道路 道路 道路 道路", "道路 道路 道路\n  道路"),  # two cells a character
        ("  pspexp mode=test checkpoint.path=outputs/run", "  pspexp mode=test checkpoint.path=outputs/run"),
        ("class          IoU %   pixels", "class          IoU %   pixels"),
        ("first line\nand a second line\n\nend", "first line\nand a second\n  line\n\nend"),
    ],
)
def test_lines_are_broken_between_words(text: str, shown: str) -> None:
    assert wrapped(text, 14) == shown


def test_paths_with_spaces_stay_whole() -> None:
    assert (
        wrapped("records in my runs/a b, as always", 20, ["my runs/a b"]) == "records in\n  my runs/a b, as\n  always"
    )


@pytest.mark.parametrize(
    "path",
    ["run", "a b", "it's", "123", "1e5", ".5", "null", "True", "NaN", "2030-01-02", "C:\\runs\\", "a\\'b", "x=1,2"],
)
def test_hydra_reads_a_quoted_path_as_it_is(path: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={quoted(path)}"])
    assert str(getattr(override.value(), "text", override.value())) == path
    assert not isinstance(override.value(), bool | int | float)


def test_plain_paths_need_no_quotes() -> None:
    for text in ("outputs/run-1/2030-01-02_03-04-05", "192.168.1.1"):
        assert quoted(text) == text
