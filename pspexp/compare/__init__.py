"""``mode=compare``: finished runs side by side; trains nothing and needs neither data nor a device."""

from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pspexp.compare import comparing, reading, writing
from pspexp.compare.found import Found
from pspexp.errors import UserError
from pspexp.tracking.mlflow import resolve_uri

__all__ = ["compare"]


def compare(config: DictConfig, folder: Path) -> None:
    """Read the runs that ``config.compare`` names, print tables and write them to files in ``folder``.

    Raises:
        UserError: there are no two runs, or something about them cannot be read.
    """
    try:
        found = find(config)
        result = comparing.compare(found.runs, named(config.compare.baseline))
    except UserError:
        with suppress(OSError):  # it was made for nothing, unless the user keeps something there
            folder.rmdir()
        raise
    result.notes[:0] = found.notes
    writing.show(result, folder, writing.write(result, folder, found.source))


def find(config: DictConfig) -> Found:
    """The runs that ``config.compare`` means: those in its folders, or those that MLflow has."""
    wanted = config.compare
    uri = resolve_uri(config.tracking.get("tracking_uri"), config.output_root)
    places = [str(place) for place in (wanted.runs if OmegaConf.is_list(wanted.runs) else [wanted.runs])]
    if any(places):
        return reading.read(places, uri)
    from pspexp.compare.mlflow_runs import search  # MLflow takes seconds to import

    experiment = named(wanted.experiment) or config.tracking.experiment
    return search(uri, experiment, named(wanted.sweep), wanted.filter)


def named(value: str | float | None) -> str | None:
    """A name as text, also where Hydra has read a number."""
    return None if value is None else str(value)
