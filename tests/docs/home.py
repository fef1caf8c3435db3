"""What the documented commands expect to find in the folder where they are typed: small data sets, runs, files."""

import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pspexp.data.labels import VOC_COLOURS
from pspexp.tracking.manifest import run_ids
from tests.conftest import TINY, run_commands
from tests.data import field_trees
from tests.data.preparation.annotations import labelme, write_json

SWEEP_ID = "first-3fa2"
CLASSES = ("pavement", "truck", "sky")  # of the finished runs
SQUARE = [[2, 2], [6, 2], [6, 5], [2, 5]]


def write_pair(image: Path, mask: Path, values: list[int], number: int, mode: str = "RGB") -> None:
    """An image whose brightness shows its label, of 48×40 pixels; the label has all ``values``, in stripes."""
    label = np.resize(np.repeat(np.roll(values, number), 8), 48).astype(np.uint8)[None].repeat(40, 0)
    noise = np.random.default_rng(number).integers(0, 40, label.shape, np.uint8)
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label // 2 + noise).convert(mode).save(image)
    Image.fromarray(label).save(mask, quality=95)


def voc_layout(root: Path, values: list[int], *, palette: bool = False, train: int = 32) -> Path:
    """A data set in the layout of VOC: ``train`` images to train on, and two to validate on."""
    names = {"train": range(train), "val": range(train, train + 2)}
    for number in range(train + 2):
        mask = root / "SegmentationClass" / f"{number}.png"
        write_pair(root / "JPEGImages" / f"{number}.jpg", mask, values, number)
        if palette:
            label = Image.open(mask)
            label.putpalette(VOC_COLOURS.tobytes())
            label.save(mask)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, numbers in names.items():
        (lists / f"{split}.txt").write_text("".join(f"{number}\n" for number in numbers))
    return root


def voc2007(devkit: Path) -> Path:
    return voc_layout(devkit / "VOC2007", [*range(21), 255], palette=True)


def roads(root: Path, names: tuple[str, ...] = CLASSES) -> Path:
    voc_layout(root, [0, 1, 2], train=4)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def folder(root: Path, image: str, mask: str, values: list[int], mode: str = "RGB", first: int = 0) -> Path:
    """24 pairs of files by their patterns, in which {} stands for a number."""
    for number in range(first, first + 24):
        write_pair(root / image.format(number), root / mask.format(number), values, number, mode)
    return root


def cracks(home: Path) -> None:
    """Masks of 0 and 1, and of 0 and 255."""
    folder(home / "data/cracks", "images/{}.jpg", "masks/{}.png", [0, 1])
    folder(home / "data/cracks255", "images/{}.jpg", "masks/{}.png", [0, 255])


def tiles(home: Path) -> None:
    folder(home / "data/tiles", "images/{}.tif", "masks/{}.png", [0, 1], mode="RGBA")


def public(home: Path) -> None:
    """The four data sets that docs/data.md reads as downloaded."""
    for split, name in (("training", "{0}_training"), ("test", "{0}_test")):
        folder(home / "DRIVE", f"{split}/images/{name}.tif", f"{split}/1st_manual/{{0}}_manual1.gif", [0, 255])
    folder(home / "Kvasir-SEG", "images/{}.jpg", "masks/{}.jpg", [0, 255])
    folder(home / "pets", "images/{}.jpg", "annotations/trimaps/{}.png", [1, 2, 3])
    (home / "pets/annotations/trainval.txt").write_text("".join(f"{number} 1 1 1\n" for number in range(20)))
    (home / "pets/annotations/test.txt").write_text("20 1 1 1\n21 1 1 1\n")
    isic = "ISIC2018_Task1-2_Training_Input/{}.jpg", "ISIC2018_Task1_Training_GroundTruth/{}_segmentation.png"
    folder(home / "ISIC", *isic, [0, 255])


def mmseg_layout(home: Path) -> None:
    for split, first in (("train", 0), ("val", 24)):  # without duplicates, which mode=check refuses
        folder(
            home / "data/roads", f"img_dir/{split}/{{}}.jpg", f"ann_dir/{split}/{{}}.png", [0, 1, 2, 255], first=first
        )


def semseg_layout(home: Path) -> None:
    root = folder(home / "dataset/roads", "images/{}.jpg", "annotations/{}.png", [0, 1, 2, 255])
    (root / "list").mkdir()
    for split, numbers in (("training", range(20)), ("validation", range(20, 24))):
        lines = [f"images/{number}.jpg annotations/{number}.png\n" for number in numbers]
        (root / f"list/{split}.txt").write_text("".join(lines))


def ade20k(home: Path) -> None:
    for split in ("training", "validation"):
        pair = f"images/{split}/{split}{{}}.jpg", f"annotations/{split}/{split}{{}}.png"
        folder(home / "dataset/ade20k", *pair, [0, 1, 2, 150])


def voc2012_aug(home: Path) -> None:
    root = voc_layout(home / "data/VOCdevkit/VOC2012", [*range(21), 255])
    (root / "SegmentationClass").rename(root / "SegmentationClassAug")
    (root / "ImageSets/Segmentation/train.txt").rename(root / "ImageSets/Segmentation/trainaug.txt")


def downloads(home: Path) -> None:
    for name in ("cityscapes", "ade20k", "voc2012_aug", "cocostuff164k", "cocostuff10k"):
        for archive in field_trees.official(name, home / "from" / name):
            shutil.copy(archive, home)


def voc_tar(home: Path) -> None:
    voc2007(home / "from/VOCdevkit")
    with tarfile.open(home / "VOCtrainval_06-Nov-2007.tar", "w") as tar:
        tar.add(home / "from/VOCdevkit", "VOCdevkit")


def photos(home: Path) -> None:
    for name in ("photos/a.jpg", "photos/b.png", "photo.jpg", "IMAGE.jpg"):
        (home / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (48, 40), (90, 120, 30)).save(home / name)


def annotations(home: Path) -> None:
    """What the annotation tools save, one image each."""
    labelme(home / "annotations/lm.json", ("car", "polygon", SQUARE))
    flat = [number for point in SQUARE for number in point]
    image = {"id": 5, "file_name": "coco.jpg", "width": 10, "height": 8}
    instance = {"id": 1, "image_id": 5, "category_id": 7, "segmentation": [flat]}
    categories = [{"id": 7, "name": "car"}]
    write_json(home / "instances_train.json", {"images": [image], "categories": categories, "annotations": [instance]})
    points = ";".join(f"{x},{y}" for x, y in SQUARE)
    polygon = f'<polygon label="car" points="{points}"/>'
    xml = f'<image id="0" name="cvat.jpg" width="10" height="8">{polygon}</image>'
    (home / "annotations.xml").write_text(f"<annotations><version>1.1</version><meta></meta>{xml}</annotations>")
    for part in ("labels", "images"):
        (home / part / "train").mkdir(parents=True, exist_ok=True)
    (home / "labels/train/yolo.txt").write_text("0 0.2 0.25 0.6 0.25 0.6 0.625 0.2 0.625\n")
    Image.new("RGB", (10, 8)).save(home / "images/train/yolo.jpg")
    city = {"imgWidth": 10, "imgHeight": 8, "objects": [{"label": "road", "polygon": SQUARE}]}
    write_json(home / "gtFine/aachen/aachen_0_gtFine_polygons.json", city)


def semseg_file(home: Path, name: str, classes: int = 21) -> None:
    from tests.models import foreign_checkpoints as foreign

    shapes = foreign.semseg_shapes(classes)
    torch.save({"state_dict": {f"module.{key}": torch.zeros(shape) for key, shape in shapes.items()}}, home / name)


def mmseg_file(home: Path, name: str, classes: int) -> None:
    from tests.models import foreign_checkpoints as foreign

    weights = {
        key: torch.zeros(classes, *shape[1:]) if "conv_seg" in key else torch.zeros(shape)
        for key, shape in foreign.mmseg_shapes().items()
    }
    torch.save({"state_dict": weights}, home / name)


def smp_file(home: Path) -> None:
    import segmentation_models_pytorch as smp
    from safetensors.torch import save_file

    (home / "fpn").mkdir()
    network = smp.create_model("FPN", encoder_name="resnet34", encoder_weights=None, classes=11)
    save_file(network.state_dict(), home / "fpn" / "model.safetensors")


# What a block needs if it contains the text, or if a default refers to it.
FILES: dict[str, Callable[[Path], object]] = {
    "python -m pspexp": lambda home: voc2007(home / "data/VOCdevkit"),
    r"[ =]VOCdevkit": lambda home: voc2007(home / "VOCdevkit"),
    "_dir VOC2007": lambda home: voc2007(home),
    "camvid": lambda home: voc_layout(home / "data/camvid", [*range(11), 255]),
    "cracks": cracks,
    "tiles": tiles,
    "DRIVE": public,
    "root=other": lambda home: roads(home / "other", ("kerb", "lorry", "cloud")),
    "tools/prepare.py": downloads,
    "tools/prepare_voc.py": voc_tar,
    "tools/convert_labels.py": annotations,
    "photo|IMAGE": photos,
    "train_epoch_50.pth": lambda home: semseg_file(home, "train_epoch_50.pth"),
    'weights="train_epoch_100.pth"': lambda home: semseg_file(home, "train_epoch_100.pth"),
    "load_weights": lambda home: semseg_file(home, "train_epoch_100.pth", classes=5),
    "img_dir": mmseg_layout,
    "dataset/roads": semseg_layout,
    "dataset/ade20k": ade20k,
    "VOC2012": voc2012_aug,
    "pspnet_r50-d8_voc12aug": lambda home: mmseg_file(home, "pspnet_r50-d8_voc12aug.pth", 21),
    "pspnet_r50-d8_cityscapes": lambda home: mmseg_file(home, "pspnet_r50-d8_cityscapes.pth", 19),
    "iter_40000.pth": lambda home: mmseg_file(home, "iter_40000.pth", 21),
    "fpn/": smp_file,
    "mode=clean": lambda home: (home / "outputs").mkdir(),
    "checkpoint.path=pspnet.pth": lambda home: mmseg_file(home, "pspnet.pth", 3),
}
RUN = r"outputs/\w+/2026-05-01_10-00-00|outputs/(?:a|x|roads)\b(?!/)|experiments/pspnet\b|\bRUN\b"  # a run folder
SEVERAL = "outputs/quickstart"  # a folder that contains runs


class Finished:
    """Two finished runs, which have records in MLflow as jobs of a sweep.

    Args:
        home: The folder that they are made in.
    """

    def __init__(self, home: Path) -> None:
        import mlflow

        self.home = home
        data = (*(word for word in TINY if not word.startswith("dataset")), "dataset=voc_folder")
        command = (*data, f"dataset.root={roads(home / 'roads')}", "trainer.max_steps=1", "tracking=mlflow")
        run_commands(home, *((*command, f"seed={seed}", f"hydra.run.dir=outputs/{seed}") for seed in (1, 2)))
        self.uri = f"sqlite:///{home}/outputs/mlflow.db"
        self.run_ids = [run_ids(home / "outputs" / name)["mlflow"] for name in "12"]
        for run_id in self.run_ids:
            mlflow.MlflowClient(self.uri).set_tag(run_id, "sweep", SWEEP_ID)

    def copy(self, text: str, home: Path) -> None:
        """Copy a run to each place that the text names."""
        for place in {*re.findall(RUN, text)}:
            shutil.copytree(self.home / "outputs/1", home / place)
        if SEVERAL in text:
            for name in "12":
                shutil.copytree(self.home / "outputs" / name, home / SEVERAL / name)


def furnish(text: str, home: Path) -> None:
    """Make the files that a block of commands or code needs."""
    for pattern, make in FILES.items():
        if re.search(pattern, text):
            make(home)


def needs_runs(text: str) -> bool:
    """Whether a block needs runs or their records in MLflow."""
    return bool(re.search(f"{RUN}|runs:/|mode=compare", text))
