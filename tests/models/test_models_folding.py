"""Folding changes the number of operations, not the results."""

import pytest
import torch
from torch import Tensor, nn

from pspexp.models.folding import folded
from pspexp.models.pspnet import pspnet
from pspexp.models.torchvision_models import fcn_resnet50


def trained(model: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics and scales that a batch norm has after training."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("head", ["concat", "factorised"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_a_folded_pspnet_is_the_same_function(head: str, align_corners: bool) -> None:
    small = {"backbone": "resnet18", "pyramid_channels": 4, "head_channels": 8, "aux_channels": 0}
    model = trained(pspnet(num_classes=5, head=head, align_corners=align_corners, **small)).double()  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small_images, images = (torch.randn(2, 3, *size, dtype=torch.float64) for size in ((33, 33), (49, 66)))
    copy = folded(model, small_images)
    assert norms(copy) == (head == "factorised")  # whose fusing convolution is no call of its module
    with torch.inference_mode():
        torch.testing.assert_close(copy(images)["out"], model(images)["out"], rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_folded_torchvision_network_is_the_same_function() -> None:
    model = trained(fcn_resnet50(num_classes=5))
    images = torch.randn(1, 3, 64, 64)
    copy = folded(model, images)
    assert norms(model) - norms(copy) == 54  # all but the auxiliary head's
    with torch.inference_mode():
        torch.testing.assert_close(copy(images)["out"], model(images)["out"], rtol=1e-3, atol=1e-4)


class Twice(nn.Module):
    """Uses a convolution's output beside the batch norm that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.conv(images)
        return {"out": self.norm(maps) + maps}


def test_a_network_that_cannot_be_folded_is_left_alone() -> None:
    model = trained(Twice())
    assert folded(model, torch.randn(1, 3, 8, 8)) is model
    without = nn.Sequential(nn.Conv2d(3, 4, 1))
    without.forward = lambda images: {"out": without[0](images)}  # type: ignore[method-assign]
    assert folded(without, torch.randn(1, 3, 8, 8)) is without
