"""The recipes in conf/experiment against the numbers of their publications."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

import pspexp
from pspexp.config.build import build_partial
from pspexp.engine.trainer_config import TrainerConfig
from pspexp.inference import Slide, Whole
from tests.conftest import Cli


@dataclass(frozen=True)
class Published:
    """A recipe as its publication states it.

    Attributes:
        images, classes: Training images and classes of the data set.
        steps: Optimizer steps in total, of ``batch`` images; ``crop`` is the side of their crops.
        stem: Channels of the three convolutions in front of the backbone's stages.
        blocks: Blocks of the backbone's third stage: 6 in a ResNet-50, 23 in a ResNet-101.
        first_dilations: Dilation of the first 3×3 convolution of the third and fourth stage.
        lr, head_lr, final_lr: Learning rates of backbone and head at the start, of the backbone at the end.
        decay: Weight decay of all parameters, batch norms and biases included.
        augment: Attributes of the augmentation.
        inference: Class of the inference.
        windows: Attributes of the inference.
    """

    images: int
    classes: int
    steps: int
    batch: int
    crop: int
    stem: tuple[int, int, int]
    blocks: int
    first_dilations: tuple[int, int]
    align_corners: bool
    lr: float
    head_lr: float
    final_lr: float
    decay: float
    augment: dict[str, Any]
    inference: type
    windows: dict[str, Any] = field(default_factory=dict)


SEMSEG = Published(
    images=20210,
    classes=150,
    steps=126_300,
    batch=16,
    crop=473,
    stem=(64, 64, 128),
    blocks=6,
    first_dilations=(2, 4),
    align_corners=True,
    lr=0.01,
    head_lr=0.1,
    final_lr=0.0,
    decay=1e-4,
    augment={
        "scale_min": 0.5,
        "scale_max": 2.0,
        "rotate_degrees": 10.0,
        "rotate_probability": 0.5,
        "blur_probability": 0.5,
        "flip_probability": 0.5,
        "mixing": None,
    },
    inference=Slide,
    windows={"window": 473, "stride": 316, "average": "probabilities", "flip": True, "base_size": 512},
)
SEMSEG_VOC = replace(SEMSEG, images=10_582, classes=21, steps=33_050)
SEMSEG_CITYSCAPES = replace(
    SEMSEG,
    images=2975,
    classes=19,
    steps=37_000,
    crop=713,
    windows=SEMSEG.windows | {"window": 713, "stride": 476, "base_size": 2048},
)
MMSEG_VOC = replace(
    SEMSEG_VOC,
    steps=40_000,
    crop=512,
    stem=(32, 32, 64),
    first_dilations=(1, 2),
    align_corners=False,
    head_lr=0.01,
    final_lr=1e-4,
    decay=5e-4,
    augment={
        "scale_min": 0.5,
        "scale_max": 2.0,
        "base_size": [2048, 512],
        "flip_probability": 0.5,
        "color_jitter": 0.0,
        "mixing": None,
    },
    inference=Whole,
    windows={"flip": False, "base_size": (2048, 512)},
)
MMSEG_CITYSCAPES = replace(
    MMSEG_VOC,
    images=2975,
    classes=19,
    steps=80_000,
    batch=8,
    crop=769,
    align_corners=True,
    augment=MMSEG_VOC.augment | {"base_size": [2049, 1025]},
    inference=Slide,
    windows={"window": 769, "stride": 513, "average": "logits", "flip": False, "base_size": (2049, 1025)},
)
RECIPES = {
    ("semseg",): replace(SEMSEG, images=209, classes=20, steps=1300),  # on VOC 2007, the default
    ("ade20k_semseg",): SEMSEG,
    ("voc2012aug_semseg",): SEMSEG_VOC,
    ("cityscapes_semseg",): SEMSEG_CITYSCAPES,
    ("ade20k_semseg101",): replace(SEMSEG, blocks=23),
    ("voc2012aug_semseg101",): replace(SEMSEG_VOC, blocks=23),
    ("cityscapes_semseg101",): replace(SEMSEG_CITYSCAPES, blocks=23),
    ("mmseg",): replace(MMSEG_VOC, images=209, classes=20),
    ("voc2012aug_mmseg",): MMSEG_VOC,
    ("cityscapes_mmseg",): MMSEG_CITYSCAPES,
    ("voc2012aug_mmseg", "model.backbone=resnet101c"): replace(MMSEG_VOC, blocks=23),
    ("cityscapes_mmseg", "model.backbone=resnet101c", "trainer.steps=40000"): replace(
        MMSEG_CITYSCAPES, blocks=23, steps=40_000
    ),
}
DATASETS = {"ade20k": "ADEChallengeData2016", "voc2012aug": "VOCdevkit/VOC2012", "cityscapes": "cityscapes"}


@pytest.fixture(scope="module", params=RECIPES, ids="-".join)
def recipe(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


@pytest.fixture(scope="module")
def config(recipe: tuple[str, ...]) -> DictConfig:
    return pspexp.compose([f"experiment={recipe[0]}", *recipe[1:]])


@pytest.fixture
def published(recipe: tuple[str, ...]) -> Published:
    return RECIPES[recipe]


def differences(found: object, expected: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name in expected if (value := getattr(found, name)) != expected[name]}


def test_length_and_batch(config: DictConfig, published: Published) -> None:
    assert (config.choices.launcher, config.loader.batch_size, config.trainer.accumulate) == (
        "single",
        published.batch,
        1,
    )
    steps_per_epoch = published.images // published.batch
    assert TrainerConfig(**config.trainer).total_steps(steps_per_epoch) == published.steps
    assert config.trainer.max_steps is None
    assert config.sync_batch_norm
    assert (config.precision.name, config.trainer.ema, config.trainer.grad_clip) == ("auto", None, None)


def test_network(config: DictConfig, published: Published) -> None:
    assert config.model.backbone_weights == "timm"
    with torch.device("meta"):
        model = pspexp.build(config.model, backbone_weights=None)
    net = model.backbone
    stem = tuple(layer.out_channels for layer in net.conv1 if isinstance(layer, nn.Conv2d))
    assert (stem, net.conv1[0].stride, len(net.layer3)) == (published.stem, (2, 2), published.blocks)
    assert (net.layer3[0].conv2.dilation[0], net.layer4[0].conv2.dilation[0]) == published.first_dilations
    assert (net.layer3[1].conv2.dilation, net.layer4[1].conv2.dilation) == ((2, 2), (4, 4))
    assert (model.align_corners, model.output_stride) == (published.align_corners, 8)
    assert model.classifier.weight.shape == (published.classes, 512, 1, 1)
    assert model.auxiliary.features[0].weight.shape == (256, 1024, 3, 3)
    assert (model.dropout.p, model.auxiliary.dropout.p) == (0.1, 0.1)


def test_data_and_loss(config: DictConfig, published: Published) -> None:
    info = pspexp.build(config.dataset).info
    assert (info.num_classes, info.ignore_index, info.mean) == (published.classes, 255, [0.485, 0.456, 0.406])
    loss = pspexp.build(config.loss)
    assert differences(loss, {"main_weight": 1.0, "aux_weight": 0.4, "class_weights": None}) == {}


class Small(nn.Module):
    """The kinds of parameters that a network has."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.classifier = nn.Conv2d(4, 2, 1)


def test_optimizer_and_schedule(config: DictConfig, published: Published) -> None:
    optimizer = build_partial(config.optimizer, model=Small())
    assert type(optimizer) is torch.optim.SGD
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        {"backbone": published.lr, "head": published.head_lr}
    )
    for group in groups.values():
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, published.decay)
    scheduler = build_partial(config.scheduler, optimizer=optimizer, total_steps=published.steps)
    for step in (0, 1, published.steps // 3, published.steps):
        rate = (published.lr - published.final_lr) * (1 - step / published.steps) ** 0.9 + published.final_lr
        assert published.lr * scheduler.factor(step) == pytest.approx(rate)


def test_augmentation(config: DictConfig, published: Published) -> None:
    augment = pspexp.build(config.augment)
    assert differences(augment, published.augment) == {}
    assert (config.augment.crop_size, config.crop_size) == (published.crop, published.crop)
    is_mmseg = hasattr(augment, "base_size")
    assert (config.augment.cat_max_ratio, config.augment.photometric) == (0.75 if is_mmseg else None, is_mmseg)
    assert (config.augment.grayscale_probability, config.augment.jpeg_probability) == (0, 0)
    assert config.loader.sampling == "uniform"


def test_inference(config: DictConfig, published: Published) -> None:
    inference = pspexp.build(config.inference)
    assert type(inference) is published.inference
    assert differences(inference, {"scales": (1.0,), **published.windows}) == {}
    assert config.loader.max_eval_images is None


def test_several_scales_are_one_override() -> None:
    scales = "inference.scales=[0.5,0.75,1.0,1.25,1.5,1.75]"
    config = pspexp.compose(["experiment=ade20k_semseg101", scales])
    assert pspexp.build(config.inference).scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@pytest.mark.parametrize("name", [recipe[0] for recipe in RECIPES if len(recipe) == 1] + ["voc2007_lite"])
def test_only_the_data_is_missing(name: str, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(f"experiment={name}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    folder = DATASETS.get(name.partition("_")[0], "VOCdevkit")
    assert line.startswith(f"dataset.root=data/{folder}: no such file or folder (looked for ")


@pytest.mark.parametrize(("recipe", "expected"), [("semseg", Slide), ("mmseg", Whole)])
def test_recipe_keeps_its_inference_with_another_data_set(recipe: str, expected: type, voc: Path) -> None:
    """The option ``voc_folder`` chooses whole images where nothing else is said."""
    data = ("dataset=voc_folder", f"dataset.root={voc}", "dataset.class_names=[a,b,c]")
    config = pspexp.compose([f"experiment={recipe}", *data])
    assert type(pspexp.build(config.inference)) is expected
    assert config.model.num_classes == 3
