"""Other projects' checkpoints, regenerated from keys and shapes without code of the package under test."""

import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
CLASSES = 21
Shapes = dict[str, tuple[int, ...]]


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the value of checkpoint entry ``name`` that the golden outputs were computed with."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        z = 1 + 0.1 * np.abs(z)
    elif name.endswith("weight"):
        z = z * np.float32(np.sqrt(2 / np.prod(shape[1:]))) if len(shape) == 4 else 1 + 0.1 * z
    else:  # running_mean, bias
        z = 0.1 * z
    return torch.from_numpy(np.asarray(z, np.float32))


def batch_norm(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def stages(stem_channels: int, prefix: str = "") -> Shapes:
    """The four stages of a ResNet-50."""
    shapes: Shapes = {}
    inputs = stem_channels
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            name = f"{prefix}layer{stage}.{block}"
            convolutions = ((1, width, inputs, 1), (2, width, width, 3), (3, 4 * width, width, 1))
            for i, outputs, channels, size in convolutions:
                shapes[f"{name}.conv{i}.weight"] = (outputs, channels, size, size)
                shapes |= batch_norm(f"{name}.bn{i}", outputs)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                shapes |= batch_norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return shapes


def stem(convolutions: tuple[str, str, str], norms: tuple[str, str, str], widths: tuple[int, int, int]) -> Shapes:
    """A stem of three 3×3 convolutions under the given names."""
    shapes: Shapes = {}
    for conv, norm, inputs, outputs in zip(convolutions, norms, (3, *widths), widths, strict=False):
        shapes[f"{conv}.weight"] = (outputs, inputs, 3, 3)
        shapes |= batch_norm(norm, outputs)
    return shapes


def classifier(name: str, inputs: int, classes: int) -> Shapes:
    return {f"{name}.weight": (classes, inputs, 1, 1), f"{name}.bias": (classes,)}


def semseg_shapes(classes: int = CLASSES) -> Shapes:
    """The PSPNet-50 of hszhao/semseg, which the reference also uses."""
    shapes = stem(("layer0.0", "layer0.3", "layer0.6"), ("layer0.1", "layer0.4", "layer0.7"), (64, 64, 128)) | stages(
        128
    )
    for i in range(4):
        shapes[f"ppm.features.{i}.1.weight"] = (512, 2048, 1, 1)
        shapes |= batch_norm(f"ppm.features.{i}.2", 512)
    for name, inputs, width in (("cls", 4096, 512), ("aux", 1024, 256)):
        shapes[f"{name}.0.weight"] = (width, inputs, 3, 3)
        shapes |= batch_norm(f"{name}.1", width) | classifier(f"{name}.4", width, classes)
    return shapes


def mmseg_shapes() -> Shapes:
    """The PSPNet R-50-D8 of mmsegmentation."""
    shapes = stem(
        ("backbone.stem.0", "backbone.stem.3", "backbone.stem.6"),
        ("backbone.stem.1", "backbone.stem.4", "backbone.stem.7"),
        (32, 32, 64),
    ) | stages(64, "backbone.")
    modules = {f"decode_head.psp_modules.{i}.1": (512, 2048, 1, 1) for i in range(4)}
    modules["decode_head.bottleneck"] = (512, 4096, 3, 3)
    modules["auxiliary_head.convs.0"] = (256, 1024, 3, 3)
    for name, shape in modules.items():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= batch_norm(f"{name}.bn", shape[0])
    return (
        shapes | classifier("decode_head.conv_seg", 512, CLASSES) | classifier("auxiliary_head.conv_seg", 256, CLASSES)
    )


def imagenet_shapes(layout: str) -> Shapes:
    """A ResNet-50 with the 64-64-128 stem and ImageNet classifier, with the names of ``resnet50_v2.pth`` or timm."""
    names = {
        "resnet50_v2.pth": (("conv1", "conv2", "conv3"), ("bn1", "bn2", "bn3")),
        "timm": (("conv1.0", "conv1.3", "conv1.6"), ("conv1.1", "conv1.4", "bn1")),
    }[layout]
    return stem(*names, (64, 64, 128)) | stages(128) | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


@cache
def semseg_state() -> dict[str, Tensor]:
    return {name: draw(name, shape) for name, shape in semseg_shapes().items()}


@cache
def mmseg_state() -> dict[str, Tensor]:
    return {name: draw(name, shape) for name, shape in mmseg_shapes().items()}


def images(name: str) -> tuple[np.random.Generator, Tensor]:
    """Return the golden input in float32, and the generator for drawing the labels next."""
    file = golden(name)
    rng = np.random.default_rng(int(file["seed"]))
    return rng, torch.from_numpy(rng.standard_normal(tuple(file["shape"])).astype(np.float32))


def relative_error(ours: Tensor | np.ndarray, golden: np.ndarray) -> float:
    ours = np.asarray(ours, np.float64)
    assert ours.shape == golden.shape
    return float(np.linalg.norm(ours - golden) / np.linalg.norm(golden))
