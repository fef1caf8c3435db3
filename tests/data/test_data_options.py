"""All ``dataset`` and ``augment`` options compose and build their targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from PIL import Image

from pspexp.data.labels import VOC_CLASSES
from pspexp.data.shapes import SHAPES_CLASSES

CONF = Path(__file__).parents[2] / "conf"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(group: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", overrides=[*overrides]), resolve=True)
    node = dict(config[group])
    if group == "dataset":  # null: those of the network's pretrained weights
        node |= {key: [0.5, 0.5, 0.5] for key in ("mean", "std") if node[key] is None}
    return node


def built(node: dict[str, Any]) -> Any:
    return get_class(node["_target_"])(**{key: value for key, value in node.items() if key != "_target_"})


def build(group: str, *overrides: str) -> Any:
    return built(composed(group, *overrides))


@pytest.mark.parametrize("option", options("dataset"))
def test_datasets_build_without_files(option: str) -> None:
    node = composed("dataset", f"dataset={option}")
    if node["class_names"] is None:  # read from the folder
        node |= {"root": "x", "class_names": ["a", "b"]}
    info = built(node).info
    assert info.num_classes == len(info.class_names) == len(info.palette)
    assert info.ignore_index == 255
    assert len(info.mean) == len(info.std) == 3


def test_data_sets_have_the_expected_class_names() -> None:
    assert build("dataset", "dataset=voc2007").info.class_names == list(VOC_CLASSES[1:])
    assert build("dataset", "dataset=voc2007_21").info.class_names == list(VOC_CLASSES)
    assert build("dataset", "dataset=voc2012").info.class_names == list(VOC_CLASSES)
    assert build("dataset", "dataset=shapes").info.class_names == list(SHAPES_CLASSES)
    assert build("dataset", "dataset=camvid").info.num_classes == 11


def test_class_names_may_come_from_the_command_line() -> None:
    source = build("dataset", "dataset=voc_folder", "dataset.root=x", "dataset.class_names=[a,b]")
    assert (source.info.num_classes, source.info.class_names) == (2, ["a", "b"])


@pytest.mark.parametrize("option", sorted({*options("augment")} - {"custom"}))
def test_augmentations_build(option: str) -> None:
    if option == "albumentations":
        pytest.importorskip("albumentations")
    node = composed("augment", f"augment={option}", "dataset=shapes", "dataset.mean=[0.5,0.5,0.5]", "crop_size=33")
    augment: Any = instantiate(node, _convert_="all")
    sample = augment(Image.new("RGB", (50, 20)), Image.new("L", (50, 20)), np.random.default_rng(0))
    assert [part.size for part in sample] == [(33, 33), (33, 33)]
