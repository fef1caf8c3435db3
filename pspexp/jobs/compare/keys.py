"""The configuration keys in which runs differ."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pspexp.config.modes import COMMAND_NODES
from pspexp.config.resume import MACHINE_KEYS
from pspexp.jobs.compare.run_set import Run

# Paths, tracking, resuming and hardware: none of it defines an experiment.
IGNORED_KEYS = {
    *("run_name", "output_root", "rerun", "choices.experiment", "choices.sweep", "choices.tracking"),
    *("checkpoint.resume", "checkpoint.allow_world_size_change", "checkpoint.every_steps"),
    *("checkpoint.keep", "checkpoint.keep_last"),
    *("launcher.master_addr", "launcher.master_port", "launcher.node_rank", "launcher.rendezvous_dir"),
    *MACHINE_KEYS,
}
IGNORED_NODES = {"tracking", *COMMAND_NODES}
TRAINING_NODES = {"augment", "finetune", "hooks", "optimizer", "scheduler", "trainer"}
SEED = "seed"
OWNERS = ("dataset", "model")  # of values that other nodes interpolate

Row = tuple[str | None, ...]


def differing(runs: Sequence[Run]) -> dict[str, Row]:
    """The keys whose values differ, with the value of each run that has a configuration.

    Unknown values are assumed to be those of the first run; see also `without_unused_settings`. Chosen options come
    first, the seed last. Keys that repeat another key are omitted, as are those implied by a chosen option, unless they
    were set on a command line.
    """
    first: dict[str, str] = next((relevant(run.config) for run in runs if run.config and run.is_complete), {})
    configs = [({} if run.is_complete else first) | relevant(run.config) for run in runs if run.config]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    values = {key: tuple(config.get(key) for config in configs) for key in keys}
    trainings = [index for index, config in enumerate(configs) if config.get("mode") == "train"]
    using = {key: trainings if trainings and is_of_training(key) else range(len(configs)) for key in keys}
    found = {key: row for key, row in values.items() if len({row[index] for index in using[key]}) > 1}
    explicit = frozenset[str]().union(*(run.explicit_keys for run in runs))
    kept: list[str] = []
    for key in sorted(found, key=lambda key: (key.count("."), *(not key.startswith(f"{owner}.") for owner in OWNERS))):
        repeated = any(found[key] == found[other] and is_named_after(key, other) for other in kept)
        if not repeated and (key in explicit or not is_implied(key, found)):
            kept.append(key)
    ordered = sorted(kept, key=lambda key: (key == SEED, not key.startswith("choices."), list(found).index(key)))
    return {key: found[key] for key in ordered}


def without_unused_settings(runs: Sequence[Run]) -> list[Run]:
    """The runs; beside trainings, tests without the settings of training, which say nothing about their network."""
    if all(run.config.get("mode") != "train" for run in runs):
        return list(runs)
    return [
        replace(run, config={key: value for key, value in run.config.items() if not is_of_training(key)})
        if run.config.get("mode") == "test"
        else run
        for run in runs
    ]


def is_of_training(key: str) -> bool:
    """Whether only trainings use the value."""
    return key.removeprefix("choices.").partition(".")[0] in TRAINING_NODES


def is_named_after(key: str, other: str) -> bool:
    """Whether the last part of ``key`` equals that of ``other`` or its end, as in ``stride`` and ``output_stride``."""
    return f"_{other.rpartition('.')[2]}".endswith(f"_{key.rpartition('.')[2]}")


def relevant(config: Mapping[str, str]) -> dict[str, str]:
    """The keys of a configuration that define the experiment, with comparable values."""
    ignored = IGNORED_KEYS | ({"checkpoint.path"} if config.get("mode") == "train" else set())
    return {
        key: comparable(value)
        for key, value in config.items()
        if key not in ignored and key.partition(".")[0] not in IGNORED_NODES
    }


def comparable(value: str) -> str:
    """The same text for equal numbers, such as ``1`` and ``1.0``, or ``1e-3`` and ``0.001``."""
    try:
        return repr(float(value))
    except ValueError:
        return value


def is_implied(key: str, found: Mapping[str, Row]) -> bool:
    """Whether ``key`` adds nothing to the option chosen in its group: a class, a list, or a key that others lack."""
    options, row = found.get(f"choices.{key.partition('.')[0]}"), found[key]
    if options is None or len(set(zip(options, row, strict=True))) > len(set(options)):
        return False
    is_list = any(value is not None and value.startswith("[") for value in row)
    return key.rpartition(".")[2].startswith("_") or is_list or None in row
