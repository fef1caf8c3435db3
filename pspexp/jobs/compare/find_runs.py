"""Finds runs by folder or MLflow id."""

from collections.abc import Sequence

from pspexp.errors import UserError
from pspexp.jobs.compare.from_folders import printable, read_below
from pspexp.jobs.compare.run_set import Run, RunSet


def read(places: Sequence[str], uri: str) -> RunSet:
    """The runs at ``places``, without duplicates.

    Args:
        places: Run folders, folders that contain some at any depth, or ``runs:/<MLflow run id>``.
        uri: MLflow tracking URI.

    Raises:
        UserError: A place contains no runs, or a run's file cannot be read.
    """
    runs: list[Run] = []
    notes: list[str] = []
    problems: list[str] = []
    for place in places:
        try:
            found = read_place(place, uri)
        except UserError as error:
            problems += error.problems
            continue
        runs += found.runs
        notes += found.notes
    if problems:
        raise UserError(*problems)
    return RunSet(each_once(runs), notes, ", ".join(map(printable, places)))


def read_place(place: str, uri: str) -> RunSet:
    """The runs at one of the places of `read`."""
    if place.startswith("runs:/"):
        from pspexp.jobs.compare.from_mlflow import get  # importing MLflow takes seconds

        return get(uri, place.removeprefix("runs:/").strip("/"))
    return read_below(place)


def each_once(runs: list[Run]) -> list[Run]:
    """``runs`` without duplicates, in the order of their first mention.

    A folder takes precedence over the same run in MLflow: the report can link to it.
    """
    folders = {run.mlflow_id: run for run in runs if run.folder and run.mlflow_id}
    chosen = [run if run.folder else folders.get(run.mlflow_id or "", run) for run in runs]
    return list({run.folder or run.mlflow_id: run for run in chosen}.values())
