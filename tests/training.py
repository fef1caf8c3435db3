"""Small training runs for tests: helpers that build the components and the trainer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pspexp import optim
from pspexp.data.augment.cropping import ScaleCropFlip
from pspexp.data.cache import SampleCache
from pspexp.data.loader import TrainLoader, eval_loader
from pspexp.data.shapes import SHAPES_CLASSES, ShapesDataset
from pspexp.data.workers import worker_context
from pspexp.engine import checkpoint
from pspexp.engine.components import TrainingComponents
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.engine.evaluator import Evaluation, Evaluator
from pspexp.engine.finetune import Freezing
from pspexp.engine.finetune_config import FinetuneConfig
from pspexp.engine.hooks import Hook, TrainingLoop
from pspexp.engine.precision import Precision
from pspexp.engine.state import TrainState
from pspexp.engine.trainer import Trainer
from pspexp.engine.trainer_config import TrainerConfig
from pspexp.inference import Whole
from pspexp.losses import CrossEntropy
from pspexp.metrics import Report
from pspexp.tracking.local import LocalTracker
from pspexp.tracking.tracker import SilentTracker, Tracker

NUM_CLASSES = len(SHAPES_CLASSES)
SGD = partial(optim.sgd, lr=0.1, momentum=0.9, weight_decay=0.0)
MEAN, STD = [0.5, 0.5, 0.5], [0.2, 0.2, 0.2]


class Net(nn.Module):
    """Has state that a resume could lose: batch-norm statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout2d(), nn.Conv2d(8, NUM_CLASSES, 1)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(images)}


def make_components(
    *,
    model: Callable[[], nn.Module] = Net,
    loss: nn.Module | None = None,
    precision: str = "fp32",
    world: World | None = None,
    num_train: int = 10,
    num_val: int = 3,
    batch_size: int = 2,
    accumulate: int = 1,
    epochs: int = 3,
    num_workers: int = 0,
    finetune: FinetuneConfig | None = None,
    optimizer: Callable[..., Optimizer] = SGD,
) -> TrainingComponents:
    """Build the components of a training run on generated shapes with 16×16 crops."""
    torch.manual_seed(7)
    device = Device("cpu")
    world = world or World(ProcessInfo(), device)
    names = list(SHAPES_CLASSES)
    dataset = ShapesDataset(len(names), names, 255, "train", "val", "val", MEAN, STD, num_train, num_val, 48, 0)
    network, training = model(), dataset.open("train")
    loader = TrainLoader(
        training,
        ScaleCropFlip(16, 0.5, 2.0, 0.5, MEAN, 255),
        batch_size=batch_size,
        accumulate=accumulate,
        num_workers=num_workers,
        seed=3,
        pin_memory=False,
        rank=world.rank,
        world_size=world.size,
    )
    freezing = Freezing(network, finetune or FinetuneConfig())
    updates = optimizer(network)
    return TrainingComponents(
        world=world,
        device=device,
        precision=Precision(precision),  # type: ignore[arg-type]
        dataset=dataset,
        inference=Whole(),
        model=network,
        loss=loss or CrossEntropy(NUM_CLASSES),
        training=training,
        validation=dataset.open("val"),
        cache=SampleCache(0, worker_context()),
        loader=loader,
        freezing=freezing,
        optimizer=updates,
        scheduler=optim.cosine(updates, epochs * loader.steps_per_epoch, warmup_steps=2),
    )


def evaluate(
    components: TrainingComponents, model: nn.Module, on_batch_end: Callable[[], None] = lambda: None
) -> Evaluation:
    """Evaluate the model on the validation split."""
    loader = eval_loader(
        components.validation,
        lambda image, label: (image, label),
        batch_size=1,
        num_workers=0,
        max_images=None,
        pin_memory=False,
        rank=components.world.rank,
        world_size=components.world.size,
    )
    batches = (batch for batches_by_size in loader for batch in batches_by_size)
    single_process = components.world.size == 1  # the number of batches may differ between processes
    return Evaluator(components)(
        model, batches, components.validation.names, lambda _: on_batch_end() if single_process else None
    )


class Capture(Hook):
    """Keeps the logged losses, and gradients and weights after each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[list[Tensor]] = []
        self.weights: list[list[Tensor]] = []

    def on_step_end(self, trainer: TrainingLoop) -> None:
        weights = list(trainer.model.parameters())
        self.gradients.append([weight.grad.clone() for weight in weights if weight.grad is not None])
        self.weights.append([weight.detach().clone() for weight in weights])

    def on_log(self, trainer: TrainingLoop, metrics: dict[str, float]) -> None:
        self.losses.append(metrics["train/loss"])


class ResumingTrainer(Trainer):
    """Resumes from the ``last.pt`` in its folder, if there is one."""

    def fit(self, checkpoint_content: dict[str, Any] | None = None) -> TrainState:
        file = self.checkpoints.folder / "last.pt"
        return super().fit(checkpoint.read(file, training=True) if file.is_file() else checkpoint_content)


class WithoutFigures(LocalTracker):
    """Skips figures, which take most of the time of such short runs."""

    def report(self, split: str, report: Report) -> None:
        pass

    def curves(self) -> None:
        pass


def make_trainer(
    run: Path, components: TrainingComponents, *, stop_after: int | None = None, hooks: Any = None, **config: Any
) -> ResumingTrainer:
    """Build a trainer that records into the folder ``run``.

    Args:
        stop_after: step after which a stop signal arrives.
        hooks: hooks by name.
        config: fields of `TrainerConfig`.
    """
    main = components.world.is_main_process
    tracker = Tracker(WithoutFigures(run)) if main else SilentTracker(run)
    resumes = (run / "checkpoints" / "last.pt").is_file()
    tracker.start(name="t", config={}, config_text="", overrides=[], tags={}, resume=resumes)
    trainer = ResumingTrainer(
        components,
        TrainerConfig(**{"epochs": 3, "validate_every": 2, "log_every": 2, **config}),
        validate=lambda model, on_batch_end: evaluate(components, model, on_batch_end),
        tracker=tracker,
        checkpoints=checkpoint.CheckpointDir(run / "checkpoints", {}),
        hooks=hooks or {},
        stop_signal=lambda: 15 if stop_after is not None and trainer.state.step >= stop_after else None,
        seed=3,
    )
    return trainer
