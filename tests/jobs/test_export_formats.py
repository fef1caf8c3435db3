"""Networks that exporters find difficult."""

from pathlib import Path

import pytest
import torch
from timm.layers import create_conv2d
from torch import Tensor, nn

from pspexp.jobs.export import formats
from pspexp.jobs.export.interface import TensorInterface, example, exportable
from pspexp.models.adapter import adapt
from pspexp.models.exported import ExportedNetwork
from pspexp.models.segmenter import size_rule

CLASSES = 5


class Same(nn.Module):
    """Padded as in TensorFlow, by an amount that depends on the size, as timm's ``tf_`` networks are."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            create_conv2d(3, 4, 3, stride=2, padding="same"), create_conv2d(4, CLASSES, 5, stride=2, padding="same")
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.convs(images)  # type: ignore[no-any-return]


class Strict(Same):
    """Refuses sides that are not multiples of 16, but not while it is traced, as smp's networks do."""

    def forward(self, images: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (images.shape[-2] % 16 or images.shape[-1] % 16):
            raise ValueError("size")
        return super().forward(images)


@pytest.mark.parametrize("network", [Same, Strict])
@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_adapted_network_is_exported_for_all_sizes(network: type[nn.Module], form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    if not hasattr(torch.export.Dim, "DYNAMIC"):
        pytest.skip("needs torch 2.6")
    model = adapt(network(), CLASSES).eval()
    stride, remainder = size_rule(model)
    assert (stride, remainder) == (16 if network is Strict else 4, 0)
    file, rule = tmp_path / f"model.{form}", {"multiple_of": stride, "plus": remainder}
    description = {"input": "tensor", "mean": [0.5] * 3, "std": [0.5] * 3, "size_rule": rule}
    write = formats.write_pt2 if form == "pt2" else formats.write_onnx
    write(TensorInterface(exportable(model)).eval(), "tensor", example("tensor", stride), file, description)
    exported = ExportedNetwork(str(file), CLASSES)
    assert (exported.output_stride, exported.align_corners) == (stride, False)
    for height, width in ((64, 96), (71, 45)):
        images = torch.randn(1, 3, height, width)
        with torch.inference_mode():
            torch.testing.assert_close(exported(images)["out"], model(images)["out"], rtol=1e-4, atol=1e-4)
