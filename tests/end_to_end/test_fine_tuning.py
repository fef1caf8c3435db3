"""Fine-tuning from the command line: freezing, unfreezing and learning rates by stage."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, Cli, last, run_commands
from tests.engine.test_trainer import assert_same

FREEZE = ("finetune.freeze=[backbone]", "finetune.unfreeze_at=2")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to start from."""
    home = tmp_path_factory.mktemp("pretrained")
    run_commands(home, (*TINY, "hydra.run.dir=run", "trainer.epochs=1"))
    return home / "run"


def backbone(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state["model"].items() if name.startswith("backbone.")}


def test_backbone_is_frozen_then_trained_and_resumes_bit_exactly(cli: Cli, pretrained: Path, tmp_path: Path) -> None:
    command = (*TINY, *FREEZE, f"model.weights={pretrained}/checkpoints/best.pt")
    assert cli(*command, "hydra.run.dir=whole") == 0
    for steps in ("2", "null"):  # the first epoch, then the rest
        assert cli(*command, "hydra.run.dir=parts", f"trainer.max_steps={steps}", "checkpoint.resume=auto") == 0
        if steps == "2":
            assert_same(backbone(last(tmp_path / "parts")), backbone(last(pretrained)))
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert_same({**parts, "config": None}, {**whole, "config": None})
    before, after = backbone(last(pretrained)), backbone(whole)
    assert not any(torch.equal(before[name], after[name]) for name in before)

    log = (tmp_path / "whole" / "run.log").read_text()
    assert log.count("frozen: backbone (") == 1
    assert "4 batch norms), trained again from epoch 2; " in log
    assert cli("mode=test", "checkpoint.path=whole", "tracking=none", "loader.num_workers=0") == 0


def test_changed_settings_are_refused_on_resume(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = (*TINY, "finetune.freeze=[backbone]", "hydra.run.dir=run", "checkpoint.resume=auto")
    assert cli(*command, "trainer.max_steps=1") == 0
    assert cli(*command, "finetune.freeze_batch_norm=true") == 2
    assert "finetune.freeze_batch_norm=true: the saved run has false" in capsys.readouterr().err


def test_learning_rates_of_the_stages(cli: Cli, tmp_path: Path) -> None:
    rates = ("optimizer.lr=1e-3", "optimizer.head_lr_factor=10", "finetune.layer_decay=0.5", "scheduler=constant")
    assert cli(*TINY, *rates, "trainer.epochs=1", "hydra.run.dir=run") == 0
    groups = last(tmp_path / "run")["training"]["optimizer"]["param_groups"]
    assert {group["name"]: group["lr"] for group in groups} == {
        "backbone/fourth": 1e-3, "backbone/third": 5e-4, "head": 1e-2,
    }  # fmt: skip
    assert "learning rates of the stages: third ×0.5, fourth ×1" in (tmp_path / "run" / "run.log").read_text()


def test_one_image_per_step_without_batch_statistics(cli: Cli) -> None:
    assert cli(*TINY, "loader.batch_size=1", "finetune.freeze_batch_norm=backbone") == 2
    assert cli(*TINY, "loader.batch_size=1", "finetune.freeze_batch_norm=true", "trainer.max_steps=2") == 0


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        (
            ["finetune.freeze=[backbone.layer9,heads]", "loader.batch_size=9"],
            [
                "finetune.freeze: the network has no module or parameter backbone.layer9; backbone has third, fourth",
                "finetune.freeze: the network has no module or parameter heads; it has backbone, pyramid, classifier",
                "loader.batch_size=9",
            ],
        ),
        (
            ["finetune.layer_decay=1.5", "finetune.freeze_batch_norm=head", "finetune.freeze=backbone"],
            ["finetune.layer_decay=1.5", "finetune.freeze_batch_norm=head", "finetune.freeze=backbone"],
        ),
        (["finetune.unfreeze_at=1", "finetune.freeze=[backbone]"], ["finetune.unfreeze_at=1: must be greater than or"]),
        (["finetune.unfreeze_at=5"], ["finetune.unfreeze_at=5: nothing is frozen until then; set finetune.freeze"]),
        (["finetune.freeze=['*']"], ["finetune.freeze=[*]: nothing is left to train"]),
        (["finetune.frezee=[backbone]"], ["did you mean 'finetune.freeze'?"]),
    ],
)
def test_mistakes_are_refused_before_the_run(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], problems: list[str]
) -> None:
    assert cli(*TINY, *overrides, "hydra.run.dir=run") == 2
    errors = capsys.readouterr().err
    assert [problem for problem in problems if problem not in errors] == []
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("run/**/*.pt"))
