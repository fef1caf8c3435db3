"""The factorised pyramid head equals the literal one in outputs and gradients, for all shapes, types and layouts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from pspexp.models.pspnet import pspnet
from pspexp.models.pyramid import HEADS, ConcatPyramid, FactorisedPyramid, adaptive_averages

BINS = [(1, 2, 3, 6), (1,), (2, 5), (4, 4, 1)]
SIZES = [(13, 13), (12, 16), (65, 7), (3, 2), (1, 9), (1, 1)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def pair(bins: Sequence[int], align_corners: bool, channels: int = 12) -> tuple[ConcatPyramid, FactorisedPyramid]:
    literal = ConcatPyramid(channels, bins, 4, 6, align_corners)
    factorised = FactorisedPyramid(channels, bins, 4, 6, align_corners)
    nn.init.uniform_(literal.fuse.bn.weight, 0.5, 1.5)
    factorised.load_state_dict(literal.state_dict())
    return literal, factorised


def run(pyramid: ConcatPyramid, features: Tensor, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the output, the running statistics and all gradients."""
    features = features.clone().requires_grad_()
    out = pyramid(features)
    out.backward(gradient.to(out))
    yield "out", out
    yield "features", features.grad  # type: ignore[misc]
    for name, parameter in pyramid.named_parameters():
        yield name, parameter.grad  # type: ignore[misc]
    yield from pyramid.named_buffers()


def errors(literal: ConcatPyramid, factorised: ConcatPyramid, features: Tensor) -> dict[str, float]:
    """Return the maximum difference, relative to the largest value, for each tensor from `run`."""
    gradient = torch.randn(len(features), 6, *features.shape[2:], dtype=torch.float64)
    found = {}
    for (name, ours), (_, theirs) in zip(
        run(factorised, features, gradient), run(literal, features, gradient), strict=True
    ):
        assert ours.dtype == theirs.dtype, name
        difference = (ours.detach().double() - theirs.detach().double()).abs().max()
        found[name] = float(difference / theirs.detach().double().abs().max().clamp(min=1e-30))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bins", BINS)
def test_factorised_head_equals_the_literal_one_in_float64(
    bins: tuple[int, ...], size: tuple[int, int], align_corners: bool, layout: str
) -> None:
    torch.manual_seed(0)
    heads = [head.double().to(memory_format=LAYOUTS[layout]) for head in pair(bins, align_corners)]
    features = torch.randn(3, 12, *size, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
    # If a branch has few values, its batch norm amplifies rounding errors by dividing by a small deviation.
    assert max(errors(*heads, features).values()) < 1e-12


def test_random_shapes_in_float64_and_float32() -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for case in range(40):
        bins = tuple(draw(1, 9) for _ in range(draw(1, 4)))
        shape = (draw(2, 3), 12, draw(2, 40), draw(2, 40))
        heads = pair(bins, align_corners=bool(case % 2))
        features = torch.randn(shape, generator=generator)
        for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 5e-4)):
            found = errors(*(head.to(dtype) for head in heads), features.to(dtype))
            assert max(found.values()) < limit, (bins, shape, found)
            assert found["out"] < limit / 50, (bins, shape, found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_about_as_accurate_as_the_literal_head(
    dtype: torch.dtype, autocast: bool, layout: str
) -> None:
    torch.manual_seed(2)
    heads = pair((1, 2, 3, 6), True, channels=64)
    features = torch.randn(4, 64, 17, 17).to(dtype)
    with torch.no_grad():
        exact = heads[0].double().eval()(features.double())
        found = {}
        for head in heads:
            head = head.float().to(memory_format=LAYOUTS[layout]) if autocast else head.to(dtype)
            inputs = features.contiguous(memory_format=LAYOUTS[layout])
            with torch.autocast("cpu", dtype, enabled=autocast):
                out = head.eval()(inputs.float() if autocast else inputs)
            assert out.dtype == dtype
            found[type(head)] = float((out.double() - exact).norm() / exact.norm())
    # One extra rounding: the branches are added to rounded features.
    assert found[FactorisedPyramid] < 1.3 * found[ConcatPyramid] < 0.02


def test_both_heads_have_the_same_state_dict_and_outputs() -> None:
    networks = {}
    for head in HEADS:
        torch.manual_seed(0)
        networks[head] = pspnet(num_classes=5, backbone="resnet18", pyramid_channels=4, head_channels=8, head=head)  # type: ignore[arg-type]
    states = [network.state_dict() for network in networks.values()]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert states[0]["pyramid.fuse.conv.weight"].shape == (8, 512 + 4 * 4, 3, 3)
    images = torch.randn(2, 3, 97, 130)
    ours, theirs = (network.eval()(images)["out"] for network in networks.values())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_matrices_cached_in_inference_mode_work_in_training() -> None:
    _, head = pair((1, 2, 3, 6), True)
    features = torch.randn(2, 12, 23, 29)  # a size that no other test has
    with torch.inference_mode():
        head(features)
    head(features).sum().backward()


@pytest.mark.parametrize("head", HEADS)
def test_fake_tensors_are_not_cached(head: str) -> None:
    pyramid = HEADS[head](12, (1, 2, 3, 6), 4, 6, True).eval()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        pyramid(mode.from_tensor(torch.randn(1, 12, 19, 31)))  # a size that no other test has
    assert type(pyramid(torch.randn(1, 12, 19, 31))) is Tensor


@pytest.mark.parametrize("layout", LAYOUTS)
def test_head_compiles_for_varying_sizes(layout: str) -> None:
    _, head = pair((1, 2, 3, 6), False)
    head.to(memory_format=LAYOUTS[layout])
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    for shape in ((2, 12, 9, 11), (3, 12, 9, 11), (2, 12, 14, 10), (5, 12, 7, 20)):
        features = torch.randn(shape).contiguous(memory_format=LAYOUTS[layout])
        torch.testing.assert_close(compiled(features), head(features))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("make", [torch.export.export, torch.jit.trace], ids=["export", "trace"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_head_can_be_exported(make: Callable[..., Any], head: str, align_corners: bool) -> None:
    pyramid = HEADS[head](12, (1, 2, 3, 6), 4, 6, align_corners).eval()
    features = torch.randn(2, 12, 9, 11)
    with torch.no_grad():
        exported = make(pyramid, (features,))
        module = exported.module() if hasattr(exported, "module") else exported
        torch.testing.assert_close(module(features), pyramid(features))


@pytest.mark.parametrize("head", HEADS)
def test_head_can_be_exported_for_any_size(head: str) -> None:
    pyramid = HEADS[head](12, (1, 2, 3, 6), 4, 6, True).eval()
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    with torch.no_grad():
        program = torch.export.export(pyramid, (torch.randn(2, 12, 9, 11),), dynamic_shapes=(dims,))
        for shape in ((3, 12, 14, 10), (2, 12, 7, 20)):
            features = torch.randn(shape)
            torch.testing.assert_close(program.module()(features), pyramid(features))


# --- region means ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(13, 13), (12, 16), (65, 7), (3, 2), (1, 1)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_region_means_equal_adaptive_pooling(size: tuple[int, int], bins: int, layout: str) -> None:
    features = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
    expected = F.adaptive_avg_pool2d(features, bins)
    torch.testing.assert_close(adaptive_averages(features, [bins])[0], expected, rtol=1e-12, atol=1e-12)
    several = adaptive_averages(features, [2, bins])
    torch.testing.assert_close(several[1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_region_means_in_half_precision_neither_overflow_nor_drift(dtype: torch.dtype) -> None:
    features = (900 + 100 * torch.rand(1, 64, 65, 65)).to(dtype)
    expected = F.adaptive_avg_pool2d(features.double(), 6)
    error = adaptive_averages(features, [6])[0].double() / expected - 1
    assert error.abs().max() < 2 * torch.finfo(dtype).eps
    assert error.mean().abs() < 0.05 * torch.finfo(dtype).eps


def test_pyramid_preserves_the_size() -> None:
    for head in HEADS.values():
        pyramid = head(8, bins=[1, 2, 3, 6], branch_channels=2, out_channels=5, align_corners=True)
        assert pyramid(torch.randn(2, 8, 7, 9)).shape == (2, 5, 7, 9)
