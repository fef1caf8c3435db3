"""Preparing the field's data sets from their official archives, or from what others have unpacked."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

import pspexp
from pspexp.data.labels import VOC_COLOURS
from pspexp.errors import UserError
from tests.data import field_trees as trees
from tools import prepare as tool

TOOL = Path(__file__).parents[3] / "tools/prepare.py"


@pytest.fixture
def prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs the tool with ``tmp_path / "out"`` as output folder; returns the lines that it prints."""

    def run(name: str, *sources: Path, overwrite: bool = False, workers: int = 1) -> list[str]:
        tool.run(name, list(sources), tmp_path / "out", overwrite, workers)
        return [line for line in capsys.readouterr().out.splitlines() if line]

    return run


ROOTS = {
    "cityscapes": "cityscapes",
    "ade20k": "ADEChallengeData2016",
    "voc2012": "VOCdevkit/VOC2012",
    "voc2012_aug": "VOCdevkit/VOC2012",
    "cocostuff164k": "cocostuff164k",
    "cocostuff10k": "cocostuff10k",
}
COUNTS = {
    "cityscapes": ["train: 2 images, officially 2975", "val: 1 image, officially 500"],
    "ade20k": ["train: 2 images, officially 20210", "val: 1 image, officially 2000"],
    "voc2012": ["train: 2 images, officially 1464", "val: 1 image, officially 1449"],
    "voc2012_aug": ["train: 4 images, officially 10582", "val: 1 image, officially 1449"],
    "cocostuff164k": ["train: 2 images, officially 118287", "val: 1 image, officially 5000"],
    "cocostuff10k": ["train: 2 images, officially 9000", "val: 1 image, officially 1000"],
}


def state(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ROOTS)
def test_official_archives_become_the_data_set(tmp_path: Path, prepare: Callable[..., list[str]], name: str) -> None:
    sources = trees.official(name, tmp_path)
    lines = prepare(name, *sources)
    root = tmp_path / "out" / ROOTS[name]
    assert lines[-4:-2] == COUNTS[name]
    command = ["python", "-m", "pspexp", f"dataset={name}", f"dataset.root={root}"]
    assert lines[-2:] == [f"{root}: ready; train with:", " ".join(command)]
    dataset = pspexp.build(pspexp.compose(command[3:]).dataset)
    for role in ("train", "val"):
        for image, label in dataset.open(role):
            assert image.size == label.size == trees.SIZE


@pytest.mark.parametrize("name", ["cityscapes", "voc2012_aug"])
def test_second_run_changes_nothing(tmp_path: Path, prepare: Callable[..., list[str]], name: str) -> None:
    sources = trees.official(name, tmp_path)
    lines = prepare(name, *sources)
    before = state(tmp_path / "out")
    assert prepare(name, *sources)[-4:] == lines[-4:]
    assert state(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["cityscapes", "cocostuff164k", "cocostuff10k"])
def test_unpacked_folder_is_used_in_place(tmp_path: Path, prepare: Callable[..., list[str]], name: str) -> None:
    root = getattr(trees, name)(tmp_path / "a b" / "mine")
    lines = prepare(name, tmp_path / "a b")
    assert lines[-4:-1] == [*COUNTS[name], f"{root}: ready; train with:"]
    assert not (tmp_path / "out").exists()
    assert "'" in lines[-1]  # the path contains a space
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\n' {lines[-1].removeprefix('python -m pspexp ')}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert pspexp.compose(shown.stdout.splitlines()).dataset.root == str(root)


def test_voc_is_augmented_by_the_labels_of_sbd(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    lines = prepare("voc2012_aug", *trees.official("voc2012_aug", tmp_path), workers=2)
    assert lines[0] == "labels: 5 converted, 0 kept"
    root = tmp_path / "out/VOCdevkit/VOC2012"
    listed = (root / "ImageSets/Segmentation/trainaug.txt").read_text().split()
    assert listed == ["2007_000032", "2007_000039", "2008_000002", "2008_000003"]  # without VOC's val
    labels = {}
    for path in (root / "SegmentationClassAug").iterdir():
        with Image.open(path) as image:
            assert image.mode == "P"
            assert image.getpalette()[:60] == VOC_COLOURS[:20].ravel().tolist()
            labels[path.stem] = sorted(set(np.asarray(image).ravel().tolist()))
    own, sbd = [0, 15, 255], [20]
    assert labels == {
        "2007_000032": own, "2007_000033": own, "2007_000039": own, "2008_000002": sbd, "2008_000003": sbd,
    }  # fmt: skip


def test_sbd_may_come_as_pngs_without_lists(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    voc = trees.voc2012(tmp_path / "VOC2012")
    for name in [*trees.VOC_TRAIN, *trees.VOC_VAL, "2008_000002", "2008_000003"]:
        trees.label(tmp_path / f"src/{name}.png", [20])
    source = trees.pack(tmp_path / "SegmentationClassAug.zip", (tmp_path / "src", "SegmentationClassAug"))
    assert prepare("voc2012_aug", voc, source)[-4] == COUNTS["voc2012_aug"][0]
    with Image.open(voc / "SegmentationClassAug/2007_000032.png") as image:
        assert set(np.asarray(image).ravel().tolist()) == {0, 15, 255}  # VOC's own


def test_existing_augmented_labels_only_get_their_list(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    voc = trees.voc2012(tmp_path / "VOC2012")
    for name in [*trees.VOC_TRAIN, *trees.VOC_VAL, "2008_000002", "2008_000003"]:
        trees.label(voc / f"SegmentationClassAug/{name}.png", [20])
    before = state(voc)
    assert prepare("voc2012_aug", voc)[-4] == COUNTS["voc2012_aug"][0]
    added = state(voc).keys() - before.keys()
    assert added == {"ImageSets/Segmentation/trainaug.txt"}
    assert before.items() <= state(voc).items()


def test_cocostuff10k_keeps_the_values_of_the_files(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    root = trees.cocostuff10k(tmp_path)
    assert prepare("cocostuff10k", root)[0] == "labels: 3 converted, 0 kept"
    with Image.open(root / f"masks/{trees.STUFF10K['test'][0]}.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), trees.pixels([0, 1, 11, 13, 182]))


def test_interrupted_conversion_is_completed(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    root = trees.cocostuff10k(tmp_path)
    prepare("cocostuff10k", root)
    everything = state(root)
    lost = f"masks/{trees.STUFF10K['train'][1]}.png"
    (root / lost).unlink()
    (root / f"{lost}.part").write_text("half a file, from a killed run")
    assert prepare("cocostuff10k", root)[0] == "labels: 1 converted, 2 kept"
    assert state(root).keys() == everything.keys()
    assert {path: when for path, when in state(root).items() if path != lost} == {
        path: when for path, when in everything.items() if path != lost
    }


def test_other_labels_are_replaced_only_with_overwrite(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    root = trees.cocostuff10k(tmp_path)
    mine = root / f"masks/{trees.STUFF10K['train'][0]}.png"
    trees.label(mine, [1])
    before = mine.read_bytes()
    with pytest.raises(UserError, match=r"masks: contains other labels for 1 file: COCO.*077\.png; .*--overwrite"):
        prepare("cocostuff10k", root)
    assert mine.read_bytes() == before
    assert prepare("cocostuff10k", root, overwrite=True)[0] == "labels: 1 converted, 2 kept"


def test_every_label_that_cannot_be_converted_is_named(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    root = trees.cocostuff10k(tmp_path)
    names = [*trees.STUFF10K["train"], *trees.STUFF10K["test"], "further"]
    damaged, old, wrong, other = (root / f"annotations/{name}.mat" for name in names)
    damaged.write_bytes(damaged.read_bytes()[:150])
    scipy.io.savemat(old, {"S": trees.pixels([1]), "names": np.array([["x"]] * 172, object)})
    scipy.io.savemat(wrong, {"S": trees.pixels([1, 200])})
    scipy.io.savemat(other, {"T": trees.pixels([1])})
    with pytest.raises(UserError) as caught:
        prepare("cocostuff10k", root)
    for path, reason in {
        damaged: "not a readable MATLAB file",
        old: "v1.0, in which the classes have other numbers; download cocostuff-10k-v1.1.zip",
        wrong: "label value 200 (23 pixels), but this data set has 0–182",
        other: "contains no label map",
    }.items():
        assert [reason in line for line in caught.value.problems if line.startswith(f"{path}: ")] == [True]
    assert not list((root / "masks").iterdir())


def test_missing_labels_and_images_of_voc_are_listed_together(
    tmp_path: Path, prepare: Callable[..., list[str]]
) -> None:
    voc, sbd = trees.voc2012(tmp_path / "VOC2012"), trees.sbd(tmp_path / "benchmark_RELEASE")
    (voc / "JPEGImages/2008_000002.jpg").unlink()
    (voc / "SegmentationClass/2007_000033.png").unlink()
    (sbd / "dataset/cls/2008_000003.mat").unlink()
    with pytest.raises(UserError) as caught:
        prepare("voc2012_aug", voc, sbd)
    assert caught.value.problems == (
        f"{voc}/JPEGImages: 1 image missing: 2008_000002",
        f"{voc}/SegmentationClass: 1 label missing: 2007_000033",
        f"{sbd}/dataset/cls: 1 label missing: 2008_000003",
    )
    assert not (voc / "SegmentationClassAug").exists()


def test_a_list_of_other_names_is_kept(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    voc, sbd = trees.voc2012(tmp_path / "VOC2012"), trees.sbd(tmp_path / "benchmark_RELEASE")
    listed = voc / "ImageSets/Segmentation/trainaug.txt"
    listed.write_text("2008_000002\n")
    with pytest.raises(UserError, match=r"trainaug\.txt: differs.*--overwrite"):
        prepare("voc2012_aug", voc, sbd)
    assert listed.read_text() == "2008_000002\n"
    assert prepare("voc2012_aug", voc, sbd, overwrite=True)[-4] == COUNTS["voc2012_aug"][0]


def test_images_without_labels_are_errors_and_labels_without_images_are_not(
    tmp_path: Path, prepare: Callable[..., list[str]]
) -> None:
    root = trees.ade20k(tmp_path)
    (root / "images/training/ADE_train_00000001.jpg").unlink()
    lines = prepare("ade20k", root)
    assert "train: 1 image, officially 20210" in lines
    assert "1 label without an image, not used: ADE_train_00000001" in lines
    for split, name in (("training", "ADE_train_00000002"), ("validation", "ADE_val_00000001")):
        (root / f"annotations/{split}/{name}.png").unlink()
    with pytest.raises(UserError) as caught:
        prepare("ade20k", root)
    assert ["ADE_train_00000002" in line for line in caught.value.problems] == [True, False]
    assert ["ADE_val_00000001" in line for line in caught.value.problems] == [False, True]


def test_missing_downloads_are_named(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        prepare("voc2012_aug", tmp_path / "empty")
    voc, sbd = caught.value.problems
    assert "no folder named VOC2012 in" in voc
    assert "VOCtrainval_11-May-2012.tar" in voc
    assert "contains cls, or SegmentationClassAug; give benchmark.tgz" in sbd
    trees.cityscapes(tmp_path / "half")
    shutil.rmtree(tmp_path / "half/gtFine")
    with pytest.raises(UserError, match=r"half: contains no gtFine; add it from gtFine_trainvaltest\.zip"):
        prepare("cityscapes", tmp_path / "half")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as packed:
        packed.writestr("README", "of something else")
    with pytest.raises(
        UserError, match=r"no folder in .*out/cityscapes contains leftImg8bit, gtFine; give leftImg8bit_"
    ):
        prepare("cityscapes", tmp_path / "other.zip")
    with pytest.raises(UserError) as caught:
        prepare("cityscapes", tmp_path / "a.zip", tmp_path / "b.zip")
    assert len(caught.value.problems) == 2
    assert all("no such file or folder" in line for line in caught.value.problems)


def test_voc2012_is_not_taken_from_another_year(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    trees.voc2012(tmp_path / "data/VOCdevkit/VOC2007")
    with pytest.raises(UserError, match="no folder named VOC2012"):
        prepare("voc2012_aug", tmp_path / "data", trees.sbd(tmp_path / "benchmark_RELEASE"))


def test_every_damaged_archive_is_named(tmp_path: Path, prepare: Callable[..., list[str]]) -> None:
    sources = trees.official("cityscapes", tmp_path)
    for source in sources:
        source.write_bytes(source.read_bytes()[:-60])
    with pytest.raises(UserError) as caught:
        prepare("cityscapes", *sources)
    assert [line.partition(":")[0] for line in caught.value.problems] == [str(source) for source in sources]
    assert not (tmp_path / "out").exists()


def test_without_scipy_the_fix_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[..., list[str]]
) -> None:
    root = trees.cocostuff10k(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match="pip install scipy"):
        prepare("cocostuff10k", root)
    assert not (root / "masks").exists()


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "ade20k", *map(str, trees.official("ade20k", tmp_path))]
    env = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "python -m pspexp dataset=ade20k dataset.root=data/ADEChallengeData2016"


def test_wrong_input_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["prepare.py", "cityscapes", "absent.zip"])
    assert tool.main() == 2
    assert capsys.readouterr() == ("", "absent.zip: no such file or folder; give an archive or an unpacked folder\n")
