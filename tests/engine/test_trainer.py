"""The training loop with a tiny model: exact resume from any step, logging intervals, no step on a NaN."""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pspexp.engine import checkpoint
from pspexp.engine.hooks import DataWaitWarning, EarlyStopping, Hook, PeriodicSave, WeightAveraging
from pspexp.engine.nonfinite import NonFiniteError
from pspexp.engine.state import StepTimer
from pspexp.engine.trainer import Trainer
from pspexp.errors import Interrupted
from pspexp.losses import OHEM, CrossEntropy, LossSum
from pspexp.models.segmenter import Segmenter
from tests.training import NUM_CLASSES, Capture, make_components, make_trainer

Make = Callable[..., Trainer]
COMPONENTS = {"model", "loss", "precision", "accumulate", "epochs", "num_workers", "num_val"}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Build a trainer: 3 epochs of 5 steps, each on a batch of 2 images."""

    def build(folder: str, **options: Any) -> Trainer:
        components = make_components(**{key: options[key] for key in COMPONENTS & options.keys()})
        config = {key: value for key, value in options.items() if key not in COMPONENTS - {"accumulate", "epochs"}}
        return make_trainer(tmp_path / folder, components, **{"grad_clip": 1.0, **config})

    return build


def state(trainer: Trainer) -> dict[str, Any]:
    """Return the content of ``last.pt`` without the timer."""
    saved = checkpoint.read(trainer.checkpoints.folder / "last.pt", training=True)
    saved["training"].pop("timer")
    return saved


def records(trainer: Trainer) -> list[dict[str, float]]:
    """Return the records of ``metrics.jsonl`` without times."""
    lines = (trainer.tracker.folder / "metrics.jsonl").read_text().splitlines()
    times = ("time", "train/images_per_second", "train/data_time", "train/step_time")
    return [{key: value for key, value in json.loads(line).items() if key not in times} for line in lines]


def assert_same(left: Any, right: Any, place: str = "") -> None:
    """Check that two states are bit-identical."""
    if isinstance(left, Tensor):
        assert torch.equal(left, right), place
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key in left:
            assert_same(left[key], right[key], f"{place}/{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), place
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{place}/{number}")
    else:
        assert left == right, place


def ema(decay: float) -> dict[str, Any]:
    return {"hooks": {"weight_averaging": WeightAveraging(decay)}}


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "hooks": lambda: {"hooks": {**ema(0.9)["hooks"], "early_stopping": EarlyStopping("val/loss", "min", 9)}},
    "accumulate": lambda: {"accumulate": 2, "log_every": 5},
    "fp16": lambda: {"precision": "fp16"},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_resume_after_any_step_is_bit_exact(make: Make, variant: Callable[[], dict[str, Any]]) -> None:
    whole = make("whole", **variant())
    whole.fit()

    for stop in range(whole.total_steps):
        stopped = make(f"stop{stop}", stop_after=stop, **variant())
        with pytest.raises(Interrupted):
            stopped.fit()
        assert state(stopped)["step"] == stop
        resumed = make(f"stop{stop}", **variant())
        resumed.fit()
        assert_same(state(resumed), state(whole))
        assert records(resumed) == records(whole)


def test_resume_twice_with_different_numbers_of_workers(make: Make) -> None:
    whole = make("whole", **ema(0.9))
    whole.fit()
    for stop, workers in ((4, 0), (7, 2), (None, 1)):
        trainer = make("part", stop_after=stop, num_workers=workers, **ema(0.9))
        if stop is None:
            trainer.fit()
        else:
            with pytest.raises(Interrupted):
                trainer.fit()
    assert_same(state(trainer), state(whole))
    assert records(trainer) == records(whole)


class Crash(Hook):
    def __init__(self, after_step: int) -> None:
        self.after_step = after_step

    def on_step_end(self, trainer: Any) -> None:
        if trainer.state.step == self.after_step:
            raise RuntimeError("power cut")


def test_resume_after_a_crash_drops_records_after_the_last_save(make: Make) -> None:
    whole = make("whole", hooks={"save": PeriodicSave(4)})
    whole.fit()
    crashing = make("crash", hooks={"save": PeriodicSave(4), "mine": Crash(7)})
    with pytest.raises(RuntimeError, match=r"hooks\.mine: on_step_end failed: RuntimeError\('power cut'\)"):
        crashing.fit()
    assert records(crashing)[-1]["step"] == 6
    assert state(crashing)["step"] == 4

    resumed = make("crash", hooks={"save": PeriodicSave(4)})
    assert records(resumed)[-1]["step"] == 6
    resumed.fit()
    assert_same(state(resumed), state(whole))
    assert records(resumed) == records(whole)


def test_validation_interrupted_by_a_signal_is_repeated_on_resume(make: Make) -> None:
    whole = make("whole")
    whole.fit()
    stopped = make("part")
    validate, signals = stopped.validate, []

    def interrupted(model: nn.Module, on_batch_end: Callable[[], None]) -> Any:
        signals.append(2)
        return validate(model, on_batch_end)

    stopped.validate, stopped.stop_signal = interrupted, lambda: signals[0] if signals else None
    with pytest.raises(Interrupted) as caught:
        stopped.fit()
    assert caught.value.signal_number == 2
    assert stopped.state.step == 10
    assert stopped.state.validated_step == 0

    resumed = make("part")
    resumed.fit()
    assert_same(state(resumed), state(whole))
    assert records(resumed) == records(whole)


def test_resuming_a_finished_run_changes_nothing(make: Make) -> None:
    first = make("run")
    first.fit()
    before = records(first), state(first)
    again = make("run")
    again.fit()
    assert (records(again)) == before[0]
    assert_same(state(again), before[1])


def test_max_steps_keeps_the_schedule_and_can_be_removed_later(make: Make) -> None:
    whole, short = make("whole"), make("short", max_steps=3)
    whole.fit()
    short.fit()
    assert records(short)[-1]["step"] == 3
    rates = {record["step"]: record["train/lr"] for record in records(whole) if "train/lr" in record}
    assert [record["train/lr"] for record in records(short) if record["step"] == 2 and "train/lr" in record] == [
        rates[2]
    ]

    longer = make("short")
    longer.fit()
    assert_same(state(longer)["model"], state(whole)["model"])
    assert_same(state(longer)["training"]["optimizer"], state(whole)["training"]["optimizer"])


def test_records(make: Make) -> None:
    trainer = make("run")
    trainer.fit()
    assert trainer.total_steps == 15
    losses = [record["step"] for record in records(trainer) if "train/loss" in record]
    validations = [record for record in records(trainer) if "val/mean_iou" in record]
    assert losses == [2, 4, 6, 8, 10, 12, 14, 15]
    assert [(record["step"], record["epoch"]) for record in validations] == [(10, 2), (15, 3)]
    best = max(record["val/mean_iou"] for record in validations)
    assert validations[-1]["best/mean_iou"] == best == trainer.state.best["best/mean_iou"]


class ExplodesAt(CrossEntropy):
    """Is NaN from the given call on, optionally only until another call."""

    def __init__(self, call: int, until: float = math.inf) -> None:
        super().__init__(NUM_CLASSES)
        self.calls, self.first, self.until = 0, call, until

    def forward(self, outputs: Any, target: Tensor) -> LossSum:
        self.calls += 1
        loss, weight = super().forward(outputs, target)
        return LossSum(loss * (math.nan if self.first <= self.calls < self.until else 1.0), weight)


def test_non_finite_loss_stops_before_the_weights_change(make: Make) -> None:
    sane, exploding = make("sane", max_steps=4), make("bad", loss=ExplodesAt(5))
    sane.fit()
    with pytest.raises(NonFiniteError) as caught:
        exploding.fit()
    assert "step 5: the loss is nan" in str(caught.value)
    assert sum(f"train_{index:05d}" in str(caught.value) for index in range(10)) == 2
    for (name, weight), other in zip(exploding.model.named_parameters(), sane.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert not (exploding.checkpoints.folder / "last.pt").exists()


@pytest.mark.parametrize("grad_clip", [None, 1.0])
def test_non_finite_gradient_stops_before_the_weights_change(make: Make, grad_clip: float | None) -> None:
    trainer = make("run", grad_clip=grad_clip)
    weight = trainer.model.layers[0].weight  # type: ignore[union-attr, index]
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = weight.detach().clone()
    with pytest.raises(NonFiniteError, match="step 1: the loss is"):
        trainer.fit()
    assert torch.equal(weight, before)


def without_fused_kernels(trainer: Trainer) -> None:
    """Simulate a device without fused kernels."""
    trainer.optimizer.defaults["fused"] = None
    for group in trainer.optimizer.param_groups:
        group["fused"] = None


@pytest.mark.parametrize("fused", [True, False])
def test_weights_stay_unchanged_if_a_nan_is_detected_late(make: Make, fused: bool) -> None:
    sane = make("sane", max_steps=4)
    trainer = make("bad", loss=ExplodesAt(5, until=6), log_every=100)
    if not fused:
        without_fused_kernels(sane)
        without_fused_kernels(trainer)
    sane.fit()
    with pytest.raises(NonFiniteError, match="step 5: the loss is nan"):
        trainer.fit()
    assert trainer.state.step == (10 if fused else 4)  # detected by the validation, which reads the losses
    for (name, weight), other in zip(trainer.model.named_parameters(), sane.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert not (trainer.checkpoints.folder / "last.pt").exists()


def test_stop_after_a_non_finite_loss_saves_nothing(make: Make) -> None:
    trainer = make("run", loss=ExplodesAt(3), stop_after=4, log_every=100)
    with pytest.raises(NonFiniteError, match="step 3"):
        trainer.fit()
    assert not (trainer.checkpoints.folder / "last.pt").exists()


def test_losses_are_read_once_per_record(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make("run", log_every=5, validate_every=3)
    read: list[int] = []
    monkeypatch.setattr(StepTimer, "add_wait", lambda timer, seconds: read.append(trainer.state.step))
    trainer.fit()
    assert read == [5, 10, 15]


def test_slow_data_loading_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    hook = DataWaitWarning()
    for data_s in (0.5, 0.001, 0.5, 0.5):  # the first record does not count: the workers were starting
        hook.on_log(None, {"train/data_time": data_s, "train/step_time": 0.5})  # type: ignore[arg-type]
    (line,) = [record.message for record in caplog.records]
    assert "50 % of the training time: train/data_time is 0.500 s, train/step_time 0.500 s per step" in line
    assert "loader.num_workers" in line


def test_compiled_training_gives_the_same_weights(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compile = torch.compile
    # Without code generation, which is slow and needs a C++ compiler on the CPU.
    monkeypatch.setattr(torch, "compile", lambda function, mode: compile(function, backend="aot_eager"))
    whole, compiled = make("whole", max_steps=4), make("compiled", max_steps=4, compile=True)
    whole.fit()
    compiled.fit()
    for ours, theirs in zip(compiled.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert state(compiled)["model"].keys() == state(whole)["model"].keys()


def test_state_from_another_device_keeps_fused_kernels_enabled(make: Make) -> None:
    stopped = make("run", stop_after=4)
    without_fused_kernels(stopped)
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = make("run")
    resumed.fit()
    assert {group["fused"] for group in resumed.optimizer.param_groups} == {True}


class SmallSegmenter(Segmenter):
    def __init__(self) -> None:
        super().__init__(NUM_CLASSES, 4, True)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, NUM_CLASSES, 1))

    def low_resolution(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(images)}


class CustomForward(SmallSegmenter):
    """Overrides `forward` without using `low_resolution`."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"out": self.upsample(self.layers(images), images), "features": images}


class RecordsDtype(CrossEntropy):
    """Records the dtype of matrix products inside the loss."""

    dtypes: list[torch.dtype]

    def pixel_losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        self.dtypes = [*getattr(self, "dtypes", []), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype]
        return super().pixel_losses(logits, target)


@pytest.mark.parametrize("model", [SmallSegmenter, CustomForward])
def test_logits_and_loss_keep_float32_under_bf16(make: Make, model: type[SmallSegmenter]) -> None:
    loss = RecordsDtype(NUM_CLASSES)
    trainer = make("run", model=model, loss=loss, precision="bf16")
    assert trainer.chunked_loss is (model is SmallSegmenter)
    batch = next(trainer.loader.batches(0, 1))
    trainer.loss_sum(batch.images, batch.labels).loss.backward()  # type: ignore[no-untyped-call]
    assert set(loss.dtypes) == {torch.float32}
    found = [weight.grad for weight in trainer.model.parameters()]
    trainer.chunked_loss = False
    expected = torch.autograd.grad(trainer.loss_sum(batch.images, batch.labels).loss, list(trainer.model.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 0.01 * theirs.norm()  # type: ignore[operator]


class Hundredfold(CrossEntropy):
    def forward(self, outputs: Any, target: Tensor) -> LossSum:
        loss, weight = super().forward(outputs, target)
        return LossSum(100 * loss, weight)


class PlainMean(nn.Module):
    """A loss like torch's: returns only the mean."""

    def forward(self, outputs: Any, target: Tensor) -> Tensor:
        return 100 * nn.functional.cross_entropy(outputs["out"], target, ignore_index=255)


@pytest.mark.parametrize("loss", [Hundredfold(NUM_CLASSES), PlainMean()], ids=["sums", "mean"])
def test_custom_loss_is_used_unchanged(make: Make, loss: nn.Module) -> None:
    trainer = make("own", model=SmallSegmenter, loss=loss, max_steps=2)
    trainer.fit()
    assert records(trainer)[0]["train/loss"] > 50


def test_compiled_training_in_bf16_is_one_graph(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: compile(function, backend="aot_eager", fullgraph=True))
    trainer = make("run", model=SmallSegmenter, precision="bf16", compile=True, max_steps=3)
    trainer.fit()
    assert trainer.state.step == 3


def test_waiting_time_is_counted_once(make: Make) -> None:
    trainer = make("run", max_steps=6)
    without_fused_kernels(trainer)
    start = time.perf_counter()
    trainer.fit()
    assert trainer.timer.total_s <= time.perf_counter() - start


def test_run_resumed_from_a_copied_state_writes_its_own_best(make: Make, tmp_path: Path) -> None:
    first = make("first")
    first.fit()
    second = tmp_path / "second" / "checkpoints"
    second.mkdir(parents=True)
    shutil.copy(first.checkpoints.folder / "last.pt", second)
    make("second").fit()
    assert (second / "best.pt").is_file()


class AllIgnored(CrossEntropy):
    def forward(self, outputs: Any, target: Tensor) -> LossSum:
        return super().forward(outputs, torch.full_like(target, self.ignore_index))


def test_step_without_labelled_pixels_changes_nothing(make: Make) -> None:
    capture = Capture()
    trainer = make("run", loss=AllIgnored(NUM_CLASSES), max_steps=1, hooks={"capture": capture})
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer.fit()
    assert records(trainer)[0]["train/loss"] == 0
    assert all(torch.equal(*pair) for pair in zip(before, capture.weights[0], strict=True))


class NoDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, NUM_CLASSES, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(images)}


@pytest.mark.parametrize("loss", [CrossEntropy(NUM_CLASSES), OHEM(NUM_CLASSES, min_kept=50, threshold=0.15)])
def test_step_is_normalised_by_the_total_weight_of_its_batches(make: Make, loss: nn.Module) -> None:
    capture = Capture()
    trainer = make("run", model=NoDropout, loss=loss, accumulate=2, grad_clip=None, max_steps=1, hooks={"c": capture})
    group = list(trainer.loader.batches(0, 1))
    sums = [trainer.loss_sum(batch.images, batch.labels) for batch in group]
    assert sums[0].weight != sums[1].weight
    expected = sum(part.loss for part in sums) / sum(part.weight for part in sums)
    gradients = torch.autograd.grad(expected, list(trainer.model.parameters()))  # type: ignore[arg-type]
    trainer.fit()
    assert records(trainer)[0]["train/loss"] == pytest.approx(expected.item())  # type: ignore[union-attr]
    for found, gradient in zip(capture.gradients[0], gradients, strict=True):
        torch.testing.assert_close(found, gradient)


class Steep(CrossEntropy):
    """Has gradients that overflow float16 at the initial loss scale."""

    def __init__(self, factor: float) -> None:
        super().__init__(NUM_CLASSES)
        self.factor = factor

    def forward(self, outputs: Any, target: Tensor) -> LossSum:
        loss, weight = super().forward(outputs, target)
        return LossSum(self.factor * loss, weight)


def test_fp16_overflow_skips_the_step_and_lowers_the_scale(make: Make) -> None:
    capture = Capture()
    trainer = make("run", precision="fp16", loss=Steep(20.0), log_every=1, hooks={"capture": capture})
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer.fit()
    assert all(torch.equal(*pair) for pair in zip(before, capture.weights[0], strict=True))
    first, *_, last = (record for record in records(trainer) if "train/loss" in record)
    assert (first["train/overflow_steps"], first["train/loss_scale"]) == (1, 2.0**15)
    assert last["train/overflow_steps"] >= 1
    assert last["train/loss_scale"] < 2.0**16
    assert not all(torch.equal(*pair) for pair in zip(before, capture.weights[-1], strict=True))


def test_fp16_fails_if_no_scale_avoids_overflow(make: Make) -> None:
    trainer = make("run", precision="fp16", loss=Steep(1e30), epochs=10, log_every=4)
    before = [weight.clone() for weight in trainer.model.parameters()]
    with pytest.raises(NonFiniteError, match=r"the weights are unchanged.*precision=bf16 or fp32"):
        trainer.fit()
    assert all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))


def test_fp16_distinguishes_a_non_finite_loss_from_an_overflow(make: Make) -> None:
    sane, exploding = make("sane", precision="fp16", max_steps=4), make("bad", precision="fp16", loss=ExplodesAt(5))
    sane.fit()
    with pytest.raises(NonFiniteError, match=r"step 5: .*images "):
        exploding.fit()
    for ours, theirs in zip(exploding.model.parameters(), sane.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_are_clipped(make: Make) -> None:
    capture = Capture()
    make("run", grad_clip=1e-3, max_steps=1, hooks={"capture": capture}).fit()
    norm = torch.cat([gradient.flatten() for gradient in capture.gradients[0]]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_validation_uses_the_moving_average(make: Make) -> None:
    trainer = make("run", max_steps=4, **ema(0.5))
    trainer.fit()
    saved = state(trainer)
    assert any(not torch.equal(saved["ema"][name], weight) for name, weight in saved["model"].items())
    assert_same(saved["ema"], trainer.evaluated_model.state_dict())
