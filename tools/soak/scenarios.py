"""The commands that are killed, and their input."""

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tools.soak.commands import TINY, pspexp, run
from tools.soak.differences import same_files, same_sweep, same_training

TRAIN = ("tracking.experiment=soak", "checkpoint.resume=auto", "hydra.run.dir=run")


@dataclass(frozen=True)
class Scenario:
    """A command that is killed and run again.

    Attributes:
        name: For the table.
        command: The command line; run again unchanged.
        differences: Returns how the results in a folder differ from those of the undisturbed command in another.
        prepare: Makes the command's input in a folder.
        leaves_processes: Whether the command has processes of its own, which must end after it.
    """

    name: str
    command: Sequence[str]
    differences: Callable[[Path, Path], list[str]]
    prepare: Callable[[Path], None] = field(default=lambda home: None)
    leaves_processes: bool = False


def scenarios() -> dict[str, Scenario]:
    """All scenarios by name."""
    python = pspexp()[:1]
    tools = Path(__file__).parents[1]
    train = pspexp(*TINY, *TRAIN)
    found = [
        Scenario("train", train, same_training),
        Scenario("train, 2 workers", [*train, "loader.num_workers=2"], same_training, leaves_processes=True),
        Scenario(
            "train, launcher=ddp",
            [*train, "launcher=ddp", "launcher.nproc_per_node=2", "loader.batch_size=2"],
            same_training,
            leaves_processes=True,
        ),
        Scenario(
            "sweep, joblib",
            pspexp(
                *TINY,
                "-m",
                "seed=1,2,3",
                "hydra/launcher=joblib",
                "hydra.launcher.n_jobs=2",
                "hydra.sweep.dir=sweep",
                "tracking.experiment=soak",
            ),
            same_sweep,
            leaves_processes=True,
        ),
        Scenario(
            "test",
            pspexp("mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=test"),
            same_files("test/tables/*.csv"),
            trained,
        ),
        Scenario(
            "predict",
            pspexp("mode=predict", "checkpoint.path=run", "predict.input=photos", "predict.output=found"),
            same_files("found/ids/*.png", "found/overlay/*", "found/predictions.csv"),
            trained,
        ),
        Scenario(
            "export",
            pspexp("mode=export", "checkpoint.path=run", "export.output=exported", "export.format=[onnx]"),
            same_files("exported/*.onnx"),
            trained,
        ),
        Scenario(
            "prepare_voc",
            [*python, str(tools / "prepare_voc.py"), "voc.tar", "--output_dir", "data", "--workers", "1"],
            same_files("data/**/*.png", "data/**/*.jpg", "data/**/*.txt"),
            voc_archive,
            leaves_processes=True,
        ),
        Scenario(
            "convert_voc_label",
            [
                *python,
                str(tools / "convert_voc_label.py"),
                "--input_dir",
                "VOCdevkit/VOC2007/SegmentationClass",
                "--output_dir",
                "grey",
                "--workers",
                "1",
            ],
            same_files("grey/*.png"),
            voc_archive,
            leaves_processes=True,
        ),
    ]
    return {one.name: one for one in found}


def trained(home: Path) -> None:
    """A finished run ``run``, and some images."""
    result = run(home, pspexp(*TINY, "tracking=none", "hydra.run.dir=run"))
    assert result.code == 0, result.output
    draw_images(home / "photos", 12)


def draw_images(folder: Path, number: int) -> None:
    """Images of noise."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for index in range(number):
        Image.fromarray(noise.integers(0, 256, (60, 80, 3), np.uint8)).save(folder / f"{index:02d}.png")


def voc_archive(home: Path) -> None:
    """A small data set in the VOC layout, packed; and unpacked, its labels in colours."""
    root, noise = home / "VOCdevkit" / "VOC2007", np.random.default_rng(0)
    names = [f"{index:06d}" for index in range(30)]
    draw_images(root / "JPEGImages", 0)
    (root / "SegmentationClass").mkdir()
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name in names:
        Image.fromarray(noise.integers(0, 256, (60, 80, 3), np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        label = Image.fromarray(np.kron(noise.integers(0, 3, (6, 8)), np.ones((10, 10))).astype(np.uint8))
        label.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[0] * 759])
        label.save(root / "SegmentationClass" / f"{name}.png")
    for split, part in (("train", names[:20]), ("val", names[20:]), ("trainval", names)):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
    with tarfile.open(home / "voc.tar", "w") as tar:
        tar.add(home / "VOCdevkit", "VOCdevkit")
