"""Runs that differ only in their seed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pspexp.jobs.compare.keys import SEED, parts
from pspexp.jobs.compare.run_set import Run


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (n - 1) of ``n`` values; None where there are too few."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, and the statistics of their metrics."""

    label: str
    runs: list[Run]
    stats: dict[str, Stat]

    def means(self) -> dict[str, float]:
        """The mean of each metric that has one."""
        return {name: stat.mean for name, stat in self.stats.items() if stat.mean is not None}


def seed_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ only in their seed, where there are at least two seeds; in the order of the runs' ranks."""
    groups: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in runs:
        if run.config:
            same = frozenset((key, value) for key, value in parts(run.config).items() if key != SEED)
            groups.setdefault(same, []).append(run)
    return [group for group in groups.values() if len({run.config.get(SEED) for run in group}) > 1]


def label(group: list[Run], keys: dict[str, str]) -> str:
    """What distinguishes a group from other runs."""
    config = group[0].config
    parts = [f"{short}={config[key]}" for key, short in keys.items() if key != SEED and key in config]
    return ", ".join(parts) or "all seeds"


def stats(runs: list[Run], metrics: list[str]) -> dict[str, Stat]:
    """Mean and standard deviation of each metric over those runs that have it."""
    found = {}
    for name in metrics:
        values = [run.metrics[name] for run in runs if name in run.metrics]
        mean = statistics.mean(values) if values else None
        found[name] = Stat(mean, statistics.stdev(values) if len(values) > 1 else None, len(values))
    return found
