"""The values of ``mode``: what each of them runs and writes. A new mode is a file in `pspexp.jobs` and a line here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """A mode of the command.

    Attributes:
        function: Dotted path of the function, imported on use.
        is_run: Whether ``function(job, device, world, stop_signal)`` runs in the processes of the launcher. Otherwise
            ``function(config, folder)`` is called in this process.
        needs_folder: Whether the mode writes files to a folder of its own.
        keeps_records: Whether a run of it is recorded, in its folder and by the loggers.
        uses_checkpoint: Whether it applies the trained network in ``checkpoint.path``.
        output: Name of its folder in the run folder of its checkpoint, for a mode that writes there.
    """

    function: str
    is_run: bool = True
    needs_folder: bool = True
    keeps_records: bool = True
    uses_checkpoint: bool = False
    output: str | None = None


MODES = {
    "train": Mode("pspexp.jobs.train.train"),
    "test": Mode("pspexp.jobs.test.test", uses_checkpoint=True),
    "predict": Mode(
        "pspexp.jobs.predict.predict.predict", keeps_records=False, uses_checkpoint=True, output="predictions"
    ),
    "export": Mode(
        "pspexp.jobs.export.export.export", is_run=False, keeps_records=False, uses_checkpoint=True, output="export"
    ),
    "check": Mode("pspexp.jobs.check.check.check", is_run=False),
    "sync": Mode("pspexp.jobs.sync.sync", is_run=False, needs_folder=False, keeps_records=False),
    "clean": Mode("pspexp.jobs.clean.clean", is_run=False, needs_folder=False, keeps_records=False),
    "compare": Mode("pspexp.jobs.compare.compare.compare", is_run=False),
    "init": Mode("pspexp.jobs.init.init.init", is_run=False, needs_folder=False, keeps_records=False),
}


# The nodes of one command each, which are no part of a run.
COMMAND_NODES = ("sweep", "compare", "sync", "clean", "predict", "export", "check", "init")


def uses_checkpoint(mode: object) -> bool:
    """Whether ``mode``, which may be anything, is the name of a mode that applies a trained network."""
    return isinstance(mode, str) and mode in MODES and MODES[mode].uses_checkpoint
