"""The first line of a command, before torch is imported: what runs on what, and for how long."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from pspexp.config.from_checkpoint import resumes_run, text_values
from pspexp.config.modes import uses_checkpoint
from pspexp.utils.text import count, printable

LENGTHS = {"max_steps": "step", "steps": "step", "epochs": "epoch"}  # the first that is set decides
WAIT = "loading PyTorch …"


def uses_earlier_run(overrides: Sequence[str]) -> bool:
    """Whether part of the configuration comes from an earlier run or a checkpoint, which takes torch to read."""
    given = text_values(overrides)
    resumes = resumes_run(given.get("mode", "train"), given.get("checkpoint.resume"))
    return bool(given.get("rerun") or resumes or uses_checkpoint(given.get("mode")))


def of_earlier_run(overrides: Sequence[str]) -> str | None:
    """The line of a command that resumes or repeats a run, or uses a checkpoint; None if nothing is to be said."""
    given = text_values(overrides)
    mode = given.get("mode") or "train"
    rerun, resume, checkpoint = (given.get(key) for key in ("rerun", "checkpoint.resume", "checkpoint.path"))
    if mode not in ("train", "test", "predict"):
        return None
    if rerun:
        what = f"{mode}, repeating {rerun}"
    elif mode == "train":
        what = f"train, resuming {resume}"
    elif checkpoint:
        what = f"{mode} {checkpoint}"
    else:
        return None  # an error follows
    return f"{printable(what)}: {WAIT}"


def of_training(config: DictConfig) -> str | None:
    """The line of a training from its configuration as composed; None for another mode, or another machine's part."""

    def value(key: str) -> object:
        return OmegaConf.select(config, key, throw_on_resolution_failure=False)

    if value("mode") != "train" or value("launcher.node_rank") not in (None, 0):
        return None
    choices = config.hydra.runtime.choices
    lengths = [(value(f"trainer.{key}"), unit) for key, unit in LENGTHS.items()]
    number, unit = next((pair for pair in lengths if pair[0] is not None), (0, "epoch"))
    length = count(number, unit) if isinstance(number, int) else f"{number} {unit}s"
    experiment = f" (experiment={choices.experiment})" if choices.get("experiment") else ""
    return printable(f"train {choices.get('model')} on {choices.get('dataset')} for {length}{experiment}: {WAIT}")
