"""Class weights in a configuration: names of methods, such as ``auto``, until they are counted, then numbers.

The name of the method remains in ``choices``, under the key of the numbers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

CLASS_WEIGHTS = "class_weights"
CHOICES = "choices."


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


def counted(flat: Mapping[str, Any]) -> dict[str, str]:
    """The method behind each list of numbers in a flat configuration, by key; unknown for those of older versions."""
    names = {key.removeprefix(CHOICES): value for key, value in flat.items() if key.startswith(CHOICES)}
    return {key: method for key, method in names.items() if key.rpartition(".")[2] == CLASS_WEIGHTS}


def uncounted(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration with methods in place of the numbers counted by them, to compare it with another.

    Args:
        then: The configuration.
        now: The other one. Only where it names a method are numbers replaced; if they are from an older version, which
            did not record how they were counted, by that method.
    """
    names = counted(then)
    recorded = {f"{CHOICES}{key}" for key in names}
    return {key: _uncounted(value, now.get(key), names, key) for key, value in then.items() if key not in recorded}


def _uncounted(then: Any, now: Any, names: Mapping[str, str], key: str) -> Any:
    if isinstance(then, list) and isinstance(now, str) and key.rpartition(".")[2] == CLASS_WEIGHTS:
        return names.get(key, now)
    if isinstance(then, dict) and isinstance(now, dict):
        return {name: _uncounted(value, now.get(name), names, f"{key}.{name}") for name, value in then.items()}
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [_uncounted(*pair, names, f"{key}.{index}") for index, pair in enumerate(zip(then, now, strict=True))]
    return then
