"""How runs differ: configuration, metrics, seeds, classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pspexp.config.overrides import short_names
from pspexp.errors import UserError
from pspexp.jobs.compare.classes import (
    ClassRow,
    ComparedItem,
    baseline_first,
    check_baseline,
    compare_classes,
    compared_items,
    descending,
)
from pspexp.jobs.compare.keys import SEED, differing, without_unused_settings
from pspexp.jobs.compare.run_set import METRICS, SPLITS, Run
from pspexp.jobs.compare.seeds import SeedGroup, seed_groups


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        runs: Best first; runs without a mean IoU last.
        keys: Dotted configuration keys that differ → short names.
        metrics: Names of the metrics that at least one run has.
        groups: Seed groups, best first.
        split: ``val`` or ``test``, whose tables are compared; None if there are none.
        items: Columns of the class table, the baseline first, then in the order of the runs.
        classes: Rows of the class table, largest differences first.
        notes: Caveats for the reader.
    """

    runs: list[Run]
    keys: dict[str, str]
    metrics: list[str]
    groups: list[SeedGroup]
    split: str | None
    items: list[ComparedItem]
    classes: list[ClassRow]
    notes: list[str]


def compare(runs: Sequence[Run], baseline: str | None) -> Comparison:
    """Compare runs.

    Args:
        runs: In the order in which they were specified.
        baseline: Name, folder or ``runs:/<id>`` of the run that class IoUs are compared with; None for the first run.

    Raises:
        UserError: There are fewer than two runs, or the baseline is not one of them.
    """
    if len(runs) < 2:
        raise UserError(f"mode=compare: needs at least two runs, found one ({runs[0].where}); add to compare.runs")
    runs = with_labels(without_unused_settings(runs))
    split = common_split(runs)
    keys = short_names(differing(runs))
    ordered = sorted(runs, key=lambda run: descending(score(run.metrics, split)))
    metrics = [name for name in METRICS if any(name in run.metrics for run in runs)]
    groups = seed_groups(ordered, keys, metrics)
    groups.sort(key=lambda group: descending(score(group.means(), split)))
    items, notes = compared_items(ordered, groups, split, baseline)
    classes: list[ClassRow] = []
    if items:
        items = baseline_first(items, runs, baseline)
        classes, class_notes = compare_classes(items)
        notes += class_notes
    else:
        check_baseline(runs, baseline)
        notes.append("No run has per-class results: only finished runs do")
    notes += warnings_about(runs, groups)
    return Comparison(ordered, keys, metrics, groups, split, items, classes, notes)


def common_split(runs: Sequence[Run]) -> str | None:
    """The split for which most runs have a table."""
    counts = {split: sum(split in run.tables for run in runs) for split in SPLITS}
    best = max(SPLITS, key=counts.__getitem__)
    return best if counts[best] else None


def score(metrics: dict[str, float], split: str | None) -> float | None:
    """The mean IoU by which runs are ranked; all of one split, since those of two splits are not comparable."""
    name = "test/mean_iou" if split == "test" else "best/mean_iou"
    return metrics.get(name, metrics.get(f"{split}/mean_iou"))


def with_labels(runs: Sequence[Run]) -> list[Run]:
    """Label runs with their names; where two are equal, with a folder name or id appended."""
    counts = Counter(run.name for run in runs)
    labels = [run.name if counts[run.name] == 1 else f"{run.name} ({origin(run)})" for run in runs]
    counts = Counter(labels)
    return [
        replace(run, label=label if counts[label] == 1 else f"{run.name} ({run.where})")
        for run, label in zip(runs, labels, strict=True)
    ]


def origin(run: Run) -> str:
    """A short hint at where a run comes from."""
    if run.folder is None:
        return run.where.removeprefix("runs:/")[:8]
    return run.folder.parent.name if run.folder.name == run.name else run.folder.name


def warnings_about(runs: Sequence[Run], groups: Sequence[SeedGroup]) -> list[str]:
    """Reasons why numbers are less comparable than they look."""
    notes = []
    evaluated = [run for run in runs if run.metrics or run.tables]
    sets = list(dict.fromkeys(run.config["choices.dataset"] for run in evaluated if "choices.dataset" in run.config))
    if len(sets) > 1:
        notes.append(f"The runs were evaluated on different data sets: {', '.join(sets)}")
    for group in groups:
        for seed, count in Counter(run.config.get(SEED) for run in group.runs if run.metrics).items():
            if count > 1:
                notes.append(f"{group.label}: {count} runs have seed {seed}; all of them count in the mean")
    return notes
