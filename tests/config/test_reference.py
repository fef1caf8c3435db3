"""What is known of each key: type, value, comment."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pspexp.config.annotations import argument_types, type_text
from pspexp.config.comments import file_comment, read_comments
from pspexp.config.options import conf_dir
from pspexp.config.reference import Key, Reference
from pspexp.config.signatures import type_hints
from pspexp.config.targets import find_target
from pspexp.config.trust import named_by_options

YAML = """\
# @package _global_
# The file, in
# two lines.
first: 1
defaults:
  - base
  - override /model: pspnet18 # the network
  - _self_

# not of second

second: 'a # b' # behind
# above,
# in two lines
third: {a: 1,
  b: 2}
node: # of the node
  inner: [1,
    2] # behind the list
  empty: # of a null
  # of a block
  block:
    - 1
address: http://host/#part
"""


def test_comments_of_a_file() -> None:
    assert file_comment(YAML) == "The file, in\ntwo lines."
    assert read_comments(YAML) == (
        {
            "defaults.override /model": "the network",
            "second": "behind",
            "third": "above, in two lines",
            "node": "of the node",
            "node.inner": "behind the list",
            "node.empty": "of a null",
            "node.block": "of a block",
        },
        ["base"],
    )


@pytest.mark.parametrize("text", ["", "# nothing else\n", "- 1\n", "{}\n"])
def test_file_without_keys_has_no_comments(text: str) -> None:
    assert read_comments(text) == ({}, [])


def options() -> Iterator[tuple[str, str]]:
    for file in sorted(Path(conf_dir()).glob("*/*.yaml")):
        if file.parent.name not in ("hydra", "experiment", "sweep"):
            yield file.parent.name, file.stem


@pytest.fixture(scope="module")
def default() -> Reference:
    return Reference()


def test_every_plain_key_has_a_comment(default: Reference) -> None:
    keys = [key for name in default.values for key in default.keys(name) if name not in default.groups]
    assert len(keys) > 60
    assert [key.name for key in keys if not key.comment] == []
    assert [key.name for key in keys if not key.type and not key.is_node] == []


@pytest.mark.parametrize("group", sorted({group for group, _ in options()}))
def test_every_group_option_and_key_has_a_comment(default: Reference, group: str) -> None:
    assert default.comment(group)
    for option in default.groups[group]:
        assert default.option_comment(group, option), option
        chosen = Reference([f"{group}={option}"])
        assert chosen.choices[group] == option
        keys = chosen.keys(group)[1:]
        assert [key.name for key in keys if not key.comment and not key.name.endswith("_target_")] == [], option


def test_every_preset_is_explained(default: Reference) -> None:
    for group in ("experiment", "sweep"):
        for option in default.groups[group]:
            assert default.option_comment(group, option), option
            assert default.is_preset(group, option)


def test_an_option_has_the_comments_of_those_it_extends() -> None:
    keys = {key.name: key for key in Reference(["dataset=voc2012"]).keys("dataset")}
    assert keys["dataset.subfolder"].value == "VOC2012"
    assert keys["dataset.on_error"].comment.startswith("raise | skip: what to do")


def test_keys_of_a_node() -> None:
    keys = Reference(["trainer.epochs=3"]).keys("trainer")
    assert [key.is_node for key in keys[:2]] == [True, False]
    assert keys[1] == Key("trainer.epochs", "int > 0", 3, "length of the training and its learning-rate schedule")
    assert Reference().keys("trainer.epoch") == []


def test_types_read_from_source_are_those_of_the_signatures() -> None:
    targets = [name for name in sorted(named_by_options()) if name.startswith("pspexp.")]
    assert len(targets) > 30
    for name in targets:
        hints = type_hints(find_target(name))
        expected = {argument: type_text(hint) for argument, hint in hints.items() if argument != "return"}
        found = {argument: type_text(hint) for argument, hint in argument_types(name).items()}
        assert {argument: found.get(argument) for argument in expected if argument != "arguments"} == {
            argument: text for argument, text in expected.items() if argument != "arguments"
        }, name


@pytest.mark.parametrize(
    ("source", "types"),
    [
        ("class Net:\n    def __init__(self, width: int) -> None: ...", {"width": "int"}),
        ("from .base import Net", {"width": "float"}),
        ("from . import base\nfrom .base import Net as Base\nclass Net(Base): ...", {"width": "float"}),
        ("from .base import Net\nclass Net(Net): ...", {}),  # not followed
        ("from .net import Net", {}),
        ("from ... import Net", {}),
        ("def Net(:", {}),
        ("\0", {}),
    ],
)
def test_sources_of_the_users_own(
    source: str, types: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of code that cannot be imported: what is wrong with it is reported when it is used, not by help."""
    package = tmp_path / f"own_{tmp_path.name}"  # sources are remembered by their names
    package.mkdir()
    (package / "net.py").write_text(source)
    (package / "base.py").write_text("class Net:\n    def __init__(self, width: float) -> None: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = argument_types(f"{package.name}.net.Net")
    assert {name: type_text(hint) for name, hint in found.items()} == types
