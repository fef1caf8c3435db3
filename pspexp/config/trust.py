"""Which targets a configuration from a file may name.

What a user types, and what an option file of theirs says, is free. A checkpoint, an exported file or a run in MLflow
may come from anybody, and naming ``os.system`` must not run it. Such files may name what this package and the libraries
around it build, and what ``PSPEXP_ALLOW_TARGETS`` allows (patterns, comma-separated). A run folder is one's own: it may
also name classes and functions that are not part of an installed package, such as those in the working folder. No file
may name Python's own modules.
"""

import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from pspexp.config.options import conf_dir
from pspexp.config.targets import TargetError, find_target
from pspexp.errors import UserError

VARIABLE = "PSPEXP_ALLOW_TARGETS"
# What is built by options and documented adapters; of pspexp, its classes and what its options name.
ALLOWED = (
    "albumentations.*", "segmentation_models_pytorch.*", "timm.*", "torch.nn.*", "torch.optim.*",
    "torchvision.models.*",    "torchvision.ops.*", "torchvision.transforms.*",
)  # fmt: skip
# They run code that is named or contained in their arguments.
NEVER = {*sys.stdlib_module_names, "hydra", "omegaconf", "pip", "pkg_resources", "setuptools", "cloudpickle", "joblib"}
# Keys whose values are names to import.
IMPORTED = ("device.plugin", "device.autocast", "device.grad_scaler", "device.sync_batch_norm")
PLUGINS = ("torch_npu", "torch_sdaa")

_allowed_here: ContextVar[tuple[str, ...]] = ContextVar("allowed_here", default=())


@contextmanager
def allowing(patterns: Sequence[str]) -> Iterator[None]:
    """Also allow these targets in the block, as ``PSPEXP_ALLOW_TARGETS`` does."""
    token = _allowed_here.set(tuple(patterns))
    try:
        yield
    finally:
        _allowed_here.reset(token)


def refuse_untrusted(
    saved: Any,
    source: str,
    *,
    own: bool,
    explicit: Collection[str] = (),
    today: DictConfig | None = None,
    key: str = "",
) -> None:
    """Check a configuration from a file, nested nodes included.

    Args:
        saved: Plain values.
        source: How the user names the file: ``checkpoint.path=best.pt``.
        own: Whether it lies in a run folder.
        explicit: Keys whose saved values are not used.
        today: The configuration that the user has composed; a target that stands in it at the same key is theirs.
        key: Where ``saved`` stands in the configuration.

    Raises:
        UserError: It names what it may not name; lists all of that.
    """
    problems = []
    for place, value in _strings(saved, key):
        parts = place.split(".")
        if any(".".join(parts[:end]) in explicit for end in range(1, len(parts) + 1)):
            continue
        if today is not None and OmegaConf.select(today, place, default=None) == value:
            continue
        if "${" in value:
            problems.append(f"{source}: {place}={value}: an interpolation, which no record of a run contains")
        elif parts[-1] == "_target_" and (reason := refusal(value, own=own)):
            problems.append(f"{source}: {place}={value}: {reason}")
        elif place in IMPORTED and not own and not _is_device_part(value):
            problems.append(f"{source}: {place}={value}: is not imported from a file; give it on the command line")
    if problems:
        raise UserError(*problems)


def refusal(path: str, *, own: bool) -> str | None:
    """Why a file may not name a target; None if it may."""
    top = path.partition(".")[0]
    if top in NEVER:
        return "Python's own and Hydra's functions are never run because a file names them"
    allowed = (*_allowed_here.get(), *(one.strip() for one in os.environ.get(VARIABLE, "").split(",")))
    listed = any(fnmatchcase(path, pattern) for pattern in (*ALLOWED, *allowed)) or top == "pspexp"
    if not (listed or (own and is_users_module(top))):
        return (
            f"is not run because a file names it; if you trust the file, set {VARIABLE}={top}.* "
            f"(or pspexp.load(…, allow_targets=['{top}.*']))"
        )
    try:
        found = find_target(path)
    except TargetError:
        return None  # reported with its reason when the configuration is checked
    while isinstance(found, partial):
        found = found.func
    module = str(getattr(found, "__module__", None) or type(found).__module__)
    if module.partition(".")[0] in NEVER:  # reached through a module that imports it
        return f"is {module}.{getattr(found, '__name__', '?')}, which is never run because a file names it"
    name = f"{module}.{getattr(found, '__qualname__', '')}"
    if module.partition(".")[0] == "pspexp" and not isinstance(found, type) and not {path, name} & named_by_options():
        return "is no class, and no option names it; name it on the command line"
    if module.partition(".")[0] == "torch" and not isinstance(found, type):
        return "is no class; name it on the command line"
    return None


@cache
def is_users_module(name: str) -> bool:
    """Whether a module is found outside of the installed packages: in the working folder, on PYTHONPATH and so on."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return True  # the reason why it cannot be imported follows
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return bool(places) and not any({"site-packages", "dist-packages"} & {*Path(one).parts} for one in places)


@cache
def named_by_options() -> frozenset[str]:
    """The targets in the options of this package."""
    found = set()
    for file in Path(conf_dir()).rglob("*.yaml"):
        found |= {
            value for key, value in _strings(yaml.safe_load(file.read_text(encoding="utf-8"))) if "_target_" in key
        }
    return frozenset(found)


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each string in nested plain values, with its dotted key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _strings(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _strings(value, f"{key}.{index}")
    elif isinstance(node, str):
        yield key, node


def _is_device_part(name: str) -> bool:
    """Whether a name is that of a known plugin, or of torch's own part for a device."""
    return name in PLUGINS or bool(re.fullmatch(r"torch\.\w+\.(amp\.)?(autocast|GradScaler|SyncBatchNorm)", name))
