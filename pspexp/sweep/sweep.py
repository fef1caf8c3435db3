"""A sweep as a whole: where it lies, what it varies, and whether a command goes on with it."""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pspexp.config.compose import without_hydra
from pspexp.config.overrides import as_typed, read, sweeper_words
from pspexp.config.resume import MACHINE_KEYS
from pspexp.errors import UserError
from pspexp.tracking import runs
from pspexp.tracking.secrets import mask_overrides, mask_secrets
from pspexp.utils.files import write_text_atomic
from pspexp.utils.trees import flatten

FILE, JOB_FILE = "sweep.json", "job.json"
# What may change when a sweep goes on: how and where jobs run, not what they compute.
FREE_NODES = ("launcher", "sweep", "tracking", "compare", "choices.launcher", "choices.tracking")
FREE_KEYS = (
    "output_root",
    "run_name",
    "checkpoint.every_steps",
    "checkpoint.allow_world_size_change",
    *MACHINE_KEYS,
)


@dataclass(frozen=True)
class Sweep:
    """One sweep; the jobs read it from the sweep folder.

    Attributes:
        folder: holds a run folder for each job, and the overview.
        id: tag of the jobs' MLflow runs; no two sweeps share one.
        varies: the values of each key that varies, as typed but without secrets, in the order of Hydra's numbers.
        config: flat and unresolved, with the first value of what varies.
    """

    folder: Path
    id: str
    varies: dict[str, str]
    config: dict[str, Any]


def begin(folder: Path, words: Sequence[str], config: DictConfig) -> Sweep:
    """Begin a sweep in ``folder``, or go on with the one that is there.

    Args:
        folder: of the sweep.
        words: the command's overrides.
        config: composed from them, ``hydra`` included.

    Raises:
        UserError: the folder holds another sweep, names what differs; or all jobs would share one folder.
    """
    refuse_one_for_all(config)
    varies = varied(words, config)
    raw: Any = OmegaConf.to_container(without_hydra(config), resolve=False)
    flat = flatten(mask_secrets(raw))
    with runs.run_dir_lock(folder, ".begin.lock", wait=True):  # of two that begin at once, one finds the other's
        if (folder / FILE).is_file():
            known = load(folder)
            refuse_another(known, varies, flat)
            return known
        refuse_occupied(folder)
        readable = re.sub(r"[^\w.-]", "_", folder.name)  # MLflow's filter knows no escaped quotes
        sweep = Sweep(folder, f"{readable}-{secrets.token_hex(2)}", varies, flat)
        write_text_atomic(
            folder / FILE, json.dumps({**asdict(sweep), "folder": folder.name}, indent=2, default=str) + "\n"
        )
        return load(folder)  # what JSON makes of it, so that going on compares like with like


def refuse_one_for_all(config: DictConfig) -> None:
    """Raise UserError if the jobs' folders have one name."""
    subdir = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])  # type: ignore[call-overload,index]
    if "${" not in subdir:
        raise UserError(
            f"hydra.sweep.subdir={subdir}: all jobs would share it; put what varies, or ${{hydra.job.num}}, into it"
        )


def refuse_occupied(folder: Path) -> None:
    """Raise UserError if a new sweep would mix with what a folder holds."""
    if (folder / "config.yaml").exists() and (folder / "overrides.txt").exists():
        raise UserError(f"hydra.sweep.dir={folder}: holds a run; choose another folder")
    if any(folder.glob(f"*/{JOB_FILE}")):
        raise UserError(f"hydra.sweep.dir={folder}: holds jobs of a sweep, but not its {FILE}; choose another folder")


def refuse_another(known: Sweep, varies: Mapping[str, str], flat: Mapping[str, Any]) -> None:
    """Raise UserError if a command that varies ``varies`` is not the one that began the sweep."""
    changed = [key for key in sorted(known.varies.keys() | varies.keys()) if known.varies.get(key) != varies.get(key)]
    found = [f"{key}={varies.get(key, 'one value')}: was {known.varies.get(key, 'one value')}" for key in changed]
    found += differences(known.config, flat, changed)  # of what varies as before the first values are compared
    if not found and list(known.varies) != list(varies):  # by which Hydra numbers the jobs
        found = [f"the order {', '.join(varies)}: was {', '.join(known.varies)}"]
    if found:
        raise UserError(
            *(f"{one} (sweep in {known.folder}); go on with that, or choose another folder" for one in found)
        )


def load(folder: Path) -> Sweep:
    """The sweep that a folder holds.

    Raises:
        UserError: its file cannot be read.
    """
    file = folder / FILE
    with readable(file, "choose another hydra.sweep.dir"):
        content = json.loads(file.read_text(encoding="utf-8"))
        return Sweep(**{**content, "folder": folder.absolute()})


@contextmanager
def readable(file: Path, otherwise: str) -> Iterator[None]:
    """Raise UserError where what is read from ``file`` is damaged; it says what to do ``otherwise``."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); mend it, or {otherwise}") from error


def varied(words: Sequence[str], config: DictConfig) -> dict[str, str]:
    """The values, as typed, of each key or group that takes several: on the command line or by the sweeper.

    Raises:
        UserError: such a key is typed once more after that, which would count in every job.
    """
    typed = read(mask_overrides(words))
    last = {one.key_or_group: one for one in typed}
    problems = [
        f"{one.input_line}: {last[one.key_or_group].input_line} comes after it; leave one of them out"
        for one in typed
        if one.is_sweep_override() and one is not last[one.key_or_group]
    ]
    if problems:
        raise UserError(*problems)
    params = read(mask_overrides(sweeper_words(config, typed)))
    return {one.key_or_group: as_typed(one) for one in [*params, *typed] if one.is_sweep_override()}


def differences(then: Mapping[str, Any], now: Mapping[str, Any], left_out: Sequence[str] = ()) -> list[str]:
    """One line for each value that makes a job another one than before.

    Args:
        then, now: flat configurations.
        left_out: keys that are not compared, with what is below them, beside those that may change.
    """
    free = (*FREE_NODES, *FREE_KEYS, *left_out, *(f"choices.{key}" for key in left_out))
    lines = [
        f"{key}={now.get(key)}: was {then.get(key)}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not any(key == one or key.startswith(f"{one}.") for one in free)
    ]
    # Batch sizes are per process.
    sizes = [processes(flat) for flat in (now, then)]
    if sizes[0] != sizes[1] and "launcher" not in left_out:
        lines.append(f"launcher: {sizes[0]} processes, was {sizes[1]}")
    return lines


def processes(flat: Mapping[str, Any]) -> int:
    """How many compute, by a flat configuration."""
    return int(flat.get("launcher.nproc_per_node", 1) * flat.get("launcher.nnodes", 1))
