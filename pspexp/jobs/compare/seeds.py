"""Statistics over runs that differ only in their seed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pspexp.jobs.compare.keys import SEED, relevant
from pspexp.jobs.compare.run_set import Run


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation (n - 1) of ``n`` values; None if there are too few."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ only in their seed, and the statistics of their metrics."""

    label: str
    runs: list[Run]
    stats: dict[str, MeanStd]

    def means(self) -> dict[str, float]:
        """The metrics' means, where defined."""
        return {name: stat.mean for name, stat in self.stats.items() if stat.mean is not None}


def seed_groups(runs: Sequence[Run], keys: dict[str, str], metrics: Sequence[str]) -> list[SeedGroup]:
    """Group runs that differ only in their seed; groups with a single seed are omitted.

    Args:
        runs: The runs.
        keys: Keys in which runs differ → their short names, for labels.
        metrics: Metrics to compute statistics of.
    """
    groups: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in runs:
        if run.config:
            settings = frozenset((key, value) for key, value in relevant(run.config).items() if key != SEED)
            groups.setdefault(settings, []).append(run)
    return [
        SeedGroup(group_label(group[0], keys), group, {name: mean_std(name, group) for name in metrics})
        for group in groups.values()
        if len({run.config.get(SEED) for run in group}) > 1
    ]


def group_label(run: Run, keys: dict[str, str]) -> str:
    """The settings that distinguish a run's group from others."""
    settings = [f"{name}={run.config[key]}" for key, name in keys.items() if key != SEED and key in run.config]
    return ", ".join(settings) or "all seeds"


def mean_std(metric: str, runs: list[Run]) -> MeanStd:
    """The statistics of a metric over the runs that have it."""
    values = [run.metrics[metric] for run in runs if metric in run.metrics]
    mean = statistics.mean(values) if values else None
    return MeanStd(mean, statistics.stdev(values) if len(values) > 1 else None, len(values))
