"""What must not stand in files and records that people share."""

import re
from collections.abc import Sequence
from typing import Any

SECRET = re.compile(r"password|passwd|secret|token|api_?key|credential", re.IGNORECASE)
LOGIN = re.compile(r"(?<=//)[^@\s]+@")
MASK = "***"


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


def words_without_secrets(words: Sequence[str]) -> list[str]:
    """The same for ``key=value`` words."""
    parts = [word.partition("=") for word in words]
    return [f"{key}{sign}{without_secrets(value, key)}" for key, sign, value in parts]
