"""``mode=check``: report on the environment and build everything that training needs, without training."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from pspexp.config.build import build, build_training, init_distributed
from pspexp.data.loader import steps_per_epoch
from pspexp.engine.device import AUTO_ORDER, HOST, Device, unavailable_reason
from pspexp.engine.distributed import ProcessInfo
from pspexp.engine.precision import AUTOCAST_DTYPES, Precision, unsupported_reason
from pspexp.errors import UserError
from pspexp.jobs import records

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "pillow", "mlflow")


def check(config: DictConfig, _folder: Path) -> None:
    """Print versions, devices and the configuration, then build everything that training needs.

    Raises:
        UserError: something cannot be built.
    """
    console = Console()
    console.print(environment(config))
    console.print(OmegaConf.to_yaml(OmegaConf.create(records.public(config))), markup=False, highlight=False)
    launcher = build(config.launcher)
    start_weights = config.checkpoint.resume is None
    components, _ = build_training(config, *init_distributed(config, ProcessInfo()), start_weights=start_weights)
    if launcher.world_size > 1:
        components.device.backends()
        steps_per_epoch(  # called for its error
            len(components.training), config.loader.batch_size, config.trainer.accumulate, launcher.world_size
        )
    console.print("The configuration is valid and everything in it can be built.")


def environment(config: DictConfig) -> Table:
    """Versions, memory, available devices, and the precisions that the configured device supports."""
    table = Table("item", "value", title="Environment", title_justify="left")
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    plugin = config.device.get("plugin")
    for package in (*PACKAGES, *([plugin] if plugin else [])):
        table.add_row(package, version(package))
    for kind in (HOST, *AUTO_ORDER):
        reason = unavailable_reason(kind)
        table.add_row(f"device={kind}", f"not available: {reason}" if reason else describe_cards(Device(kind)))
    table.add_row(f"configured: device={config.choices.device}", describe_configured_device(config))
    table.add_row("process-group backends", ", ".join(process_group_backends()))
    table.add_row("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    table.add_row("free disk space", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB")
    return table


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
    return "\n".join([*lines, f"precision=auto: {Precision('auto').resolve(device)}"])


def process_group_backends() -> list[str]:
    """The process-group backends of this torch and its plugins."""
    if not torch.distributed.is_available():
        return ["none"]
    known = torch.distributed.Backend.backend_list
    return [name for name in known if name != "undefined" and torch.distributed.is_backend_available(name)]
