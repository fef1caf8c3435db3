"""Writes the network in each format."""

import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pspexp.errors import UserError
from pspexp.jobs.export.interface import INPUTS, OUTPUTS, SIDES, Kind
from pspexp.models.exported import DESCRIPTION, remember

OPSET = 18
# Operators of which int8 implementations are fast. The others, such as the classifier's softmax, stay in float32.
QUANTIZED = ("Conv", "Add", "MaxPool", "Relu")


def write_pt2(module: nn.Module, kind: Kind, example: Tensor, file: Path, description: dict[str, Any]) -> None:
    """Write a program of ``torch.export`` whose batch, height and width are free.

    Raises:
        UserError: This release of torch cannot.
    """
    dim: Any = torch.export.Dim
    if not hasattr(dim, "DYNAMIC"):
        raise UserError(f"export.format=pt2: needs torch 2.6 or later, not {torch.__version__}; use onnx")
    with quiet(), traceable_padding(), torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=(_by_dimension(kind, *[dim.DYNAMIC] * 3),))
    torch.export.save(program, file, extra_files={DESCRIPTION: json.dumps(description)})
    remember(file)


def write_onnx(module: nn.Module, kind: Kind, example: Tensor, file: Path, description: dict[str, Any]) -> None:
    """Write an ONNX file whose batch, height and width are free.

    Raises:
        UserError: A package is missing.
    """
    names: dict[str, Any] = {"input_names": [INPUTS[kind]], "output_names": OUTPUTS[kind], "opset_version": OPSET}
    with required("onnx"), quiet(), traceable_padding(), torch.no_grad():
        if _default_exporter_is_dynamo():
            shapes = (_by_dimension(kind, *[torch.export.Dim.DYNAMIC] * 3),)
            torch.onnx.export(
                module,
                (example,),
                file,
                dynamo=True,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
                **names,
            )
        else:
            batch, height, width = "batch", "height", "width"
            axes = {INPUTS[kind]: _by_dimension(kind, batch, height, width)}
            axes |= {name: _by_dimension(kind, batch, height, width) for name in OUTPUTS[kind]}
            torch.onnx.export(module, (example,), str(file), dynamic_axes=axes, **names)
    describe_onnx(file, description)


@contextmanager
def traceable_padding() -> Iterator[None]:
    """Let timm compute TensorFlow's "same" padding with integers: exporters cannot store its ``math.ceil``."""
    from timm.layers import padding

    original = padding.get_same_padding

    def same_padding(x: int, kernel_size: int, stride: int, dilation: int) -> int:
        excess = (kernel_size - 1) * dilation + 1 - stride
        # Never negative if the windows overlap; a maximum would become a condition on the size.
        return -x % stride + excess if excess >= 0 else max(-x % stride + excess, 0)

    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = original


def describe_onnx(file: Path, description: dict[str, Any]) -> None:
    """Store the description in an ONNX file: as a whole, and each part under its own key for other programs."""
    import onnx

    model = onnx.load(file)
    parts = {key: value for key, value in description.items() if key != "config"}
    values = {Path(DESCRIPTION).stem: description, **parts}
    onnx.helper.set_model_props(model, {key: _text(value) for key, value in values.items()})
    onnx.save(model, file)


def write_int8(source: Path, file: Path, calibration: Iterable[Tensor], kind: Kind) -> None:
    """Quantize an ONNX file statically: activations and the weights of convolutions, per channel, to 8 bits.

    Args:
        source: The ONNX file in float32.
        file: The file to write.
        calibration: Inputs of the network that show the range of its activations.
        kind: The interface.

    Raises:
        UserError: A package is missing.
    """
    with required("onnxruntime"), quiet():
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = file.with_name("prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            file,
            _Calibration(calibration, INPUTS[kind]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            reduce_range=not has_vnni(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sensitive_nodes(prepared),
        )
        prepared.unlink()


def sensitive_nodes(file: Path) -> list[str]:
    """The names of the nodes that stay in float32: the last convolution, whose output decides the classes."""
    import onnx

    convolutions = [node.name for node in onnx.load(file).graph.node if node.op_type == "Conv"]
    return convolutions[-1:]


class _Calibration:
    """Inputs in the form that ONNX Runtime's calibration reads."""

    def __init__(self, inputs: Iterable[Tensor], name: str) -> None:
        self._inputs, self._name = iter(inputs), name

    def get_next(self) -> dict[str, Any] | None:
        """The next input; None at the end."""
        with loud():
            value = next(self._inputs, None)
        return None if value is None else {self._name: value.numpy()}

    def set_range(self, start_index: int, end_index: int) -> None:
        """Part of ONNX Runtime's interface."""


def has_vnni() -> bool:
    """Whether the processor accumulates 8-bit products without overflow; otherwise, weights are limited to 7 bits."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "vnni" in flags or "asimddp" in flags


@contextmanager
def required(package: str) -> Iterator[None]:
    """Explain a missing package.

    Raises:
        UserError: The package, or one that it needs, is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"export.format: needs {package} ({error}); pip install 'pspexp[export]'") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress what exporters print about their own progress and internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def loud() -> Iterator[None]:
    """Within `quiet`: let this program report its progress."""
    before = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    try:
        yield
    finally:
        logging.disable(before)


def _by_dimension(kind: Kind, batch: Any, height: Any, width: Any) -> dict[int, Any]:
    """What is said of batch, height and width, by the number of the dimension."""
    return dict(zip((0, *SIDES[kind]), (batch, height, width), strict=True))


def _default_exporter_is_dynamo() -> bool:
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 9)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
