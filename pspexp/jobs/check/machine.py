"""What the machine may lack: shared memory for the loader's workers, and space for checkpoints."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from pspexp.data.inspection.findings import Finding
from pspexp.engine.components import TrainingComponents
from pspexp.jobs.check.data import CheckedData
from pspexp.jobs.check.environment import SHM

PREFETCHED = 2  # batches that each worker holds ready: torch's default


def findings(
    config: DictConfig, components: TrainingComponents | None, data: CheckedData, folder: Path
) -> Iterator[Finding]:
    """Findings about the machine; ``folder`` is in the output root."""
    yield from shared_memory(config, data)
    if components is not None:
        yield from disk_space(config, components, folder)


def shared_memory(config: DictConfig, data: CheckedData) -> Iterator[Finding]:
    """Whether the batches of all workers fit into shared memory."""
    workers = config.loader.num_workers
    if not workers or not SHM.is_dir():
        return
    sizes = [width * height for split in data.summaries if split.name != "train" for width, height in split.sizes]
    batch = max(config.loader.batch_size * config.crop_size**2, config.loader.eval_batch_size * max(sizes, default=0))
    bytes_each = (data.info.num_bands + 1 if data.info else 4) * batch  # the bands and the label
    needed, free = bytes_each * (PREFETCHED * workers + 1), shutil.disk_usage(SHM).free
    if needed > free:
        yield Finding(
            "error" if bytes_each > free else "warning",
            "shared memory",
            SHM,
            f"{mib(free)} are free, but {workers} workers need about {mib(needed)} for batches of {mib(bytes_each)}",
            f"set loader.num_workers=0, or start the container with --shm-size={max(1, -(-needed // 2**29))}g",
        )


def disk_space(config: DictConfig, components: TrainingComponents, folder: Path) -> Iterator[Finding]:
    """Whether the checkpoints fit on the disk."""
    weights = 4 * sum(parameter.numel() for parameter in components.model.parameters())
    last, best = weights * (4 if config.trainer.ema else 3), weights  # Adam keeps two moments of each weight
    copies = 0
    if "log_checkpoints" in config.tracking and config.tracking.tracking_uri is None:
        copies = {"all": last + best, "last": last, "best": best}.get(config.tracking.log_checkpoints, 0)
    needed = 2 * last + best + copies  # a new last.pt is complete before it replaces the old one
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        mlflow = f", {mib(copies)} of them copied to MLflow" if copies else ""
        yield Finding(
            "warning",
            "disk space",
            place,
            f"{mib(free)} are free, but the checkpoints need about {mib(needed)}{mlflow}",
            "free some space, or choose another disk with output_root",
        )


def mib(size: float) -> str:
    """A number of bytes."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
