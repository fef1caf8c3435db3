"""Versions, devices and memory of this machine."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from pspexp.config.build import build
from pspexp.data.workers import SHM
from pspexp.engine.device import AUTO_ORDER, HOST, Device, unavailable_reason
from pspexp.engine.precision import AUTOCAST_DTYPES, Precision, unsupported_reason
from pspexp.errors import UserError

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "pillow", "mlflow")

Rows = list[tuple[str, str]]


def show() -> None:
    """Print the environment when there is no valid configuration."""
    Console().print(as_table(environment(None)))


def as_table(rows: Rows) -> Table:
    """The environment for the terminal."""
    table = Table("item", "value", title="Environment", title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def environment(config: DictConfig | None) -> Rows:
    """Versions, memory, available devices, and the precisions that the configured device supports."""
    plugin = config.device.get("plugin") if config is not None else None
    rows = [("python", f"{platform.python_version()} on {platform.platform()}")]
    rows += [(package, version(package)) for package in (*PACKAGES, *([plugin] if plugin else []))]
    for kind in (HOST, *AUTO_ORDER):
        reason = unavailable_reason(kind)
        rows.append((f"device={kind}", f"not available: {reason}" if reason else describe_cards(Device(kind))))
    if config is not None:
        rows.append((f"configured: device={config.choices.device}", describe_configured_device(config)))
    rows.append(("process-group backends", ", ".join(process_group_backends())))
    rows.append(("memory", f"{memory_bytes() / 2**30:.0f} GiB"))
    if SHM.is_dir():
        rows.append(("shared memory", f"{shutil.disk_usage(SHM).free / 2**30:.1f} GiB free in {SHM}"))
    rows.append(("free disk space", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB"))
    return rows


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe_cards(device: Device) -> str:
    """The number of cards of a device's type, if it has any, and the device itself."""
    module: Any = getattr(torch, device.type)
    num_cards = module.device_count() if hasattr(module, "device_count") and device.type != HOST else 0
    return f"{num_cards} × {device.describe()}" if num_cards else device.describe()


def describe_configured_device(config: DictConfig) -> str:
    """The configured device and the precisions it supports, or why it cannot be used."""
    try:
        device: Device = build(config.device)
    except UserError as error:
        return str(error)
    lines = [describe_cards(device), "precision=fp32: yes"]
    for name in AUTOCAST_DTYPES:
        reason = unsupported_reason(name, device)
        supported = "yes, with a gradient scaler" if name == "fp16" else "yes"
        lines.append(f"precision={name}: {f'no ({reason})' if reason else supported}")
    return "\n".join([*lines, f"precision=auto: {Precision('auto').explain(device)}"])


def process_group_backends() -> list[str]:
    """The process-group backends of this torch and its plugins."""
    if not torch.distributed.is_available():
        return ["none"]
    known = torch.distributed.Backend.backend_list
    return [name for name in known if name != "undefined" and torch.distributed.is_backend_available(name)]
