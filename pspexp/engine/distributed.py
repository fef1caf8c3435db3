"""Who else is computing: the processes of one job and what they tell each other. Alone, every call is free."""

import atexit
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from pspexp.engine.device import Device
from pspexp.errors import UserError

T = TypeVar("T")
outside_inference_mode = torch.inference_mode(False)  # in it, old torch lets gloo's threads change no tensor
LOOPBACK = "127.0.0.1"
RENDEZVOUS_TIMEOUT_S = 300  # how long processes wait for the first one's word


@dataclass(frozen=True)
class ProcessInfo:
    """A process's place in its job, known before it has met the others.

    Attributes:
        rank: number of the process, from 0.
        size: number of processes (world size).
        local_rank: number of the process on its machine, from 0.
        store: makes the store through which the processes meet.
        restarts: how often the job has been restarted after a failure.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Callable[[], Store] | None = None
    restarts: int = 0


class World:
    """The processes of a job, after they have met. Collective calls must be made by all of them, in one order.

    Args:
        place: of this process.
        device: that it computes on. On it the device's own backend is used, for everything else gloo.

    Raises:
        UserError: the device has no backend for several processes.
    """

    def __init__(self, place: ProcessInfo, device: Device) -> None:
        self.rank, self.size = place.rank, place.size
        self._device = device
        self._answer: tuple[Tensor, Any] | None = None
        if self.size == 1:
            return
        backend = device.backends()
        assert place.store is not None, place
        with default_signal_handlers():
            dist.init_process_group(backend, store=place.store(), rank=place.rank, world_size=place.size)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the records."""
        return self.rank == 0

    def leave(self) -> None:
        """End the process group. Only after success: it would hide which process failed."""
        if self.size > 1:
            if self._answer is not None:
                self._answer[1].wait()
            dist.barrier()  # the store is gone when the first process leaves
            dist.destroy_process_group()

    @outside_inference_mode
    def all_reduce_cpu(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, on the CPU (so that it is exact for integers on every backend)."""
        total = tensor.cpu().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    @outside_inference_mode
    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank; anything that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @outside_inference_mode
    def gather_tensor(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of each process, by rank: of one shape and type, on the CPU."""
        if self.size == 1:
            return [tensor.cpu()]
        own = tensor.cpu().clone()
        tensors = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(tensors, own)
        return tensors

    @outside_inference_mode
    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns, or the UserError it raises, in the first process: it alone calls it."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, ()]
        if self.is_main_process:
            try:
                box = [make(), ()]
            except UserError as error:
                box = [None, error.problems]
        dist.broadcast_object_list(box)
        if box[1]:
            raise UserError(*box[1], shared=True)
        made: T = box[0]
        return made

    def raise_problems(self, problems: Sequence[str]) -> None:
        """Raise a UserError in every process if any of them has problems."""
        if self.size == 1 and problems:
            raise UserError(*problems)
        everyones = [problem for found in self.gather(tuple(problems)) for problem in found]
        if everyones:
            raise UserError(*dict.fromkeys(everyones), shared=True)

    @outside_inference_mode
    def all_reduce_max_async(self, value: int) -> int:
        """The largest value any process gave at the call before this one; so nobody waits, and all hear the same."""
        if self.size == 1:
            return value
        found = 0
        if self._answer is not None:
            tensor, work = self._answer
            work.wait()
            found = int(tensor)
        asked = torch.tensor([value])
        self._answer = asked, dist.all_reduce(asked, dist.ReduceOp.MAX, async_op=True)
        return found

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, on the device and without waiting for it."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give the first process's buffers (running statistics) to all."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """``model`` so that its gradients are the means over the processes; it starts from the first one's weights."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def convert_sync_batch_norm(self, model: nn.Module) -> nn.Module | None:
        """``model`` with batch norms over all processes' images; None where the device cannot do that."""
        convert = self._device.sync_batch_norm.convert_sync_batchnorm
        try:  # torch and plugins have kernels for some devices only, and no list of them
            trial = convert(nn.BatchNorm2d(1)).to(self._device.torch)
            trial(torch.ones(2, 1, 1, 1, device=self._device.torch, requires_grad=True)).sum().backward()
        except (RuntimeError, ValueError):
            return None
        converted: nn.Module = convert(model)
        return converted


@contextmanager
def default_signal_handlers() -> Iterator[None]:
    """Let SIGINT and SIGTERM end this process: who waits in torch for the others runs no handlers of Python."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def no_sync(network: nn.Module) -> AbstractContextManager[None]:
    """Backward passes in this context keep their gradients to themselves; the next one exchanges the sums."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def process_info_from_torchrun() -> ProcessInfo:
    """The place that torch's elastic agent (``torchrun``) has put into the environment.

    Raises:
        KeyError: it has not.
        ValueError: what stands there is no number.
    """
    read = {
        key: int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    }
    address, restarts = os.environ["MASTER_ADDR"], int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    # The agent may keep the store; else the first process does.
    keeps = read["RANK"] == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
    several_machines = read["WORLD_SIZE"] > read["LOCAL_WORLD_SIZE"]

    def store() -> Store:
        at = address, read["MASTER_PORT"]
        shared = create_store(*at, several_machines=several_machines) if keeps else TCPStore(*at, is_master=False)
        # Apart from what the processes of an earlier attempt have left there.
        return PrefixStore(f"pspexp/{restarts}", shared)

    return ProcessInfo(
        rank=read["RANK"],
        size=read["WORLD_SIZE"],
        local_rank=read["LOCAL_RANK"],
        store=store,
        restarts=restarts,
    )


def create_store(host: str, port: int, *, several_machines: bool = False) -> TCPStore:
    """A store that this process keeps for the others.

    Args:
        host: this machine, as the others reach it.
        port: 0 takes a free one. The store has it from then on, so nobody else can get it in between.
        several_machines: listen on all of this machine's addresses (its own idea of its name is often the loopback
            one), not on that of ``host`` alone.

    Raises:
        UserError: the port cannot be had.
    """
    try:
        server = socket.create_server(("" if several_machines else host, port))
    except OSError as error:
        cause = os.strerror(error.errno or 0)
        raise UserError(f"port {port}: cannot listen there ({cause}); choose another for the job") from error
    port = server.getsockname()[1]
    # Not every torch can hand libuv a socket.
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,  # the elastic agent keeps things there, too
        master_listen_fd=server.detach(),
        use_libuv=False,
    )


def rendezvous_store(
    file: Path, *, is_main_process: bool, address: tuple[str, int] | None, several_machines: bool
) -> Store:
    """A store that the first process keeps at a free port, which it tells the others in ``file``.

    Args:
        file: in a folder that all see; of this job alone.
        leads: whether this is the first process.
        address: host and port that all know already; then there is no file.
        several_machines: see `create_store`.

    Raises:
        UserError: the first process did not tell in time.
    """
    if address is not None:
        return (
            create_store(*address, several_machines=several_machines)
            if is_main_process
            else TCPStore(*address, is_master=False)
        )
    if is_main_process:
        host = socket.gethostname() if several_machines else LOOPBACK
        store = create_store(host, 0, several_machines=several_machines)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(f"{host} {store.port}")
        unfinished.replace(file)
        atexit.register(file.unlink, missing_ok=True)
        return store
    began = time.monotonic()
    while not file.is_file():
        if time.monotonic() - began > RENDEZVOUS_TIMEOUT_S:
            raise UserError(
                f"launcher.rendezvous_dir={file.parent}: process 0 has not written {file.name} there in {RENDEZVOUS_TIMEOUT_S} s; "
                "name a folder that all nodes share, or set launcher.master_addr and launcher.master_port"
            )
        time.sleep(0.1)
    host, port = file.read_text().split()
    return TCPStore(host, int(port), is_master=False)
