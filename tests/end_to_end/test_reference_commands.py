"""The reference's published commands, by its flags and in pspexp's words, with ``device=sdaa`` and a tiny data set."""

import re
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pspexp.data.labels import VOC_COLOURS
from tests.conftest import Cli
from tests.end_to_end.conftest import Start, wait_for
from tests.faults.servers import free_port
from tests.models import foreign_checkpoints as foreign
from tools import run_pspnet

CHECKOUT = Path(__file__).parents[2]
STAND_IN = CHECKOUT / "tests" / "stand_in"
PAGE = (CHECKOUT / "docs" / "from-reference.md").read_text()
BY_FLAGS, NATIVE, OTHERS = (
    [line for line in block.splitlines() if not line.startswith("#")]
    for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
)

# Settings that keep the runs small.
ALWAYS = ("loader.num_workers=0", "tracking=none")
SMALL_NETWORK = (
    "model=pspnet18",
    "model._target_=tests.small_network.pspnet",
    "model.pyramid_channels=4",
    "model.head_channels=8",
    "model.aux_channels=4",
)
RANDOM_WEIGHTS = "model.backbone_weights=null"

Run = Callable[..., str]


@pytest.fixture
def vocdevkit(tmp_path: Path) -> Path:
    """VOC 2007 with eight images and palette labels."""
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(8):
        label = np.repeat(np.repeat(rng.integers(0, 21, (4, 5), np.uint8), 10, 0), 10, 1)
        label[:1] = 255
        palette = Image.fromarray(label)
        palette.putpalette(VOC_COLOURS.tobytes())
        palette.save(root / "SegmentationClass" / f"{index}.png")
        palette.convert("RGB").save(root / "JPEGImages" / f"{index}.jpg")
    for split, names in (("train", range(5)), ("val", range(5, 8))):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root.parent


@pytest.fixture
def run(cli: Cli, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command of the page, with further arguments, in this process; returns what it prints."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    pytest.importorskip("torch_sdaa", exc_type=ImportError)

    def exec_here(_: str, command: Sequence[str]) -> None:
        assert cli(*command[3:]) == 0, command

    monkeypatch.setattr("os.execv", exec_here)

    def run(command: str, *more: str) -> str:
        _, script, *arguments = shlex.split(command)
        if script == "tools/run_pspnet.py":
            monkeypatch.setattr("sys.argv", [script, *arguments, *more])
            assert run_pspnet.main() == 0, command
        else:
            assert cli(*arguments[1:], *more) == 0, command
        return capfd.readouterr().out

    return run


def iou_table(output: str) -> list[str]:
    lines = [line for line in output.splitlines() if re.match(r"\w+ +\d+\.\d\d ", line)]
    assert len(lines) >= 20
    return lines


@pytest.mark.slow
def test_published_commands_work(run: Run, vocdevkit: Path, tmp_path: Path) -> None:
    single, ddp, resume, test, test_ddp = BY_FLAGS
    small = ("--crop_size=33", "--batch_size=2", "--epoch=2", *ALWAYS)
    two = ("--nproc_per_node=2", f"--master_port={free_port()}")  # the stand-in has two cards

    run(single, *small, "--step=1", *SMALL_NETWORK, RANDOM_WEIGHTS)
    run(ddp, *small, *two, *SMALL_NETWORK, RANDOM_WEIGHTS)
    assert "resuming from step 1" in run(resume, *small, *SMALL_NETWORK, RANDOM_WEIGHTS)
    table = iou_table(run(test, "--crop_size=33", "--work_dir=experiments/pspnet", *ALWAYS))
    assert len(list((tmp_path / "experiments" / "pspnet" / "test").glob("*/summary.json"))) == 1
    assert iou_table(run(test_ddp, "--crop_size=33", *two, *ALWAYS)) == table
    assert sorted(path.name for path in (tmp_path / "experiments").iterdir()) == ["pspnet", "pspnet_ddp"]


@pytest.mark.slow
def test_published_commands_work_in_own_words(run: Run, vocdevkit: Path, tmp_path: Path) -> None:
    single, ddp, resume, test, test_ddp = NATIVE
    small = (*ALWAYS, *SMALL_NETWORK, RANDOM_WEIGHTS, "crop_size=33", "loader.batch_size=2", "trainer.epochs=2")
    two = (*ALWAYS, "launcher.nproc_per_node=2")

    run(single, *small, "trainer.max_steps=1")
    run(ddp, *small, *two)
    assert "resuming from step 1" in run(resume, "trainer.max_steps=null")
    table = iou_table(run(test, *ALWAYS))
    assert iou_table(run(test_ddp, *two)) == table


@pytest.mark.slow
def test_checkpoint_of_the_reference(run: Run, vocdevkit: Path, tmp_path: Path) -> None:
    (tmp_path / "experiments" / "pspnet").mkdir(parents=True)
    state = {name: foreign.draw(name, shape) for name, shape in foreign.semseg_shapes(classes=20).items()}
    saved = {"cur_epochs": 20, "model_state": state, "optimizer_state": {}, "best_score": np.float64(0.5)}
    for name in ("best", "latest"):
        torch.save(saved, tmp_path / "experiments" / "pspnet" / f"{name}_pspnet_voc.pth")
    _, _, resume, test, _ = BY_FLAGS
    assert "experiments/pspnet/best_pspnet_voc.pth\n" in run(test, "--crop_size=33", *ALWAYS)
    run(resume, "--crop_size=33", "--batch_size=2", "--step=1", "--optimizer=sgd", *ALWAYS)
    log = (tmp_path / "experiments" / "pspnet" / "run.log").read_text()
    assert "experiments/pspnet/latest_pspnet_voc.pth, in the layout of semseg and the reference system" in log


def test_other_published_commands_work(run: Run, vocdevkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, check = OTHERS
    assert "2 × sdaa:0" in run(check, *SMALL_NETWORK)

    script, *arguments = shlex.split(labels.removeprefix("python "))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(CHECKOUT / script), run_name="__main__")
    assert not end.value.code
    assert len(list((vocdevkit / "VOC2007" / "SegmentationClassGray").glob("*.png"))) == 8


def test_exit_code_is_that_of_the_command(start: Start, vocdevkit: Path) -> None:
    command = (sys.executable, str(CHECKOUT / "tools" / "run_pspnet.py"))
    flags = ("--dataset_path", "VOCdevkit", "--device", "cpu", "--crop_size", "470")
    codes, shown, said = wait_for([start(*flags, command=command), start(*flags, "--lrs", "1", command=command)])
    assert codes == [2, 2]
    assert shown[0].startswith("python -m pspexp experiment=voc2007_single device=cpu precision=fp32 ")
    assert "crop_size=470: (crop_size - 1) must be divisible by 8" in said[0]
    assert shown[1] == ""
    assert said[1] == "--lrs: no such flag; did you mean '--lr'?\n"
