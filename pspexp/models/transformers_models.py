"""Networks of transformers."""

import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import nn

from pspexp.errors import ArgumentError, setting
from pspexp.models.adapter import adapt
from pspexp.models.segmenter import Segmenter
from pspexp.models.weights import start_from
from pspexp.utils.arguments import checked
from pspexp.utils.text import count, first_names, one_line

# transformers is imported in functions: it takes seconds, and a wrong command needs none of it.

log = logging.getLogger(__name__)

Share = Annotated[float, Field(ge=0, lt=1)]


class Sizes(NamedTuple):
    """Sizes of a SegFormer: blocks and channels of its stages, and channels of its decoder."""

    depths: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    decoder: int


# Xie et al., table 6.
WIDE = (64, 128, 320, 512)
VARIANTS = {
    "b0": Sizes((2, 2, 2, 2), (32, 64, 160, 256), 256),
    "b1": Sizes((2, 2, 2, 2), WIDE, 256),
    "b2": Sizes((3, 4, 6, 3), WIDE, 768),
    "b3": Sizes((3, 4, 18, 3), WIDE, 768),
    "b4": Sizes((3, 8, 27, 3), WIDE, 768),
    "b5": Sizes((3, 6, 40, 3), WIDE, 768),
}


@checked
def segformer(
    *,
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = "b0",
    num_classes: PositiveInt,
    in_channels: PositiveInt = 3,
    dropout: Share = 0.1,
    drop_path: Share = 0.1,
    pretrained: str | None = None,
    weights: str | None = None,
) -> Segmenter:
    """SegFormer (Xie et al., NeurIPS 2021, arXiv 2105.15203) as in transformers.

    Args:
        variant: Its size.
        num_classes: Number of classes.
        in_channels: Number of bands of the images.
        dropout: Probability of dropping a channel in front of the classifier.
        drop_path: Probability of skipping the last block; smaller for the blocks before it.
        pretrained: None (random), or a folder that transformers saved, of the whole network or of its encoder alone, to
            load what fits; any other text is a name on the Hugging Face hub, such as ``nvidia/mit-b0``.
        weights: Path of a whole checkpoint to start from; a classifier for another number of classes is not loaded. It
            supersedes ``pretrained``.

    Raises:
        ArgumentError: transformers is not installed, or ``pretrained`` cannot be loaded.
        UserError: The weights do not fit the network.
    """
    try:
        package: Any = import_module("transformers")
    except ImportError as error:
        raise ArgumentError(f"variant={variant}: needs transformers; pip install 'pspexp[transformers]'") from error
    sizes = VARIANTS[variant]
    config = package.SegformerConfig(
        num_channels=in_channels,
        num_labels=num_classes,
        depths=list(sizes.depths),
        hidden_sizes=list(sizes.channels),
        decoder_hidden_size=sizes.decoder,
        classifier_dropout_prob=dropout,
        drop_path_rate=drop_path,
    )
    kind = package.SegformerForSemanticSegmentation
    network = kind(config) if pretrained is None or weights is not None else from_pretrained(kind, config, pretrained)
    model = adapt(network, num_classes, in_channels)
    start_from(model, "", None, weights, in_channels)
    if pretrained is not None and weights is None:
        model.initial_weights = f"{pretrained}, as saved by transformers"
        log.info("initial weights: %s", model.initial_weights)
    return model


def from_pretrained(kind: Any, config: Any, pretrained: str) -> nn.Module:
    """A network of transformers with saved weights: of its encoder at least.

    Args:
        kind: Its class.
        config: Its configuration.
        pretrained: See `segformer`.

    Raises:
        ArgumentError: They cannot be read, or are those of another variant or for other bands.
    """
    is_folder = Path(pretrained).is_dir()
    try:
        network, found = kind.from_pretrained(
            pretrained,
            config=config,
            local_files_only=is_folder,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,  # by default that of the file
        )
    except Exception as error:  # the hub's clients raise errors of many unrelated classes
        where = "" if is_folder else "no such folder, and not loaded from the hub: "
        raise ArgumentError(f"pretrained={pretrained}: {where}{one_line(error)}") from error
    encoder = f"{kind.base_model_prefix}."
    lacking = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    wrong = sorted(key for key in lacking if key.startswith(encoder))
    bands = {key: theirs[1] for key, theirs, ours in found["mismatched_keys"] if in_bands_only(theirs, ours, config)}
    problems = [
        f"pretrained={pretrained}: has {number} bands, {setting('model.in_channels', config.num_channels)}; give the "
        "images as many bands, or set it to null"
        for number in bands.values()
    ]
    if wrong := [key for key in wrong if key not in bands]:
        problems.append(
            f"pretrained={pretrained}: lacks {count(len(wrong), 'weight')} of the encoder, or has them in another "
            f"shape ({first_names(wrong)}); choose the variant that it holds"
        )
    if problems:
        raise ArgumentError(*problems)
    loaded: nn.Module = network
    if lacking:
        log.warning("pretrained=%s: %s stay random", pretrained, first_names(sorted(lacking)))
    return loaded


def in_bands_only(theirs: Sequence[int], ours: Sequence[int], config: Any) -> bool:
    """Whether the shapes of a weight differ in the number of bands only: those of the first convolution."""
    return (*theirs[:1], config.num_channels, *theirs[2:]) == tuple(ours)
