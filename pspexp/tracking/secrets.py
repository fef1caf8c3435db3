"""Masks passwords and tokens in files and records that people share."""

import re
from collections.abc import Sequence
from typing import Any

_WORDS = "password|passwd|secret|token|(?:api|access|private|signing|auth)_?key|credential"
SECRET = re.compile(_WORDS, re.IGNORECASE)
# Elsewhere, a key is the name of a column, a class or an entry of a file.
KEY = re.compile(rf"{_WORDS}|(?<![a-z])keys?(?![a-z])", re.IGNORECASE)
WITH_KEYS = ("tracking", "hooks")
# A password may contain slashes; what stands before an @ without a colon, or after a port, need not be a login.
LOGIN = re.compile(r"(?<=//)[^@\s/:]+(?::(?!\d+/)[^@\s]*)?@")
QUERY = re.compile(rf"(?i)([?&][^=&\s]*(?:{KEY.pattern})[^=&\s]*=)[^&\s'\"]+")
MASK = "***"
MASKED_DIFF = "# secrets in this diff are masked: git apply cannot use it unchanged\n"
_FILE_DIFF = re.compile(r"(?m)^(?=diff --git )")
# In a line of a diff, or in the header of a hunk, which may show a line: YAML, JSON, Python, .env.
_KEY = rf"""^[-+ @].*?(?:{_WORDS})[\w.-]*["'\]]*[ \t]*"""
_VALUE = re.compile(rf"(?mi)({_KEY}[:=][ \t]*)(?!(?:null|None)[ \t]*,?$)\S.*$")
# A value that continues on further lines, which cannot be distinguished from other lines.
_LONG = re.compile(
    rf"""(?mi){_KEY}(?::.{{0,80}}?)??(?::[ \t]*[|>]\S*|=[ \t]*(?:[(\[{{\\]|[rbf]*(?:\"{{3}}|'{{3}}).*)?)[ \t]*$"""
)
_LONG_YAML = re.compile(rf"(?mi){_KEY}:[ \t]*[\[{{]?[ \t]*(?:#.*)?$")


def mask_logins(text: str) -> str:
    """``text`` without the user names, passwords and tokens in its URLs."""
    return QUERY.sub(rf"\g<1>{MASK}", LOGIN.sub(f"{MASK}@", text))


def mask_secrets(node: Any, key: str = "") -> Any:
    """Nested plain values with logins in URLs and the values of secret-looking keys masked.

    Args:
        node: The values.
        key: Where they stand in the configuration.
    """
    if isinstance(node, dict):
        return {name: mask_secrets(value, f"{key}.{name}".lstrip(".")) for name, value in node.items()}
    if isinstance(node, list):
        return [mask_secrets(value, key) for value in node]
    if isinstance(node, str):
        return MASK if _words(key).search(key.rpartition(".")[2]) else mask_logins(node)
    return node


def _words(key: str) -> re.Pattern[str]:
    """What the names of secrets contain at this place of the configuration."""
    return KEY if key.lstrip("+~").partition(".")[0] in WITH_KEYS else SECRET


def is_masked(value: Any) -> bool:
    """Whether a plain value, or a part of it, has been masked."""
    if isinstance(value, list):
        return any(map(is_masked, value))
    return isinstance(value, str) and MASK in value


def mask_diff(diff: str) -> str:
    """A diff of any files with logins and the values of secret-looking keys masked.

    If such a value spans several lines, only the name of its file is kept. If anything is masked, the first line is
    `MASKED_DIFF`.
    """
    masked = mask_logins("".join(map(_mask_file, _FILE_DIFF.split(diff))))
    return masked if masked == diff else MASKED_DIFF + masked


def _mask_file(part: str) -> str:
    head = part.partition("\n")[0]
    if not head.startswith("diff --git "):
        return part
    data = re.search(r"\.(ya?ml|json)\"?$", head)
    if _LONG.search(part) or (data and _LONG_YAML.search(part)):
        changed = sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in part.splitlines() if line)
        return (
            f"# not kept because of a secret over several lines: {head.removeprefix('diff --git ')}, {changed} lines\n"
        )
    return _VALUE.sub(rf"\g<1>{MASK}", part)


def mask_overrides(overrides: Sequence[str]) -> list[str]:
    """``key=value`` overrides with secrets in their values masked."""
    parts = [override.partition("=") for override in overrides]
    return [f"{key}{sign}{_mask_value(value, key)}" for key, sign, value in parts]


def _mask_value(value: str, key: str) -> str:
    nested = value.lstrip().startswith(("{", "[")) and _words(key).search(value)  # a key in it may be that of a secret
    return MASK if nested else str(mask_secrets(value, key))
