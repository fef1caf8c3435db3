"""Colour statistics of the images: those of the network's weights, unless they are given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import pspexp
from pspexp.errors import UserError
from pspexp.models.backbone import RESNETS
from pspexp.models.statistics import imagenet_statistics, with_image_statistics
from tests.conftest import TINY

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
WITHOUT_MODEL = [text for text in TINY if not text.startswith("model")]
HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


def own_statistics(arguments: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return [arguments["shade"]] * 3, [0.25] * 3


@with_image_statistics(own_statistics)
def own_network(num_classes: int, shade: float) -> nn.Module:
    return nn.Conv2d(3, num_classes, 1)


def statistics(*overrides: str) -> tuple[Any, Any]:
    config = pspexp.compose([*(WITHOUT_MODEL if "model=fcn_resnet50" in overrides else TINY), *overrides])
    assert config.augment.mean == config.dataset.mean
    return OmegaConf.to_container(config.dataset.mean), OmegaConf.to_container(config.dataset.std)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), IMAGENET),
        (("model.backbone=tf_efficientnet_lite0",), HALF),
        (("model.backbone=vit_tiny_patch16_224",), HALF),
        (("model.backbone=mobilenetv3_large_100",), IMAGENET),
        (("model=fcn_resnet50",), IMAGENET),
        (("model.backbone=tf_efficientnet_lite0", "dataset.mean=[0.1,0.2,0.3]"), ([0.1, 0.2, 0.3], HALF[1])),
        (("dataset.mean=[0.1,0.2,0.3]", "dataset.std=[0.4,0.5,0.6]"), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])),
    ],
)
def test_statistics_are_those_of_the_weights_unless_given(overrides: tuple[str, ...], expected: Any) -> None:
    assert statistics(*overrides) == expected


def test_known_resnets_need_no_look_into_timm() -> None:
    from timm.models import get_pretrained_cfg

    for name in RESNETS:
        config = get_pretrained_cfg(name)
        assert config is not None
        assert ([*config.mean], [*config.std]) == imagenet_statistics(), name


def test_target_brings_its_own() -> None:
    overrides = ("model=custom", f"model._target_={__name__}.own_network", "+model.shade=0.75")
    config = pspexp.compose([*WITHOUT_MODEL, *overrides])
    assert (config.dataset.mean, config.dataset.std) == ([0.75] * 3, [0.25] * 3)


def checkpoint(folder: Path, *overrides: str) -> Path:
    """A file that looks like a checkpoint of this project."""
    config = OmegaConf.to_container(pspexp.compose([*TINY, *overrides]), resolve=True)
    file = folder / "best.pt"
    torch.save({"format": "pspexp/1", "config": config, "model": {"a": torch.zeros(1)}}, file)
    return file


@pytest.mark.parametrize("key", ["model.weights", "model.backbone_weights"])
def test_training_takes_those_of_the_checkpoint_it_starts_from(tmp_path: Path, key: str) -> None:
    file = checkpoint(tmp_path, "dataset.mean=[0.1,0.2,0.3]", "dataset.std=[0.4,0.5,0.6]")
    assert statistics(f"{key}={file}") == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert statistics(f"{key}={file}", "dataset.mean=[0,0,0]") == ([0, 0, 0], [0.4, 0.5, 0.6])
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    file.rename(run / "best.pt")
    assert statistics(f"{key}={run.parent}") == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_foreign_weights_do_not_change_them(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "foreign.pth")
    assert statistics(f"model.weights={tmp_path / 'foreign.pth'}") == IMAGENET


def test_other_numbers_of_bands_need_them() -> None:
    with pytest.raises(UserError, match=r"^model\.in_channels=4: but dataset\.mean has 3 values; make them agree$"):
        pspexp.compose([*TINY, "model.in_channels=4"])
    four = [*TINY, "model.in_channels=4", "dataset.mean=[0.5,0.5,0.5,0.5]", "dataset.std=[0.5,0.5,0.5,0.5]"]
    assert len(pspexp.compose(four).dataset.mean) == 4
