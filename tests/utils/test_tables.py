import pytest

from pspexp.utils.tables import escape_markdown, markdown_table


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
