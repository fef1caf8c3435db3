"""``mode=check``: the environment and the configuration, without training anything."""

import platform
import shutil
from importlib import metadata
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from pspexp import run
from pspexp.assembly import build_training
from pspexp.device import AUTO_ORDER, Device, Precision, supports_bf16, why_unusable

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "pillow", "mlflow")


def check(config: DictConfig) -> None:
    """Print versions, devices and the configuration, and build everything a training needs.

    Raises:
        UserError: something cannot be built.
    """
    console = Console()
    console.print(environment())
    console.print(OmegaConf.to_yaml(OmegaConf.create(run.public(config))), markup=False, highlight=False)
    build_training(config, start_weights=config.checkpoint.resume is None)
    console.print("The configuration is valid and everything in it can be built.")


def environment() -> Table:
    """Versions, and what each kind of device can do here."""
    table = Table("what", "here", title="Environment", title_justify="left")
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            table.add_row(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            table.add_row(package, "not installed")
    for kind in ("cpu", *AUTO_ORDER):
        table.add_row(f"device={kind}", device_abilities(kind))
    table.add_row("device=auto", Device("auto").type)
    table.add_row("free disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB")
    return table


def device_abilities(kind: str) -> str:
    """What a device type is here and computes in, or why it cannot be used."""
    if reason := why_unusable(kind):
        return f"not usable: {reason}"
    device = Device(kind)
    formats = "fp32, bf16" if supports_bf16(kind) else "fp32"
    return f"{device.describe()}; {formats}; precision=auto means {Precision('auto').resolve(device)}"
