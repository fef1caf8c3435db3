"""Miniatures of the field's data sets, in the layouts in which they are downloaded."""

import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from pspexp.data.labels import VOC_COLOURS

SIZE = (6, 4)  # width, height

CITY_TRAIN = ["aachen/aachen_000000_000019", "bochum/bochum_000000_000313"]
CITY_VAL = ["frankfurt/frankfurt_000000_000294"]
STUFF_TRAIN, STUFF_VAL = ["000000000009", "000000000025"], ["000000000139"]
STUFF10K = {
    "train": ["COCO_train2014_000000000077", "COCO_train2014_000000000081"],
    "test": ["COCO_train2014_000000000064"],
}
ADE_TRAIN, ADE_VAL = ["ADE_train_00000001", "ADE_train_00000002"], ["ADE_val_00000001"]
# One name of SBD in VOC's train.txt, one in its val.txt, two in neither.
VOC_TRAIN, VOC_VAL = ["2007_000032", "2007_000039"], ["2007_000033"]
SBD_TRAIN, SBD_VAL = ["2007_000032", "2008_000002"], ["2007_000033", "2008_000003"]


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (10, 200, 30)).save(path)


def pixels(values: Sequence[int]) -> np.ndarray:
    """A label with these values, in order from its top left corner; the last one fills the rest."""
    flat = [*values, *[values[-1]] * (SIZE[0] * SIZE[1])][: SIZE[0] * SIZE[1]]
    return np.array(flat, np.uint8).reshape(SIZE[1], SIZE[0])


def label(path: Path, values: Sequence[int], *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(pixels(values))
    if palette:
        made.putpalette(VOC_COLOURS.tobytes())
    made.save(path)


def cityscapes(root: Path) -> Path:
    for split, names in (("train", CITY_TRAIN), ("val", CITY_VAL)):
        for name in names:
            image(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png")
            label(root / f"gtFine/{split}/{name}_gtFine_labelIds.png", [7, 8, 33, 0, 29, 255])
            label(root / f"gtFine/{split}/{name}_gtFine_instanceIds.png", [7])
            (root / f"gtFine/{split}/{name}_gtFine_polygons.json").write_text("{}")
    return root


def ade20k(root: Path) -> Path:
    for split, names in (("training", ADE_TRAIN), ("validation", ADE_VAL)):
        for name in names:
            image(root / f"images/{split}/{name}.jpg")
            label(root / f"annotations/{split}/{name}.png", [0, 1, 150, 90])
    return root


def voc2012(root: Path) -> Path:
    for name in sorted({*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL}):
        image(root / f"JPEGImages/{name}.jpg")
    for name in [*VOC_TRAIN, *VOC_VAL]:
        label(root / f"SegmentationClass/{name}.png", [0, 15, 255], palette=True)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(VOC_TRAIN) + "\n")
    (lists / "val.txt").write_text("\n".join(VOC_VAL) + "\n")
    (lists / "trainval.txt").write_text("\n".join(sorted([*VOC_TRAIN, *VOC_VAL])) + "\n")
    return root


def sbd(root: Path) -> Path:
    """``benchmark_RELEASE``; SBD's labels are all class 20, without void."""
    for name in [*SBD_TRAIN, *SBD_VAL]:
        path = root / f"dataset/cls/{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(path, {"GTcls": {"Segmentation": pixels([20]), "CategoriesPresent": np.array([[20]])}})
    (root / "dataset/train.txt").write_text("\n".join(SBD_TRAIN) + "\n")
    (root / "dataset/val.txt").write_text("\n".join(SBD_VAL) + "\n")
    return root


def cocostuff164k(root: Path) -> Path:
    for split, names in (("train2017", STUFF_TRAIN), ("val2017", STUFF_VAL)):
        for name in names:
            image(root / f"images/{split}/{name}.jpg")
            label(root / f"annotations/{split}/{name}.png", [0, 10, 12, 181, 11, 255])
    return root


def cocostuff10k(root: Path, *, masks: bool = False) -> Path:
    values = [0, 1, 11, 13, 182]
    for split, names in STUFF10K.items():
        lists = root / f"imageLists/{split}.txt"
        lists.parent.mkdir(parents=True, exist_ok=True)
        lists.write_text("\n".join(names) + "\n")
        for name in names:
            image(root / f"images/{name}.jpg")
            path = root / f"annotations/{name}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            scipy.io.savemat(path, {"S": pixels(values), "names": np.array([["x"]] * 182, object)})
            if masks:
                label(root / f"masks/{name}.png", values)
    return root


def pack(path: Path, *entries: tuple[Path, str]) -> Path:
    """A zip, or a tar of the kind that its suffix says, of folders under other names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [
        (file, f"{name}/{file.relative_to(folder)}") for folder, name in entries for file in sorted(folder.rglob("*"))
    ]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for file, name in files:
                packed.write(file, name.removeprefix("./"))
            packed.writestr("README", f"belongs to {path.name}")
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
            for file, name in files:
                tar.add(file, name.removeprefix("./"), recursive=False)
    return path


def official(name: str, folder: Path) -> list[Path]:
    """The archives of a miniature."""
    source, load = folder / "src", folder / "downloads"
    if name == "cityscapes":
        root = cityscapes(source)
        return [
            pack(load / "leftImg8bit_trainvaltest.zip", (root / "leftImg8bit", "leftImg8bit")),
            pack(load / "gtFine_trainvaltest.zip", (root / "gtFine", "gtFine")),
        ]
    if name == "ade20k":
        return [pack(load / "ADEChallengeData2016.zip", (ade20k(source), "ADEChallengeData2016"))]
    if name == "cocostuff164k":
        root = cocostuff164k(source)
        return [
            pack(load / "train2017.zip", (root / "images/train2017", "train2017")),
            pack(load / "val2017.zip", (root / "images/val2017", "val2017")),
            pack(
                load / "stuffthingmaps_trainval2017.zip",
                (root / "annotations/train2017", "train2017"),
                (root / "annotations/val2017", "val2017"),
            ),
        ]
    if name == "cocostuff10k":
        return [pack(load / "cocostuff-10k-v1.1.zip", (cocostuff10k(source), "."))]
    voc = pack(load / "VOCtrainval_11-May-2012.tar", (voc2012(source / "voc"), "VOCdevkit/VOC2012"))
    if name == "voc2012":
        return [voc]
    return [voc, pack(load / "benchmark.tgz", (sbd(source / "sbd"), "benchmark_RELEASE"))]
