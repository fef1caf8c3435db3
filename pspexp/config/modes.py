"""The values of ``mode``: what each of them runs and writes. A new mode is a file in `pspexp.jobs` and a line here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """A mode of the command.

    Attributes:
        function: Dotted path of the function, imported on use.
        is_run: Whether ``function(job, device, world, stop_signal)`` runs in the processes of the launcher and keeps
            records. Otherwise ``function(config, folder)`` is called in this process.
        needs_folder: Whether the mode writes files to a folder of its own.
    """

    function: str
    is_run: bool = True
    needs_folder: bool = True


MODES = {
    "train": Mode("pspexp.jobs.train.train"),
    "test": Mode("pspexp.jobs.test.test"),
    "check": Mode("pspexp.jobs.check.check", is_run=False, needs_folder=False),
    "compare": Mode("pspexp.jobs.compare.compare.compare", is_run=False),
}
