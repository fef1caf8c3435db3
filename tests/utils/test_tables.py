import pytest

from pspexp.utils.tables import escape_markdown, markdown_table, text_table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dining table, potted_plant-2 (val)", "dining table, potted_plant-2 (val)"),
        ("loss=cross_entropy,crop_size=[33,33]", "loss=cross_entropy,crop_size=[33,33]"),
        ("a|b", r"a\|b"),
        ("**a** `b` _c_ <d>", r"\*\*a\*\* \`b\` \_c\_ &lt;d>"),
        (r"C:\data", r"C:\\data"),
        ("one\ntwo", "one two"),
    ],
)
def test_text_is_shown_literally(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


def test_numbers_are_right_aligned() -> None:
    assert markdown_table(["class", "IoU"], [["sky", "90.1"], ["–", "–"]], right_aligned=[1]) == [
        "| class | IoU |",
        "| :-- | --: |",
        "| sky | 90.1 |",
        "| – | – |",
    ]


def test_columns_are_aligned_by_terminal_cells() -> None:
    rows = [("道路", "90.00"), ("cafe\u0301", "5.00"), ("ทางเท้า", "–")]
    assert text_table(("class", "IoU %"), rows, [("mean", "47.50")]).splitlines() == [
        "class   IoU %",
        "-------------",
        "道路    90.00",  # four cells
        "cafe\u0301     5.00",  # four cells
        "ทางเท้า      –",  # six cells
        "-------------",
        "mean    47.50",
    ]
