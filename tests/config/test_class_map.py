"""Mapping the classes of the data to those of a checkpoint, and the overrides that messages suggest."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pspexp.config.class_map import map_classes, read_map, reordered
from pspexp.config.class_names import NamedClasses, describe_difference, differences, map_override, names_override
from pspexp.errors import UserError

KNOWN = ["road", "truck", "person"]


def dataset(class_map: Any, **more: Any) -> dict[str, Any]:
    return {"label_values": None, "ignore_values": [255], "class_map": class_map, **more}


def test_classes_of_equal_names_are_mapped_by_name() -> None:
    assert map_classes(dataset({}), ["person", "road", "truck"], KNOWN) == {
        "class_map": {"person": "person", "road": "road", "truck": "truck"},
        "label_values": [[1], [2], [0]],
        "ignore_values": [255],
    }


def test_several_classes_of_the_data_may_be_one() -> None:
    names = ["lorry", "road", "van", "bus", "bin"]
    changed = map_classes(dataset({"lorry": "truck", "van": "truck", "bus": "truck", "*": "ignore"}), names, KNOWN)
    assert changed["label_values"] == [[1], [[0, 2], 3], []]  # three numbers in a list would be a colour
    assert changed["ignore_values"] == [255, 4]
    assert changed["class_map"] == {"lorry": "truck", "road": "road", "van": "truck", "bus": "truck", "bin": None}


def test_configured_values_are_kept() -> None:
    values = ["#ff0000", [7, 8], [0, 0, 255]]
    changed = map_classes(
        dataset({"a": "road", "b": "truck", "c": None}, label_values=values, ignore_values=[0]), ["a", "b", "c"], KNOWN
    )
    assert changed["label_values"] == [["#ff0000"], [7, 8], []]
    assert changed["ignore_values"] == [0, "#0000ff"]


def test_an_ignored_zero_is_resolved() -> None:
    changed = map_classes(
        dataset({}, num_classes=3, class_names=None, reduce_zero_label=True), ["truck", "road"], KNOWN
    )
    assert changed["label_values"] == [[2], [1], []]
    assert changed["ignore_values"] == [255, 0]
    assert changed["reduce_zero_label"] is False
    assert (changed["num_classes"], changed["class_names"]) == (3, KNOWN)


def test_the_result_is_read_as_the_same_again() -> None:
    """A configuration with the complete map and the mapped values describes the data set in full."""
    from pspexp.data.label_values import parse_label_values

    names = ["lorry", "road", "van", "bus", "bin"]
    changed = map_classes(dataset({"lorry": "truck", "van": "truck", "bus": "truck", "bin": None}), names, KNOWN)
    classes, ignored = parse_label_values(changed["label_values"], changed["ignore_values"], 3)
    assert (classes, ignored) == ([[1], [0, 2, 3], []], [255, 4])


def test_every_problem_is_listed() -> None:
    with pytest.raises(UserError) as caught:
        map_classes(dataset({"lory": "truck", "van": "trucks"}), ["lorry", "van", "cow"], KNOWN)
    assert caught.value.problems == (
        "dataset.class_map: the data has no class lory; it has lorry, van, cow; did you mean 'lorry'?",
        "dataset.class_map: the checkpoint has no class trucks; it has road, truck, person; did you mean 'truck'?",
        "dataset.class_map: the checkpoint has no class lorry, cow; map each of them to one of road, truck, person or "
        "to ignore, or all of them with '*: ignore'",
    )


def test_ignoring_everything_is_refused() -> None:
    with pytest.raises(UserError, match="nothing would be scored"):
        map_classes(dataset({"*": "ignore"}), ["cat", "dog"], KNOWN)


def test_data_without_label_values_cannot_be_mapped() -> None:
    with pytest.raises(UserError, match="label_values, which this data set lacks"):
        map_classes({"class_map": {}}, KNOWN, KNOWN)


@pytest.mark.parametrize("given", ["lorry", 3, [["lorry", "truck"]], ["lorry"]])
def test_anything_but_a_map_is_refused(given: object) -> None:
    with pytest.raises(UserError, match="name: name, …"):
        read_map(given)


ODD = ["police car", "it's", "a,b", "道路", "1", "true", "car (red)", 'say "x"', "a: b", "x&y"]


def typed(word: str) -> Any:
    """The value of an override as it is typed in a shell, as Hydra reads it."""
    import shlex

    (text,) = shlex.split(word)
    return OverridesParser.create().parse_override(text).value()


@pytest.mark.parametrize("name", ODD)
def test_suggested_overrides_can_be_typed(name: str) -> None:
    assert typed(names_override([name, "road"])) == [name, "road"]
    assert read_map(typed(map_override({name: "truck", "van": "ignore"}))) == {name: "truck", "van": "ignore"}


def test_difference_shows_the_first_positions_and_both_ways_out() -> None:
    config = OmegaConf.create({"dataset": {"class_map": None}, "checkpoint": {"path": "best.pt"}})
    line = describe_difference(NamedClasses(["Road", "lorry", "person"], "dataset.root=x"), KNOWN, config)
    assert line == (
        "dataset.root=x: the class names differ from those of checkpoint.path=best.pt: 0 is Road here, road there; "
        "1 is lorry here, truck there; add 'dataset.class_map={Road: road, lorry: ignore}' to map the classes by name, "
        "where ignore may be one of road, truck, person, or add 'dataset.class_names=[road, truck, person]' if the "
        "names mean the same"
    )
    assert differences(list("abcdefg"), list("bcdefgh")).endswith("2 is c here, d there; and 4 more")
    assert differences(["a"], ["a", "b"]) == "1 is no class here, b there"


def test_order_of_a_checkpoint_with_an_ignored_zero() -> None:
    node = dataset(None, reduce_zero_label=True)
    words = [*reordered(OmegaConf.create({"dataset": node}), ["truck", "road"], ["road", "truck"])]
    assert words == [
        "'dataset.class_names=[road, truck]'",
        "'dataset.label_values=[2, 1]'",
        "'dataset.ignore_values=[255, 0]'",
        "dataset.reduce_zero_label=false",
    ]
