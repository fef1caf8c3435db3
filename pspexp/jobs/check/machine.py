"""What the machine may lack: shared memory for the loader's workers, and space for checkpoints."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from pspexp.data.inspection.findings import Finding
from pspexp.data.workers import SHM
from pspexp.engine.components import TrainingComponents
from pspexp.jobs.check.data import CheckedData
from pspexp.jobs.disk_space import FIX, checkpoint_bytes
from pspexp.utils.files import free_space, mib

PREFETCHED = 2  # batches that each worker holds ready: torch's default


def findings(
    config: DictConfig, components: TrainingComponents | None, data: CheckedData, folder: Path
) -> Iterator[Finding]:
    """Findings about the machine; ``folder`` is in the output root."""
    yield from shared_memory(config, data)
    if components is not None:
        yield from disk_space(components, folder, averages=bool(config.trainer.ema))


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


def disk_space(components: TrainingComponents, folder: Path, *, averages: bool) -> Iterator[Finding]:
    """Whether the checkpoints fit on the disk."""
    needed, free = checkpoint_bytes(components, averages=averages), free_space(folder)
    if free is not None and needed > free:
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        text = f"{mib(free)} are free, but the checkpoints need about {mib(needed)}"
        yield Finding("error", "disk space", place, text, FIX)
