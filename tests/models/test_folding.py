"""Folding batch norms saves operations without changing results; other networks are left unchanged."""

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.models.folding import fold_batch_norms
from pspexp.models.pspnet import pspnet
from pspexp.models.torchvision_models import fcn_resnet50


def trained(model: nn.Module) -> nn.Module:
    """Return ``model`` in evaluation mode, with batch-norm statistics and scales as after training."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


def count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("head", ["concat", "factorised"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_folded_pspnet_gives_the_same_outputs(head: str, align_corners: bool) -> None:
    small = {"backbone": "resnet18", "pyramid_channels": 4, "head_channels": 8, "aux_channels": 0}
    model = trained(pspnet(num_classes=5, head=head, align_corners=align_corners, **small)).double()  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 49, 66, dtype=torch.float64)
    folded = fold_batch_norms(model, images)
    assert count_norms(folded) == (head == "factorised")  # its fusing convolution is not called as a module
    with torch.inference_mode():
        torch.testing.assert_close(folded(images)["out"], model(images)["out"], rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in folded.modules())


def test_folded_torchvision_model_gives_the_same_outputs() -> None:
    model = trained(fcn_resnet50(num_classes=5, output_stride=32)).double()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    folded = fold_batch_norms(model, images)
    assert count_norms(model) - count_norms(folded) == 54  # all but the auxiliary head's
    with torch.inference_mode():
        torch.testing.assert_close(folded(images)["out"], model(images)["out"], rtol=1e-10, atol=1e-10)


class Net(nn.Module):
    """A convolution and a batch norm that can be folded; subclasses prevent it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Any:
        return {"out": self.norm(self.conv(images))}


class WithoutNorm(Net):
    def forward(self, images: Tensor) -> Any:
        return {"out": self.conv(images)}


class ConvolutionUsedTwice(Net):
    """Uses the convolution's output outside the batch norm, too."""

    def forward(self, images: Tensor) -> Any:
        maps = self.conv(images)
        return {"out": self.norm(maps) + maps}


class ConvolutionCalledTwice(Net):
    """The second call does not affect the logits, so comparing them would not detect it."""

    def forward(self, images: Tensor) -> Any:
        return {"out": self.norm(self.conv(images)) + 0 * self.conv(images)}


class NormCalledTwice(Net):
    def forward(self, images: Tensor) -> Any:
        return {"out": self.norm(self.norm(self.conv(images)))}


class SharedByTwoNorms(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Any:
        return {"out": self.norm(self.conv(images)) + self.other(self.conv(images))}


class Functional(Net):
    def forward(self, images: Tensor) -> Any:
        return {"out": self.norm(F.conv2d(images, self.conv.weight, self.conv.bias))}


class AlsoFunctional(Net):
    def forward(self, images: Tensor) -> Any:
        return {"out": self.norm(self.conv(images)) + F.conv2d(images, self.conv.weight)}


class Tied(Net):
    """The convolution has two names, like tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = self.conv


class ReadsNorm(Net):
    """Fails once the batch norm has been replaced."""

    def forward(self, images: Tensor) -> Any:
        return {"out": self.norm(self.conv(images)) * self.norm.weight.view(1, -1, 1, 1)}


class NotADict(Net):
    def forward(self, images: Tensor) -> Any:
        return (self.norm(self.conv(images)),)


class NotANumber(Net):
    def forward(self, images: Tensor) -> Any:
        return {"out": self.norm(self.conv(images)) * torch.nan}


class RefusesTheProbe(Net):
    def forward(self, images: Tensor) -> Any:
        raise RuntimeError("the height must be divisible by 512")


class CannotBeCopied(Net):
    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("cannot be copied")


class Parametrized(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.conv)


class NormStaysInTraining(Net):
    def train(self, mode: bool = True) -> "NormStaysInTraining":
        super().train(mode)
        self.norm.train()
        return self


UNFOLDED = (
    WithoutNorm,
    ConvolutionUsedTwice,
    ConvolutionCalledTwice,
    NormCalledTwice,
    SharedByTwoNorms,
    Functional,
    AlsoFunctional,
    Tied,
    ReadsNorm,
    NotADict,
    NotANumber,
    RefusesTheProbe,
    CannotBeCopied,
    Parametrized,
    NormStaysInTraining,
)


@pytest.mark.parametrize("make", UNFOLDED, ids=lambda make: make.__name__)
def test_network_that_cannot_be_folded_is_unchanged(make: Callable[[], Net]) -> None:
    model = trained(make())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fold_batch_norms(model, torch.randn(1, 3, 8, 8)) is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("part", ["", "conv", "norm"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_network_with_hooks_is_not_probed(part: str, kind: str) -> None:
    model, calls = trained(Net()), []
    getattr(model.get_submodule(part), kind)(lambda *_: calls.append(1))
    assert fold_batch_norms(model, torch.randn(1, 3, 8, 8)) is model
    assert calls == []


def test_base_network_of_these_tests_can_be_folded() -> None:
    model = trained(Net())
    assert count_norms(fold_batch_norms(model, torch.randn(1, 3, 8, 8))) == 0


def test_on_accelerators_only_single_images_are_folded() -> None:
    copied = []

    class Copied(Net):
        def __deepcopy__(self, memo: object) -> NoReturn:
            copied.append(True)
            raise TypeError("seen")

    model = Copied().eval()
    for device, batch_size in (("meta", 2), ("meta", 1), ("cpu", 2)):
        fold_batch_norms(model, torch.empty(batch_size, 3, 8, 8, device=device))
        copied.append(False)
    assert copied == [False, True, False, True, False]
