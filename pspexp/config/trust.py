"""Which targets a configuration from a file may name.

What a user types, and what an option file of theirs says, is free. A checkpoint, an exported file or a run on a
tracking server may come from anybody, and naming ``os.system`` must not run it. Such files may name what this package's
options name, classes of this package and of the libraries around it, and what ``PSPEXP_ALLOW_TARGETS`` allows
(patterns, comma-separated). A run folder is one's own: it may also name classes of any package, and what is not part of
an installed package, such as functions in the working folder. No file may name Python's own modules. What counts is
where a class or function is defined, not the module through which it is reached.
"""

import re
import sys
from collections.abc import Collection, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from pspexp.config.options import conf_dir
from pspexp.config.targets import TargetError, find_target
from pspexp.errors import UserError
from pspexp.utils.allowed import how_to_allow, is_allowed, matches

# Packages whose classes may be named, and functions that build networks.
CLASSES = (
    "albumentations.*", "segmentation_models_pytorch.*", "torch.nn.*", "torch.optim.*", "torchvision.models.*",
    "torchvision.ops.*", "torchvision.transforms.*",
    *(f"timm.{part}.*" for part in ("layers", "loss", "models", "optim", "scheduler")),
    *(f"pspexp.{room}.*" for room in ("data", "inference", "losses", "metrics", "models", "optim", "engine.hooks")),
    "pspexp.tracking.mlflow.*",
)  # fmt: skip
FUNCTIONS = (
    "timm.models._factory.create_model", "segmentation_models_pytorch.create_model", "torch.nn.functional.*",
    "torch.nn.init.*", "torchvision.models.*", "torchvision.ops.*", "torchvision.transforms.*",
)  # fmt: skip
# Parts of these that generate code from names, or load files.
EXCEPT = (
    "timm.models._features*", "timm.models._h*", "torchvision.models.feature_extraction.*",
    "torchvision.models._utils.*",
)  # fmt: skip
PACKAGES = {name.partition(".")[0] for name in CLASSES}
# They run code that is named or contained in their arguments.
NEVER = {*sys.stdlib_module_names, "hydra", "omegaconf", "pip", "pkg_resources", "setuptools", "cloudpickle", "joblib"}
# Arguments of a device whose values are names to import, and of timm's function whose files may hold code.
IMPORTED = ("plugin", "autocast", "grad_scaler", "sync_batch_norm")
LOADED = ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")
PLUGINS = ("torch_npu", "torch_sdaa")
# Taken from a checkpoint even if another option is chosen.
ALWAYS_TAKEN = [("dataset", name) for name in ("mean", "std", "class_names", "label_values", "palette")]


def refuse_untrusted(
    saved: Any,
    source: str,
    *,
    own: bool,
    explicit: Collection[str] = (),
    today: DictConfig | None = None,
) -> None:
    """Check a configuration from a file, nested nodes included.

    Args:
        saved: Plain values.
        source: How the user names the file: ``checkpoint.path=best.pt``.
        own: Whether it lies in a run folder.
        explicit: Keys whose saved values are not used.
        today: The configuration that the user has composed; a target that stands in it at the same key is theirs.

    Raises:
        UserError: It names what it may not name; lists all of that.
    """
    given = {tuple(key.split(".")) for key in explicit}
    problems = []
    for parts, value in _strings(saved):
        always = any(parts[:2] == key and key not in given for key in ALWAYS_TAKEN)
        if not always and any(parts[:end] in given for end in range(1, len(parts) + 1)):
            continue
        place = ".".join(parts)
        if today is not None and _select(today, parts) == value:
            continue
        if "${" in value:
            problems.append(
                f"{source}: {place}={value}: an interpolation, which no record of a run contains; give it yourself"
            )
        elif parts[-1] == "_target_" and (reason := refusal(value, own=own)):
            problems.append(f"{source}: {place}={value}: {reason}")
        elif parts[-1] in IMPORTED and not _is_device_part(value, own=own):
            problems.append(f"{source}: {place}={value}: is not imported from a file; give it on the command line")
        elif not own and {*LOADED} & {*parts}:
            problems.append(f"{source}: {place}={value}: is not loaded because a file names it; give it yourself")
    if problems:
        raise UserError(*problems)


def refusal(path: str, *, own: bool) -> str | None:
    """Why a file may not name a target; None if it may."""
    top = path.partition(".")[0]
    if top in NEVER:
        return "Python's own and Hydra's functions are never run because a file names them"
    if not own and top not in PACKAGES and not is_allowed(path):  # it is not even imported
        return _advice(f"{top}.*")
    try:
        found = find_target(path)
    except TargetError:
        return None  # reported with its reason when the configuration is checked
    while isinstance(found, partial):
        found = found.func
    module = str(getattr(found, "__module__", None) or type(found).__module__)
    name = f"{module}.{getattr(found, '__qualname__', '?')}"
    if module.partition(".")[0] in NEVER:  # reached through a module that imports it
        return f"is {name}, which is never run because a file names it"
    is_class, package = isinstance(found, type), module.partition(".")[0]
    if (
        {name, path} & named_by_options()
        or is_allowed(name)
        or matches(name, CLASSES if is_class else FUNCTIONS)
        or (own and package not in ("pspexp", "torch") and (is_users_module(package) or _is_part(found)))
    ) and not matches(name, EXCEPT):
        return None
    return _advice(f"{top}.*" if package == top and is_users_module(top) else name)


def _advice(pattern: str) -> str:
    return f"is not run because a file names it; {how_to_allow(pattern)}"


def _is_part(found: Any) -> bool:
    """Whether a target is a class of networks, losses, metrics, optimizers or schedules: making one starts nothing."""
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    return isinstance(found, type) and issubclass(found, nn.Module | Optimizer | LRScheduler)


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


def _strings(node: Any, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each string in nested plain values, with the keys that lead to it."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _strings(value, (*parts, str(name)))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _strings(value, (*parts, str(index)))
    elif isinstance(node, str):
        yield parts, node


def _select(config: DictConfig, parts: tuple[str, ...]) -> Any:
    """The value that the user has composed at a key; None if there is none."""
    node: Any = config
    for part in parts:
        is_list = isinstance(node, ListConfig)
        key: Any = int(part) if is_list and part.isdecimal() else part
        inside = key in range(len(node)) if is_list else isinstance(node, DictConfig) and key in node
        if not inside:
            return None
        node = node._get_node(key)
    return node._value() if node is not None and not OmegaConf.is_config(node) else None


def _is_device_part(name: str, *, own: bool) -> bool:
    """Whether a name is that of a known plugin, or of torch's own part for a device; of one's own run, any plugin."""
    torchs = re.fullmatch(r"torch\.\w+\.(amp\.)?(autocast|GradScaler|SyncBatchNorm)", name)
    top = name.partition(".")[0]
    return name in PLUGINS or bool(torchs) or (own and top not in NEVER)
