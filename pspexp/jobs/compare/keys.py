"""Which configuration keys differ between runs, and what to call them."""

from collections.abc import Mapping, Sequence

from pspexp.config.resume import MACHINE_KEYS
from pspexp.jobs.compare.run_set import Run

# Where records and data lie, how a run was asked for, watched or resumed, and what its machine was like: no part of an
# experiment.
NO_PART = {
    *("run_name", "output_root", "rerun", "choices.experiment", "choices.sweep", "choices.tracking"),
    *("checkpoint.resume", "checkpoint.allow_world_size_change", "checkpoint.every_steps"),
    *("launcher.master_addr", "launcher.master_port", "launcher.node_rank", "launcher.rendezvous_dir"),
    *MACHINE_KEYS,
}
NO_PART_NODES = {"tracking", "sweep", "compare"}
SEED = "seed"
OWNERS = ("dataset", "model")  # of values that others repeat


def differing(runs: Sequence[Run]) -> dict[str, tuple[str | None, ...]]:
    """Configuration keys whose values are not all the same, with the value of each run that has a configuration.

    What is not known of a run counts as being as in the first one. Chosen options come first, the seed last. Left out
    are keys that only repeat another one, and what a chosen option implies unless somebody typed it.
    """
    first: dict[str, str] = next((parts(run.config) for run in runs if run.config and run.is_whole), {})
    configs = [({} if run.is_whole else first) | parts(run.config) for run in runs if run.config]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    values = {key: tuple(config.get(key) for config in configs) for key in keys}
    found = {key: row for key, row in values.items() if len(set(row)) > 1}
    typed = frozenset[str]().union(*(run.typed for run in runs))
    kept: list[str] = []
    for key in sorted(found, key=lambda key: (key.count("."), *(not key.startswith(f"{owner}.") for owner in OWNERS))):
        echoed = any(found[key] == found[other] and is_named_after(key, other) for other in kept)
        if not echoed and (key in typed or not is_implied(key, found)):
            kept.append(key)
    ordered = sorted(kept, key=lambda key: (key == SEED, not key.startswith("choices."), list(found).index(key)))
    return {key: found[key] for key in ordered}


def is_named_after(key: str, other: str) -> bool:
    """Whether a key repeats another one's name, or its end, as ``stride`` does ``output_stride``."""
    name, owner = key.rpartition(".")[2], other.rpartition(".")[2]
    return f"_{owner}".endswith(f"_{name}")


def parts(config: Mapping[str, str]) -> dict[str, str]:
    """The keys of a configuration that are a part of the experiment; equal values are equal texts."""
    unused = {"checkpoint.path"} if config.get("mode") == "train" else set()
    left_out = NO_PART | unused
    return {
        key: comparable(value)
        for key, value in config.items()
        if key not in left_out and key.partition(".")[0] not in NO_PART_NODES
    }


def comparable(value: str) -> str:
    """A value's text, by which ``1`` is ``1.0`` and ``1e-3`` is ``0.001``."""
    try:
        return repr(float(value))
    except ValueError:
        return value


def is_implied(key: str, found: dict[str, tuple[str | None, ...]]) -> bool:
    """Whether a key says nothing beside the option chosen in its group: a class, a list, or one that others lack."""
    options, row = found.get(f"choices.{key.partition('.')[0]}"), found[key]
    if options is None or len(set(zip(options, row, strict=True))) > len(set(options)):
        return False
    is_list = any(value is not None and value.startswith("[") for value in row)
    return key.rpartition(".")[2].startswith("_") or is_list or None in row
