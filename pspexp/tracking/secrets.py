"""What must not stand in files and records that people share."""

import re
from collections.abc import Sequence
from typing import Any

SECRET = re.compile(r"password|passwd|secret|token|api_?key|credential", re.IGNORECASE)
LOGIN = re.compile(r"(?<=//)[^@\s]+@")
MASK = "***"
_YAML_DIFF = re.compile(r"(?ms)^diff --git [^\n]*\.ya?ml\"?\n.*?(?=^diff --git |\Z)")
_YAML_SECRET = re.compile(rf"(?mi)^([-+ ]\s*[\w.]*(?:{SECRET.pattern})[\w.]*\s*:[ \t]*)(?!null\b)\S.*$")


def mask_logins(text: str) -> str:
    """``text`` without the names and passwords that addresses may hold."""
    return LOGIN.sub(f"{MASK}@", text)


def without_secrets(node: Any, key: str = "") -> Any:
    """Nested plain values with logins in addresses and the values of secret-looking keys masked."""
    if isinstance(node, dict):
        return {name: without_secrets(value, name) for name, value in node.items()}
    if isinstance(node, list):
        return [without_secrets(value, key) for value in node]
    if isinstance(node, str):
        return MASK if SECRET.search(key) else mask_logins(node)
    return node


def is_masked(value: Any) -> bool:
    """Whether a plain value held a secret, in whole or in part."""
    if isinstance(value, list):
        return any(map(is_masked, value))
    return isinstance(value, str) and MASK in value


def mask_yaml(diff: str) -> str:
    """A diff with the values of secret-looking keys masked in its YAML files."""
    return _YAML_DIFF.sub(lambda part: _YAML_SECRET.sub(rf"\g<1>{MASK}", part[0]), diff)


def words_without_secrets(words: Sequence[str]) -> list[str]:
    """The same for ``key=value`` words."""
    parts = [word.partition("=") for word in words]
    return [f"{key}{sign}{_word_value(value, key)}" for key, sign, value in parts]


def _word_value(value: str, key: str) -> str:
    nested = value.lstrip().startswith(("{", "[")) and SECRET.search(value)  # a key in it may be a secret's
    return MASK if nested else str(without_secrets(value, key))
