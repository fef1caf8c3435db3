"""What a command says first, and the commands that it names last."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pspexp.launchers import base
from tests.conftest import TINY, Cli

CHECKOUT = Path(__file__).parents[2]
STOP_BEFORE_TORCH = """
import sys
from pspexp import cli
cli.import_torch = lambda: sys.exit("torch is imported" if "torch" in sys.modules else 0)
cli.main()
"""


def commands(output: str) -> list[list[str]]:
    """The arguments of the commands that an output names, each on a line of its own."""
    return [shlex.split(line)[1:] for line in output.splitlines() if line.startswith("  pspexp ")]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["experiment=quickstart"], "train pspnet18 on shapes for 8 epochs (experiment=quickstart): loading PyTorch …"),
        (["dataset=shapes", "trainer.max_steps=1"], "train pspnet50 on shapes for 1 step: loading PyTorch …"),
        (["mode=test", "checkpoint.path=a run"], "test a run: loading PyTorch …"),
        (["checkpoint.resume=outputs/run"], "train, resuming outputs/run: loading PyTorch …"),
        (["-m", "dataset=shapes", "seed=1,2"], ""),
        (["--cfg", "job", "--resolve", "dataset=shapes"], ""),
        (["mode=compare"], ""),
        (["dataset=shapes", "launcher=torchrun"], ""),  # as RANK=1
    ],
)
def test_first_line_comes_before_torch_is_imported(overrides: list[str], line: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOP_BEFORE_TORCH, *overrides]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "RANK": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{line}\n" if line else "", "")


def test_commands_in_the_last_lines_work(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = "output_root='my runs, all'"
    assert cli(*TINY, root, "trainer.max_steps=1") == 0
    output = capsys.readouterr().out
    (run,) = (tmp_path / "my runs, all" / "shapes").iterdir()
    (result,) = [line for line in output.splitlines() if line.startswith("best mean IoU ")]
    assert result.endswith(f" % (epoch 1); results in my runs, all/shapes/{run.name}")
    assert "mlflow" not in output
    test, predict, rest = commands(output)
    assert (test[0], predict[0], rest[-1]) == ("mode=test", "mode=predict", "trainer.max_steps=null")

    assert cli(*test, "tracking=none") == 0
    output = capsys.readouterr().out
    assert "% on 3 images; results in my runs, all/shapes/" in output
    assert commands(output) == [predict]
    assert len(list((tmp_path / "my runs, all" / "shapes").iterdir())) == 2

    assert cli(*predict) == 0
    assert f"3 images in my runs, all/shapes/{run.name}/predictions: ids/, overlay/" in capsys.readouterr().out

    assert cli(*rest) == 0
    *_, longer = commands(capsys.readouterr().out)
    assert longer[1:] == ["trainer.epochs=4", "scheduler.on_extend=stretch"]
    assert cli(*longer) == 0
    assert "4 epochs, 8 steps: 2 steps per epoch" in capsys.readouterr().out


def test_interrupted_training_names_the_command_that_resumes_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def stopped() -> Iterator[base.StopSignal]:
        yield lambda: signal.SIGINT

    with monkeypatch.context() as patch:
        patch.setattr(base, "catch_stop_signals", stopped)
        assert cli(*TINY, "hydra.run.dir=a run") == 130
    output = capsys.readouterr().out
    assert "stopped after step 0 of 4; resume with\n" in output
    (resume,) = commands(output)
    assert cli(*resume) == 0
    assert "resuming from step 0" in (tmp_path / "a run" / "run.log").read_text()
