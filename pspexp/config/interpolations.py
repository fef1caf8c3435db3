"""Names the interpolations that cannot be resolved, and what they lack."""

import os
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException

from pspexp.config.overrides import suggestion
from pspexp.utils.text import first_line

UNSET = re.compile(r"Environment variable '(.+?)' not found")
VARIABLE = re.compile(r"\$\{\s*oc\.env:\s*([^,${}\s]+)\s*\}")  # without a default
REFERENCE = re.compile(r"\$\{(\.*)([^:${}]+)\}")
# Nodes of Hydra that this project resolves itself; the others may refer to what only a running job has.
HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
HYDRA_COPIES = ("hydra.overrides.", "hydra.job.override_dirname")  # of the overrides, whose keys have the same problems


def interpolation_problems(config: Any) -> dict[str, str]:
    """Key -> a line about it, of each interpolation that cannot be resolved.

    Interpolations of a key that has such a problem itself are omitted, since they only follow from it.

    Args:
        config: The configuration, or the job's part of it.
    """
    found: dict[str, tuple[str, OmegaConfBaseException]] = {}
    for key, parent, name in _interpolations(config):
        if key.startswith(HYDRA_COPIES):
            continue
        try:
            parent[name]
        except InterpolationToMissingValueError:  # the missing value is a problem of its own
            continue
        except OmegaConfBaseException as error:
            if not key.startswith("hydra.") or key in HYDRA_FOLDERS or _is_lasting(error):
                found[key] = OmegaConf.to_container(parent, resolve=False)[name], error  # type: ignore[index]
    references = {key: _references(key, text) for key, (text, _) in found.items()}
    return {
        key: f"{key}={text}: {_reason(key, text, error, config)}"
        for key, (text, error) in found.items()
        if _is_circular(key, references) or not any(_is_at(one, found) for one in references[key])
    }


def _interpolations(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, parent node and name there, of each value that is an interpolation."""
    for name in range(len(node)) if OmegaConf.is_list(node) else list(node):
        key = f"{prefix}{name}"
        if OmegaConf.is_interpolation(node, name):
            yield key, node, name
            continue
        below = node._get_node(name)
        if OmegaConf.is_config(below) and not below._is_none() and not below._is_missing():
            yield from _interpolations(below, f"{key}.")


def _is_lasting(error: OmegaConfBaseException) -> bool:
    """Whether an interpolation in Hydra's own node fails in a running job, too."""
    return isinstance(error, InterpolationKeyError) or UNSET.search(str(error)) is not None


def _references(key: str, text: str) -> list[str]:
    """The keys that an interpolation refers to."""
    above = key.split(".")
    return [".".join([*(above[: -len(dots)] if dots else []), name.strip()]) for dots, name in REFERENCE.findall(text)]


def _is_circular(key: str, references: dict[str, list[str]]) -> bool:
    """Whether an interpolation refers to itself in the end."""
    seen, left = set[str](), [key]
    while left:
        for one in references.get(left.pop(), ()):
            if one == key:
                return True
            left += [] if one in seen else [one]
            seen.add(one)
    return False


def _is_at(key: str, found: dict[str, Any]) -> bool:
    """Whether one of the keys is ``key``, or is above or below it."""
    return any(f"{one}.".startswith(f"{key}.") or f"{key}.".startswith(f"{one}.") for one in found)


def _reason(key: str, text: str, error: OmegaConfBaseException, config: Any) -> str:
    if unset := UNSET.search(str(error)):
        names = dict.fromkeys([*(one for one in VARIABLE.findall(text) if one not in os.environ), unset[1]])
        plural = len(names) > 1
        return (
            f"environment variable{'s' * plural} {' and '.join(names)} {'are' if plural else 'is'} not set; "
            f"set {'them' if plural else 'it'}, or give {key} another value"
        )
    if missing := re.match(r"Interpolation key '(.+)' not found", str(error)):
        absent = next((one for one in _references(key, text) if one.endswith(missing[1])), missing[1])
        return f"there is no key {absent}{suggestion(absent, config)}"
    return first_line(error)
