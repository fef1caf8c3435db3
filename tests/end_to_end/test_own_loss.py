"""A loss of torch, and a sum of losses, in a training."""

from pathlib import Path

import pytest

from tests.conftest import TINY, Cli, losses

STEP = (*TINY, "trainer.max_steps=1")


def test_loss_of_torch_trains_like_cross_entropy(cli: Cli, tmp_path: Path) -> None:
    assert cli(*STEP, "hydra.run.dir=own") == 0
    torchs = ("loss=custom", "loss._target_=torch.nn.CrossEntropyLoss")
    assert cli(*STEP, *torchs, "hydra.run.dir=torch") == 0
    assert losses(tmp_path / "torch") == pytest.approx(losses(tmp_path / "own"), rel=1e-5)


def test_sum_trains(cli: Cli, tmp_path: Path) -> None:
    """The mean of a sum is the sum of the means, over outputs and images, too."""
    names = ("cross_entropy", "dice", "lovasz")
    for name in names:
        assert cli(*STEP, f"loss={name}", f"hydra.run.dir={name}") == 0
    assert cli(*STEP, "loss=sum", f"loss.terms=[{','.join(names)}]", "hydra.run.dir=sum") == 0
    expected = [sum(values) for values in zip(*(losses(tmp_path / name) for name in names), strict=True)]
    assert losses(tmp_path / "sum")[0] == pytest.approx(expected[0], rel=1e-5)
