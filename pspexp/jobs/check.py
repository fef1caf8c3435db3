"""``mode=check``: the environment and the configuration, without training anything."""

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
from pspexp.data.loader import TrainLoader
from pspexp.engine.device import AUTO_ORDER, HOST, Device, unavailable_reason
from pspexp.engine.distributed import ProcessInfo
from pspexp.engine.precision import AUTOCAST_DTYPES, Precision, unsupported_reason
from pspexp.errors import UserError
from pspexp.jobs import records

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "pillow", "mlflow")


def check(config: DictConfig) -> None:
    """Print versions, devices and the configuration, and build everything a training needs.

    Raises:
        UserError: something cannot be built.
    """
    console = Console()
    console.print(environment(config))
    console.print(OmegaConf.to_yaml(OmegaConf.create(records.public(config))), markup=False, highlight=False)
    launcher = build(config.launcher)
    parts = build_training(
        config, *init_distributed(config, ProcessInfo()), start_weights=config.checkpoint.resume is None
    )
    if launcher.world_size > 1:
        parts.device.backends()
        options = {"batch_size": config.loader.batch_size, "accumulate": config.trainer.accumulate}
        shared = {"num_workers": 0, "seed": 0, "pin_memory": False, "world_size": launcher.world_size}
        TrainLoader(parts.training, lambda *sample: sample[:2], **options, **shared)  # refuses too many processes
    console.print("The configuration is valid and everything in it can be built.")


def environment(config: DictConfig) -> Table:
    """Versions, memory, what each kind of device is here, and what each precision would do on the chosen one."""
    table = Table("what", "here", title="Environment", title_justify="left")
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    plugin = config.device.get("plugin")
    for package in (*PACKAGES, *([plugin] if plugin else [])):
        table.add_row(package, version(package))
    for kind in (HOST, *AUTO_ORDER):
        table.add_row(f"device={kind}", why(kind) or cards(Device(kind)))
    table.add_row(f"chosen: device={config.choices.device}", chosen(config))
    table.add_row("process-group backends", ", ".join(backends()))
    table.add_row("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    table.add_row("free disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB")
    return table


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def why(kind: str) -> str | None:
    """Why a device type cannot be used, or None."""
    reason = unavailable_reason(kind)
    return None if reason is None else f"not usable: {reason}"


def cards(device: Device) -> str:
    """How many cards a device has and what the first one is."""
    module: Any = getattr(torch, device.type)
    count = module.device_count() if hasattr(module, "device_count") and device.type != HOST else 0
    return f"{count} × {device.describe()}" if count else device.describe()


def chosen(config: DictConfig) -> str:
    """What the configured device is, and what each precision would do there."""
    try:
        device: Device = build(config.device)
    except UserError as error:
        return str(error)
    lines = [cards(device), *(f"precision={name}: {effect(name, device)}" for name in ("fp32", *AUTOCAST_DTYPES))]
    return "\n".join([*lines, f"precision=auto: {Precision('auto').resolve(device)}"])


def effect(name: str, device: Device) -> str:
    """What a format would do on a device."""
    if name not in AUTOCAST_DTYPES:
        return "yes"
    scaled = ", with a gradient scaler" if name == "fp16" else ""
    reason = unsupported_reason(name, device)
    return f"no ({reason})" if reason else f"yes{scaled}"


def backends() -> list[str]:
    """The process-group backends that torch and its plugins offer here."""
    if not torch.distributed.is_available():
        return ["none"]
    known = torch.distributed.Backend.backend_list
    return [name for name in known if name != "undefined" and torch.distributed.is_backend_available(name)]
