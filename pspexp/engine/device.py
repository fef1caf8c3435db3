"""Devices.

No branch depends on a device's *name*: capabilities are detected by trying them, and what only the vendor knows is
set in the device's YAML file.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from pspexp.errors import ArgumentError, UserError, setting
from pspexp.utils.arguments import checked
from pspexp.utils.text import count, first_line

HOST = "cpu"  # has no cards; its tensors use gloo
AUTO_ORDER = ("cuda", "mps")  # what ``auto`` tries before the CPU


def unavailable_reason(type: str) -> str | None:
    """Why torch cannot create tensors on a device type, in one line; None if it can."""
    try:
        torch.zeros(1, device=type)
    except NotImplementedError:
        return f"this PyTorch is built without {type}"
    except (RuntimeError, AssertionError) as error:
        return first_line(error).split(". ")[0].rstrip(".")
    return None


def visible_cards(type: str, plugin: str | None = None, variable: str | None = None) -> tuple[str, list[str]]:
    """The environment variable that restricts a process to some of a machine's cards, and the cards visible here.

    Args:
        type, plugin: See `Device`.
        variable: Name of the variable; None means ``<TYPE>_VISIBLE_DEVICES``.

    Returns:
        The name and the cards, as they are written in the variable; both empty for a device without cards.

    Raises:
        UserError: The plugin cannot be imported.
    """
    import_plugin(type, plugin)
    for kind in AUTO_ORDER if type == "auto" else (type,):
        module: Any = getattr(torch, kind, None)
        num_cards = module.device_count() if kind != HOST and hasattr(module, "device_count") else 0
        if num_cards:
            variable = variable or f"{kind.upper()}_VISIBLE_DEVICES"
            visible = os.environ.get(variable)
            return variable, visible.split(",")[:num_cards] if visible else [str(index) for index in range(num_cards)]
    return "", []


class Device:
    """A torch device, made the current device of the process.

    Args:
        type: torch device type, or ``auto`` for the first available of CUDA, MPS and CPU.
        plugin: Module that registers the device type with torch when it is imported, such as ``torch_npu``.
        index: Number of the card; None means ``local_rank``.
        local_rank: Number of this process on its machine.
        dist_backend: Name of the process-group backend; None means the one registered by torch or the plugin.
        amp_dtypes: Mixed-precision formats that the device supports, best first; None detects them by trying.
        autocast: Dotted name of a replacement for ``torch.autocast``, called with ``dtype=``.
        grad_scaler: Dotted name of a replacement for ``torch.amp.GradScaler``, called without arguments.
        sync_batch_norm: Dotted name of a replacement for ``torch.nn.SyncBatchNorm``.
        visible_devices: Environment variable that restricts a process to some of the cards, for the parallel jobs of
            a sweep (see `visible_cards`). Read by the sweep, not here: it must be set before a process starts.

    Raises:
        UserError: The device cannot be used on this machine; the message names the reason.
        ArgumentError: An argument does not fit the device.
    """

    @checked
    def __init__(
        self,
        type: str = "auto",
        *,
        plugin: str | None = None,
        index: Annotated[int, Field(ge=0)] | None = None,
        local_rank: Annotated[int, Field(ge=0)] = 0,
        dist_backend: str | None = None,
        amp_dtypes: Sequence[Literal["bf16", "fp16"]] | None = None,
        autocast: str | None = None,
        grad_scaler: str | None = None,
        sync_batch_norm: str | None = None,
        visible_devices: str | None = None,
    ) -> None:
        import_plugin(type, plugin)
        if type == "auto":
            type = next((kind for kind in AUTO_ORDER if unavailable_reason(kind) is None), HOST)
        elif reason := unavailable_reason(type):
            fix = f"try {setting('device', 'auto')} or {setting('device', 'cpu')}"
            raise UserError(f"{setting('device', type)}: not available here ({reason}); {fix}")
        self.type, self.amp_dtypes = type, amp_dtypes
        self.torch = torch.device(type)
        self.dist_backend = dist_backend
        if type == HOST and index is not None:
            raise ArgumentError(f"index={index}: {setting('device', type)} has no cards to choose from; remove it")
        if hasattr(self._module, "set_device") and type != HOST:
            self.torch = torch.device(type, self._choose_card(index, local_rank))
            self._module.set_device(self.torch)  # before anything else: streams and process groups belong to a card
        self._autocast = import_name("autocast", autocast)
        self._grad_scaler = import_name("grad_scaler", grad_scaler)
        self.sync_batch_norm: Any = import_name("sync_batch_norm", sync_batch_norm) or nn.SyncBatchNorm
        # In a stream of their own, copies do not wait for queued work.
        self._copy_stream: Any = self._module.Stream() if self.pin_memory and hasattr(self._module, "Stream") else None

    def _choose_card(self, index: int | None, local_rank: int) -> int:
        num_cards = self._module.device_count()
        cards = count(num_cards, f"{self.type} card")
        if index is not None and index >= num_cards:
            valid = "0" if num_cards == 1 else f"0 to {num_cards - 1}"
            raise ArgumentError(f"index={index}: this machine has {cards}; use {valid}")
        if index is not None and local_rank > 0 and num_cards > 1:
            raise ArgumentError(f"index={index}: several processes would share this card; remove it")
        if index is None and local_rank >= num_cards:
            raise UserError(
                f"{setting('launcher.nproc_per_node')}: no card for process {local_rank} of this machine, which has "
                f"{cards}; start at most {count(num_cards, 'process')} per machine, or set "
                f"{setting('device.index', 0)} if each process sees only a card of its own"
            )
        return local_rank if index is None else index

    @property
    def _module(self) -> Any:
        return getattr(torch, self.type, None)

    @property
    def pin_memory(self) -> bool:
        """Whether page-locked (pinned) host memory speeds up copies to this device."""
        return hasattr(self._module, "get_device_properties")

    def backends(self) -> str:
        """The process-group backends, as in ``cpu:gloo,cuda:nccl``, for ``init_process_group``.

        Raises:
            UserError: No backend is known for this device.
        """
        known = torch.distributed.Backend.default_device_backend_map
        backend = self.dist_backend or known.get(self.type)
        if self.type == HOST:
            return f"{HOST}:{backend}"
        if backend is None:
            raise UserError(
                f"{setting('device.dist_backend', None)}: torch has no process-group backend for {self.type}; "
                f"name one, or use {setting('launcher', 'single')}"
            )
        if not torch.distributed.is_backend_available(backend):
            raise UserError(
                f"{setting('device.dist_backend', backend)}: not available in this torch; use one of "
                f"{', '.join(known.values())}"
            )
        return f"{HOST}:gloo,{self.type}:{backend}"

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` on this device; pinned memory is copied asynchronously, in parallel with queued work."""
        if self._copy_stream is None or not tensor.is_pinned():
            return tensor.to(self.torch, non_blocking=True)
        with self._module.stream(self._copy_stream):
            moved = tensor.to(self.torch, non_blocking=True)
        current = self._module.current_stream()
        current.wait_stream(self._copy_stream)
        moved.record_stream(current)  # otherwise its memory could be reused while it is still being read
        return moved

    def fetch(self, *tensors: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
        """Begin to copy tensors to the host; calling the result waits for the copies, not for work queued later."""
        non_blocking = self.pin_memory and hasattr(self._module, "Event")
        copies = tuple(tensor.to(HOST, non_blocking=non_blocking) for tensor in tensors)
        wait = self.record_event()

        def result() -> tuple[torch.Tensor, ...]:
            wait()
            return copies

        return result

    def record_event(self) -> Callable[[], None]:
        """Record an event after the work queued so far; calling the result waits for it."""
        if not hasattr(self._module, "Event") or self.type == HOST:
            return lambda: None  # computes synchronously, or has no events
        event = self._module.Event()
        event.record()
        wait: Callable[[], None] = event.synchronize
        return wait

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Mixed-precision context with ``dtype`` as the lower precision."""
        if self._autocast is not None:
            context: AbstractContextManager[Any] = self._autocast(dtype=dtype)
            return context
        return torch.autocast(self.type, dtype=dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Gradient scaler for fp16. Torch's disables itself where it is not supported."""
        scaler: torch.amp.GradScaler = self._grad_scaler() if self._grad_scaler else torch.amp.GradScaler(self.type)
        return scaler

    def describe(self) -> str:
        """Human-readable name, e.g. ``cpu (2 threads)`` or ``cuda:0 (NVIDIA H100, 80 GiB)``."""
        if self.type == HOST:
            return f"{self.type} ({count(torch.get_num_threads(), 'thread')})"
        if hasattr(self._module, "get_device_properties"):
            properties = self._module.get_device_properties(self.torch)
            return f"{self.torch} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
        if hasattr(self._module, "get_device_name"):
            return f"{self.torch} ({self._module.get_device_name(self.torch)})"
        return str(self.torch)


def import_plugin(type: str, plugin: str | None) -> None:
    """Import the module that registers a device type with torch.

    Raises:
        UserError: The module is not installed or fails to import.
    """
    if plugin is None:
        return
    try:
        importlib.import_module(plugin)
    except Exception as error:  # a vendor's module may raise anything if its driver is missing
        absent = isinstance(error, ModuleNotFoundError) and error.name == plugin.partition(".")[0]
        reason = "is not installed" if absent else f"fails to import ({error.__class__.__name__}: {first_line(error)})"
        fix = "follow the vendor's instructions to install it" if absent else "repair it or its driver"
        raise UserError(
            f"{setting('device', type)}: plugin {plugin} {reason}; {fix}, or use {setting('device', 'cpu')}"
        ) from error


def import_name(argument: str, name: str | None) -> Any:
    """The object with a dotted name, or None if there is no name.

    Raises:
        ArgumentError: The object cannot be imported.
    """
    if name is None:
        return None
    try:
        return resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(
            f"{argument}={name}: cannot be imported ({first_line(error)}); correct it or set it to null"
        ) from error
