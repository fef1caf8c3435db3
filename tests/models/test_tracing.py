"""The networks keep their function when they are traced or exported."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pspexp.jobs.export.interface import TensorInterface
from pspexp.models.pspnet import pspnet

SIZES = [(1, 65, 97), (3, 97, 129), (2, 64, 100)]


@pytest.fixture(scope="module", params=["factorised", "concat"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    net = pspnet(
        num_classes=5,
        backbone="resnet18",
        head=request.param,
        pyramid_channels=8,
        head_channels=16,
        aux_channels=0,
        dropout=0.0,
    )
    with torch.no_grad():
        for _ in range(3):  # statistics for the batch norms
            net(torch.randn(2, 3, 65, 65))
    return TensorInterface(net).eval().requires_grad_(False)


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.9999


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_traced_network_computes_the_same(network: nn.Module, memory_format: torch.memory_format) -> None:
    batch = images(*SIZES[0]).to(memory_format=memory_format)
    traced = torch.jit.trace(network, batch)
    assert_close(traced(batch), network(batch))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_file_computes_the_same_at_any_size(
    network: nn.Module, tmp_path: Path, dynamo: bool, memory_format: torch.memory_format
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    file, sample = str(tmp_path / "network.onnx"), images(2, 70, 90).to(memory_format=memory_format)
    if dynamo:
        free = getattr(torch.export.Dim, "DYNAMIC", None)
        if free is None or not torch.__version__ >= "2.9":
            pytest.skip("needs torch 2.9")
        shapes = ({0: free, 2: free, 3: free},)
        torch.onnx.export(
            network, (sample,), file, dynamo=True, dynamic_shapes=shapes, input_names=["images"], verbose=False
        )
    else:
        axes = {"images": {0: "batch", 2: "height", 3: "width"}}
        options = {"dynamo": False} if torch.__version__ >= "2.5" else {}
        torch.onnx.export(network, (sample,), file, dynamic_axes=axes, input_names=["images"], **options)
    session = runtime.InferenceSession(file)
    for size in SIZES:
        batch = images(*size)
        (found,) = session.run(None, {"images": batch.numpy()})
        assert_close(torch.from_numpy(found), network(batch))
