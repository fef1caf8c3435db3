"""Lines broken to fit a terminal."""

import pytest

from pspexp.utils.text import wrapped


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
