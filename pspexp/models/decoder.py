"""PSPNet with a decoder: pyramid pooling as context, then the backbone's finer levels, one after another.

PSPNet upsamples logits of stride 8 or 16, where poles and other thin objects are lost. Here, the pyramid (Zhao et al.,
2017) works at the backbone's own stride of 32, which is cheap, and a light decoder adds the finer levels, as U-Net
(Ronneberger et al., 2015, arXiv 1505.04597), UPerNet (Xiao et al., 2018, arXiv 1807.10221) and PP-LiteSeg (Peng et
al., 2022, arXiv 2204.02681) do.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from pspexp.errors import ArgumentError, as_yaml, setting
from pspexp.models.backbone import Backbone, build_backbone
from pspexp.models.interpolation import upsample
from pspexp.models.pyramid import FactorisedPyramid, auxiliary_head, conv_bn_relu
from pspexp.models.segmenter import Segmenter
from pspexp.models.statistics import timm_statistics, with_image_statistics
from pspexp.models.weights import start_from
from pspexp.utils.arguments import checked

OUTPUT_STRIDE = 32
Channels = Annotated[Sequence[PositiveInt], Field(min_length=1)]


class DecoderStep(nn.Module):
    """Upsamples features to a finer level of the backbone and fuses the two by a 3×3 convolution.

    Args:
        in_channels: Channels of the features.
        level_channels: Channels of the finer level.
        lateral_channels: Channels to which the finer level is reduced by a 1×1 convolution.
        out_channels: Channels of the result.
    """

    def __init__(self, in_channels: int, level_channels: int, lateral_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lateral = conv_bn_relu(level_channels, lateral_channels, 1)
        self.fuse = conv_bn_relu(in_channels + lateral_channels, out_channels, 3)

    def forward(self, features: Tensor, level: Tensor) -> Tensor:
        """``[N, in_channels, h, w]`` and ``[N, level_channels, H, W]`` to ``[N, out_channels, H, W]``."""
        upsampled = upsample(features, (level.shape[-2], level.shape[-1]), align_corners=False)
        return self.fuse(torch.cat([upsampled, self.lateral(level)], 1))  # type: ignore[no-any-return]


class PSPNetDecoder(Segmenter):
    """Backbone, pyramid pooling on its last level, a decoder step for each finer level, a 1×1 classifier.

    In training, an auxiliary head works on the result of the first decoder step.

    Args:
        backbone: Module that maps images to the feature maps of its levels, from fine to coarse.
        level_channels: Channels of these levels.
        num_classes: Number of classes, C.
        output_stride: Stride of the last level.
        bins: Regions per side of each pyramid branch.
        pyramid_channels: Channels of each branch.
        context_channels: Channels after the pyramid.
        lateral_channels: For each decoder step, the channels to which the finer level is reduced.
        decoder_channels: For each decoder step, the channels of its result.
        aux_channels: Channels of the auxiliary head; 0 leaves it out.
        dropout: Probability of dropping a channel in front of each classifier.
    """

    class_layers: tuple[str, ...] = ("classifier", "auxiliary.classifier")

    def __init__(
        self,
        backbone: nn.Module,
        level_channels: Sequence[int],
        *,
        num_classes: int,
        output_stride: int,
        bins: Sequence[int],
        pyramid_channels: int,
        context_channels: int,
        lateral_channels: Sequence[int],
        decoder_channels: Sequence[int],
        aux_channels: int,
        dropout: float,
    ) -> None:
        super().__init__(num_classes, output_stride, align_corners=False)
        self.backbone = backbone
        *finer, last = level_channels
        self.pyramid = FactorisedPyramid(last, bins, pyramid_channels, context_channels, align_corners=False)
        channels = [context_channels, *decoder_channels]
        self.steps = nn.ModuleList(
            DecoderStep(before, level, lateral, after)
            for before, level, lateral, after in zip(
                channels, finer[::-1], lateral_channels, channels[1:], strict=False
            )
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels[len(self.steps)], num_classes, 1)
        self.auxiliary: nn.Sequential | None = None
        if aux_channels:
            self.auxiliary = auxiliary_head(channels[1], aux_channels, num_classes, dropout)

    def low_resolution(self, images: Tensor) -> dict[str, Tensor]:
        """See `Segmenter.low_resolution`; the logits have the size of the finest level."""
        *finer, last = self.backbone(images)
        features, first = self.pyramid(last), None
        for step, level in zip(self.steps, finer[::-1], strict=True):
            features = step(features, level)
            first = features if first is None else first
        outputs = {"out": self.classifier(self.dropout(features))}
        if self.training and self.auxiliary is not None:
            outputs["aux"] = self.auxiliary(first)
        return outputs


def levels_of(
    backbone: str, levels: int, in_channels: int, checkpointing: bool
) -> tuple[nn.Module, tuple[int, ...], int]:
    """A backbone, the channels of its last levels, and the stride of the last.

    Raises:
        UserError: It has no feature maps, or only some of one stride.
    """
    net, channels, reductions = build_backbone(
        backbone, OUTPUT_STRIDE, in_channels=in_channels, levels=levels, checkpointing=checkpointing
    )
    if reductions[0] == reductions[-1]:
        raise ArgumentError(
            f"backbone={backbone}: all its feature maps have a stride of {reductions[0]}, which leaves nothing to "
            f"decode; use it with {setting('model', 'pspnet50')}, or choose another network"
        )
    return net, channels, reductions[-1]


@with_image_statistics(timm_statistics)
@checked
def pspnet_decoder(
    *,
    num_classes: PositiveInt,
    backbone: Backbone = "tf_efficientnet_lite0",
    bins: Channels = (1, 2, 3, 6),
    pyramid_channels: PositiveInt = 64,
    context_channels: PositiveInt = 128,
    lateral_channels: Channels = (64, 48, 32),
    decoder_channels: Channels = (96, 64, 48),
    aux_channels: NonNegativeInt = 64,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    in_channels: PositiveInt = 3,
    checkpointing: bool = False,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> PSPNetDecoder:
    """Build a `PSPNetDecoder`.

    Args:
        num_classes, bins, pyramid_channels, context_channels, aux_channels, dropout: See `PSPNetDecoder`.
        backbone: timm's name of a network with feature maps.
        lateral_channels, decoder_channels: See `PSPNetDecoder`; as many of one as of the other. Of a backbone with
            fewer levels, the last are unused.
        in_channels: Number of bands of the images.
        checkpointing: Whether the backbone's activations are recomputed in the backward pass, which saves memory.
        backbone_weights: None (random), ``"timm"`` or ``"pip"`` (ImageNet), or the path of a checkpoint to load the
            backbone from.
        weights: Path of a whole checkpoint to start from; classifiers for another number of classes are not loaded.

    Raises:
        UserError: The backbone has no feature maps, or only some of one stride, or the weights do not fit the network.
    """
    if len(lateral_channels) != len(decoder_channels):
        raise ArgumentError(
            f"lateral_channels={as_yaml(lateral_channels)}: has {len(lateral_channels)} values, decoder_channels="
            f"{as_yaml(decoder_channels)} has {len(decoder_channels)}; give one of each for each step of the decoder"
        )
    net, channels, stride = levels_of(backbone, len(lateral_channels) + 1, in_channels, checkpointing)
    model = PSPNetDecoder(
        net,
        channels,
        num_classes=num_classes,
        output_stride=stride,
        bins=bins,
        pyramid_channels=pyramid_channels,
        context_channels=context_channels,
        lateral_channels=lateral_channels,
        decoder_channels=decoder_channels,
        aux_channels=aux_channels,
        dropout=dropout,
    )
    start_from(model, backbone, backbone_weights, weights, in_channels)
    return model
