"""The IoU of each class, compared with a baseline."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pspexp.errors import UserError, did_you_mean
from pspexp.jobs.compare.run_set import Run, Table
from pspexp.jobs.compare.seeds import SeedGroup


@dataclass(frozen=True)
class ComparedItem:
    """A column of the class table: a run, or the mean of a seed group.

    Attributes:
        label: Column title.
        runs: The run, or the runs of the group.
        table: IoU of the classes.
        partly_defined: Classes defined in only some of the runs → the number of these runs.
    """

    label: str
    runs: list[Run]
    table: Table
    partly_defined: dict[str, int]


@dataclass(frozen=True)
class ClassRow:
    """IoU of a class in each item and the difference from the baseline, as fractions; None where undefined."""

    name: str
    ious: list[float | None]
    differences: list[float | None]

    @property
    def largest_difference(self) -> float | None:
        """The largest absolute difference, if any is defined."""
        return max((abs(value) for value in self.differences[1:] if value is not None), default=None)


def descending(value: float | None) -> tuple[bool, float]:
    """A sort key: largest first, undefined last."""
    return value is None, -(value or 0.0)


def compared_items(
    runs: Sequence[Run], groups: Sequence[SeedGroup], split: str | None, baseline: str | None
) -> tuple[list[ComparedItem], list[str]]:
    """The columns of the class table, and notes on omitted runs.

    Seeds are not averaged if ``baseline`` is one of them, or if there would be only one column.
    """
    if split is None:
        return [], []
    averaged = [
        group for group in groups if baseline is None or len({matches(run, baseline) for run in group.runs}) == 1
    ]
    items = items_of(runs, averaged, split)
    if len(items) < 2:
        items = items_of(runs, [], split)
    notes = []
    if others := [run.label for run in runs if run.tables and split not in run.tables]:
        notes.append(f"Not in the class table, which is for {split}: {', '.join(others)}")
    if missing := [run.label for run in runs if run.status == "FINISHED" and not run.tables]:
        notes.append(f"Not in the class table, no per-class results: {', '.join(missing)}")
    return items, notes


def items_of(runs: Sequence[Run], groups: Sequence[SeedGroup], split: str) -> list[ComparedItem]:
    """The mean of each group, and every other run that has a table."""
    group_of = {id(run): group for group in groups for run in group.runs}
    items: dict[int, ComparedItem] = {}
    for run in runs:
        group = group_of.get(id(run))
        members = [member for member in (group.runs if group else [run]) if split in member.tables]
        if group and len(members) > 1:
            items[id(group)] = mean_item(group.label, members, split)
        elif split in run.tables:
            items[id(run)] = ComparedItem(run.label, [run], run.tables[split], {})
    return list(items.values())


def mean_item(label: str, runs: list[Run], split: str) -> ComparedItem:
    """The mean IoU of each class that all runs share, over the runs in which it is defined."""
    tables = [run.tables[split] for run in runs]
    shared = [name for name in tables[0] if all(name in table for table in tables)]
    defined = {name: [iou for table in tables if (iou := table[name]) is not None] for name in shared}
    means = {name: statistics.mean(values) if values else None for name, values in defined.items()}
    partly = {name: len(values) for name, values in defined.items() if 0 < len(values) < len(runs)}
    return ComparedItem(f"{label}, mean of {len(runs)}", runs, means, partly)


def baseline_first(items: list[ComparedItem], runs: Sequence[Run], baseline: str | None) -> list[ComparedItem]:
    """Move the baseline to the front; by default it is the first of ``runs``.

    Raises:
        UserError: ``baseline`` matches no item, or several.
    """
    if baseline is None:
        first = next(item for run in runs for item in items if run in item.runs)
    else:
        first = find_baseline(items, runs, baseline)
    return [first, *(item for item in items if item is not first)]


def find_baseline(items: list[ComparedItem], runs: Sequence[Run], baseline: str) -> ComparedItem:
    """The item with this label, or with a run that matches ``baseline``."""
    found = [item for item in items if baseline == item.label or any(matches(run, baseline) for run in item.runs)]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(run.where for item in found for run in item.runs if matches(run, baseline))
        raise UserError(f"compare.baseline={baseline}: matches {len(found)} runs; set it to one of {places}")
    labels = [item.label for item in items]
    check_baseline(runs, baseline, labels)
    labels += [run.label for item in items for run in item.runs if len(item.runs) > 1]
    raise UserError(f"compare.baseline={baseline}: has no per-class results; choose one of {', '.join(labels)}")


def check_baseline(runs: Sequence[Run], baseline: str | None, others: Sequence[str] = ()) -> None:
    """Raise UserError if ``baseline`` matches no run; ``others`` are further labels to suggest."""
    if baseline is None or any(matches(run, baseline) for run in runs):
        return
    hint = did_you_mean(baseline, [*others, *(run.label for run in runs)])
    raise UserError(
        f"compare.baseline={baseline}: matches none of the runs{hint}; set a name or folder, such as {runs[0].where}"
    )


def matches(run: Run, baseline: str) -> bool:
    """Whether ``baseline`` is a run's name, folder, folder name, MLflow id or ``runs:/<MLflow id>``."""
    ids = set() if run.mlflow_id is None else {run.mlflow_id, f"runs:/{run.mlflow_id}"}
    if baseline in {run.name, run.label, run.where} | ids:
        return True
    if run.folder is None:
        return False
    return baseline == run.folder.name or run.folder == Path(baseline).expanduser().resolve()


def compare_classes(items: Sequence[ComparedItem]) -> tuple[list[ClassRow], list[str]]:
    """The classes that all items share, largest differences first, and notes on the others."""
    names = list(dict.fromkeys(name for item in items for name in item.table))
    shared = [name for name in names if all(name in item.table for item in items)]
    rows = []
    for name in shared:
        ious = [item.table[name] for item in items]
        differences = [None if iou is None or ious[0] is None else iou - ious[0] for iou in ious]
        rows.append(ClassRow(name, ious, differences))
    rows.sort(key=lambda row: descending(row.largest_difference))
    notes = []
    if omitted := [name for name in names if name not in shared]:
        notes.append(
            f"The runs have different classes. Compared: {len(shared)} in common; omitted: {', '.join(omitted)}"
        )
    for item in items:
        if partly := [f"{name} in {count}" for name, count in item.partly_defined.items() if name in shared]:
            notes.append(f"{item.label}: some classes are defined in fewer of the runs, {', '.join(partly)}")
    return rows, notes
