"""The work that is timed: training and inference of networks and pyramid heads."""

import importlib.metadata
import math
import tempfile
from collections.abc import Callable, Mapping
from contextlib import (
    AbstractContextManager,
    nullcontext,
)
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pspexp
from pspexp.jobs.export import formats
from pspexp.jobs.export.interface import TensorInterface, example, exportable
from pspexp.models.exported import ExportedNetwork

CLASSES = 21


IGNORE = 255


PSPNETS = ("pspnet18", "pspnet50", "pspnet50_mmseg", "pspnet101")


FACTORISED = "_factorised"


TORCHVISION = ("fcn_resnet50", "deeplabv3_resnet50")


SMP = "smp_pspnet_resnet50"


SEMSEG_FORM = "semseg-form"
"""PSPNet-50 as published; pspnet50 computes the same function."""


EXPORTED = ("_pt2", "_onnx")
"""Endings of the names of exported networks, with the factorised head and folded batch norms."""


OTHERS = (*TORCHVISION, SMP, SEMSEG_FORM)
NETWORKS = (*PSPNETS, *(name + form for form in (FACTORISED, *EXPORTED) for name in PSPNETS), *OTHERS)


NOTES = {
    **dict.fromkeys(TORCHVISION, "computes the auxiliary head in inference, too"),
    SMP: "a different, much smaller network: encoder depth 3, no dilated stages, no auxiliary head",
}


class UnavailableError(Exception):
    """A network cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """How a network runs.

    Attributes:
        size, batch: side of the images in pixels, and their number.
        network: the one whose head is measured, in the benchmark ``head``.
        precision: ``fp32`` or ``bf16``.
        compile: a mode of ``torch.compile``, or None.
        tf32: whether float32 products may be computed in TF32.
    """

    device: str
    size: int
    batch: int
    network: str
    precision: str = "fp32"
    channels_last: bool = False
    compile: str | None = None
    tf32: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def to_device(self, thing: Any) -> Any:
        """A tensor or module on the device, in the configured memory format."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return thing.to(self.device, memory_format=order)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, compiled if configured."""
        if self.compile is None:
            return function
        # Not dynamic: each batch size is measured separately.
        compiled: Callable[..., Any] = torch.compile(function, mode=self.compile, dynamic=False)
        return compiled

    def begin(self) -> None:
        """Prepare for one run: with CUDA graphs, earlier results may be overwritten."""
        if self.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    @property
    def product(self) -> str:
        """The matrix product that its speed is compared with."""
        return f"matrix product in {'tf32' if self.tf32 and self.precision == 'fp32' else self.precision}"

    def allow_tf32(self) -> None:
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32

    def describe(self) -> str:
        words = [self.precision, f"tf32 {'on' if self.tf32 else 'off'}" if self.device == "cuda" else ""]
        words += ["channels-last" if self.channels_last else "contiguous"]
        words += [f"compiled ({self.compile})" if self.compile else "not compiled"]
        return ", ".join(filter(None, words))


@dataclass
class Work:
    """Something to measure: ``run`` executes it once as configured, ``eager`` without compilation."""

    run: Callable[[], object]
    eager: Callable[[], object]
    note: str = ""


@cache
def pspnet_node(name: str) -> dict[str, Any]:
    """The configuration of a pspexp network; a name that ends in `FACTORISED` selects that head."""
    base = name.removesuffix(FACTORISED)
    head = "concat" if name == base else "factorised"
    config = pspexp.compose([f"model={base}", f"model.head={head}", "dataset=shapes"])
    return {**config.model, "num_classes": CLASSES}


def pspnet(name: str) -> Any:
    """A pspexp network."""
    return pspexp.build(pspnet_node(name))


def network(name: str, size: int) -> tuple[nn.Module, int, str]:
    """A network with random weights, the image size it gets, and a note about it."""
    torch.manual_seed(0)
    note = NOTES.get(name, "")
    if name in TORCHVISION:
        from torchvision.models import segmentation

        make = getattr(segmentation, name)
        return make(weights=None, weights_backbone=None, aux_loss=True, num_classes=CLASSES), size, note
    if name == SMP:
        try:
            smp: Any = importlib.import_module("segmentation_models_pytorch")
        except ImportError:
            raise UnavailableError("segmentation-models-pytorch is not installed") from None
        allowed = math.ceil(size / 8) * 8  # it refuses other sizes
        note += f"; images of {allowed}×{allowed}" if allowed != size else ""
        return smp.PSPNet(encoder_name="resnet50", encoder_weights=None, classes=CLASSES), allowed, note
    if name == SEMSEG_FORM:
        from tools.bench.semseg_form import SemsegForm

        return SemsegForm(CLASSES), size, note
    if name.endswith(EXPORTED):
        return exported(name), size, note
    return pspnet(name), size, note


def exported(name: str) -> nn.Module:
    """A pspexp network as ``mode=export export.input=tensor`` writes it."""
    base, _, form = name.rpartition("_")
    model = pspnet(base + FACTORISED).eval()
    rule = {"multiple_of": model.output_stride, "plus": int(model.align_corners)}
    facts = {"input": "tensor", "mean": [0.0] * 3, "std": [1.0] * 3, "size_rule": rule}
    write = formats.write_pt2 if form == "pt2" else formats.write_onnx
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"model.{form}")
        write(TensorInterface(exportable(model)).eval(), "tensor", example("tensor", 8), file, facts)
        return ExportedNetwork(str(file), CLASSES)


def logits(outputs: Any) -> dict[str, Tensor]:
    """The outputs of a network as ``{"out", "aux"}``, in float32."""
    named = outputs if isinstance(outputs, Mapping) else {"out": outputs}
    return {name: output.float() for name, output in named.items()}


def random_images(setting: Setting, size: int) -> Tensor:
    images: Tensor = setting.to_device(torch.randn(setting.batch, 3, size, size))
    return images


def random_labels(batch: int, size: int, device: str) -> Tensor:
    """Class ids, some ignored."""
    labels = torch.randint(0, CLASSES + 1, (batch, size, size), device=device)
    return labels.masked_fill_(labels == CLASSES, IGNORE)


def training_step(name: str, setting: Setting) -> Work:
    """Forward, cross-entropy (0.6 main + 0.4 auxiliary), backward, SGD with momentum."""
    model, size, note = network(name, setting.size)
    model = setting.to_device(model.train())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    images, labels = random_images(setting, size), random_labels(setting.batch, size, setting.device)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with setting.autocast():
            outputs = logits(model(images))
        main, *auxiliary = [
            F.cross_entropy(outputs[key], labels, ignore_index=IGNORE) for key in ("out", "aux") if key in outputs
        ]
        return 0.6 * main + 0.4 * auxiliary[0] if auxiliary else main

    def step(forward: Callable[..., Tensor]) -> None:
        setting.begin()
        forward(images, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Work(partial(step, setting.compiled(loss_of)), partial(step, loss_of), note)


def inference(name: str, setting: Setting) -> Work:
    """From images to class ids at the size of the images."""
    model, size, note = network(name, setting.size)
    model = setting.to_device(model.eval())
    images = random_images(setting, size)

    def predict(images: Tensor) -> Tensor:
        with setting.autocast():
            return logits(model(images))["out"].argmax(1)

    @torch.inference_mode()
    def once(forward: Callable[..., Tensor]) -> Tensor:
        setting.begin()
        return forward(images)

    return Work(partial(once, setting.compiled(predict)), partial(once, predict), note)


def pyramid(head: str, setting: Setting) -> tuple[nn.Module, Tensor]:
    """A pyramid head and random features for it. All heads have the same weights."""
    torch.manual_seed(0)
    model = pspnet(setting.network)
    channels, side = model.backbone.feature_info.channels()[-1], math.ceil(setting.size / 8)
    module, features = model.pyramid, torch.randn(setting.batch, channels, side, side, dtype=setting.dtype)
    if head != "concat":
        other = pspnet(setting.network + FACTORISED)
        other.pyramid.load_state_dict(module.state_dict())
        module = other.pyramid
    return setting.to_device(module), setting.to_device(features)


def head_work(mode: str, head: str, setting: Setting) -> Work:
    """The pyramid head alone.

    Args:
        mode: ``eval``, ``forward`` (training mode) or ``forward+backward`` (to weights and features).
    """
    module, features = pyramid(head, setting)
    module.train(mode != "eval")
    inputs = [features.requires_grad_(mode == "forward+backward"), *module.parameters()]
    gradients: list[Tensor] = []

    def forward(features: Tensor) -> Tensor:
        with setting.autocast():
            out: Tensor = module(features)
            return out

    def once(forward: Callable[..., Tensor]) -> None:
        setting.begin()
        with torch.set_grad_enabled(mode != "eval"):
            out = forward(features)
        if mode == "forward+backward":
            gradients[:] = gradients or [torch.randn_like(out)]
            out.backward(gradients[0])  # type: ignore[no-untyped-call]
            for tensor in inputs:
                tensor.grad = None

    return Work(partial(once, setting.compiled(forward)), partial(once, forward))


HEAD_MODES = ("forward", "forward+backward", "eval")


WORKS: dict[str, Callable[[str, Setting], Work]] = {
    "step": training_step,
    "inference": inference,
    **{f"head {mode}": partial(head_work, mode) for mode in HEAD_MODES},
}
