"""How the classes differ between runs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pspexp.errors import UserError, did_you_mean
from pspexp.jobs.compare.run_set import Run, Table
from pspexp.jobs.compare.seeds import Group


@dataclass(frozen=True)
class Unit:
    """A run or a group's mean, as a column of the table of classes.

    Attributes:
        fewer: classes that are defined in some of the runs only, with the number of these.
    """

    label: str
    runs: list[Run]
    table: Table
    fewer: dict[str, int]


@dataclass(frozen=True)
class ClassRow:
    """IoU of a class in each unit and the difference to the first one, as fractions; None where undefined."""

    name: str
    ious: list[float | None]
    differences: list[float | None]


def rank(value: float | None) -> tuple[bool, float]:
    """A sort key: the largest first, undefined last."""
    return value is None, -(value or 0.0)


def as_units(
    runs: Sequence[Run], labels: dict[int, str], groups: Sequence[Group], split: str | None, baseline: str | None
) -> tuple[list[Unit], list[str]]:
    """The columns of the table of classes, and what is left out of it.

    Seeds are not averaged where ``baseline`` is one of them, nor where nothing would be left to compare with.
    """
    if split is None:
        return [], []
    averaged = [group for group in groups if not is_one_of(group, labels, baseline)]
    units = units_of(runs, labels, averaged, split)
    if len(units) < 2:
        units = units_of(runs, labels, [], split)
    others = [labels[id(run)] for run in runs if run.tables and split not in run.tables]
    left_out = [f"Left out of the classes, which are those of {split}: {', '.join(others)}"] if others else []
    if lacking := [labels[id(run)] for run in runs if run.status == "FINISHED" and not run.tables]:
        left_out.append(f"Left out of the classes, without a table: {', '.join(lacking)}")
    return units, left_out


def is_one_of(group: Group, labels: dict[int, str], baseline: str | None) -> bool:
    """Whether ``baseline`` means some runs of a group, but not all."""
    if baseline is None:
        return False
    return len({is_meant(run, labels, baseline) for run in group.runs}) > 1


def units_of(runs: Sequence[Run], labels: dict[int, str], groups: Sequence[Group], split: str) -> list[Unit]:
    """The mean of each of ``groups``, and all other runs that have a table."""
    in_group = {id(run): group for group in groups for run in group.runs}
    units: dict[int, Unit] = {}
    for run in runs:
        group = in_group.get(id(run))
        members = [one for one in (group.runs if group else [run]) if split in one.tables]
        if group and len(members) > 1:
            units[id(group)] = mean_unit(group.label, members, split)
        elif split in run.tables:
            units[id(run)] = Unit(labels[id(run)], [run], run.tables[split], {})
    return list(units.values())


def mean_unit(label: str, runs: list[Run], split: str) -> Unit:
    """The mean IoU of each class over the runs in which it is defined; only classes that all runs know."""
    tables = [run.tables[split] for run in runs]
    known = [name for name in tables[0] if all(name in table for table in tables)]
    defined = {name: [iou for table in tables if (iou := table[name]) is not None] for name in known}
    means = {name: statistics.mean(values) if values else None for name, values in defined.items()}
    fewer = {name: len(values) for name, values in defined.items() if 0 < len(values) < len(runs)}
    return Unit(f"{label}, mean of {len(runs)}", runs, means, fewer)


def baseline_first(units: list[Unit], runs: Sequence[Run], labels: dict[int, str], baseline: str | None) -> list[Unit]:
    """``units`` with the one in front that the others are compared with.

    Raises:
        UserError: ``baseline`` is none of them.
    """
    if baseline is None:
        first = next(unit for run in runs for unit in units if run in unit.runs)
    else:
        first = named_unit(units, runs, labels, baseline)
    return [first, *(unit for unit in units if unit is not first)]


def named_unit(units: list[Unit], runs: Sequence[Run], labels: dict[int, str], baseline: str) -> Unit:
    """The unit that a user means: by label, or by name, folder or id of a run in it."""
    meant = [
        unit for unit in units if baseline == unit.label or any(is_meant(run, labels, baseline) for run in unit.runs)
    ]
    if len(meant) == 1:
        return meant[0]
    if meant:
        places = ", ".join(run.where for unit in meant for run in unit.runs if is_meant(run, labels, baseline))
        raise UserError(f"compare.baseline={baseline}: {len(meant)} runs are called so; give one of {places}")
    labelled = [unit.label for unit in units]
    check_baseline(runs, labels, baseline, labelled)
    known = [*labelled, *(labels[id(run)] for unit in units for run in unit.runs if len(unit.runs) > 1)]
    raise UserError(f"compare.baseline={baseline}: has no table to compare with; choose one of {', '.join(known)}")


def check_baseline(
    runs: Sequence[Run], labels: dict[int, str], baseline: str | None, others: Sequence[str] = ()
) -> None:
    """Check that a baseline means a run; with ``others``, labels that it could mean too.

    Raises:
        UserError: it means none.
    """
    if baseline is None or any(is_meant(run, labels, baseline) for run in runs):
        return
    raise UserError(
        f"compare.baseline={baseline}: none of the runs{did_you_mean(baseline, [*others, *labels.values()])}; give a "
        f"name or folder, such as {runs[0].where}"
    )


def is_meant(run: Run, labels: dict[int, str], baseline: str) -> bool:
    """Whether ``baseline`` is a run's name, folder or its name, MLflow id or ``runs:/<MLflow id>``."""
    ids = set() if run.mlflow_id is None else {run.mlflow_id, f"runs:/{run.mlflow_id}"}
    if baseline in {run.name, labels[id(run)], run.where} | ids:
        return True
    if run.folder is None:
        return False
    return baseline == run.folder.name or run.folder == Path(baseline).expanduser().resolve()


def compare_classes(units: Sequence[Unit]) -> tuple[list[ClassRow], list[str]]:
    """The classes that all units know, the largest differences first, and what to tell about the others."""
    every = list(dict.fromkeys(name for unit in units for name in unit.table))
    shared = [name for name in every if all(name in unit.table for unit in units)]
    rows = []
    for name in shared:
        ious = [unit.table[name] for unit in units]
        rows.append(ClassRow(name, ious, [difference(iou, ious[0]) for iou in ious]))
    rows.sort(key=lambda row: rank(largest(row)))
    notes = []
    if left_out := [name for name in every if name not in shared]:
        notes.append(
            f"The runs know different classes: compared are the {len(shared)} that all share; left out: "
            f"{', '.join(left_out)}"
        )
    for unit in units:
        if told := [f"{name} in {count}" for name, count in unit.fewer.items() if name in shared]:
            notes.append(f"{unit.label}: some classes are defined in fewer of the runs, {', '.join(told)}")
    return rows, notes


def difference(iou: float | None, baseline: float | None) -> float | None:
    """``iou - baseline``, undefined if one of them is."""
    return None if iou is None or baseline is None else iou - baseline


def largest(row: ClassRow) -> float | None:
    """The largest difference of a class, up or down; None if none is defined."""
    return max((abs(one) for one in row.differences[1:] if one is not None), default=None)
