"""``mode=compare``: a side-by-side comparison of finished runs. It needs neither the data set nor a device."""

from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pspexp.errors import UserError
from pspexp.jobs.compare import comparison, find_runs, report
from pspexp.jobs.compare.run_set import RunSet
from pspexp.tracking.mlflow_client import resolve_uri


def compare(config: DictConfig, folder: Path) -> None:
    """Read the runs selected by ``config.compare``, print tables and write them to files in ``folder``.

    Raises:
        UserError: There are fewer than two runs, or one of them cannot be read.
    """
    try:
        found = select_runs(config)
        result = comparison.compare(found.runs, as_name(config.compare.baseline))
    except UserError:
        with suppress(OSError):  # not empty: it existed before
            folder.rmdir()
        raise
    result.notes[:0] = found.notes
    report.show(result, folder, report.write(result, folder, found.source))


def select_runs(config: DictConfig) -> RunSet:
    """The runs in the folders of ``config.compare.runs``; if it is empty, those of an MLflow experiment."""
    selection = config.compare
    uri = resolve_uri(config.tracking.get("tracking_uri"), config.output_root)
    places = selection.runs if OmegaConf.is_list(selection.runs) else [selection.runs]
    if any(map(str, places)):
        return find_runs.read(list(map(str, places)), uri)
    from pspexp.jobs.compare.from_mlflow import search  # importing MLflow takes seconds

    experiment = as_name(selection.experiment) or config.tracking.experiment
    return search(uri, experiment, as_name(selection.sweep), selection.filter)


def as_name(value: str | float | None) -> str | None:
    """A name as text: Hydra parses ``compare.sweep=0`` as a number."""
    return None if value is None else str(value)
