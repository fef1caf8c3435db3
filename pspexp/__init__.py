"""Configurable experiments for semantic segmentation, built around PSPNet-50.

From Python: `load` a trained network and call it on images, `compose` a configuration and `build` parts of it, `train`
and `test` in a notebook, and `pspnet50(num_classes=21)` and its sisters for the networks alone.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from torch import nn

    from pspexp.config.build import build
    from pspexp.config.compose import compose
    from pspexp.config.load import load
    from pspexp.jobs.notebook import test, train

    Network = Callable[..., nn.Module]
    deeplabv3_resnet50: Network
    fcn_resnet50: Network
    pspnet18: Network
    pspnet50: Network
    pspnet50_mmseg: Network
    pspnet101: Network
    pspnet_decoder: Network
    pspnet_lite0: Network

__all__ = [
    "build",
    "compose",
    "deeplabv3_resnet50",
    "fcn_resnet50",
    "load",
    "pspnet18",
    "pspnet50",
    "pspnet50_mmseg",
    "pspnet101",
    "pspnet_decoder",
    "pspnet_lite0",
    "test",
    "train",
]
_MODULES = {
    "build": "pspexp.config.build",
    "compose": "pspexp.config.compose",
    "load": "pspexp.config.load",
    "test": "pspexp.jobs.notebook",
    "train": "pspexp.jobs.notebook",
}


def __getattr__(name: str) -> Any:
    """The functions of ``__all__`` on first use: importing the package costs neither torch nor Hydra."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    return partial(import_module("pspexp.config.load").network, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
