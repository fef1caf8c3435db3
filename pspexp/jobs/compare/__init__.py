"""``mode=compare``: finished runs side by side; trains nothing and needs neither data nor a device."""

from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pspexp.errors import UserError
from pspexp.jobs.compare import comparison, from_folders, report
from pspexp.jobs.compare.run_set import RunSet
from pspexp.tracking.mlflow_client import resolve_uri

__all__ = ["compare"]


def compare(config: DictConfig, folder: Path) -> None:
    """Read the runs that ``config.compare`` names, print tables and write them to files in ``folder``.

    Raises:
        UserError: there are no two runs, or something about them cannot be read.
    """
    try:
        found = find(config)
        result = comparison.compare(found.runs, named(config.compare.baseline))
    except UserError:
        with suppress(OSError):  # it was made for nothing, unless the user keeps something there
            folder.rmdir()
        raise
    result.notes[:0] = found.notes
    report.show(result, folder, report.write(result, folder, found.source))


def find(config: DictConfig) -> RunSet:
    """The runs that ``config.compare`` means: those in its folders, or those that MLflow has."""
    wanted = config.compare
    uri = resolve_uri(config.tracking.get("tracking_uri"), config.output_root)
    places = [str(place) for place in (wanted.runs if OmegaConf.is_list(wanted.runs) else [wanted.runs])]
    if any(places):
        return from_folders.read(places, uri)
    from pspexp.jobs.compare.from_mlflow import search  # MLflow takes seconds to import

    experiment = named(wanted.experiment) or config.tracking.experiment
    return search(uri, experiment, named(wanted.sweep), wanted.filter)


def named(value: str | float | None) -> str | None:
    """A name as text, also where Hydra has read a number."""
    return None if value is None else str(value)
