"""A sweep as a whole: its folder, what it varies, and whether a command resumes it."""

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig, OmegaConf

from pspexp.config.compose import without_hydra
from pspexp.config.modes import COMMAND_NODES
from pspexp.config.overrides import read, sweeper_overrides, value_text
from pspexp.config.resume import MACHINE_KEYS, RESOLVED_PRECISION
from pspexp.errors import UserError, as_yaml
from pspexp.tracking import runs
from pspexp.tracking.secrets import mask_overrides, mask_secrets
from pspexp.utils.files import write_text_atomic
from pspexp.utils.text import one_line
from pspexp.utils.trees import flatten

Plain = dict[str, Any]

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
SWEEP_FILE, JOB_FILE = "sweep.json", "job.json"
# What may change when a sweep is resumed: how and where jobs run, not what they compute.
FREE_NODES = ("launcher", *COMMAND_NODES, "tracking", "choices.launcher", "choices.tracking")
FREE_KEYS = (
    "output_root",
    "run_name",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.keep_last",
    "checkpoint.allow_world_size_change",
    *MACHINE_KEYS,
    RESOLVED_PRECISION,
)


@dataclass(frozen=True)
class Sweep:
    """A sweep, stored as ``sweep.json`` in its folder.

    Attributes:
        folder: Contains a run folder for each job, and the overview.
        id: Unique id, which tags the jobs' MLflow runs.
        varies: Varied keys → their values as written, secrets masked, in the order in which Hydra numbers the jobs.
        config: The flat, unresolved configuration, with the first value of each varied key.
        jobs: The values of each job, by number; None for a search, and if values cannot be told apart.
    """

    folder: Path
    id: str
    varies: dict[str, str]
    config: dict[str, Any]
    jobs: list[dict[str, Any]] | None = None


def begin_or_resume(folder: Path, overrides: Sequence[str], config: DictConfig) -> Sweep:
    """Begin a sweep in ``folder``, or resume the one that is there, perhaps with other values.

    Args:
        folder: The sweep folder.
        overrides: Overrides of the command.
        config: The configuration composed from them, ``hydra`` included.

    Raises:
        UserError: The folder contains a different sweep or a run, or all jobs would share one folder.
    """
    refuse_shared_folder(config)
    varies = varied(overrides, config)
    jobs = planned_jobs(overrides, config, varies)
    raw: Any = OmegaConf.to_container(without_hydra(config), resolve=False)
    flat = flatten(mask_secrets(raw))
    with runs.run_dir_lock(folder, ".begin.lock", wait=True):  # of two that begin at once, the second finds the first
        if (folder / SWEEP_FILE).is_file():
            known = load_sweep(folder)
            refuse_another(known, varies, flat, jobs, subdir_of(config))
            if varies == known.varies:
                return known
            sweep = extended(known, varies, flat, jobs or [])
        else:
            refuse_occupied(folder)
            readable = re.sub(r"[^\w.-]", "_", folder.name)  # MLflow's filters cannot escape quotes
            sweep = Sweep(folder, f"{readable}-{secrets.token_hex(2)}", varies, flat, jobs)
        write_text_atomic(
            folder / SWEEP_FILE, json.dumps({**asdict(sweep), "folder": folder.name}, indent=2, default=str) + "\n"
        )
        return load_sweep(folder)  # as JSON represents it, so that resuming compares like with like


def refuse_shared_folder(config: DictConfig) -> None:
    """Raise UserError if all jobs would have the same folder."""
    subdir = subdir_of(config)
    if "${" not in subdir:
        raise UserError(f"hydra.sweep.subdir={subdir}: all jobs would share it; add ${{hydra.job.num}} or a varied key")


def subdir_of(config: DictConfig) -> str:
    """The unresolved ``hydra.sweep.subdir``."""
    return str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])  # type: ignore[call-overload,index]


def refuse_occupied(folder: Path) -> None:
    """Raise UserError if a folder contains a run or an unknown sweep."""
    if (folder / "config.yaml").exists() and (folder / "overrides.txt").exists():
        raise UserError(f"hydra.sweep.dir={folder}: contains a run; choose another folder")
    if any(folder.glob(f"*/{JOB_FILE}")):
        raise UserError(
            f"hydra.sweep.dir={folder}: contains jobs of a sweep, but no {SWEEP_FILE}; choose another folder"
        )


def refuse_another(
    known: Sweep, varies: Mapping[str, str], flat: Mapping[str, Any], jobs: Sequence[Plain] | None, subdir: str
) -> None:
    """Refuse a command that configures something other than the sweep it would resume.

    It may vary other values, and further keys if the value so far is among those of each. A search cannot change.

    Raises:
        UserError: Lists what differs.
    """
    changed = [key for key in sorted(known.varies.keys() | varies.keys()) if known.varies.get(key) != varies.get(key)]
    found = []
    for key in changed:
        before = known.varies.get(key, "one value")
        if known.jobs is None or jobs is None or key not in varies:
            found.append(f"{key}={varies.get(key, 'one value')}: was {before}")
        elif key not in known.varies and configured(known, key) not in [job[key] for job in jobs]:
            value = as_yaml(configured(known, key))
            found.append(f"{key}={varies[key]}: was one value, {value}, which is not among these")
        elif key not in known.varies and "override_dirname" in subdir:
            found.append(f"{key}={varies[key]}: was one value, and hydra.sweep.subdir={subdir} would rename the jobs")
    found += differences(known.config, flat, changed)  # of unchanged varied keys, the first values are compared
    if not found and known.jobs is None and list(known.varies) != list(varies):  # which determines the jobs' numbers
        found = [f"the order {', '.join(varies)}: was {', '.join(known.varies)}"]
    if found:
        raise UserError(*(f"{one} (sweep in {known.folder}); restore that, or choose another folder" for one in found))


def extended(known: Sweep, varies: Mapping[str, str], flat: dict[str, Any], jobs: Sequence[Plain]) -> Sweep:
    """A sweep with the further jobs of a command; the numbers and values of the earlier ones stay."""
    before = [{key: job.get(key, configured(known, key)) for key in varies} for job in known.jobs or ()]
    together = [*before, *(job for job in jobs if job not in before)]

    def values(key: str) -> str:
        everything = dict.fromkeys(str(job[key]) for job in together)
        for text, own in ((varies[key], jobs), (known.varies.get(key), before)):
            if text is not None and everything.keys() == {str(job[key]) for job in own}:
                return text  # as written
        return ",".join(everything)

    keys = list(dict.fromkeys([*known.varies, *varies]))
    return replace(known, varies={key: values(key) for key in keys}, config=flat, jobs=together)


def configured(sweep: Sweep, key: str) -> Any:
    """The value of a key or the option of a group in a sweep's configuration."""
    return sweep.config.get(key, sweep.config.get(f"choices.{key}"))


def load_sweep(folder: Path) -> Sweep:
    """The sweep in a folder.

    Raises:
        UserError: Its file cannot be read.
    """
    file = folder / SWEEP_FILE
    with user_error_for(file, "choose another hydra.sweep.dir"):
        content = json.loads(file.read_text(encoding="utf-8"))
        return Sweep(**{**content, "folder": folder.absolute()})


@contextmanager
def user_error_for(file: Path, alternative: str) -> Iterator[None]:
    """Turn errors from reading ``file`` into a UserError; ``alternative`` names another remedy than fixing the file."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)}); fix it, or {alternative}") from error


def varied(overrides: Sequence[str], config: DictConfig) -> dict[str, str]:
    """The values, as written, of each key or group with several, from the command line or the sweeper's parameters.

    Raises:
        UserError: A later override of such a key would replace them in every job.
    """
    explicit = read(mask_overrides(overrides))
    last = {one.key_or_group: one for one in explicit}
    problems = [
        f"{one.input_line}: {last[one.key_or_group].input_line} overrides it; remove one of them"
        for one in explicit
        if one.is_sweep_override() and one is not last[one.key_or_group]
    ]
    if problems:
        raise UserError(*problems)
    params = read(mask_overrides(sweeper_overrides(config, explicit)))
    return {one.key_or_group: value_text(one) for one in [*params, *explicit] if one.is_sweep_override()}


def planned_jobs(overrides: Sequence[str], config: DictConfig, varies: Collection[str]) -> list[Plain] | None:
    """The values of each job of a grid, in Hydra's order; None for a search, and if values cannot be told apart."""
    explicit = read(overrides)
    given = [*read(sweeper_overrides(config, explicit)), *explicit]
    keys = [one.get_key_element() for one in given]
    several = [one for one in given if one.is_sweep_override()]
    several.sort(key=lambda one: keys.index(one.get_key_element()))  # Hydra: the place of the first override of a key
    if config.hydra.sweeper._target_ != BASIC_SWEEPER or any(isinstance(one.value(), Glob) for one in several):
        return None
    texts = [[f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()] for one in several]
    jobs = [values_of(varies, job) for job in product(*texts)]
    return None if any(job in jobs[:number] for number, job in enumerate(jobs)) else jobs


def values_of(varies: Collection[str], overrides: Sequence[str]) -> Plain:
    """A job's value of each varied key, as JSON represents it, secrets masked."""
    values = {one.key_or_group: one.value() for one in read(overrides)}
    return {key: mask_secrets(plain(values.get(key)), key) for key in varies}


def plain(value: Any) -> Any:
    """A value that JSON can represent."""
    return value if isinstance(value, bool | int | float | None) else str(value)


def differences(then: Mapping[str, Any], now: Mapping[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    """One line for each value that changes what a job computes.

    Args:
        then, now: Flat configurations.
        ignored: Keys that are not compared, including those below them, besides those that may change.
    """
    free = (*FREE_NODES, *FREE_KEYS, *ignored, *(f"choices.{key}" for key in ignored))
    lines = [
        f"{key}={as_yaml(now.get(key))}: was {as_yaml(then.get(key))}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not any(key == one or key.startswith(f"{one}.") for one in free)
    ]
    # Batch sizes are per process.
    sizes = [processes(flat) for flat in (now, then)]
    if sizes[0] != sizes[1] and "launcher" not in ignored:
        lines.append(f"launcher: {sizes[0]} processes, was {sizes[1]}")
    return lines


def processes(flat: Mapping[str, Any]) -> int:
    """The number of processes, by a flat configuration."""
    return int(flat.get("launcher.nproc_per_node", 1) * flat.get("launcher.nnodes", 1))
