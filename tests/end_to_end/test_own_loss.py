"""A loss of torch, and a sum of losses, in a training."""

from pathlib import Path

import pytest

from tests.conftest import TINY, Cli, losses

STEP = (*TINY, "trainer.max_steps=1")
LOSSES = """
from torch.nn.functional import cross_entropy


def entropy(outputs, labels, ignore_index):
    return cross_entropy(outputs["out"], labels, ignore_index=ignore_index)


class Entropy:
    def __init__(self, ignore_index):
        self.ignore_index = ignore_index

    def __call__(self, outputs, labels):
        return entropy(outputs, labels, self.ignore_index)


def number():
    return 3
"""


@pytest.fixture
def own(tmp_path: Path) -> None:
    """The file with the losses, in the working directory."""
    (tmp_path / "own_losses.py").write_text(LOSSES)


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


@pytest.mark.usefixtures("own")
def test_losses_that_are_no_modules_train_alike(cli: Cli, tmp_path: Path) -> None:
    kinds = {
        "object": ("loss._target_=own_losses.Entropy",),
        "function": ("loss._target_=own_losses.entropy", "+loss._partial_=true"),
        "tensors": (
            "loss._target_=pspexp.losses.TensorLoss",
            "+loss.loss={_target_: torch.nn.functional.cross_entropy, _partial_: true, ignore_index: 255}",
            "+loss.aux_weight=0.0",
            "+loss.main_weight=1.0",
        ),
    }
    for name, loss in kinds.items():
        assert cli(*STEP, "loss=custom", *loss, f"hydra.run.dir={name}") == 0
    first, second, third = (losses(tmp_path / name)[0] for name in kinds)
    assert first == second
    assert third == pytest.approx(first, rel=1e-5)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["loss._target_=own_losses.number"], "loss._target_: made a int, not a loss; name a class whose objects map"),
        (
            ["loss._target_=torch.nn.CrossEntropyLoss", "+loss.reduction=sum"],
            "loss.reduction=sum: must be mean, the default; remove it",
        ),
    ],
)
def test_what_is_no_loss_is_refused_before_training(
    cli: Cli, capsys: pytest.CaptureFixture[str], overrides: list[str], line: str
) -> None:
    assert cli(*STEP, "loss=custom", *overrides) == 2
    shown = capsys.readouterr()
    assert line in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err
