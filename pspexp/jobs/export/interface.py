"""What an exported file computes: the network with the interface that ``export.input`` names."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.models.adapter import cropped
from pspexp.models.folding import fold_batch_norms

Kind = Literal["image", "tensor"]
INPUTS: dict[Kind, str] = {"image": "image", "tensor": "images"}
OUTPUTS: dict[Kind, list[str]] = {"image": ["ids", "confidence"], "tensor": ["logits"]}
LARGEST_STRIDE = 32  # of feature maps within common networks
SIDES: dict[Kind, tuple[int, int]] = {"image": (1, 2), "tensor": (2, 3)}  # dimensions of height and width


class TensorInterface(nn.Module):
    """Maps normalised images, float32 ``[N, B, H, W]``, to logits, float32 ``[N, C, H, W]``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        logits: Tensor = self.network(images)["out"]
        return logits


class ImageInterface(nn.Module):
    """Maps images, uint8 ``[N, H, W, B]``, to class ids, uint8, and their probabilities, float32, ``[N, H, W]``.

    Of RGB images, B is 3. The inference mode is `pspexp.inference.Whole`.

    Args:
        network: The network.
        mean, std: Of the bands, as fractions of 255.
        stride, remainder: Sides are padded to ``k * stride + remainder``, see `pspexp.models.segmenter.size_rule`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], stride: int, remainder: int
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(mean))
        self.register_buffer("std", 255 * torch.tensor(std))
        self._stride, self._remainder = stride, remainder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and confidence of images."""
        height, width = image.shape[1], image.shape[2]
        normalized = ((image.to(torch.float32) - self.mean) / self.std).permute(0, 3, 1, 2).contiguous()
        bottom, right = (-(side - self._remainder) % self._stride for side in (height, width))
        logits: Tensor = self.network(F.pad(normalized, (0, right, 0, bottom)))["out"]
        confidence, ids = logits.softmax(1).max(1)
        return cropped(ids.to(torch.uint8), height, width), cropped(confidence, height, width)


def exportable(network: nn.Module, num_bands: int = 3) -> nn.Module:
    """A copy in fp32 on the CPU, with folded batch norms, that exporters can trace."""
    copy = deepcopy(network).to("cpu", torch.float32).to(memory_format=torch.contiguous_format).eval()
    folded = fold_batch_norms(copy, torch.zeros(1, num_bands, 1, 1))
    for module in folded.modules():  # folding makes inference tensors, which cannot be traced
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone().contiguous(), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.detach().clone())
    return folded


def example(kind: Kind, output_stride: int, num_bands: int = 3) -> Tensor:
    """An input to trace with.

    No two of its sizes are equal, or an exporter could treat them as the same dimension. Nor does any feature map have
    a single pixel, whose size an exporter would take for a constant; the stride within a network may be larger than
    that of its logits.
    """
    unit = max(output_stride, LARGEST_STRIDE)
    height, width = 8 * unit + 6, 11 * unit + 2
    generator = torch.Generator().manual_seed(0)
    if kind == "image":
        return torch.randint(0, 256, (2, height, width, num_bands), generator=generator).to(torch.uint8)
    return torch.randn(2, num_bands, height, width, generator=generator)
