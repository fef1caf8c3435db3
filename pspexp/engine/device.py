"""Where tensors live and in which precision the network computes.

No branch here asks for a device's *name*: what a device can do is found by trying it, and what only its maker
knows stands in its YAML file.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pkgutil import resolve_name
from typing import Any, Literal

import torch
from torch import nn

from pspexp.errors import UserError

HOST = "cpu"  # has no cards, and its tensors travel through gloo
AUTO_ORDER = ("cuda", "mps")  # what ``auto`` tries before the host


def why_unusable(kind: str) -> str | None:
    """None if a tensor can be made on the device ``kind``, else torch's own reason in one line."""
    try:
        torch.zeros(1, device=kind)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return first_line(error).split(". ")[0].rstrip(".")
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def card_names(type: str, plugin: str | None = None, variable: str | None = None) -> tuple[str, list[str]]:
    """The environment variable by which a process is shown some of a machine's cards, and those this process is shown.

    Args:
        type, plugin: as for `Device`.
        variable: None: ``<TYPE>_VISIBLE_DEVICES``.

    Returns:
        No names for a device without cards.

    Raises:
        UserError: the plugin cannot be imported.
    """
    import_plugin(type, plugin)
    for kind in AUTO_ORDER if type == "auto" else (type,):
        module: Any = getattr(torch, kind, None)
        count = module.device_count() if kind != HOST and hasattr(module, "device_count") else 0
        if count:
            variable = variable or f"{kind.upper()}_VISIBLE_DEVICES"
            shown = os.environ.get(variable)
            return variable, shown.split(",")[:count] if shown else [str(index) for index in range(count)]
    return "", []


class Device:
    """One place for tensors, made the process's current device.

    Args:
        type: a torch device type, or ``auto``: the first usable of CUDA and MPS, else the CPU.
        plugin: module whose import teaches torch this type, such as ``torch_npu``.
        index: number of the card; None: the process's number on its machine.
        local_rank: number of this process on its machine, for `index`.
        dist_backend: name of the process-group backend; None: the one that torch, or the plugin, registered.
        amp_dtypes: the formats of mixed precision that the device supports, best first; None: found by trying.
        autocast: dotted name of a class to use instead of ``torch.autocast``, called with ``dtype=``.
        grad_scaler: dotted name of a class to use instead of ``torch.amp.GradScaler``, called without arguments.
        sync_batch_norm: dotted name of a class to use instead of ``torch.nn.SyncBatchNorm``.
        visible_devices: environment variable by which processes are shown some of the cards, for the parallel jobs
            of a sweep (see `card_names`); it must be set before this process.

    Raises:
        UserError: the device cannot be used on this machine; names the cause.
    """

    def __init__(
        self,
        type: str = "auto",
        *,
        plugin: str | None = None,
        index: int | None = None,
        local_rank: int = 0,
        dist_backend: str | None = None,
        amp_dtypes: Sequence[Literal["bf16", "fp16"]] | None = None,
        autocast: str | None = None,
        grad_scaler: str | None = None,
        sync_batch_norm: str | None = None,
        visible_devices: str | None = None,
    ) -> None:
        import_plugin(type, plugin)
        if type == "auto":
            type = next((kind for kind in AUTO_ORDER if why_unusable(kind) is None), HOST)
        elif reason := why_unusable(type):
            raise UserError(f"device={type}: not usable here ({reason}); try device=auto or device=cpu")
        self.type, self.amp_dtypes = type, amp_dtypes
        self.torch = torch.device(type)
        self.dist_backend = dist_backend
        if type == HOST and index is not None:
            raise UserError(f"device.index={index}: device={type} has no cards to choose from; leave it out")
        if hasattr(self._module, "set_device") and type != HOST:
            self.torch = torch.device(type, self._choose_card(index, local_rank))
            self._module.set_device(self.torch)  # before anything else: streams and process groups belong to a card
        self._autocast = resolve("device.autocast", autocast)
        self._grad_scaler = resolve("device.grad_scaler", grad_scaler)
        self.sync_batch_norm: Any = resolve("device.sync_batch_norm", sync_batch_norm) or nn.SyncBatchNorm
        # Copies in a stream of their own need not wait for the work that is queued.
        self._copies: Any = self._module.Stream() if self.pin_memory and hasattr(self._module, "Stream") else None

    def _choose_card(self, index: int | None, local_rank: int) -> int:
        count = self._module.device_count()
        if index is not None and not 0 <= index < count:
            raise UserError(f"device.index={index}: this machine has {cards(count, self.type)}; {numbers(count)}")
        if index is not None and local_rank > 0 and count > 1:
            raise UserError(f"device.index={index}: several processes would share this card; leave it out")
        if index is None and local_rank >= count:
            raise UserError(
                f"launcher.nproc_per_node: process {local_rank} of this machine has no card, there is only "
                f"{cards(count, self.type)}; start at most {count} a machine, or, where each process is shown a card "
                "of its own, set device.index=0"
            )
        return local_rank if index is None else index

    @property
    def _module(self) -> Any:
        return getattr(torch, self.type, None)

    @property
    def pin_memory(self) -> bool:
        """Whether page-locked host memory speeds up copies to this device."""
        return hasattr(self._module, "get_device_properties")

    def backends(self) -> str:
        """The process-group backends, for ``init_process_group``: gloo for the host, the device's own for the device.

        Raises:
            UserError: none is known.
        """
        known = torch.distributed.Backend.default_device_backend_map
        backend = self.dist_backend or known.get(self.type)
        if self.type == HOST:
            return f"{HOST}:{backend}"
        if backend is None:
            raise UserError(
                f"device.dist_backend=null: torch knows no process-group backend for {self.type}; "
                "name one, or use launcher=single"
            )
        if not torch.distributed.is_backend_available(backend):
            raise UserError(f"device.dist_backend={backend}: not in this torch; known are {', '.join(known.values())}")
        return f"{HOST}:gloo,{self.type}:{backend}"

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` on this device; from pinned memory without waiting, and beside the work that is queued."""
        if self._copies is None or not tensor.is_pinned():
            return tensor.to(self.torch, non_blocking=True)
        with self._module.stream(self._copies):
            moved = tensor.to(self.torch, non_blocking=True)
        now = self._module.current_stream()
        now.wait_stream(self._copies)
        moved.record_stream(now)  # else its memory could be given away while it is still read
        return moved

    def record_event(self) -> Callable[[], None]:
        """Mark the end of the work queued so far; calling the result waits until the device has come there."""
        if not hasattr(self._module, "Event") or self.type == HOST:
            return lambda: None  # computes at once, or queues without telling
        event = self._module.Event()
        event.record()
        wait: Callable[[], None] = event.synchronize
        return wait

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Mixed precision: a context in which torch chooses ``dtype`` where it may."""
        if self._autocast is not None:
            context: AbstractContextManager[Any] = self._autocast(dtype=dtype)
            return context
        return torch.autocast(self.type, dtype=dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """A scaler of losses for fp16, which may turn out to have disabled itself."""
        scaler: torch.amp.GradScaler = self._grad_scaler() if self._grad_scaler else torch.amp.GradScaler(self.type)
        return scaler

    def describe(self) -> str:
        """Name for people, e.g. ``cpu (2 threads)`` or ``cuda:0 (NVIDIA H100, 80 GiB)``."""
        if self.type == HOST:
            return f"{self.type} ({torch.get_num_threads()} threads)"
        if hasattr(self._module, "get_device_properties"):
            properties = self._module.get_device_properties(self.torch)
            return f"{self.torch} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
        if hasattr(self._module, "get_device_name"):
            return f"{self.torch} ({self._module.get_device_name(self.torch)})"
        return str(self.torch)


def import_plugin(type: str, plugin: str | None) -> None:
    """Import the module that teaches torch a device type.

    Raises:
        UserError: it is not installed, or fails.
    """
    if plugin is None:
        return
    try:
        importlib.import_module(plugin)
    except Exception as error:  # whatever a vendor's module does when its driver is missing
        absent = isinstance(error, ModuleNotFoundError) and error.name == plugin.partition(".")[0]
        cause = "is not installed" if absent else f"fails to import ({error.__class__.__name__}: {first_line(error)})"
        fix = "install it as its vendor says" if absent else "repair it or its driver"
        raise UserError(f"device={type}: its plugin {plugin} {cause}; {fix}, or use device=cpu") from error


def resolve(key: str, name: str | None) -> Any:
    """What a dotted name stands for, or None without one.

    Raises:
        UserError: there is no such thing.
    """
    if name is None:
        return None
    try:
        return resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}={name}: cannot be imported ({first_line(error)}); correct it or set it null") from error


def cards(count: int, type: str) -> str:
    """``2 cuda cards``."""
    return f"{count} {type} card{'' if count == 1 else 's'}"


def numbers(count: int) -> str:
    """What to type for one of ``count`` cards."""
    return "use 0" if count == 1 else f"use 0 to {count - 1}"
