"""NaN and infinite numbers, and data without what they need: an error in one line, or a documented number."""

import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pspexp import optim
from pspexp.data.dataset import Sample, check_mean_std
from pspexp.engine.components import TrainingComponents
from pspexp.engine.hooks import Hook, PeriodicSave, TrainingLoop, WeightAveraging
from pspexp.engine.nonfinite import NonFiniteError
from pspexp.errors import ArgumentError, UserError
from pspexp.losses import CrossEntropy, LossSum
from tests.conftest import TINY, Cli, run_commands
from tests.training import NUM_CLASSES, Net, make_components, make_trainer

SGD = partial(optim.sgd, momentum=0.9, weight_decay=0.0)


def content(folder: Path) -> dict[str, bytes]:
    """Return the checkpoints in a folder by name."""
    return {file.name: file.read_bytes() for file in sorted((folder / "checkpoints").glob("*.pt"))}


def records(folder: Path, key: str) -> list[float | None]:
    """Return a value in each record of ``metrics.jsonl`` that holds a validation, or that holds the value."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line.get(key) for line in lines if key in line or (key.startswith("val/") and "best/mean_iou" in line)]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line about a failure: the last one."""
    output = capsys.readouterr()
    text = output.out + output.err
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


# Losses, gradients and weights


def test_loss_that_explodes_is_one_line(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*TINY, "optimizer.lr=1e30", "hydra.run.dir=run") == 1
    line = one_line(capsys)
    assert re.match(
        r"step 2: the loss is \w+, the gradient norm nan \(images train_\d+, train_\d+\); the weights", line
    )
    assert "Lower optimizer.lr" in line
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "FAILED"
    assert content(tmp_path / "run") == {}


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({"lr": 0.0}, "lr=0.0: must be greater than 0"),
        ({"lr": 0.1, "momentum": 1.5}, "momentum=1.5: must be less than 1"),
        ({"lr": 0.1, "weight_decay": -1e-4}, "weight_decay=-0.0001: must be greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_train_are_refused(given: dict[str, float], limit: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(limit)):
        optim.sgd(Net(), **given)


class AlwaysNaN(CrossEntropy):
    """A loss that is NaN from the beginning, as that of initial weights that are."""

    def forward(self, outputs: Any, target: Tensor) -> LossSum:
        loss, weight = super().forward(outputs, target)
        return LossSum(loss * math.nan, weight)


def test_learning_rate_is_no_cause_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 1: the loss is nan") as caught:
        make_trainer(tmp_path, make_components(loss=AlwaysNaN(NUM_CLASSES))).fit()
    assert "optimizer.lr" not in str(caught.value)
    assert "initial weights" in str(caught.value)


class Spoil(Hook):
    """Changes the network after a step."""

    def __init__(self, change: Callable[[TrainingLoop], None], step: int = 6) -> None:
        self.change, self.step = change, step

    def on_step_end(self, trainer: TrainingLoop) -> None:
        if trainer.state.step == self.step:
            with torch.no_grad():
                self.change(trainer)


def spoil_weight(trainer: TrainingLoop) -> None:
    trainer.model.layers[3].bias[0] = math.inf  # type: ignore[union-attr, index]


def spoil_statistics(trainer: TrainingLoop) -> None:
    trainer.model.layers[1].running_var[2] = math.nan  # type: ignore[union-attr, index]


def spoil_average(trainer: TrainingLoop) -> None:
    trainer.evaluated_model.layers[0].weight[0, 0, 0, 0] = math.nan  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("spoil", "name"),
    [(spoil_weight, "layers.3.bias"), (spoil_statistics, "layers.1.running_var"), (spoil_average, "layers.0.weight")],
)
@pytest.mark.parametrize("saved_by", ["validation", "periodic save", "stop"])
def test_bad_weights_never_replace_good_ones(
    tmp_path: Path, spoil: Callable[[TrainingLoop], None], name: str, saved_by: str
) -> None:
    hooks: dict[str, Hook] = {"average": WeightAveraging(0.5)}
    make_trainer(tmp_path, make_components(epochs=1), epochs=1, hooks=hooks).fit()
    before = content(tmp_path)
    assert {*before} == {"best.pt", "last.pt"}
    hooks = {"average": WeightAveraging(0.5), "spoil": Spoil(spoil), "save": PeriodicSave(None)}
    options: dict[str, Any] = {"epochs": 2, "validate_every": 2}
    if saved_by == "validation":
        options["max_steps"] = 6
    elif saved_by == "stop":
        options["stop_after"] = 6
    else:
        hooks["save"] = PeriodicSave(6)
    trainer = make_trainer(tmp_path, make_components(epochs=2), hooks=hooks, **options)
    with pytest.raises(NonFiniteError, match=rf"after step 6, .*{name}.*not saved.*Lower optimizer\.lr"):
        trainer.fit()
    assert content(tmp_path) == before


@pytest.mark.parametrize("lr", [1e39, 1e300])
def test_absurd_learning_rate_in_the_only_step(tmp_path: Path, lr: float) -> None:
    """The next loss would show it, but there is none."""
    components = make_components(optimizer=partial(SGD, lr=lr))
    with pytest.raises(NonFiniteError, match=r"after step 1, .*Lower optimizer\.lr"):
        make_trainer(tmp_path, components, max_steps=1).fit()
    assert content(tmp_path) == {}


class Masked(Net):
    """Holds a mask of 0 and -inf, as networks with attention do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("nothing", torch.zeros(0))


def test_masks_of_minus_infinity_are_no_bad_numbers(tmp_path: Path) -> None:
    make_trainer(tmp_path, make_components(model=Masked), max_steps=2).fit()
    assert {*content(tmp_path)} == {"best.pt", "last.pt"}


# Outputs of the network


class Overflowing(Net):
    """Gives NaN in evaluation, for images whose number in a validation is in ``bad``."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad, self.seen = bad, 0
        self.register_forward_hook(lambda *_: None)  # so that no copy is evaluated, with folded batch norms

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = super().forward(images)["out"]
        if not self.training:
            if self.seen in self.bad:
                logits[:, :, 5, 7] = math.nan
            self.seen += 1
        return {"out": logits}


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_validation_with_bad_outputs_has_no_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, epoch: int
) -> None:
    """Of three validations of three images, one has bad outputs for its second image; training goes on."""
    trainer = make_trainer(tmp_path, make_components(model=partial(Overflowing, {3 * epoch - 2})), validate_every=1)
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    (warning,) = [record.getMessage() for record in caplog.records if "NaN" in record.getMessage()]
    assert "outputs for 1 of 3 images (val_00001) are NaN or infinite" in warning
    assert "precision=fp32" in warning
    ious = records(tmp_path, "val/mean_iou")
    assert [number for number, iou in enumerate(ious, 1) if iou is None] == [epoch]
    assert trainer.state.best["best/mean_iou"] == max(iou for iou in ious if iou is not None)
    assert trainer.state.best["best/epoch"] != epoch
    assert torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)["epoch"] != epoch


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, beside copies of its checkpoint: ``nan.pt`` and, with outputs that overflow, ``huge.pt``."""
    home = tmp_path_factory.mktemp("bad")
    run_commands(home, (*TINY, "trainer.max_steps=1", "hydra.run.dir=run"))
    for name, value, keys in (("nan", math.nan, "classifier.weight"), ("huge", 1e30, r".*conv\.weight")):
        saved = torch.load(home / "run" / "checkpoints" / "last.pt", weights_only=True)
        for key, weight in saved["model"].items():
            if re.fullmatch(keys, key):
                weight.fill_(value)
        torch.save(saved, home / f"{name}.pt")
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(home / "image.png")
    return home


@pytest.mark.parametrize(
    "words",
    [
        ("mode=test", "checkpoint.path=nan.pt", "tracking=none"),
        ("mode=predict", "checkpoint.path=nan.pt", "predict.input=image.png", "predict.output=out"),
        ("mode=export", "checkpoint.path=nan.pt", "export.output=out"),
        (*TINY, "model.weights=nan.pt"),
        (*TINY, "mode=check", "model.weights=nan.pt"),
        (*TINY, "trainer.max_steps=2", "checkpoint.resume=broken"),
    ],
)
def test_weights_in_a_file_that_are_no_numbers_are_refused(
    cli: Cli,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setenv("PSPEXP_ALLOW_TARGETS", "tests.*")
    for name in ("nan.pt", "image.png"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "broken" / "checkpoints").mkdir(parents=True)
    (tmp_path / "broken" / "checkpoints" / "last.pt").write_bytes((run / "nan.pt").read_bytes())
    assert cli(*words) == 2
    output = capsys.readouterr()
    text = output.out + output.err
    assert "Traceback" not in text
    line = [line for line in text.splitlines() if "NaN" in line][-1]
    assert re.search(r"(nan\.pt|checkpoint\.resume): 1 weight holds NaN or infinite values: classifier\.weight; ", line)


def test_test_and_prediction_of_outputs_that_overflow_fail(
    cli: Cli, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSPEXP_ALLOW_TARGETS", "tests.*")
    path = f"checkpoint.path={run / 'huge.pt'}"
    assert cli("mode=test", path, "tracking=none", "hydra.run.dir=test") == 1
    line = one_line(capsys)
    assert "outputs for 3 of 3 images (val_00000, val_00001, val_00002) are NaN or infinite" in line
    assert json.loads(Path("test/summary.json").read_text())["status"] == "FAILED"

    assert cli("mode=predict", path, f"predict.input={run / 'image.png'}", "predict.output=out") == 2
    assert re.search(r"image\.png: .*NaN or infinite", one_line(capsys))
    assert not list(Path("out").rglob("image*.png"))


# Data


class Changed:
    """A split whose labels are changed."""

    def __init__(self, split: Any, change: Callable[[np.ndarray], None]) -> None:
        self.split, self.change, self.names, self.fingerprint = split, change, split.names, split.fingerprint

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.split[index]
        ids = np.array(label)
        self.change(ids)
        return image, Image.fromarray(ids)


def with_labels(role: str, change: Callable[[np.ndarray], None]) -> TrainingComponents:
    """Components whose labels of a role are changed."""
    components = make_components()
    changed = Changed(getattr(components, role), change)
    if role == "training":
        components.loader._split = changed
    return replace(components, **{role: changed})


def set_wrong_id(ids: np.ndarray) -> None:
    ids[:] = 7


def ignore_all(ids: np.ndarray) -> None:
    ids[:] = 255


@pytest.mark.parametrize(("role", "name"), [("training", r"train_\d{5}"), ("validation", "val_00000")])
def test_labels_of_ones_own_data_set_that_are_no_class_are_refused(tmp_path: Path, role: str, name: str) -> None:
    trainer = make_trainer(tmp_path, with_labels(role, set_wrong_id), validate_every=1)
    message = rf"^{name}: its label holds the id 7; must be 0 to 4, or dataset\.ignore_index=255; correct"
    with pytest.raises(UserError, match=message):
        trainer.fit()


def test_nothing_to_learn_gives_loss_0_and_unchanged_weights(tmp_path: Path) -> None:
    components = with_labels("training", ignore_all)
    before = [weight.clone() for weight in components.model.parameters()]
    make_trainer(tmp_path, components, max_steps=4).fit()
    assert records(tmp_path, "train/loss") == [0.0, 0.0]
    assert all(torch.equal(*pair) for pair in zip(before, components.model.parameters(), strict=True))


def test_nothing_to_validate_gives_no_metrics(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, with_labels("validation", ignore_all), validate_every=1)
    trainer.fit()
    assert records(tmp_path, "val/mean_iou") == [None] * 3
    assert (trainer.state.best["best/mean_iou"], trainer.state.best["best/epoch"]) == (0.0, 1.0)
    assert records(tmp_path, "val/loss") == [0.0] * 3


@pytest.mark.parametrize("std", [1e-300, 1e-7])
def test_deviation_by_which_no_image_can_be_divided_is_refused(std: float) -> None:
    with pytest.raises(ArgumentError, match=r"std=\[0\.2, .*\]: must be at least 1e-06"):
        check_mean_std([0.5, 0.5], [0.2, std])


@pytest.mark.parametrize(("number", "code"), [(255, 0), (256, 2)])
def test_largest_number_of_classes(
    cli: Cli, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    """Most of the classes never occur."""
    names = ",".join(f"c{index}" for index in range(number))
    network = [override for override in TINY if not override.startswith("dataset")]
    data = ("dataset=voc_folder", f"dataset.root={voc}", f"dataset.class_names=[{names}]", "loss.class_weights=auto")
    assert cli(*network, *data, "trainer.max_steps=1", "hydra.run.dir=run") == code
    output = capsys.readouterr()
    if code:
        assert "num_classes=256: must be at most 255" in output.out + output.err
        return
    last = json.loads((tmp_path / "run" / "summary.json").read_text())["last"]
    defined = [value for key, value in last.items() if key.startswith("val/iou/")]
    assert 3 <= len(defined) <= 255
    assert last["val/mean_iou"] == pytest.approx(sum(defined) / len(defined))
    assert re.search(r"^c200 +– +– +0$", output.out + output.err, re.MULTILINE)
    assert "classes without training pixels have weight 1: c3, c4, " in output.out + output.err
