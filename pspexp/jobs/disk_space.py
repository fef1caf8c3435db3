"""The disk space that a training needs for its checkpoints."""

from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from pspexp.engine.components import TrainingComponents
from pspexp.engine.distributed import World
from pspexp.errors import setting
from pspexp.utils.files import free_space, mib

RECORDS = 2**20  # bytes for log, records and tables, at least

FIX = f"free some space, or choose another disk with {setting('output_root')} or {setting('hydra.run.dir')}"


def require_disk_space(components: TrainingComponents, folder: Path, world: World, *, averages: bool) -> None:
    """Refuse a training whose checkpoints do not fit on the disk; arguments as in `checkpoint_bytes`.

    Raises:
        UserError: Names the folder, the space needed and the free space.
    """
    problems = []
    if world.is_main_process:
        files = [folder / "checkpoints" / name for name in ("best.pt", "last.pt")]
        there = sum(file.stat().st_size for file in files if file.is_file())
        needed, free = checkpoint_bytes(components, averages=averages) - there, free_space(folder)
        if free is not None and needed > free:
            problems = [f"{folder}: the checkpoints need about {mib(needed)}, but {mib(free)} are free; {FIX}"]
    world.raise_collectively(problems)


def checkpoint_bytes(components: TrainingComponents, *, averages: bool) -> int:
    """The bytes of records, ``best.pt``, and ``last.pt`` twice: a new one is complete before it replaces the old one.

    Args:
        components: Model and optimizer.
        averages: Whether an average of the weights is saved, too.
    """
    weights: int = sum(value.numel() * value.element_size() for value in components.model.state_dict().values())
    weights *= 1 + averages
    return RECORDS + weights + 2 * (weights + optimizer_bytes(components.model, components.optimizer))


def optimizer_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """The bytes that an optimizer keeps for the weights: momentum, or Adam's two moments."""
    trained = sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)
    defaults = optimizer.defaults
    return trained * (2 if "betas" in defaults else 1 if defaults.get("momentum") else 0)
