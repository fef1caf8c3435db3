"""Upsampling by matrix products equals torch's bilinear interpolation, including gradients."""

import pytest
import torch
from torch.nn import functional as F

from pspexp.models.interpolation import upsample


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("sizes", [((65, 65), (513, 513)), ((3, 5), (29, 34)), ((1, 1), (1, 1)), ((9, 7), (4, 50))])
def test_upsample_equals_torch_interpolation(
    sizes: tuple[tuple[int, int], tuple[int, int]], align_corners: bool
) -> None:
    small, large = sizes
    maps = torch.randn(2, 3, *small, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 3, *large, dtype=torch.float64)
    expected = F.interpolate(maps, large, mode="bilinear", align_corners=align_corners)
    (expected_gradient,) = torch.autograd.grad(expected, maps, gradient)
    ours = upsample(maps, large, align_corners)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, maps, gradient)[0], expected_gradient, rtol=1e-12, atol=1e-12)
    assert torch.equal(upsample(maps.detach(), large, align_corners), expected)


def test_logits_stay_float32_under_autocast() -> None:
    maps = torch.randn(1, 3, 9, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = upsample(maps, (65, 65), True)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, F.interpolate(maps, (65, 65), mode="bilinear", align_corners=True))
