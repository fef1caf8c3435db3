"""What differs between runs: configuration, metrics, seeds, classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pspexp.config.overrides import short_names
from pspexp.errors import UserError
from pspexp.jobs.compare.classes import ClassRow, Unit, as_units, baseline_first, check_baseline, compare_classes, rank
from pspexp.jobs.compare.keys import SEED, differing
from pspexp.jobs.compare.run_set import BEST, SCORES, SPLITS, Run
from pspexp.jobs.compare.seeds import Group, label, seed_groups, stats


@dataclass(frozen=True)
class Comparison:
    """The result.

    Attributes:
        runs: the best first, those without a mean IoU last.
        labels: a name for each of them that no other has.
        keys: dotted configuration key that differs → its short name.
        metrics: names of those that some run has.
        groups: the best first.
        split: ``val`` or ``test``, whose tables are compared; None without any.
        units: the baseline first, then as the runs.
        classes: the largest differences first.
        notes: what a reader must know.
    """

    runs: list[Run]
    labels: list[str]
    keys: dict[str, str]
    metrics: list[str]
    groups: list[Group]
    split: str | None
    units: list[Unit]
    classes: list[ClassRow]
    notes: list[str] = field(default_factory=list)


def compare(runs: Sequence[Run], baseline: str | None) -> Comparison:
    """Compare runs.

    Args:
        runs: in the order in which they were named.
        baseline: name, folder or ``runs:/<id>`` of the run that the classes are compared with; None for the first.

    Raises:
        UserError: there are fewer than two runs, or no such baseline.
    """
    if len(runs) < 2:
        raise UserError(f"mode=compare: needs two runs or more, found one ({runs[0].where}); name more in compare.runs")
    split = chosen_split(runs)
    keys = short_names(differing(runs))
    ordered = sorted(runs, key=lambda run: rank(score(run.metrics, split)))
    metrics = [name for name in metric_names() if any(name in run.metrics for run in runs)]
    groups = [Group(label(one, keys), one, stats(one, metrics)) for one in seed_groups(ordered)]
    groups.sort(key=lambda group: rank(score(group.means(), split)))
    labels = dict(zip(map(id, ordered), unique_names(ordered), strict=True))
    units, notes = as_units(ordered, labels, groups, split, baseline)
    if units:
        units = baseline_first(units, runs, labels, baseline)
        classes, told = compare_classes(units)
    else:
        check_baseline(runs, labels, baseline)
        classes, told = [], ["No run has a table of its classes: only finished runs have one"]
    notes += [*told, *cautions(runs, groups)]
    return Comparison(ordered, list(labels.values()), keys, metrics, groups, split, units, classes, notes)


def chosen_split(runs: Sequence[Run]) -> str | None:
    """The split that most runs have a table of."""
    counts = {split: sum(split in run.tables for run in runs) for split in SPLITS}
    best = max(SPLITS, key=lambda split: counts[split])
    return best if counts[best] else None


def metric_names() -> list[str]:
    """All metrics that are compared, in the order of their columns."""
    return [*BEST, *(f"{split}/{score}" for split in SPLITS for score in SCORES)]


def score(metrics: dict[str, float], split: str | None) -> float | None:
    """The mean IoU by which runs are ranked: of one split, since those of two do not compare."""
    name = "test/mean_iou" if split == "test" else "best/mean_iou"
    return metrics.get(name, metrics.get(f"{split}/mean_iou"))


def unique_names(runs: Sequence[Run]) -> list[str]:
    """The runs' names; where two are the same, with their folders' names or ids."""
    counts = Counter(run.name for run in runs)
    names = [run.name if counts[run.name] == 1 else f"{run.name} ({origin(run)})" for run in runs]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{run.name} ({run.where})" for name, run in zip(names, runs, strict=True)]


def origin(run: Run) -> str:
    """A short hint at where a run comes from."""
    if run.folder is None:
        return run.where.removeprefix("runs:/")[:8]
    return run.folder.parent.name if run.folder.name == run.name else run.folder.name


def cautions(runs: Sequence[Run], groups: Sequence[Group]) -> list[str]:
    """What makes numbers less comparable than they look."""
    notes = []
    evaluated = [run for run in runs if run.metrics or run.tables]
    sets = list(dict.fromkeys(run.config["choices.dataset"] for run in evaluated if "choices.dataset" in run.config))
    if len(sets) > 1:
        notes.append(f"The runs were evaluated on different data sets: {', '.join(sets)}")
    for group in groups:
        for seed, count in Counter(run.config.get(SEED) for run in group.runs if run.metrics).items():
            if count > 1:
                notes.append(f"{group.label}: {count} runs have seed {seed}; all of them count in its mean")
    return notes
