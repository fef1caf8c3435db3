"""The comments of a YAML file, which PyYAML itself drops: that of the file, and one for each key."""

from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is eight times as fast


class Comments(NamedTuple):
    """The comments of an option's file.

    Attributes:
        keys: The comment of each dotted key, in one line: what follows its value, else the lines directly above it. The
            group ``model`` in a list of defaults is the key ``defaults.model``.
        bases: The other options in its list of defaults, which it extends.
    """

    keys: dict[str, str]
    bases: list[str]


def file_comment(text: str) -> str:
    """The comment at the top of a YAML file, without Hydra's ``# @package``; its line breaks are kept."""
    lines = [line[1:].removeprefix(" ") for line in takewhile(_is_comment, text.splitlines())]
    return "\n".join(line for line in lines if not line.startswith("@package"))


def read_comments(text: str) -> Comments:
    """The comments in a YAML file.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    lines = text.splitlines()
    top = sum(1 for _ in takewhile(_is_comment, lines))  # the comment of the file, not of its first key
    root = yaml.compose(text, Loader=LOADER)
    comments = {}
    for key, name, value in _keys(root, ""):
        comment, start = _behind(lines, name, value), name.start_mark
        if not comment and not lines[start.line][: start.column].strip(" -"):  # the first of its line
            comment = _above(lines[top : start.line])
        if comment:
            comments[key] = comment
    values = {name.value: value for name, value in root.value} if isinstance(root, yaml.MappingNode) else {}
    defaults = values["defaults"].value if isinstance(values.get("defaults"), yaml.SequenceNode) else []
    names = [one.value for one in defaults if isinstance(one, yaml.ScalarNode)]
    return Comments(comments, [name for name in names if name != "_self_"])


def _keys(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Each key in nested mappings, those in lists included: dotted, its own node, and that of its value."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item, prefix)
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        yield prefix + name.value, name, value
        yield from _keys(value, f"{prefix}{name.value}.")


def _behind(lines: list[str], name: yaml.Node, value: yaml.Node) -> str:
    """The comment at the end of the line of a value, or of its key if the value is a block below."""
    is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    mark = name.end_mark if is_block else value.end_mark
    rest = lines[mark.line][mark.column :].lstrip(": ") if mark.line < len(lines) else ""
    return rest[1:].strip() if rest.startswith("#") else ""


def _above(lines: list[str]) -> str:
    """The comment in the last of these lines."""
    found = [*takewhile(_is_comment, reversed(lines))]
    return " ".join(line.strip()[1:].strip() for line in reversed(found))


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")
