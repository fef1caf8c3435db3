"""The text of ``--help``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pspexp.config.help import help_text
from pspexp.config.options import conf_dir
from pspexp.config.reference import Reference
from pspexp.errors import UserError
from tests.conftest import Cli


def text(*topics: str, overrides: tuple[str, ...] = (), folders: tuple[str, ...] = ()) -> str:
    return help_text(Reference(overrides, folders), topics)


@pytest.fixture
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.usefixtures("_wide")
def test_overview_fits_on_one_screen() -> None:
    lines = text().splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(("columns", "widest"), [("80", 80), ("40", 80), ("300", 100)])
def test_overview_is_wrapped_to_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: str, widest: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert max(map(len, text().splitlines())) <= widest


def test_overview_lists_every_choice() -> None:
    shown = text().replace("*", "").split()
    files = [file for file in Path(conf_dir()).glob("*/*.yaml") if file.parent.name not in ("hydra", "hooks")]
    assert {file.stem for file in files} | {"train", "compare"} <= {*shown}
    assert {file.parent.name for file in files} <= {word.removeprefix("+") for word in shown}


def test_overview_shows_current_choices_and_values() -> None:
    shown = text(overrides=("model=pspnet18", "trainer.epochs=7"))
    assert " pspnet18* " in shown
    assert "pspnet50" in shown.split()
    assert " trainer.epochs=7 " in shown


@pytest.mark.usefixtures("_wide")
def test_group_is_explained_by_the_comments_in_its_files() -> None:
    shown = text("model", overrides=("model=pspnet18", "model.dropout=0.2"))
    assert shown.startswith("model: the network\n")
    assert " pspnet18*           A small PSPNet for CPUs and laptops: ResNet-18 (7×7 stem), narrow head.\n" in shown
    assert "  model.output_stride=8\n      [8 | 16 | 32] width of the image over" in shown
    assert "  model.dropout=0.2\n      [float in [0, 1)] probability of dropping a channel" in shown
    assert "\n  model._target_" not in shown


@pytest.mark.usefixtures("_wide")
def test_node_and_key_are_explained() -> None:
    assert text("loader").startswith("loader: how images reach the device\n\nKeys\n  loader.batch_size=4\n")
    assert text("loader.sampling") == (
        "loader.sampling=uniform\n"
        "    [uniform | class_balanced] of training images: uniform, or class_balanced: those with rare\n"
        "    classes are taken more often\n"
    )


def test_all_that_an_experiment_sets_is_listed() -> None:
    shown = text("experiment", overrides=("experiment=quickstart",))
    assert "\nexperiment=quickstart sets\n  model=pspnet18\n" in shown
    assert "  trainer.epochs=8\n      [int > 0] length of the training" in shown


def test_commands_in_a_comment_have_their_own_lines() -> None:
    lines = [line.strip() for line in text("loss").splitlines()]
    assert "loss=custom loss._target_=my_module.MyLoss +loss.gamma=2" in lines


def test_own_option_is_listed_and_explained(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# My network.\n_target_: mine.Net\nwidth: 8 # channels\n")
    folders = (str(tmp_path),)
    assert " mine " in text(folders=folders)
    shown = text("model", overrides=("model=mine",), folders=folders)
    assert " mine*               My network.\n" in shown
    assert shown.endswith("\nKeys of model=mine\n  model.width=8\n      channels\n")


def test_values_are_resolved_on_request() -> None:
    assert "model.num_classes=20\n" in help_text(Reference(resolve=True), ["model"])
    assert "model.num_classes=${dataset.num_classes}\n" in text("model")


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("experimnt", "experimnt: no such group, node or key; did you mean 'experiment'?"),
        ("trainer.epoch", "trainer.epoch: no such group, node or key; did you mean 'trainer.epochs'?"),
        ("lr", "lr: no such group, node or key; did you mean 'optimizer.lr'?"),
        ("pspnet18", "pspnet18: no such group, node or key, but an option: --help model model=pspnet18"),
        ("test", "test: no such group, node or key, but a mode: mode=test"),
        ("hydra.run.dir", "hydra.run.dir: belongs to Hydra; see --hydra-help"),
    ],
)
def test_unknown_topic_is_refused(topic: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        text("loader", topic)
    assert str(caught.value) == message


def test_invalid_override_is_refused() -> None:
    with pytest.raises(UserError, match="optimizer=adm: no such option"):
        Reference(["optimizer=adm"])


@pytest.mark.parametrize("command", [["--help", "trainer"], ["trainer", "--help"], ["-h", "trainer."]])
def test_topics_stand_beside_overrides(cli: Cli, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert cli(*command, "trainer.epochs=3") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("trainer: ")
    assert "  trainer.epochs=3\n" in shown


def test_unknown_topic_ends_the_command(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--help", "modle", "trane") == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["modle", "trane"]


@pytest.mark.parametrize("topics", [[], ["model"], ["hooks", "trainer.epochs"]])
def test_help_does_not_import_torch(tmp_path: Path, topics: list[str]) -> None:
    arguments = ["--help", *topics]
    code = f"import sys; from pspexp.cli import main; sys.argv[1:] = {arguments}; main(); print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    assert shown.stdout.endswith("False\n")
