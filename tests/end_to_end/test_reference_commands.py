"""The reference's published commands, as translated in the README, with ``device=sdaa`` and a tiny data set."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspexp.data.labels import VOC_COLOURS
from tests.conftest import Cli

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / "README.md").read_text()
BLOCK = re.search(r"The published commands of the reference, translated:\n\n```\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for line in BLOCK[1].splitlines() if not line.startswith("#")] if BLOCK else []

# Overrides that keep the runs small.
ALWAYS = ("loader.num_workers=0", "tracking=none")
SMALL_NETWORK = (
    "model=pspnet18",
    "model._target_=tests.small_network.pspnet",
    "model.backbone_weights=null",
    "model.pyramid_channels=4",
    "model.head_channels=8",
    "model.aux_channels=4",
    "crop_size=33",
    "loader.batch_size=2",
    "trainer.epochs=2",
)


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


@pytest.mark.slow
def test_published_commands_work(
    cli: Cli, vocdevkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "tests" / "stand_in"))
    pytest.importorskip("torch_sdaa", exc_type=ImportError)
    single, ddp, resume, test, test_ddp, labels, check = COMMANDS

    def run(command: str, *more: str) -> str:
        overrides = shlex.split(command.partition("-m pspexp")[2])
        assert cli(*overrides, *more) == 0, command
        return capfd.readouterr().out

    run(single, *ALWAYS, *SMALL_NETWORK, "trainer.max_steps=1")
    two = (*ALWAYS, "launcher.nproc_per_node=2")  # the stand-in has two cards
    run(ddp, *two, *SMALL_NETWORK)
    assert "resuming from step 1" in run(resume, *ALWAYS, *SMALL_NETWORK)
    single_output, ddp_output = run(test, *ALWAYS), run(test_ddp, *two)
    table = [line for line in single_output.splitlines() if re.match(r"\w+ +\d+\.\d\d ", line)]
    assert len(table) >= 20
    assert [line for line in ddp_output.splitlines() if re.match(r"\w+ +\d+\.\d\d ", line)] == table
    assert "2 × sdaa:0" in run(check, *SMALL_NETWORK, f"dataset.root={vocdevkit}")

    script, *overrides = shlex.split(labels.removeprefix("python "))
    monkeypatch.setattr(sys, "argv", [script, *overrides])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(CHECKOUT / script), run_name="__main__")
    assert not end.value.code
    assert len(list((vocdevkit / "VOC2007" / "SegmentationClassGray").glob("*.png"))) == 8
    assert sorted(path.name for path in (tmp_path / "experiments").iterdir()) == ["pspnet", "pspnet_ddp"]
