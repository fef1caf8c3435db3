"""What a checkpoint knows and what is here differ: class names, splits, images."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.conftest import TINY, Cli, run_commands

CLASSES = ("background", "red", "green")
# Without the data set, and with a single step; TINY's network.
SHORT = (*(word for word in TINY if not word.startswith(("dataset", "trainer"))), "trainer.max_steps=1")
TRAIN = (*SHORT, "dataset=voc_folder", "dataset.root=data", "dataset.mean=[0.4,0.5,0.6]")
PIXELS = {"background": 2 * 900, "red": 2 * 400, "green": 2 * 300}  # of the two validation images


def write_data(root: Path, names: tuple[str, ...] = CLASSES, values: tuple[int, ...] | None = None) -> Path:
    """Six images of 40×40 pixels, four to train on; ``values`` of `CLASSES` in the files, by default their places."""
    values = values or tuple(names.index(name) for name in CLASSES)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    label = np.full(1600, values[0], np.uint8)
    label[:400], label[400:700] = values[1], values[2]
    for index in range(6):
        Image.fromarray(label.reshape(40, 40)).save(root / "SegmentationClass" / f"{index}.png")
        Image.new("RGB", (40, 40), (40 * index, 90, 0)).save(root / "JPEGImages" / f"{index}.jpg")
    write_split(root, "train", range(4))
    write_split(root, "val", range(4, 6))
    write_split(root, "mini", [4])
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return root


def write_split(root: Path, split: str, names: object) -> None:
    file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    file.write_text("".join(f"{name}\n" for name in names))  # type: ignore[attr-defined]


def pixels(run: Path) -> dict[str, int]:
    """The pixels of each class in a test's table."""
    with (run / "tables" / "test_iou.csv").open() as file:
        return {row["class"]: int(row["pixels"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on red and green; tests only read it."""
    home = tmp_path_factory.mktemp("trained")
    write_data(home / "data")
    run_commands(home, (*TRAIN, "hydra.run.dir=run"))
    return home / "run"


@pytest.fixture
def testing(trained: Path) -> tuple[str, ...]:
    return ("mode=test", f"checkpoint.path={trained}", "tracking=none", "hydra.run.dir=tested")


def test_test_split_follows_the_validation_split(
    testing: tuple[str, ...], cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*testing, "dataset.val_split=mini") == 0
    assert sum(pixels(tmp_path / "tested").values()) == 40 * 40
    assert cli(*testing, "dataset.val_split=nonsense", "hydra.run.dir=other") == 2
    assert "nonsense" in capsys.readouterr().err


def test_explicit_test_split_does_not_follow(testing: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    assert cli(*testing, "dataset.val_split=val", "dataset.test_split=mini") == 0
    assert sum(pixels(tmp_path / "tested").values()) == 40 * 40


def test_classes_in_another_order_are_refused_until_mapped_by_name(
    testing: tuple[str, ...], cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "swapped", ("background", "green", "red"))
    root = "dataset.root=swapped"
    assert cli(*testing, root) == 2
    error = capsys.readouterr().err
    assert "1 is green here, red there; 2 is red here, green there" in error
    assert "'dataset.class_map={}'" in error
    assert "'dataset.class_names=[background, red, green]'" in error
    assert cli(*testing, "dataset=voc_folder", root) == 2

    assert cli(*testing, root, "dataset.class_map={}") == 0
    assert pixels(tmp_path / "tested") == PIXELS
    # A repetition of the test reads the recorded configuration, in which the values are already mapped.
    again = ("mode=test", "rerun=tested", "tracking=none", "hydra.run.dir=again")
    assert cli(*again) == 0
    assert pixels(tmp_path / "again") == PIXELS
    write_data(tmp_path / "other")
    assert cli(*again, "dataset.root=other", "hydra.run.dir=third") == 2
    assert "maps the classes background, green, red" in capsys.readouterr().err


def test_stating_that_the_words_mean_the_same(testing: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    write_data(tmp_path / "german", values=(0, 1, 2))
    (tmp_path / "german" / "classes.txt").write_text("Grund\nrot\ngrün\n", encoding="utf-8")
    root = "dataset.root=german"
    assert cli(*testing, root) == 2
    assert cli(*testing, root, "dataset.class_names=[Grund,rot,gelb]") == 2
    assert cli(*testing, root, "dataset.class_names=[background,red,green]") == 0
    assert pixels(tmp_path / "tested") == PIXELS


def test_a_folder_without_names_is_not_compared(testing: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    (write_data(tmp_path / "unnamed") / "classes.txt").unlink()
    assert cli(*testing, "dataset.root=unnamed") == 0
    assert pixels(tmp_path / "tested") == PIXELS


def test_colours_in_the_folder_belong_to_its_classes(testing: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    root = write_data(tmp_path / "cvat")
    (root / "classes.txt").unlink()
    (root / "labelmap.txt").write_text("background:9,9,9::\ngreen:0,200,0::\nred:200,0,0::\n")
    colours = np.array([(9, 9, 9), (200, 0, 0), (0, 200, 0)], np.uint8)
    for file in (root / "SegmentationClass").iterdir():
        Image.fromarray(colours[np.asarray(Image.open(file))]).save(file)
    assert cli(*testing, "dataset.root=cvat") == 2
    assert cli(*testing, "dataset.root=cvat", "dataset.class_map={}") == 0
    assert pixels(tmp_path / "tested") == PIXELS


def test_other_classes_are_mapped_merged_and_ignored(
    testing: tuple[str, ...], cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "other", ("sky", "background", "crimson", "lime"), values=(1, 2, 3))
    (tmp_path / "other" / "SegmentationClass" / "4.png").unlink()
    Image.new("L", (40, 40), 0).save(tmp_path / "other" / "SegmentationClass" / "4.png")  # sky only
    root = "dataset.root=other"
    assert cli(*testing, root) == 2
    assert "dataset.class_map={sky: ignore, crimson: ignore, lime: ignore}" in capsys.readouterr().err
    capsys.readouterr()
    assert cli(*testing, root, "dataset.class_map={crimson: red, lime: red, sky: ignore}") == 0
    assert pixels(tmp_path / "tested") == {"background": 900, "red": 700, "green": 0}
    log = (tmp_path / "tested" / "run.log").read_text()
    lines = [line.partition("class_map: ")[2] for line in log.splitlines() if "class_map: " in line]
    assert lines == ["sky → ignored", "crimson → red", "lime → red"]
    config = yaml.safe_load((tmp_path / "tested" / "config.yaml").read_text())["dataset"]
    assert config["class_map"] == {"sky": None, "background": "background", "crimson": "red", "lime": "red"}
    assert config["class_names"] == list(CLASSES)


def test_class_map_has_no_effect_on_training(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "data")
    assert cli(*SHORT, "dataset=voc_folder", "dataset.root=data", "dataset.class_map={red: green}") == 2
    assert "dataset.class_map: has no effect on mode=train" in capsys.readouterr().err


def test_predicting_photos_compares_nothing(trained: Path, cli: Cli, tmp_path: Path) -> None:
    write_data(tmp_path / "swapped", ("background", "green", "red"))
    command = ("mode=predict", f"checkpoint.path={trained}", "dataset.root=swapped", "predict.output=out")
    assert cli(*command, "predict.input=swapped/JPEGImages") == 0
    assert cli(*command, "predict.input=split:val", "predict.overwrite=true") == 2


def test_starting_from_weights_of_the_same_classes_in_another_order_is_refused(
    trained: Path, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "swapped", ("background", "green", "red"))
    command = (*SHORT, "dataset=voc_folder", "dataset.root=swapped", f"model.weights={trained}/checkpoints/best.pt")
    assert cli(*command) == 2
    error = capsys.readouterr().err
    assert "1 is green here, red there" in error
    assert "'dataset.class_names=[background, red, green]' 'dataset.label_values=[0, 2, 1]'" in error
    fix = ("dataset.class_names=[background,red,green]", "dataset.label_values=[0,2,1]")
    assert cli(*command, *fix, "hydra.run.dir=run") == 0


def test_starting_from_weights_of_other_classes_warns(trained: Path, cli: Cli, tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "data" / "classes.txt").write_text("background\ncat\ndog\n")
    weights = f"model.weights={trained}/checkpoints/best.pt"
    assert cli(*SHORT, "dataset=voc_folder", "dataset.root=data", weights, "hydra.run.dir=run") == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert "WARNING" in log
    assert "1 is cat here, red there; 2 is dog here, green there" in log


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> tuple[str, ...]:
    """The command that resumes a copy of the run."""
    shutil.copytree(trained.parent, tmp_path, dirs_exist_ok=True)
    return (*TRAIN, "hydra.run.dir=run", "checkpoint.resume=auto", "trainer.max_steps=2")


def test_resuming_on_other_training_images_is_refused(
    stopped: tuple[str, ...], cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    write_split(tmp_path / "data", "train", range(3))
    assert cli(*stopped) == 2
    error = capsys.readouterr().err
    assert "3 training images here, 4 in the saved run" in error
    assert "model.weights=" in error
    write_split(tmp_path / "data", "train", [1, 0, 2, 3])
    assert cli(*stopped) == 2
    assert "the training images or their order differ" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_resuming_on_other_validation_images_or_changed_files_warns(
    stopped: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    write_split(tmp_path / "data", "val", [5])
    Image.new("RGB", (40, 40), (1, 2, 3)).save(tmp_path / "data" / "JPEGImages" / "0.jpg", quality=5)
    assert cli(*stopped) == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert "1 validation image here, 2 in the saved run; the best mean IoU so far" in log
    assert "files of the training images have changed since the saved run" in log


def test_resuming_a_state_without_fingerprints_compares_nothing(
    stopped: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "run" / "checkpoints" / "last.pt"
    saved = torch.load(file, weights_only=True)
    del saved["training"]["data"]
    torch.save(saved, file)
    write_split(tmp_path / "data", "train", [1, 0, 2, 3])
    assert cli(*stopped) == 0


@pytest.mark.slow
def test_resuming_two_processes_on_other_images_is_refused(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "data")
    words = (*SHORT, "dataset=voc_folder", "dataset.root=data", "hydra.run.dir=run", "device=cpu")
    words = (*words, "launcher=ddp", "launcher.nproc_per_node=2", "loader.batch_size=2")
    assert cli(*words) == 0
    write_split(tmp_path / "data", "train", [1, 0, 2, 3])
    assert cli(*words, "checkpoint.resume=auto", "trainer.max_steps=2") == 2
    assert capsys.readouterr().err.count("the training images or their order differ") == 1


def test_other_kind_of_data_set_with_a_checkpoint(testing: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    """Keys of the saved data set that the chosen one lacks are ignored; what the network was trained with is kept."""
    names = "dataset.class_names=[background,red,green]"
    words = ("dataset=shapes", names, "dataset.num_classes=3", "dataset.num_val=1", "dataset.image_size=48")
    code = cli(*testing, *words)
    assert code == 2  # shapes have five classes, whatever they are called
    write_data(tmp_path / "here")
    assert cli(*testing, "dataset=voc2012", "dataset.subfolder=null", "dataset.root=here", "dataset.class_names=null",
               "dataset.num_classes=null") == 0  # fmt: skip
    assert pixels(tmp_path / "tested") == PIXELS
    config = yaml.safe_load((tmp_path / "tested" / "config.yaml").read_text())
    assert config["dataset"]["mean"] == [0.4, 0.5, 0.6]
