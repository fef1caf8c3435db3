"""Class weights in a configuration: names of methods, such as ``auto``, until they are counted, then numbers."""

from collections.abc import Iterator
from typing import Any

CLASS_WEIGHTS = "class_weights"


def methods(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Each dotted key in a node at which a method is named, and its name.

    Args:
        node: Plain values.
        key: The node's own key.
    """
    if isinstance(node, dict | list):
        for name, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from methods(item, f"{key}.{name}")
    elif isinstance(node, str) and key.rpartition(".")[2] == CLASS_WEIGHTS:
        yield key, node


def with_numbers_of(then: Any, now: Any, key: str = "") -> Any:
    """``now`` with the numbers in ``then`` in the place of the methods that they were counted by.

    Args:
        then: The same node in the configuration of an earlier run.
        now: A node: plain values.
        key: The node's own key.
    """
    if key.rpartition(".")[2] == CLASS_WEIGHTS and isinstance(now, str) and isinstance(then, list):
        return then
    if isinstance(now, dict) and isinstance(then, dict):
        return {name: with_numbers_of(then.get(name), item, str(name)) for name, item in now.items()}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [with_numbers_of(*items) for items in zip(then, now, strict=True)]
    return now
