"""The colour statistics of the images that a network's pretrained weights were trained with.

They belong to the weights: ``dataset.mean`` and ``dataset.std`` are null by default, which stands for them. The target
of ``model`` may bring its own as a callable attribute ``image_statistics``, which maps the node's arguments to the mean
and the standard deviation of each band, as fractions of 255; `with_image_statistics` attaches one. All other networks
have ImageNet's.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pspexp.models.backbone import RESNETS
from pspexp.utils.imports import without_compiler

Statistics = tuple[list[float], list[float]]
Lookup = Callable[[Mapping[str, Any]], Statistics]
Target = TypeVar("Target", bound=Callable[..., Any])

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def with_image_statistics(lookup: Lookup) -> Callable[[Target], Target]:
    """A decorator that gives a target its ``image_statistics``."""

    def attach(target: Target) -> Target:
        target.image_statistics = lookup  # type: ignore[attr-defined]
        return target

    return attach


def image_statistics(target: object, arguments: Mapping[str, Any]) -> Statistics:
    """Mean and standard deviation of each band, for a network.

    Args:
        target: The class or function that builds it.
        arguments: Arguments of the target.
    """
    lookup: Lookup | None = getattr(target, "image_statistics", None)
    return imagenet_statistics() if lookup is None else lookup(arguments)


def imagenet_statistics() -> Statistics:
    """The mean and standard deviation of ImageNet's images."""
    mean, std = IMAGENET
    return [*mean], [*std]


def timm_statistics(arguments: Mapping[str, Any]) -> Statistics:
    """Those of timm's network ``arguments["backbone"]``; ImageNet's for a name or tag that timm does not know."""
    name = arguments.get("backbone")
    if not isinstance(name, str) or name in RESNETS:
        return imagenet_statistics()
    timm = without_compiler("timm")  # takes seconds
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a wrong tag, which is reported when the network is built
        config = None
    return imagenet_statistics() if config is None else ([*config.mean], [*config.std])
