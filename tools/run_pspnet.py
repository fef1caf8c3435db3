"""Train or test with the flags of the reference system, a PSPNet-50 training script collection for SDAA accelerators.

Takes the flags of its launcher, run_scripts/run_pspnet.py, prints the equivalent command of pspexp and runs it.
Settings of pspexp may be added as key=value. docs/from-reference.md lists what differs.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pspexp.errors import UserError, did_you_mean
from pspexp.utils.arguments import requirement
from pspexp.utils.imports import import_torch
from pspexp.utils.text import quoted
from pspexp.utils.tool import run_tool

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]

BACKBONE = Path("models", "resnet50_v2.pth")  # where the reference expects ImageNet weights
SAVED_AS = {"latest_pspnet_voc.pth": "last.pt", "best_pspnet_voc.pth": "best.pt"}  # the reference's names, and ours
EPOCH_KEYS = ("cur_epochs", "epoch")  # in checkpoints of the reference and of semseg
HINTS = {
    "num_classes": "; the background is ignored, and with it as a class, use python -m pspexp dataset=voc2007_21",
    "model_name": "; other networks: python -m pspexp model=<option>",
    "dataset": "; other data sets: python -m pspexp dataset=<option>",
}
# What a test uses; the other flags are about training.
TEST_FLAGS = ("device", "autocast", "dataset_path", "work_dir", "crop_size", "crop_val", "val_batch_size", "loss_type")


class Flags(BaseModel):
    """The reference's flags with its defaults."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    device: Literal["sdaa", "cuda", "npu", "mps", "cpu", "auto"] = "sdaa"
    autocast: bool = False
    work_dir: Text | None = None
    dataset_path: Text | None = None
    dataset: Literal["voc"] = "voc"
    num_classes: Literal["20"] = "20"
    model_name: Literal["pspnet"] = "pspnet"
    test_only: bool = False
    ckpt: Text | None = None
    continue_training: bool = False
    epoch: Count = 100
    step: NotNegative = 0  # 0 = not set
    val_epoch: Count = 5
    print_interval: Count = 5
    batch_size: Count = 8
    val_batch_size: Count = 1
    crop_size: Count = 513
    crop_val: bool = False
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    lr_policy: Literal["poly", "step", "cosine"] = "cosine"
    loss_type: Literal["cross_entropy", "focal_loss"] = "cross_entropy"
    random_seed: NotNegative = 1122
    distributed: bool = False
    nproc_per_node: Count = 1
    nnodes: Count = 1
    node_rank: NotNegative = 0
    master_addr: Text = "192.168.1.1"
    master_port: Count = 29505
    default_rank: NotNegative = 0


@dataclass(frozen=True)
class Checkpoint:
    """What ``--ckpt`` names."""

    path: Path  # a file or a run folder
    is_own: bool  # whether pspexp has written it
    epoch: int | None = None  # after which another project saved it, if it says so


def main() -> int:
    return run_tool(run)


def run() -> None:
    flags, settings = parse(sys.argv[1:])
    checkpoint = None if flags.ckpt is None else read_checkpoint(flags.ckpt)
    overrides = [*translate(flags, checkpoint), *settings]
    for note in notes(flags, checkpoint):
        print(f"note: {note}", file=sys.stderr)
    print(shlex.join(["python", "-m", "pspexp", *overrides]), flush=True)
    # Replaces this process, so that signals and the exit code are those of the command.
    os.execv(sys.executable, [sys.executable, "-m", "pspexp", *overrides])


def parse(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags and the settings of pspexp in a command line.

    Raises:
        UserError: Lists every problem with them.
    """
    usage, unset = "%(prog)s [--flag value | --flag=value]… [key=value]…", argparse.SUPPRESS
    parser = argparse.ArgumentParser(usage=usage, description=__doc__, argument_default=unset, allow_abbrev=False)
    for name, field in Flags.model_fields.items():
        default = None if field.default is None else f"default {field.default}"
        # Without types and with optional values, since argparse would stop at the first problem.
        parser.add_argument(f"--{name}", nargs="?", const="", metavar="VALUE", help=default)
    found, rest = parser.parse_known_args(arguments)
    given: dict[str, str] = vars(found)
    settings, problems = separate(rest)
    try:
        flags = Flags.model_validate(given)
    except ValidationError as error:
        wrong = {str(problem["loc"][0]): problem for problem in error.errors()}
        problems += [describe(name, problem) for name, problem in wrong.items()]
        flags = Flags.model_validate({name: value for name, value in given.items() if name not in wrong})
    if problems := [*problems, *contradictions(flags)]:
        raise UserError(*problems)
    return flags, settings


def separate(rest: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings of pspexp among the arguments that are not known flags, and a line about each of the others."""
    settings, problems, after_flag = [], [], False
    for word in rest:
        if word.startswith("-"):
            name = word.partition("=")[0]
            problems.append(f"{name}: no such flag{did_you_mean(name, [f'--{one}' for one in Flags.model_fields])}")
        elif "=" in word:
            settings.append(word)
        elif not after_flag:  # otherwise the value of an unknown flag
            problems.append(f"{word}: not a flag; settings of pspexp are written key=value")
        after_flag = word.startswith("-") and "=" not in word
    return settings, problems


def describe(name: str, problem: Any) -> str:
    """One line about a wrong value."""
    if problem["input"] == "":
        return f"--{name}: needs a value"
    must = "must be True or False" if problem["type"].startswith("bool") else requirement(problem).split(", unable")[0]
    return f"--{name}={problem['input']}: {must}{HINTS.get(name, '')}"


def contradictions(flags: Flags) -> list[str]:
    """A line for each combination of flags that means nothing, and for what is missing."""
    problems = []
    if flags.dataset_path is None:
        problems.append("--dataset_path: missing; give the folder that contains VOC2007")
    for name in ("test_only", "continue_training"):
        if getattr(flags, name) and flags.ckpt is None:
            problems.append(f"--{name}=True: needs a checkpoint; add --ckpt <file or run folder>")
    if flags.test_only and flags.continue_training:
        problems.append("--continue_training=True: contradicts --test_only=True; remove one of them")
    if flags.ckpt is not None and not located(flags.ckpt).exists():
        problems.append(f"--ckpt={flags.ckpt}: no such file or folder")
    if flags.distributed and flags.nnodes > 1 and flags.node_rank >= flags.nnodes:
        limit = f"must be from 0 to {flags.nnodes - 1} (--nnodes - 1), the number of this machine"
        problems.append(f"--node_rank={flags.node_rank}: {limit}; the reference ignored it")
    return problems


def located(ckpt: str) -> Path:
    """The path of ``--ckpt``; for the reference's name of a file in a run folder of pspexp, the corresponding file."""
    path = Path(ckpt).expanduser()
    if not path.exists() and path.name in SAVED_AS:
        return path.parent / "checkpoints" / SAVED_AS[path.name]
    return path


def read_checkpoint(ckpt: str) -> Checkpoint:
    """What ``--ckpt`` names.

    Raises:
        UserError: It is neither a checkpoint nor a run folder.
    """
    path = located(ckpt)
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise UserError(f"--ckpt={ckpt}: not a run folder (it contains no config.yaml); give a checkpoint file")
        return Checkpoint(path, is_own=True)
    import_torch()  # takes seconds
    from pspexp.engine import checkpoint
    from pspexp.models.checkpoint_file import is_own_format

    try:
        content = checkpoint.read(path, foreign=True)
    except UserError as error:
        raise UserError(*(f"--ckpt={problem}" for problem in error.problems)) from error
    epochs = [content[key] for key in EPOCH_KEYS if type(content.get(key)) is int]
    return Checkpoint(path, is_own_format(content), epochs[0] if epochs else None)


def translate(flags: Flags, checkpoint: Checkpoint | None) -> list[str]:
    """The overrides that mean the same as ``flags``.

    Of a checkpoint of pspexp that is tested or resumed, everything is kept that no flag sets; otherwise the reference's
    defaults apply.
    """
    own = checkpoint is not None and checkpoint.is_own
    given = flags.model_fields_set
    path = None if checkpoint is None else quoted(checkpoint.path)
    several = processes(flags) if flags.distributed else []
    if flags.test_only:
        used = {"device", *given.intersection(TEST_FLAGS)} if own else TEST_FLAGS
        network = [] if own else ["model=pspnet50", "dataset=voc2007"]
        launcher = ["launcher=ddp", *several] if several else []
        return ["mode=test", f"checkpoint.path={path}", *network, *settings_of(flags, used), *launcher]
    if flags.continue_training and own:
        launcher = [f"launcher={'ddp' if several else 'single'}", *several] if "distributed" in given else []
        return [f"checkpoint.resume={path}", *settings_of(flags, given), *launcher]
    recipe = f"experiment=voc2007_{'ddp' if several else 'single'}"
    weights = [f"model.weights={path}"] if path else [f"model.backbone_weights={BACKBONE}"] * BACKBONE.is_file()
    return [recipe, *several, *settings_of(flags, list(Flags.model_fields)), *weights]


def settings_of(flags: Flags, used: Collection[str]) -> list[str]:
    """The overrides for those of the flags that are listed in ``used``, without those about processes."""
    run = Path(flags.work_dir or "")
    if flags.test_only:  # the folder itself may hold the training
        run = run / "test" / "${now:%Y-%m-%d_%H-%M-%S}"
    mixed = "fp16" if flags.device in ("sdaa", "cuda") else "auto"  # fp16: with a gradient scaler
    found = {
        "device": f"device={flags.device}",
        "autocast": f"precision={mixed if flags.autocast else 'fp32'}",
        "dataset_path": f"dataset.root={quoted(flags.dataset_path or '')}",
        "work_dir": flags.work_dir and f"hydra.run.dir={quoted(run)}",
        "random_seed": f"seed={flags.random_seed}",
        "crop_size": f"crop_size={flags.crop_size}",
        "crop_val": f"inference={'center_crop' if flags.crop_val else 'whole'}",
        "batch_size": f"loader.batch_size={flags.batch_size}",
        "val_batch_size": f"loader.eval_batch_size={flags.val_batch_size}",
        "loss_type": f"loss={flags.loss_type.removesuffix('_loss')}",
        "optimizer": f"optimizer={flags.optimizer}",
        "lr": f"optimizer.lr={flags.lr}",
        # The reference gives it to SGD and AdamW only.
        "weight_decay": flags.optimizer != "adam" and f"optimizer.weight_decay={flags.weight_decay}",
        "lr_policy": f"scheduler={flags.lr_policy}",
        "epoch": f"trainer.epochs={flags.epoch}",
        "step": flags.step and f"trainer.max_steps={flags.step}",
        "val_epoch": f"trainer.validate_every={flags.val_epoch}",
        "print_interval": f"trainer.log_every={flags.print_interval}",
    }
    return [str(override) for name, override in found.items() if name in used and override]


def processes(flags: Flags) -> list[str]:
    """The overrides for the processes of ``--distributed True``; addresses matter with several machines only."""
    overrides = [f"launcher.nproc_per_node={flags.nproc_per_node}"]
    if flags.nnodes > 1:
        overrides += [f"launcher.nnodes={flags.nnodes}", f"launcher.node_rank={flags.node_rank}"]
        overrides.append(f"launcher.master_addr={quoted(flags.master_addr)}")
    if flags.nnodes > 1 or "master_port" in flags.model_fields_set:
        overrides.append(f"launcher.master_port={flags.master_port}")
    return overrides


def notes(flags: Flags, checkpoint: Checkpoint | None) -> list[str]:
    """One line for each flag that has no effect or another one than in the reference."""
    found, given = [], flags.model_fields_set
    if flags.optimizer == "adam" and "weight_decay" in given and not flags.test_only:
        found.append("--weight_decay has no effect with --optimizer adam, as in the reference")
    if flags.default_rank:
        found.append(f"--default_rank={flags.default_rank} has no effect: process 0 logs and saves")
    if flags.nproc_per_node > 1 and not flags.distributed:
        found.append(f"--nproc_per_node={flags.nproc_per_node} has no effect with --distributed False: one process")
    if checkpoint is None or flags.ckpt is None:
        return found
    if checkpoint.path != Path(flags.ckpt).expanduser():
        found.append(f"--ckpt={flags.ckpt}: no such file; {checkpoint.path} takes its place")
    if flags.continue_training and not checkpoint.is_own:
        found.append(
            f"{checkpoint.path}: a checkpoint of another project cannot be resumed exactly; a new training starts from "
            "its weights, with a new optimizer and learning-rate schedule"
        )
        if checkpoint.epoch is not None:
            found.append(remaining(checkpoint.epoch, flags.epoch))
    elif not (flags.continue_training or flags.test_only):
        found.append(f"--ckpt without --continue_training True: a new training starts from the weights in {flags.ckpt}")
    return found


def remaining(done: int, epochs: int) -> str:
    """Which epochs a training of another project has left, and how many are trained instead."""
    if done >= epochs:
        return f"it was saved after epoch {done}, so none of {epochs} remain; this trains {epochs} more"
    which = f"epochs {done + 1} to {epochs} remain, but this trains {epochs}"
    return f"it was saved after epoch {done}: {which}; --epoch {epochs - done} trains as many as remain"


if __name__ == "__main__":
    sys.exit(main())
