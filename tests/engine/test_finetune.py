"""Fine-tuning: frozen parts keep every bit until they are trained again, and learning rates fall down the backbone."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pspexp import optim
from pspexp.engine.distributed import World
from pspexp.engine.finetune import Freezing, decay_learning_rates, stages
from pspexp.engine.finetune_config import FinetuneConfig
from pspexp.engine.hooks import Hook, TrainingLoop, WeightAveraging
from pspexp.engine.trainer import Trainer
from pspexp.errors import Interrupted, UserError
from tests.engine.test_distributed import Task, in_one_process, in_processes
from tests.engine.test_trainer import assert_same, state
from tests.small_network import pspnet
from tests.training import NUM_CLASSES, make_components, make_trainer

STEPS_PER_EPOCH = 2
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(optim.sgd, lr=0.1, weight_decay=0.1),
    "adamw": partial(optim.adamw, lr=0.01, weight_decay=0.1),
    "adam": partial(optim.adam, lr=0.01, weight_decay=0.1),
}
small = partial(
    pspnet, num_classes=NUM_CLASSES, pyramid_channels=4, head_channels=8, aux_channels=4, bins=(1, 2),
    align_corners=False,
)  # fmt: skip


class History(Hook):
    """Keeps weights and statistics after each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_fit_start(self, trainer: TrainingLoop) -> None:
        self.on_step_end(trainer)

    def on_step_end(self, trainer: TrainingLoop) -> None:
        self.states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})

    def changed(self, prefix: str, step: int) -> set[str]:
        """The names that begin with ``prefix`` of what step ``step`` (from 1) changed."""
        before, after = self.states[step - 1], self.states[step]
        return {name for name in after if name.startswith(prefix) and not torch.equal(before[name], after[name])}


def trainer(
    run: Path, model: Callable[[], nn.Module] = small, optimizer: str = "sgd", **options: Any
) -> tuple[Trainer, History]:
    """Return a trainer of 3 epochs with 2 steps each, and the hook that watches it."""
    finetune = {name: options.pop(name) for name in FinetuneConfig.__dataclass_fields__ if name in options}
    shape: dict[str, Any] = {name: options.pop(name) for name in ("world", "batch_size") if name in options}
    num_processes = shape["world"].size if "world" in shape else 1
    shape["num_train"] = STEPS_PER_EPOCH * shape.get("batch_size", 2) * num_processes
    history, hooks = History(), options.pop("hooks", {})
    components = make_components(
        model=model, optimizer=OPTIMIZERS[optimizer], finetune=FinetuneConfig(**finetune), num_val=1, **shape
    )
    return make_trainer(run, components, hooks={**hooks, "history": history}, **options), history


def statistics(names: set[str]) -> set[str]:
    return {name for name in names if "running" in name or "num_batches" in name}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_module_keeps_every_bit_until_its_epoch(tmp_path: Path, optimizer: str) -> None:
    frozen, history = trainer(tmp_path, optimizer=optimizer, freeze=["backbone.third"], unfreeze_at=3)
    frozen.fit()
    everything = {name for name in history.states[0] if name.startswith("backbone.third.")}
    for step in range(1, 2 * STEPS_PER_EPOCH + 1):
        assert history.changed("backbone.third.", step) == set()
        assert statistics(history.changed("backbone.fourth.", step))
        assert history.changed("classifier.", step) == {"classifier.weight", "classifier.bias"}
    for step in range(2 * STEPS_PER_EPOCH + 1, 3 * STEPS_PER_EPOCH + 1):
        assert history.changed("backbone.third.", step) == everything


def test_what_stays_frozen_is_not_in_the_optimizer(tmp_path: Path) -> None:
    frozen, history = trainer(tmp_path, freeze=["backbone", "pyramid"])
    held = {id(parameter) for group in frozen.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(p) for name, p in frozen.model.named_parameters() if name.startswith(("classifier", "auxil"))}
    frozen.fit()
    assert not any(history.changed(prefix, step) for prefix in ("backbone.", "pyramid.") for step in range(1, 7))
    assert frozen.optimizer.state_dict()["state"].keys() == set(range(len(held)))


def test_single_parameters_and_patterns_can_be_frozen() -> None:
    model = small()
    Freezing(model, FinetuneConfig(freeze=["backbone.third.[01]", "classifier.bias"]))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"classifier.bias"} | {
        f"backbone.third.{number}.{rest}" for number in (0, 1) for rest in ("conv.weight", "bn.weight", "bn.bias")
    }


def test_parameters_that_the_network_froze_itself_stay_frozen() -> None:
    model = small()
    model.backbone.fourth.requires_grad_(False)
    freezing = Freezing(model, FinetuneConfig(freeze=["backbone"], unfreeze_at=2))
    assert freezing.update(1)
    assert freezing.update(2)
    assert not freezing.update(3)
    frozen = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.fourth.conv", "backbone.fourth.bn"}


@pytest.mark.parametrize(("where", "kept"), [(True, ("",)), ("backbone", ("backbone.",))])
def test_batch_norms_keep_their_statistics_but_are_trained(tmp_path: Path, where: Any, kept: tuple[str, ...]) -> None:
    frozen, history = trainer(tmp_path, freeze_batch_norm=where)
    frozen.fit()
    all_statistics = statistics(set(history.states[0]))
    for step in range(1, 3 * STEPS_PER_EPOCH + 1):
        changed = history.changed("", step)
        assert statistics(changed) == {name for name in all_statistics if not name.startswith(kept)}
        assert "backbone.third.0.bn.weight" in changed


def test_moving_average_of_a_frozen_module_is_the_module(tmp_path: Path) -> None:
    frozen, history = trainer(tmp_path, freeze=["backbone"], hooks={"weight_averaging": WeightAveraging(0.9)})
    frozen.fit()
    average, start = state(frozen)["ema"], history.states[0]
    assert all(torch.equal(average[name], start[name]) for name in start if name.startswith("backbone."))
    assert not torch.equal(average["classifier.weight"], start["classifier.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resume_across_the_unfreezing_is_bit_exact(tmp_path: Path, optimizer: str) -> None:
    def make(folder: str, **options: Any) -> Trainer:
        return trainer(tmp_path / folder, optimizer=optimizer, freeze=["backbone"], unfreeze_at=2, **options)[0]

    whole = make("whole")
    whole.fit()
    for stop in (STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1):
        with pytest.raises(Interrupted):
            make(f"stop{stop}", stop_after=stop).fit()
        resumed = make(f"stop{stop}")
        resumed.fit()
        assert_same(state(resumed), state(whole))


def two_runs(world: World, stop: int) -> list[dict[str, Any]]:
    """Return the last states of an uninterrupted run and of one that is resumed after ``stop`` steps."""
    folder = Path(world.broadcast_from_main(mkdtemp))

    def run(name: str, stop_after: int | None = None) -> Trainer:
        return trainer(folder / name, world=world, freeze=["backbone"], unfreeze_at=2, stop_after=stop_after)[0]

    run("whole").fit()
    with pytest.raises(Interrupted):
        run("resumed", stop).fit()
    world.all_reduce_max_async(0)  # consumes the stop signal, which would also stop the next training
    run("resumed").fit()
    world.raise_collectively([])  # waits for the main process, which saves
    states = [state(run(name)) for name in ("whole", "resumed")]
    remove(folder, world)
    return states


def remove(folder: Path, world: World) -> None:
    """Remove what all processes have read."""
    world.raise_collectively([])
    if world.is_main_process:
        shutil.rmtree(folder)


def weights_after(world: World, batch_size: int) -> list[list[float]]:
    """Return the weights after a training whose batch norms do not depend on the processes."""
    folder = Path(world.broadcast_from_main(mkdtemp))
    run, _ = trainer(
        folder, world=world, batch_size=batch_size, freeze=["backbone"], unfreeze_at=2,
        freeze_batch_norm=True, model=partial(small, dropout=0.0),
    )  # fmt: skip
    run.fit()
    remove(folder, world)
    return [weight.flatten().tolist() for weight in run.model.parameters()]


@pytest.fixture(scope="module")
def two_processes() -> dict[str, list[Any]]:
    tasks: dict[str, Task] = {
        "before": partial(two_runs, stop=1),
        "after": partial(two_runs, stop=3),
        "weights": partial(weights_after, batch_size=2),
    }
    return in_processes(2, tasks)


@pytest.mark.parametrize("stop", ["before", "after"])
def test_resume_across_the_unfreezing_is_bit_exact_with_two_processes(
    two_processes: dict[str, list[Any]], stop: str
) -> None:
    for whole, resumed in two_processes[stop]:
        assert whole["step"] == 3 * STEPS_PER_EPOCH
        assert_same(resumed, whole)


def test_two_processes_train_what_was_frozen_like_one(two_processes: dict[str, list[Any]]) -> None:
    first, second = two_processes["weights"]
    assert first == second
    for ours, theirs in zip(first, in_one_process(partial(weights_after, batch_size=4)), strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-6)


def test_unknown_names_are_refused_together_with_what_is_near() -> None:
    names = ["backbone.thrid", "encoder.layer1", "backbone.fourth", "dropout", "backbone.third.7"]
    with pytest.raises(UserError) as caught:
        Freezing(small(), FinetuneConfig(freeze=names))
    typo, unknown, without, deep = caught.value.problems
    assert typo == (
        "finetune.freeze: the network has no module or parameter backbone.thrid; did you mean backbone.third? "
        "backbone has third, fourth"
    )
    assert unknown.endswith("no module or parameter encoder.layer1; it has backbone, pyramid, classifier, auxiliary")
    assert without == "finetune.freeze: dropout has no parameters; remove it"
    assert deep.endswith("backbone.third has 0, 1, 2")


class Adapted(nn.Module):
    """As a foreign network is wrapped."""

    backbone_prefix = "network.encoder."

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Module()
        self.network.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
        self.network.decoder = nn.Conv2d(4, NUM_CLASSES, 1)


def test_names_of_a_wrapped_network_are_suggested_in_full() -> None:
    with pytest.raises(UserError, match=r"no module or parameter encoder; did you mean network\.encoder\?"):
        Freezing(Adapted(), FinetuneConfig(freeze=["encoder"]))


def test_nothing_left_to_train_is_refused() -> None:
    with pytest.raises(UserError, match=r"^finetune\.freeze=\[\*\]: nothing is left to train; freeze less$"):
        Freezing(small(), FinetuneConfig(freeze=["*"], unfreeze_at=2))


def test_what_is_frozen_is_described() -> None:
    config = FinetuneConfig(freeze=["backbone.fourth"], unfreeze_at=5, freeze_batch_norm="backbone")
    frozen, statistics_line = Freezing(small(output_stride=8), config).describe()
    total = sum(parameter.numel() for parameter in small(output_stride=8).parameters())
    assert frozen == (
        f"frozen: backbone.fourth (592 of {total:,} parameters, 1 batch norm), trained again from epoch 5; "
        f"{total - 592:,} parameters are trained"
    )
    assert statistics_line == "frozen: the statistics of all 4 batch norms of the backbone"
    assert [*Freezing(small(), FinetuneConfig()).describe()] == []


def backbone(name: str) -> nn.Module:
    import timm

    model = nn.Module()
    model.backbone = timm.create_model(name, features_only=True)
    model.classifier = nn.Conv2d(8, NUM_CLASSES, 1)
    return model


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("resnet50s", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("tf_efficientnet_lite0", ["conv_stem", *(f"blocks.{number}" for number in range(7))]),
        ("convnext_atto", ["stem_0", *(f"stages_{number}" for number in range(4))]),
    ],
)
def test_learning_rate_falls_from_stage_to_stage(name: str, layers: list[str]) -> None:
    model = backbone(name)
    optimizer = optim.adamw(model, lr=0.01, head_lr_factor=10.0, decay_norm_and_bias=False)
    decay_learning_rates(optimizer, model, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.01  # what is logged as train/lr
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: (group["lr"], group["name"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates.keys() == set(names.values())
    for parameter, (rate, group, decay) in rates.items():
        assert ("no_decay" in group) == (decay == 0)
        if parameter.startswith("classifier"):
            assert rate == 0.1
            continue
        of = [number for number, layer in enumerate(layers) if parameter.startswith(f"backbone.{layer}.")]
        stage = of[0] if of else 0  # a norm of the stem
        assert group.endswith(f"/{layers[stage]}")
        assert rate == pytest.approx(0.01 * 0.5 ** (len(layers) - 1 - stage), rel=1e-12)


def test_parameters_of_the_backbone_itself_belong_to_its_first_stage() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    net.register_parameter("position", nn.Parameter(torch.zeros(4, 2)))
    first, second = stages(net).values()
    assert any(parameter is net.position for parameter in first)
    assert len(second) == 2


def test_head_factor_and_layer_decay_apply_to_a_wrapped_network() -> None:
    model = Adapted()
    optimizer = optim.sgd(model, lr=0.1, head_lr_factor=5.0)
    decay_learning_rates(optimizer, model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: round(group["lr"], 9) for group in optimizer.param_groups for p in group["params"]}
    assert rates == {
        "network.encoder.0.weight": 0.01, "network.encoder.0.bias": 0.01,
        "network.encoder.1.weight": 0.01, "network.encoder.1.bias": 0.01,
        "network.encoder.2.weight": 0.1, "network.encoder.2.bias": 0.1,
        "network.decoder.weight": 0.5, "network.decoder.bias": 0.5,
    }  # fmt: skip


def test_layer_decay_needs_a_backbone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(UserError, match=r"^finetune\.layer_decay=0\.5: Sequential has no module backbone; remove this"):
        decay_learning_rates(optim.sgd(model, lr=0.1), model, 0.5)
