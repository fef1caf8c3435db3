"""The processes of one job and their communication. In a single process every call is free."""

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
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pspexp.engine.device import Device
from pspexp.errors import UserError, setting
from pspexp.utils.files import write_text_atomic

T = TypeVar("T")
outside_inference_mode = torch.inference_mode(False)  # inside it, gloo's threads cannot write tensors in older torch
LOOPBACK = "127.0.0.1"
RENDEZVOUS_TIMEOUT_S = 300  # how long the other processes wait for the address of process 0


@dataclass(frozen=True)
class ProcessInfo:
    """A process's rank in its job, known before the process group is initialised.

    Attributes:
        rank: Number of the process, from 0.
        world_size: Number of processes.
        local_rank: Number of the process on its machine, from 0.
        make_store: Function that returns the store through which the processes find each other.
        restart_count: Number of times the job has been restarted after a failure.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    make_store: Callable[[], Store] | None = None
    restart_count: int = 0


class World:
    """The process group of a job. All processes must make the same collective calls in the same order.

    Args:
        process: Rank of this process.
        device: Device of this process. Tensors on it use its own backend, all others gloo.

    Raises:
        UserError: The device has no process-group backend.
    """

    def __init__(self, process: ProcessInfo, device: Device) -> None:
        self.rank, self.size = process.rank, process.world_size
        self._device = device
        self._pending_max: tuple[Tensor, Any] | None = None
        if self.size == 1:
            return
        backend = device.backends()
        assert process.make_store is not None, process
        with default_signal_handlers():
            dist.init_process_group(backend, store=process.make_store(), rank=self.rank, world_size=self.size)

    @property
    def is_main_process(self) -> bool:
        """Whether this is process 0, the main process, which writes the records."""
        return self.rank == 0

    def close(self) -> None:
        """Destroy the process group. Only after success: otherwise it would hide which process failed."""
        if self.size > 1:
            if self._pending_max is not None:
                self._pending_max[1].wait()
            dist.barrier()  # the store disappears when process 0 exits
            dist.destroy_process_group()

    @outside_inference_mode
    def all_reduce_cpu(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, on the CPU, where integer sums are exact with every backend."""
        total = tensor.cpu().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    @outside_inference_mode
    def all_gather_object(self, value: T) -> list[T]:
        """The picklable value of each process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @outside_inference_mode
    def all_gather_cpu(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of each process, by rank, on the CPU; all must have the same shape and type."""
        own = tensor.cpu()
        if self.size == 1:
            return [own]
        tensors = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(tensors, own.clone())
        return tensors

    @outside_inference_mode
    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """The result of ``make``, or the UserError it raises; only the main process calls it."""
        if self.size == 1:
            return make()
        message: list[Any] = [None, ()]
        if self.is_main_process:
            try:
                message = [make(), ()]
            except UserError as error:
                message = [None, error.problems]
        dist.broadcast_object_list(message)
        if message[1]:
            raise UserError(*message[1], shared=True)
        result: T = message[0]
        return result

    def raise_collectively(self, problems: Sequence[str]) -> None:
        """Raise UserError in every process, with the problems of all of them, if any process has problems."""
        if self.size == 1 and problems:
            raise UserError(*problems)
        found = [problem for each in self.all_gather_object(tuple(problems)) for problem in each]
        if found:
            raise UserError(*dict.fromkeys(found), shared=True)

    @outside_inference_mode
    def all_reduce_max_async(self, value: int) -> int:
        """The maximum over the processes of the values of the previous call, so that no process has to wait."""
        if self.size == 1:
            return value
        previous = 0
        if self._pending_max is not None:
            tensor, work = self._pending_max
            work.wait()
            previous = int(tensor)
        tensor = torch.tensor([value])
        self._pending_max = tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True)
        return previous

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, on the device and without waiting for it."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Overwrite the buffers (running statistics) of every process with those of the main process."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """``model`` with gradients averaged over the processes, starting from the weights of the main process."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def convert_sync_batchnorm(self, model: nn.Module) -> nn.Module | None:
        """``model`` with batch norms over the images of all processes, or None if the device does not support it."""
        convert = self._device.sync_batch_norm.convert_sync_batchnorm
        try:  # torch and plugins have kernels for some devices only and do not list them
            probe = convert(nn.BatchNorm2d(1)).to(self._device.torch)
            probe(torch.ones(2, 1, 1, 1, device=self._device.torch, requires_grad=True)).sum().backward()
        except (RuntimeError, ValueError):
            return None
        # The norms of timm's EfficientNets call an activation, which the converted ones hold but would not call.
        activated = [name for name, one in model.named_modules() if isinstance(one, _BatchNorm) and hasattr(one, "act")]
        converted: nn.Module = convert(model)
        for name in activated:
            converted.get_submodule(name).register_forward_hook(lambda norm, _, output: norm.act(norm.drop(output)))
        return converted


@contextmanager
def default_signal_handlers() -> Iterator[None]:
    """Let stop signals end this process: while torch waits for the other processes, no Python handler runs."""
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(number) is not signal.SIG_IGN
    }
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def no_sync(network: nn.Module) -> AbstractContextManager[None]:
    """Context in which backward passes accumulate gradients locally; the next one outside exchanges their sum."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def process_info_from_torchrun() -> ProcessInfo:
    """This process's rank, from the environment that torch's elastic agent (``torchrun``) sets.

    Raises:
        KeyError: A variable is missing.
        ValueError: A variable is not a number.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    rank, world_size, local_rank, local_world_size, port = (int(os.environ[name]) for name in names)
    host, restart_count = os.environ["MASTER_ADDR"], int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    # The store is hosted by the agent or by process 0.
    hosts_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
    several_machines = world_size > local_world_size

    def make_store() -> Store:
        store = (
            create_store(host, port, several_machines=several_machines)
            if hosts_store
            else TCPStore(host, port, is_master=False)
        )
        # Keys are separate from those that an earlier attempt left there.
        return PrefixStore(f"pspexp/{restart_count}", store)

    return ProcessInfo(rank, world_size, local_rank, make_store, restart_count)


def create_store(host: str, port: int, *, several_machines: bool = False) -> TCPStore:
    """A store hosted by this process.

    Args:
        host: Address of this machine, reachable from the other processes.
        port: Port to listen on; 0 chooses a free one. The store opens it at once, so that no other process can take it.
        several_machines: Whether to listen on all addresses of this machine instead of that of ``host`` alone, since a
            machine often resolves its own name to the loopback address.

    Raises:
        UserError: The port cannot be used.
    """
    try:
        server = socket.create_server(("" if several_machines else host, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(f"port {port}: cannot listen on it ({reason}); choose another one for the job") from error
    port = server.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,  # shared with the elastic agent
        master_listen_fd=server.detach(),
        use_libuv=False,  # not every torch can pass a socket to libuv
    )


def rendezvous_store(
    file: Path, *, is_main_process: bool, address: tuple[str, int] | None, several_machines: bool
) -> Store:
    """A store hosted by process 0 on a free port, which it publishes in ``file``.

    Args:
        file: Path that only this job uses, in a folder that all processes share.
        is_main_process: Whether this is process 0.
        address: Fixed host and port; the file is not used then.
        several_machines: See `create_store`.

    Raises:
        UserError: Process 0 did not publish its address in time.
    """
    if address is not None:
        if is_main_process:
            return create_store(*address, several_machines=several_machines)
        return TCPStore(*address, is_master=False)
    if is_main_process:
        host = socket.gethostname() if several_machines else LOOPBACK
        store = create_store(host, 0, several_machines=several_machines)
        write_text_atomic(file, f"{host} {store.port}")
        atexit.register(file.unlink, missing_ok=True)
        return store
    deadline = time.monotonic() + RENDEZVOUS_TIMEOUT_S
    while not file.is_file():
        if time.monotonic() > deadline:
            raise UserError(
                f"{setting('launcher.rendezvous_dir', file.parent)}: process 0 has not written {file.name} there "
                f"within {RENDEZVOUS_TIMEOUT_S} s; use a folder shared by all nodes, or set "
                f"{setting('launcher.master_addr')} and {setting('launcher.master_port')}"
            )
        time.sleep(0.1)
    host, port = file.read_text().split()
    return TCPStore(host, int(port), is_master=False)
