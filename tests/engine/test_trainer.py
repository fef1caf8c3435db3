"""The loop, with a three-line model: exact resume from any step, one record an interval, nothing spoiled by NaN."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pspexp import optim
from pspexp.data.loader import Batch, TrainLoader, eval_loader
from pspexp.data.shapes import SHAPES_CLASSES, ShapesDataset
from pspexp.data.transforms import ScaleCropFlip
from pspexp.engine import checkpoint
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.engine.evaluator import Evaluation, Evaluator
from pspexp.engine.precision import Precision
from pspexp.engine.trainer import NonFiniteLossError, Stopwatch, Trainer
from pspexp.errors import Interrupted
from pspexp.inference import Whole
from pspexp.losses import CrossEntropy
from pspexp.metrics import Report
from pspexp.models.segmenter import Segmenter
from pspexp.tracking import LocalTracker, Tracker

NUM_CLASSES = len(SHAPES_CLASSES)
MEAN, STD = [0.5, 0.5, 0.5], [0.2, 0.2, 0.2]


class Net(nn.Module):
    """Has what a resume can forget: batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout2d(), nn.Conv2d(8, NUM_CLASSES, 1)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(images)}


class Numbers(LocalTracker):
    """Without pictures: they take most of the time of such short runs."""

    def report(self, split: str, report: Report) -> None:
        pass

    def curves(self) -> None:
        pass


def source() -> ShapesDataset:
    names = list(SHAPES_CLASSES)
    return ShapesDataset(len(names), names, 255, "train", "val", "val", MEAN, STD, 10, 3, 48, 0)


Make = Callable[..., Trainer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Builds a trainer: 3 steps an epoch of 1 + 2 batches of 1 or 2 images; 3 epochs."""

    def build(
        folder: str, *, stop_after: int | None = None, resume: bool = False, workers: int = 0, **changes: Any
    ) -> Trainer:
        torch.manual_seed(7)
        data_source, model = source(), Net()
        device = Device("cpu")
        settings: dict[str, Any] = {
            "epochs": 3,
            "max_steps": None,
            "validate_every": 2,
            "log_every": 2,
            "every_steps": None,
            "grad_clip": 1.0,
            "accumulate": 1,
            "ema": None,
            "compile": False,
        }
        loss = changes.pop("loss", CrossEntropy(NUM_CLASSES))
        model = changes.pop("model", model)
        precision = Precision(changes.pop("precision", "fp32"))
        settings |= changes
        train, val = data_source.open("train"), data_source.open("val")
        data = TrainLoader(
            train,
            ScaleCropFlip(16, 0.5, 2.0, 0.5, MEAN, 255),
            batch_size=2,
            accumulate=settings["accumulate"],
            num_workers=workers,
            seed=3,
            pin_memory=False,
        )
        optimizer = optim.sgd(model, lr=0.1, momentum=0.9, weight_decay=0.0)
        scheduler = optim.cosine(optimizer, settings["epochs"] * data.steps_per_epoch, warmup_steps=2)
        world = World(ProcessInfo(), device)
        evaluator = Evaluator(Whole(8, True), loss, device, precision, world, list(SHAPES_CLASSES), 255, MEAN, STD)

        def validate(weights: nn.Module, between: Callable[[], None]) -> Evaluation:
            groups = eval_loader(
                val, lambda image, label: (image, label), batch_size=1, num_workers=0, max_images=None, pin_memory=False
            )
            return evaluator(weights, groups, num_images=len(val), on_images=lambda count: between())

        run = tmp_path / folder
        tracker = Tracker(Numbers(run))
        tracker.start(name="t", config={}, config_text="", overrides=[], tags={}, resume=resume)
        trainer = Trainer(
            model=model,
            loss=loss,
            optimizer=optimizer,
            scheduler=scheduler,
            data=data,
            names=train.names,
            validate=validate,
            world=world,
            device=device,
            precision=precision,
            mean=MEAN,
            std=STD,
            seed=3,
            tracker=tracker,
            checkpoints=checkpoint.CheckpointFolder(run / "checkpoints", {}),
            stop_signal=lambda: 15 if stop_after is not None and trainer.position.step >= stop_after else None,
            **settings,
        )
        if resume:
            trainer.resume(checkpoint.read(run / "checkpoints" / "last.pt", training=True))
        return trainer

    return build


def state(trainer: Trainer) -> dict[str, Any]:
    """Everything of a ``last.pt`` but the clock."""
    saved = checkpoint.read(trainer.checkpoints.folder / "last.pt", training=True)
    saved["training"].pop("interval")
    return saved


def records(trainer: Trainer) -> list[dict[str, float]]:
    """``metrics.jsonl`` without the clock."""
    lines = (trainer.tracker.folder / "metrics.jsonl").read_text().splitlines()
    clock = ("time", "train/images_per_second", "train/data_time", "train/step_time")
    return [{key: value for key, value in json.loads(line).items() if key not in clock} for line in lines]


def assert_same(left: Any, right: Any, place: str = "") -> None:
    """Equal to the last bit."""
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


VARIANTS = [{}, {"ema": 0.9}, {"accumulate": 2, "log_every": 5}, {"precision": "fp16"}]


@pytest.mark.parametrize("changes", VARIANTS, ids=["plain", "ema", "accumulate", "fp16"])
def test_a_run_stopped_after_any_step_ends_as_the_uninterrupted_one(make: Make, changes: dict[str, Any]) -> None:
    whole = make("whole", **changes)
    whole.fit()

    for stop in range(whole.total_steps):
        stopped = make(f"stop{stop}", stop_after=stop, **changes)
        with pytest.raises(Interrupted):
            stopped.fit()
        resumed = make(f"stop{stop}", resume=True, **changes)
        assert resumed.position.step == stop
        resumed.fit()
        assert_same(state(resumed), state(whole))
        assert records(resumed) == records(whole)


def test_two_stops_in_a_row_and_other_numbers_of_workers(make: Make) -> None:
    whole = make("whole", ema=0.9)
    whole.fit()
    for resume, stop, workers in ((False, 4, 0), (True, 7, 2), (True, None, 1)):
        trainer = make("part", resume=resume, stop_after=stop, workers=workers, ema=0.9)
        if stop is None:
            trainer.fit()
        else:
            with pytest.raises(Interrupted):
                trainer.fit()
    assert_same(state(trainer), state(whole))
    assert records(trainer) == records(whole)


def test_a_crash_goes_on_from_the_last_save_and_its_later_records_are_cut(make: Make) -> None:
    whole = make("whole")
    whole.fit()
    crashing = make("crash", every_steps=4)
    step = crashing._step

    def crash_at_seven(group: list[Batch]) -> None:
        if crashing.position.step == 7:
            raise RuntimeError("power cut")
        step(group)

    crashing._step = crash_at_seven  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="power cut"):
        crashing.fit()
    assert records(crashing)[-1]["step"] == 6

    resumed = make("crash", resume=True)
    assert resumed.position.step == 4
    assert records(resumed)[-1]["step"] == 4
    resumed.fit()
    assert_same(state(resumed), state(whole))
    assert records(resumed) == records(whole)


def test_a_signal_during_validation_stops_and_the_validation_is_made_up_for(make: Make) -> None:
    whole = make("whole")
    whole.fit()
    at = whole.validate_every * whole.data.steps_per_epoch
    stopped = make("part")
    stopped.stop_signal = lambda: 2 if stopped._validation_is_due() else None
    with pytest.raises(Interrupted) as caught:
        stopped.fit()
    assert caught.value.signal_number == 2
    assert stopped.position.step == at
    assert stopped.position.validated_step == 0

    resumed = make("part", resume=True)
    resumed.fit()
    assert_same(state(resumed), state(whole))
    assert records(resumed) == records(whole)


def test_a_finished_run_resumes_to_nothing(make: Make) -> None:
    first = make("run")
    first.fit()
    before = records(first), state(first)
    again = make("run", resume=True)
    again.fit()
    assert (records(again)) == before[0]
    assert_same(state(again), before[1])


def test_max_steps_leaves_the_schedule_and_can_be_lifted(make: Make) -> None:
    whole, short = make("whole"), make("short", max_steps=3)
    whole.fit()
    short.fit()
    assert records(short)[-1]["step"] == 3
    rates = {record["step"]: record["train/lr"] for record in records(whole) if "train/lr" in record}
    assert [record["train/lr"] for record in records(short) if record["step"] == 2 and "train/lr" in record] == [
        rates[2]
    ]

    longer = make("short", resume=True)
    longer.fit()
    assert_same(state(longer)["model"], state(whole)["model"])
    assert_same(state(longer)["training"]["optimizer"], state(whole)["training"]["optimizer"])


def test_records(make: Make) -> None:
    trainer = make("run", every_steps=5)
    trainer.fit()
    assert trainer.total_steps == 15
    losses = [record["step"] for record in records(trainer) if "train/loss" in record]
    validations = [record for record in records(trainer) if "val/mean_iou" in record]
    assert losses == [2, 4, 6, 8, 10, 12, 14, 15]
    assert [(record["step"], record["epoch"]) for record in validations] == [(10, 2), (15, 3)]
    best = max(record["val/mean_iou"] for record in validations)
    assert validations[-1]["best/mean_iou"] == best == trainer.position.best["best/mean_iou"]


class ExplodesAt(CrossEntropy):
    """NaN from the given call on, or in the calls between two."""

    def __init__(self, call: int, until: float = float("inf")) -> None:
        super().__init__(NUM_CLASSES)
        self.calls, self.first, self.until = 0, call, until

    def forward(self, outputs: Any, target: Tensor) -> Tensor:
        self.calls += 1
        bad = self.first <= self.calls < self.until
        return super().forward(outputs, target) * (float("nan") if bad else 1.0)


def test_a_non_finite_loss_stops_before_the_weights_are_touched(make: Make) -> None:
    sane, exploding = make("sane", max_steps=4), make("bad", loss=ExplodesAt(5))
    sane.fit()
    with pytest.raises(NonFiniteLossError) as caught:
        exploding.fit()
    assert "step 5: the loss is nan" in str(caught.value)
    assert sum(f"train_{index:05d}" in str(caught.value) for index in range(10)) == 2
    for (name, weight), other in zip(exploding.model.named_parameters(), sane.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert not (exploding.checkpoints.folder / "last.pt").exists()


@pytest.mark.parametrize("grad_clip", [None, 1.0])
def test_a_non_finite_gradient_stops_before_the_weights_are_touched(make: Make, grad_clip: float | None) -> None:
    trainer = make("run", grad_clip=grad_clip)
    weight = trainer.model.layers[0].weight  # type: ignore[union-attr, index]
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weight.detach().clone()
    with pytest.raises(NonFiniteLossError, match="step 1: the loss is"):
        trainer.fit()
    assert torch.equal(weight, before)


def without_fused_kernels(trainer: Trainer) -> None:
    """As on a device that has none."""
    trainer.optimizer.defaults["fused"] = None
    for group in trainer.optimizer.param_groups:
        group["fused"] = None


@pytest.mark.parametrize("fused", [True, False])
def test_the_weights_stay_untouched_however_late_a_spoilt_step_is_noticed(make: Make, fused: bool) -> None:
    sane = make("sane", max_steps=4)
    trainer = make("bad", loss=ExplodesAt(5, until=6), log_every=100)
    if not fused:
        without_fused_kernels(sane)
        without_fused_kernels(trainer)
    sane.fit()
    with pytest.raises(NonFiniteLossError, match="step 5: the loss is nan"):
        trainer.fit()
    assert trainer.position.step == (10 if fused else 4)  # the validation reads the losses
    for (name, weight), other in zip(trainer.model.named_parameters(), sane.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert not (trainer.checkpoints.folder / "last.pt").exists()


def test_a_spoilt_step_is_not_saved_by_a_stop(make: Make) -> None:
    trainer = make("run", loss=ExplodesAt(3), stop_after=4, log_every=100)
    with pytest.raises(NonFiniteLossError, match="step 3"):
        trainer.fit()
    assert not (trainer.checkpoints.folder / "last.pt").exists()


def test_the_host_reads_losses_once_a_record(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make("run", log_every=5, validate_every=3)
    read: list[int] = []
    monkeypatch.setattr(Stopwatch, "wait", lambda watch, seconds: read.append(trainer.position.step))
    trainer.fit()
    assert read == [5, 10, 15]
    assert len(trainer.unread) == 0


def test_waiting_for_data_is_said_once_with_numbers(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make("run")
    for data_s in (0.5, 0.001, 0.5, 0.5):  # the first record is not counted: workers had to start
        trainer.watch.reset()
        for _ in range(2):
            trainer.watch.add(data_s, 0.5, 2)
        trainer.position.losses = [1.0]
        trainer._log()
    lines = [record.message for record in caplog.records if "waits for data" in record.message]
    assert len(lines) == 1
    assert "50 % of the time: train/data_time is 0.500 s, train/step_time 0.500 s a step" in lines[0]
    assert "loader.num_workers" in lines[0]


def test_compiled_training_learns_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compile = torch.compile
    # Without the code generator, which takes its time and needs a C++ compiler on the CPU.
    monkeypatch.setattr(torch, "compile", lambda function, mode: compile(function, backend="aot_eager"))
    whole, compiled = make("whole", max_steps=4), make("compiled", max_steps=4, compile=True)
    whole.fit()
    compiled.fit()
    for ours, theirs in zip(compiled.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert state(compiled)["model"].keys() == state(whole)["model"].keys()


def test_a_state_of_another_device_keeps_this_devices_kind_of_optimizer(make: Make) -> None:
    stopped = make("run", stop_after=4)
    without_fused_kernels(stopped)
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = make("run", resume=True)
    assert {group["fused"] for group in resumed.optimizer.param_groups} == {True}
    resumed.fit()


class SmallSegmenter(Segmenter):
    def __init__(self) -> None:
        super().__init__(NUM_CLASSES, 4, True)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, NUM_CLASSES, 1))

    def low_resolution(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(images)}


class OwnForward(SmallSegmenter):
    """Written before there was `low_resolution`."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"out": self.upsample(self.layers(images), images), "features": images}


class Watching(CrossEntropy):
    """Notes the number format that products would have inside it."""

    formats: list[torch.dtype]

    def pixel_losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        self.formats = [*getattr(self, "formats", []), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype]
        return super().pixel_losses(logits, target)


@pytest.mark.parametrize("model", [SmallSegmenter, OwnForward])
def test_scores_and_loss_keep_float32_under_bf16(make: Make, model: type[SmallSegmenter]) -> None:
    torch.manual_seed(0)
    loss = Watching(NUM_CLASSES)
    trainer = make("run", model=model(), loss=loss, precision="bf16")
    assert trainer.in_parts is (model is SmallSegmenter)
    batch = next(trainer.data.batches(0, 1))
    trainer.objective(batch.images, batch.labels).backward()  # type: ignore[no-untyped-call]
    assert set(loss.formats) == {torch.float32}
    found = [weight.grad for weight in trainer.model.parameters()]
    trainer.in_parts = False
    expected = torch.autograd.grad(trainer.objective(batch.images, batch.labels), list(trainer.model.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 0.01 * theirs.norm()  # type: ignore[operator]


def test_a_loss_with_a_rule_of_its_own_is_asked_itself(make: Make) -> None:
    class Hundredfold(CrossEntropy):
        def forward(self, outputs: Any, target: Tensor) -> Tensor:
            return 100 * super().forward(outputs, target)

    own = make("own", model=SmallSegmenter(), loss=Hundredfold(NUM_CLASSES))
    batch = next(own.data.batches(0, 1))
    assert own.objective(batch.images, batch.labels).item() > 50


def test_compiled_training_in_bf16_is_one_graph(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: compile(function, backend="aot_eager", fullgraph=True))
    trainer = make("run", model=SmallSegmenter(), precision="bf16", compile=True, max_steps=3)
    trainer.fit()
    assert trainer.position.step == 3


def test_waiting_is_counted_once(make: Make) -> None:
    trainer = make("run", max_steps=6)
    without_fused_kernels(trainer)
    start = time.perf_counter()
    trainer.fit()
    assert trainer.watch.total_s <= time.perf_counter() - start


def test_a_state_from_elsewhere_makes_a_best_of_its_own(make: Make) -> None:
    first = make("first")
    first.fit()
    second = make("second").checkpoints.folder
    second.mkdir()
    shutil.copy(first.checkpoints.folder / "last.pt", second)
    make("second", resume=True).fit()
    assert (second / "best.pt").is_file()


def test_all_pixels_ignored_is_harmless(make: Make) -> None:
    trainer = make("run")
    batch = next(trainer.data.batches(0, 1))
    ignored = batch._replace(labels=torch.full_like(batch.labels, 255))
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer._step([ignored])
    trainer._read_losses()
    assert trainer.position.losses == [0.0]
    assert all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))


def test_accumulated_gradients_are_the_mean_over_the_pixels_of_all_batches(make: Make) -> None:
    trainer = make("run", accumulate=2, grad_clip=None)
    trainer.model.layers[2].p = 0.0  # type: ignore[union-attr, index]
    group = list(trainer.data.batches(0, 1))
    for parameter_group in trainer.optimizer.param_groups:
        parameter_group["lr"] = 0.0  # the gradients below are taken at the same weights
    trainer._step(group)
    trainer._read_losses()

    pixels = [int((batch.labels != 255).sum()) for batch in group]
    assert pixels[0] != pixels[1]
    losses = [trainer.objective(batch.images, batch.labels) for batch in group]
    expected = sum(loss * count for loss, count in zip(losses, pixels, strict=True)) / sum(pixels)
    gradients = torch.autograd.grad(expected, list(trainer.model.parameters()))
    assert trainer.position.losses[0] == pytest.approx(expected.item())
    for weight, gradient in zip(trainer.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


class Steep(CrossEntropy):
    """Gradients that are too large for float16 unless they are scaled less than at the start."""

    def __init__(self, factor: float) -> None:
        super().__init__(NUM_CLASSES)
        self.factor = factor

    def forward(self, outputs: Any, target: Tensor) -> Tensor:
        return self.factor * super().forward(outputs, target)


def test_fp16_scales_less_after_an_overflow_leaves_the_step_out_and_counts_it(make: Make) -> None:
    trainer = make("run", precision="fp16", loss=Steep(20.0), log_every=1)
    assert trainer.scaler is not None
    assert trainer.scaler.is_enabled()
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer._step(list(trainer.data.batches(0, 1)))
    assert all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))
    trainer._read_losses()
    assert trainer.position.overflows == 1
    assert trainer.scaler.get_scale() == 2.0**15

    trainer.position.step = 1
    trainer.fit()
    last = records(trainer)[-2]
    assert last["train/overflow_steps"] >= 1
    assert last["train/loss_scale"] == trainer.scaler.get_scale() < 2.0**16
    assert not all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))


def test_fp16_gives_up_when_no_scale_helps(make: Make) -> None:
    trainer = make("run", precision="fp16", loss=Steep(1e30), epochs=10, log_every=4)
    before = [weight.clone() for weight in trainer.model.parameters()]
    with pytest.raises(NonFiniteLossError, match=r"the weights were not touched.*precision=bf16 or fp32"):
        trainer.fit()
    assert all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))


def test_fp16_does_not_take_a_bad_loss_for_an_overflow(make: Make) -> None:
    sane, exploding = make("sane", precision="fp16", max_steps=4), make("bad", precision="fp16", loss=ExplodesAt(5))
    sane.fit()
    with pytest.raises(NonFiniteLossError, match=r"step 5: .*images "):
        exploding.fit()
    for ours, theirs in zip(exploding.model.parameters(), sane.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_are_clipped(make: Make) -> None:
    trainer = make("run", grad_clip=1e-3)
    trainer._step(list(trainer.data.batches(0, 1)))
    norm = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters() if weight.grad is not None]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_the_moving_average_is_what_is_validated(make: Make) -> None:
    trainer = make("run", ema=0.5, max_steps=4)
    trainer.fit()
    saved = state(trainer)
    assert any(not torch.equal(saved["ema"][name], weight) for name, weight in saved["model"].items())
    assert_same(saved["ema"], trainer.evaluated_model.state_dict())
