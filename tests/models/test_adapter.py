"""Networks of any kind with this project's interface."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pspexp.config.network import check_inference
from pspexp.errors import UserError
from pspexp.inference import CenterCrop, Inference, Slide, Whole
from pspexp.losses import CrossEntropy, loss_sum
from pspexp.models.adapter import AdaptedNetwork, adapt
from pspexp.models.folding import fold_batch_norms
from pspexp.models.segmenter import can_defer_upsampling
from pspexp.models.trial import TrialError
from pspexp.models.weights import load_weights

CLASSES = 5


class Net(nn.Module):
    """A small network whose logits are at a fraction of the image's size."""

    def __init__(self, classes: int = CLASSES, stride: int = 4, bands: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(bands, 8, 3, stride, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
        )
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, images: Tensor) -> Any:
        return self.head(self.encoder(images))


class Returning(Net):
    """The same network with another kind of output."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, images: Tensor) -> Any:
        return self.form(super().forward(images))


@dataclass
class Output:
    logits: Tensor


def adapted(network: nn.Module, **arguments: Any) -> AdaptedNetwork:
    found = adapt(network, CLASSES, **arguments)
    assert isinstance(found, AdaptedNetwork)
    return found.eval()


def images(height: int = 33, width: int = 46, bands: int = 3) -> Tensor:
    return torch.randn(2, bands, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: logits,
        lambda logits: {"out": logits, "features": None},
        lambda logits: {"logits": logits},
        lambda logits: Output(logits),
        lambda logits: (logits, logits.mean()),
        lambda logits: [logits, logits],
        lambda logits: ({"out": logits},),
    ],
)
def test_logits_in_any_form_are_found_and_brought_to_the_size_of_the_image(form: Any) -> None:
    model = adapted(Returning(form))
    expected = F.interpolate(Net.forward(model.network, images()), (33, 46), mode="bilinear")  # type: ignore[arg-type]
    assert model.output_stride == 4
    torch.testing.assert_close(model(images())["out"], expected)
    assert set(model.train()(images())) == {"out"}


def test_logits_of_the_size_of_the_image_are_unchanged() -> None:
    model = adapted(Net(stride=1))
    assert (model.output_stride, model.takes_all) == (1, True)
    assert torch.equal(model(images())["out"], model.network(images()))


def test_auxiliary_output_is_taken_while_training() -> None:
    model = adapted(Returning(lambda logits: {"out": logits, "aux": logits[..., ::2, ::2]}))
    assert set(model(images())) == {"out"}
    outputs = model.train()(images())
    assert {name: tuple(logits.shape) for name, logits in outputs.items()} == {
        "out": (2, CLASSES, 33, 46),
        "aux": (2, CLASSES, 33, 46),
    }


class UNet(nn.Module):
    """Needs sides that are multiples of 8, as U-Nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(3))
        self.out = nn.Conv2d(4, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        levels = [images]
        for layer in self.down:
            levels.append(layer(levels[-1]))
        x = levels[-1]
        for skip in levels[-2:0:-1]:
            x = F.interpolate(x, scale_factor=2) + skip
        return F.interpolate(self.out(x), scale_factor=2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("inference", [Whole(), Slide(33), Slide(24), CenterCrop(33)])
def test_inference_composes_for_a_network_that_needs_multiples(inference: Any) -> None:
    model = adapted(UNet())
    assert (model.output_stride, model.takes_all) == (8, False)
    raw = images(51, 38)
    with torch.inference_mode():
        assert inference.logits(model, raw).shape == (2, CLASSES, 51, 38)
        padded = F.pad(raw, (0, 2, 0, 5))
        assert torch.equal(Whole().logits(model, raw), model.network(padded)[..., :51, :38])


class OneSize(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[-2:] == (40, 40), "size"
        return images.repeat(1, 2, 1, 1)[:, :CLASSES]


def test_network_for_one_size_is_tried_with_the_crop_size() -> None:
    with pytest.raises(TrialError, match="OneSize failed on 2 images of 96×160: AssertionError: size"):
        adapted(OneSize())
    model = adapted(OneSize(), crop_size=40)
    assert Slide(40).logits(model, images(60, 50)).shape == (2, CLASSES, 60, 50)
    with pytest.raises(UserError, match="OneSize takes images of 40×40 pixels only, not of 80×80; use inference=slide"):
        Whole().logits(model, images(60, 50))


@pytest.mark.parametrize(
    ("inference", "given"),
    [
        (Whole(), "whole images"),
        (Slide(41), "windows of 41×41"),
        (CenterCrop(40, scales=(1.0, 1.5)), "centre crops of 40×40, after resizing the shorter side"),
        (Slide(40), None),
        (Slide(24), None),
        (CenterCrop(40), None),
        (CenterCrop(20, scales=(2.0,)), None),
        (Inference(), None),
    ],
)
def test_inference_that_gives_larger_images_than_a_network_takes_is_refused(
    inference: Inference, given: str | None
) -> None:
    model = adapted(OneSize(), crop_size=40)
    if given is None:
        check_inference(model, inference)
        return
    fix = r"use inference=slide with inference\.window=40"
    with pytest.raises(UserError, match=f"^OneSize takes images of 40×40 pixels only, not {given}; {fix}$"):
        check_inference(model, inference)


def test_backbone_and_class_layers_are_found() -> None:
    class Transformer(Net):
        base_model_prefix = "mit"

        def __init__(self) -> None:
            super().__init__()
            self.mit = self.encoder
            del self.encoder

        def forward(self, images: Tensor) -> Any:
            return self.head(self.mit(images))

    assert adapted(Net()).backbone_prefix == "network.encoder."
    assert adapted(Net()).class_layers == ("network.head",)
    assert adapted(Transformer()).backbone_prefix == "network.mit."
    plain = adapted(
        nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.ConvTranspose2d(CLASSES, CLASSES, 2, 2), nn.MaxPool2d(2))
    )
    assert plain.class_layers == ("network.0", "network.1")
    assert not [name for name, _ in plain.named_parameters() if name.startswith(plain.backbone_prefix)]


def test_weights_of_another_class_set_are_loaded_but_for_the_classifier() -> None:
    source, model = adapt(Net(classes=3), 3), adapted(Net())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_weights(model, source.state_dict(), other_classes=True)
    after = model.state_dict()
    assert torch.equal(after["network.encoder.0.weight"], source.state_dict()["network.encoder.0.weight"])
    assert torch.equal(after["network.head.weight"], before["network.head.weight"])


def test_chunked_loss_equals_the_loss_of_the_upsampled_logits() -> None:
    for network in (Net(stride=4), Net(stride=1), UNet()):
        model, loss = adapted(network), CrossEntropy(CLASSES)
        labels = torch.randint(0, CLASSES, (2, 33, 46), generator=torch.Generator().manual_seed(2))
        assert can_defer_upsampling(model)
        chunked = loss.chunked(model(images(), upsampled=False), labels, model.upsample)
        expected = loss_sum(loss, model(images()), labels)
        torch.testing.assert_close(chunked.loss, expected.loss)


def test_folding_keeps_what_inference_asks_for() -> None:
    model = adapted(Net())
    folded = fold_batch_norms(model, images()[:1])
    assert folded is not model
    assert (folded.output_stride, folded.align_corners) == (4, False)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images())["out"], model(images())["out"], rtol=1e-4, atol=1e-4)


def test_network_is_left_as_it_was() -> None:
    network = Net().train()
    network.encoder[1].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    adapt(network, CLASSES)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert (network.training, network.encoder[0].training, network.encoder[1].training) == (True, True, False)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_bands_lazy_layers_and_the_meta_device() -> None:
    assert adapted(Net(bands=5), in_channels=5)(images(bands=5))["out"].shape[1] == CLASSES
    lazy = adapt(nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d(), nn.LazyConv2d(CLASSES, 1)))
    assert lazy.num_classes == CLASSES
    assert lazy.state_dict()["network.1.running_mean"].abs().max() == 0
    with torch.device("meta"):
        assert adapt(UNet(), CLASSES).output_stride == 8


class Raising(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            raise KeyError("no targets\nsecond line")
        return images.repeat(1, 2, 1, 1)[:, :CLASSES]


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (
            Net(classes=7, stride=2),
            "Net returned a Tensor of 48×80 with 7 channels for an image of 96×160 with 5 classes; give it the number",
        ),
        (Returning(lambda logits: None), "Returning returned NoneType; return the logits as a tensor, as 'out' or"),
        (Returning(lambda logits: {"pred": logits}), "Returning returned dict with the keys pred; return the logits"),
        (Returning(lambda logits: logits.argmax(1)), "returned a Tensor [2, 24, 40] for 2 images of 96×160"),
        (Returning(lambda logits: logits.long()), "returned a Tensor of torch.int64; return logits, not class ids"),
        (Returning(lambda logits: logits * float("nan")), "returned NaN or infinite values for random images"),
        (Returning(lambda logits: logits.mT), "a Tensor of 40×24 for an image of 96×160; height and width are swapped"),
        (Returning(lambda logits: logits[..., 1:-1]), "a Tensor of 24×38 for an image of 96×160; return one of its"),
        (Returning(lambda logits: logits[:1]), "returned a Tensor [1, 5, 24, 40] for 2 images"),
        (Net(bands=4), "Net failed on 2 images of 96×160: RuntimeError: Given groups=1"),
        (Raising(), "Raising failed on 2 images of 96×160 in training mode: KeyError: 'no targets"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(network: nn.Module, problem: str) -> None:
    with pytest.raises(TrialError, match=re.escape(problem)) as refused:
        adapt(network, CLASSES)
    assert "\n" not in str(refused.value)


def test_line_of_the_users_code_is_named() -> None:
    with pytest.raises(TrialError, match=r" \(.*test_adapter\.py:\d+\)$"):
        adapt(Raising(), CLASSES)
