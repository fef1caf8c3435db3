"""What process 0 of N does besides computing: the real training with collectives that only stand for the others'."""

import json
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import pspexp
from pspexp.config.build import build
from pspexp.data.loader import TrainLoader
from pspexp.engine.checkpoint import CheckpointDir
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.jobs.records import Request
from pspexp.jobs.train import train
from tools.bench.records import quiet

T = TypeVar("T")
NETWORK = ("model=pspnet18", "crop_size=33", "model.pyramid_channels=4", "model.head_channels=8", "precision=fp32")


class StandIn(World):
    """Process 0 of ``size`` processes that all have what it has; nothing is sent, but all is packed and unpacked."""

    def __init__(self, size: int, device: Device) -> None:
        super().__init__(ProcessInfo(), device)
        self.size = size

    def all_reduce_cpu(self, tensor: Tensor) -> Tensor:
        return tensor.cpu().clone()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def all_gather_object(self, value: T) -> list[T]:
        packed = pickle.dumps(value)
        return [pickle.loads(packed) for _ in range(self.size)]

    def all_gather_cpu(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.cpu().clone() for _ in range(self.size)]

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        return make()

    def all_reduce_max_async(self, value: int) -> int:
        return value

    def broadcast_buffers(self, model: nn.Module) -> None:
        pass

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        return model

    def convert_sync_batchnorm(self, model: nn.Module) -> nn.Module:
        return model

    def close(self) -> None:
        pass


def training(size: int, num_images: int, steps: int) -> dict[str, float]:
    """Milliseconds of a step of process 0 of ``size``, of its start and of a validation, with a tiny network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run")
        overrides = [
            *NETWORK, "dataset=shapes", "dataset.image_size=48", f"dataset.num_train={num_images}",
            "dataset.num_val=100", "inference=whole", "loader.batch_size=2", "loader.num_workers=0", "tracking=none",
            "trainer.log_every=1", f"trainer.max_steps={steps}", "trainer.validate_every=100000",
        ]  # fmt: skip
        config = pspexp.compose(overrides)
        device = build(config.device, local_rank=0)
        began = time.perf_counter()
        with quiet(Path(name)):
            folder.mkdir()
            train(Request(config, folder, overrides), device, StandIn(size, device), lambda: None)
        total_s = time.perf_counter() - began
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [one["train/step_time"] for one in records if "train/step_time" in one][2:]
    return {"step ms": 1e3 * statistics.median(times), "total s": total_s}


def sampling(size: int, num_images: int, batch_size: int) -> tuple[float, bool]:
    """Milliseconds in which one of ``size`` processes orders an epoch; whether all share it without overlap or gap."""

    def keys(rank: int) -> Iterable[int]:
        loader = TrainLoader(
            range(num_images), None, batch_size=batch_size, accumulate=1, num_workers=0, seed=0,  # type: ignore[arg-type]
            pin_memory=False, rank=rank, world_size=size,
        )  # fmt: skip
        return [key.index for batch in loader.sample_keys(0, loader.steps_per_epoch) for key in batch]

    began = time.perf_counter()
    first = keys(0)
    own_ms = 1e3 * (time.perf_counter() - began)
    every = [*first, *(index for rank in range(1, size) for index in keys(rank))]
    per_step = size * batch_size
    return own_ms, len(every) == len({*every}) == num_images // per_step * per_step


def checkpoint(num_classes: int) -> tuple[float, float]:
    """Seconds and MiB of a saved state: PSPNet-50 with SGD's momentum."""
    model = pspexp.pspnet50(num_classes=num_classes)
    state = model.state_dict()
    momentum: dict[str, Any] = {"state": {name: value.clone() for name, value in state.items()}}
    with tempfile.TemporaryDirectory() as name:
        folder = CheckpointDir(Path(name), {})
        times = []
        for _ in range(3):
            began = time.perf_counter()
            folder.save("last.pt", {"model": state, "training": {"optimizer": momentum}})
            times.append(time.perf_counter() - began)
        size = (Path(name) / "last.pt").stat().st_size / 2**20
    return statistics.median(times), size


def exchange_s(num_bytes: int, repeats: int = 5) -> float:
    """Seconds of an all-reduce between two processes of this machine, by gloo."""
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        queue = context.SimpleQueue()
        processes = [
            context.Process(target=_exchange, args=(rank, f"file://{name}/store", num_bytes, repeats, queue))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        found: float = queue.get()
        for process in processes:
            process.join()
    return found


def _exchange(rank: int, store: str, num_bytes: int, repeats: int, queue: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    tensor, times = torch.zeros(num_bytes // 4), []
    for _ in range(repeats + 1):
        torch.distributed.barrier()
        began = time.perf_counter()
        torch.distributed.all_reduce(tensor)
        times.append(time.perf_counter() - began)
    if rank == 0:
        queue.put(statistics.median(times[1:]))
    torch.distributed.destroy_process_group()
