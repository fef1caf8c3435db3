"""docs/troubleshooting.md quotes messages that exist, and lists all of them."""

import ast

import pytest

import pspexp
from pspexp.errors import UserError
from tools.messages.__main__ import FROM_PYDANTIC, INTRODUCTION, PAGE, ROOMS, fits, main, page, room, unknown_quotes
from tools.messages.collect import OTHERS, PACKAGE, collect, is_message, places, texts

MESSAGES = collect()


def of(source: str) -> list[tuple[str, bool]]:
    """The messages of a piece of source, and whether they are warnings."""
    found = places(ast.parse(source))
    return [(text, is_warning) for node, is_warning in found for text in texts(node, {}) if is_message(text)]


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(MESSAGES), "run python -m tools.messages"


def test_the_introduction_quotes_existing_messages() -> None:
    introduction = INTRODUCTION.read_text(encoding="utf-8")
    assert unknown_quotes(introduction, MESSAGES) == []
    assert unknown_quotes("| `no such: message` | fix |\n", MESSAGES) == ["no such: message"]


def test_a_quote_of_no_message_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr("tools.messages.__main__.collect", lambda: [])
    assert main([]) == 1
    assert "no such message: " in capsys.readouterr().err
    assert PAGE.read_text(encoding="utf-8") == before


def test_every_place_of_a_message_is_found() -> None:
    assert of('raise UserError(f"{key}={value}: must be {limit}; lower it")') == [("…=…: must be …; lower it", False)]
    assert of('raise UserError("a: first problem", f"{b}: second problem")') == [
        ("a: first problem", False),
        ("…: second problem", False),
    ]
    assert of('log.warning("%s: %d of %.1f %% are lost", a, b, c)') == [("…: … of … % are lost", True)]
    assert of("problems.append(f\"{setting('loader.batch_size', size)}: is too {count(n, 'pass')} large\")") == [
        ("loader.batch_size=…: is too … passes large", False)
    ]
    assert of('yield f"a: {b} is wrong" if b else "a: is missing here"') == [
        ("a: … is wrong", False),
        ("a: is missing here", False),
    ]
    assert of('return known + [f"{one}: is not known{did_you_mean(one, all)}" for one in odd]') == [
        ("…: is not known", False)
    ]
    assert of('print("a: no message"); return "name"') == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["crop_size=512"],
        ["optimiser=adam", "trainer.epoch=3", "loader.batch_size=1"],
        ["mode=predict"],
        ["dataset=folder", "dataset.class_names=[crack]", "optimizer.lr=1e-3,1e-4"],
        ["mode=export", "predict.input=photos", "compare.runs=[a]"],
        ["device=gpu", "loss.class_weights=[1,2]", "hooks.early_stopping.metric=iou"],
    ],
)
def test_what_a_command_prints_is_in_the_list(overrides: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        pspexp.compose(overrides)
    for problem in caught.value.problems:
        assert any(fits(problem, text) for text in (*FROM_PYDANTIC, *(one.text for one in MESSAGES))), problem


def test_every_file_has_a_room_and_every_exclusion_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {room(one) for one in MESSAGES} == {heading for heading, _ in ROOMS}
    assert not any(one.text.startswith(OTHERS) for one in MESSAGES)
    monkeypatch.setattr("tools.messages.collect.OTHERS", ())
    everything = [one.text for one in collect()]
    assert [start for start in OTHERS if not any(text.startswith(start) for text in everything)] == []
    assert PACKAGE.name == "pspexp"
