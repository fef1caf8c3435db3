"""``mode=init``: the project runs as it is, and every command of its README as typed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli, losses
from tests.end_to_end.conftest import CHECKOUT, TIMEOUT_S

FILES = {
    ".gitignore",
    "README.md",
    "my_model.py",
    "conf/dataset/my_data.yaml",
    "conf/experiment/my_experiment.yaml",
    "conf/model/my_model.yaml",
}
SMALL = ("trainer.max_steps=2", "loader.max_train_images=16", "loader.max_eval_images=2", "loader.num_workers=0")
TRAIN = ("--config-dir", "conf", "experiment=my_experiment", *SMALL)


@pytest.fixture
def project(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new project, which is the working directory."""
    assert cli("mode=init", "init.output=my_project") == 0
    monkeypatch.chdir(tmp_path / "my_project")
    sys.path.append(str(tmp_path / "my_project"))
    return tmp_path / "my_project"


def commands(project: Path) -> list[list[str]]:
    """The commands in the README."""
    blocks = re.findall(r"```sh\n(.*?)```", (project / "README.md").read_text(), re.DOTALL)
    return [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def test_files_are_written(project: Path) -> None:
    written = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert {name for name in written if not name.startswith("data/")} == FILES
    images, masks = sorted((project / "data" / "images").iterdir()), sorted((project / "data" / "masks").iterdir())
    assert [path.stem for path in images] == [path.stem for path in masks]
    values = {int(value) for path in masks for value in np.unique(np.asarray(Image.open(path)))}
    assert values == {0, 1, 2, 255}
    readme = (project / "README.md").read_text()
    assert {name for name in re.findall(r"`([\w/]+\.\w+)`", readme) if not name.startswith("hydra.")} <= FILES


def test_project_trains_and_is_tested(project: Path, cli: Cli) -> None:
    assert cli(*TRAIN, "tracking=none", "hydra.run.dir=run") == 0
    assert len(losses(project / "run")) >= 1
    assert cli("mode=test", "checkpoint.path=run", "tracking=none", "hydra.run.dir=tested") == 0


@pytest.mark.slow
def test_every_command_of_the_readme_runs(project: Path, cli: Cli) -> None:
    """The first one in a process of its own, most others in this one, which has everything imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
    environment |= {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    found = commands(project)
    assert len(found) >= 8
    for number, (program, *words) in enumerate(found):
        assert program == "python"
        words += SMALL if "experiment=my_experiment" in words else ()
        if number and words[:2] == ["-m", "pspexp"]:
            assert cli(*words[2:]) == 0, words
            continue
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=3 * TIMEOUT_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "outputs" / "first" / "predictions" / "gallery.html").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=init"], "init.output=null: mode=init needs a new folder, e.g. init.output=my_project"),
        (["mode=init", "init.output=full"], "init.output=full: is not empty; choose a new folder"),
        (["mode=init", "init.output=full/file"], "init.output=full/file: is a file; choose a new folder"),
        (["init.output=new"], "init.output=new: has no effect on mode=train; add mode=init"),
    ],
)
def test_folder_must_be_new(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert cli(*overrides) == 2
    output = capsys.readouterr()
    assert message in (output.out + output.err).splitlines()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_empty_folder_is_filled(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new").mkdir()
    assert cli("mode=init", "init.output=new") == 0
    assert "  cd new\n" in capsys.readouterr().err
    assert (tmp_path / "new" / "README.md").is_file()


def test_folder_that_cannot_be_written_is_refused(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli("mode=init", "init.output=file/new") == 2
    assert "init.output=file/new: cannot be written (Not a directory); choose another folder" in capsys.readouterr().err


def test_next_command_has_quotes_where_the_shell_needs_them(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("mode=init", "init.output='my project'") == 0
    assert "  cd 'my project'\n" in capsys.readouterr().err
