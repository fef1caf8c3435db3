"""A sweep as a whole: where it lies, what it varies, and whether a command goes on with it."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pspexp.checkpoint import flatten
from pspexp.composition import without_hydra
from pspexp.errors import UserError
from pspexp.overrides import as_typed, read, sweeper_words
from pspexp.tracking.local import write_atomic
from pspexp.tracking.secrets import without_secrets, words_without_secrets

FILE = "sweep.json"
# What may change when a sweep goes on: how and where jobs run, not what they compute.
FREE_NODES = ("launcher", "sweep", "checkpoint", "tracking", "compare", "choices.launcher", "choices.tracking")
FREE_KEYS = (
    "output_root",
    "run_name",
    "rerun",
    "device.index",
    "dataset.root",
    "loader.num_workers",
    "loader.cache_mib",
    "trainer.log_every",
)


@dataclass(frozen=True)
class Sweep:
    """One sweep; the jobs read it from the sweep folder.

    Attributes:
        folder: holds a run folder for each job, and the overview.
        id: tag of the jobs' MLflow runs; no two sweeps share one.
        varies: the values of each key that varies, as typed.
        words: the command's overrides, without secrets.
        config: flat and unresolved, with the first value of what varies.
    """

    folder: Path
    id: str
    varies: dict[str, str]
    words: list[str]
    config: dict[str, Any]


def begin(folder: Path, words: Sequence[str], config: DictConfig) -> Sweep:
    """Begin a sweep in ``folder``, or go on with the one that is there.

    Args:
        folder: of the sweep.
        words: the command's overrides.
        config: composed from them, ``hydra`` included.

    Raises:
        UserError: the folder holds another sweep; names what differs.
    """
    varies = varied(words, config)
    raw = OmegaConf.to_container(without_hydra(config), resolve=False)
    flat = flatten(without_secrets(raw))
    if (folder / FILE).is_file():
        known = load(folder)
        found = [*changed_values(known, varies), *differences(known.config, flat, {**known.varies, **varies})]
        if found:
            raise UserError(*(f"{one} (sweep in {folder}); go on with that, or choose another folder" for one in found))
        return known
    sweep = Sweep(folder, f"{folder.name}-{secrets.token_hex(2)}", varies, words_without_secrets(words), flat)
    write_atomic(folder / FILE, json.dumps({**asdict(sweep), "folder": folder.name}, indent=2, default=str) + "\n")
    return load(folder)  # what JSON makes of it, so that going on compares like with like


def load(folder: Path) -> Sweep:
    """The sweep that a folder holds."""
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return Sweep(**{**content, "folder": folder.absolute()})


def varied(words: Sequence[str], config: DictConfig) -> dict[str, str]:
    """The values, as typed, of each key or group that takes several: on the command line or by the sweeper."""
    typed = read(words)
    params = read(sweeper_words(config, typed))
    return {one.key_or_group: as_typed(one) for one in [*params, *typed] if one.is_sweep_override()}


def changed_values(known: Sweep, varies: Mapping[str, str]) -> list[str]:
    """One line for each key that varies otherwise than before."""
    keys = sorted(known.varies.keys() | varies.keys())
    return [
        f"{key}={varies.get(key, 'one value')}: was {known.varies.get(key, 'one value')}"
        for key in keys
        if varies.get(key) != known.varies.get(key)
    ]


def differences(then: Mapping[str, Any], now: Mapping[str, Any], varies: Mapping[str, str] = {}) -> list[str]:
    """One line for each value that makes a job another one than before.

    Args:
        then, now: flat configurations.
        varies: keys that are left out, with what is below them.
    """
    left_out = (*FREE_NODES, *FREE_KEYS, *varies, *(f"choices.{key}" for key in varies))
    return [
        f"{key}={now.get(key)}: was {then.get(key)}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not any(key == one or key.startswith(f"{one}.") for one in left_out)
    ]
