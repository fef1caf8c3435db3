"""Multiple processes give the same results as a single one."""

import math
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed import GradBucket
from torchmetrics.classification import MulticlassCohenKappa

from pspexp.data.sampling import SampleKey
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World, create_store, process_info_from_torchrun
from pspexp.engine.finetune_config import FinetuneConfig
from pspexp.engine.hooks import Hook, PeriodicSave, TrainingLoop
from pspexp.engine.nonfinite import NonFiniteError
from pspexp.engine.trainer import Trainer
from pspexp.errors import Interrupted, UserError
from pspexp.launchers.elastic import exit_without_teardown
from pspexp.losses import OHEM, CrossEntropy, LossSum, SegmentationLoss
from pspexp.metrics import BoundaryIoU
from tests.training import NUM_CLASSES, Capture, evaluate, make_components, make_trainer

Task = Callable[[World], Any]


def in_processes(size: int, tasks: dict[str, Task]) -> dict[str, list[Any]]:
    """Run all ``tasks`` in ``size`` processes, started once because that takes seconds; returns results by rank."""
    store = create_store("127.0.0.1", 0)
    with TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            run_tasks, (size, store.port, Path(folder), tasks), nprocs=size, start_method="spawn"
        )
        results = [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(size)]
    return {name: [result[name] for result in results] for name in tasks}


def run_tasks(rank: int, size: int, port: int, folder: Path, tasks: dict[str, Task]) -> None:
    torch.set_num_threads(1)
    environment = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in environment.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    world = World(process_info_from_torchrun(), Device("cpu"))
    found = {}
    for name, task in tasks.items():
        try:
            found[name] = task(world)
        except UserError as error:
            found[name] = error.problems
    (folder / str(rank)).write_bytes(pickle.dumps(found))
    world.close()
    exit_without_teardown()


def in_one_process(task: Task) -> Any:
    return task(World(ProcessInfo(), Device("cpu")))


class Net(nn.Module):
    """Convolutions without batch norm, so that images are independent."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, NUM_CLASSES, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(images)}


class Frozen(Net):
    """Also has a batch norm, which only uses its running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.insert(1, nn.BatchNorm2d(8))

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.layers[1].eval()
        return self


class Unused(Frozen):
    """Also has an auxiliary output, and a layer that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[1].requires_grad_(False)
        self.auxiliary, self.spare = nn.Conv2d(3, NUM_CLASSES, 1), nn.Conv2d(3, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {**super().forward(images), "aux": self.auxiliary(images)}


class MainOutput(CrossEntropy):
    """A loss of the main output alone."""

    def forward(self, outputs: Any, target: Tensor) -> LossSum:
        return super().forward({"out": outputs["out"]}, target)


def trained(world: World, batch_size: int, loss: SegmentationLoss, accumulate: int = 1, **changes: Any) -> Trainer:
    """Return a trainer after its run; the records are not kept."""
    with TemporaryDirectory() as run:
        trainer = make(world, batch_size, loss, accumulate, run=Path(run), **changes)
        trainer.fit()
    return trainer


def make(
    world: World,
    batch_size: int,
    loss: SegmentationLoss,
    accumulate: int = 1,
    run: Path = Path("unused"),
    **changes: Any,
) -> Trainer:
    components = make_components(
        model=changes.pop("model", Net),
        finetune=changes.pop("finetune", None),
        loss=loss,
        world=world,
        num_train=12,
        num_val=5,
        batch_size=batch_size,
        accumulate=accumulate,
    )
    return make_trainer(run, components, accumulate=accumulate, **changes)


def one_step(
    world: World, batch_size: int, accumulate: int = 1, loss: type[SegmentationLoss] = CrossEntropy, **changes: Any
) -> Any:
    """Return the loss and the gradients of the first step."""
    options: dict[str, Any] = {"class_weights": [1.0, 3.0, 0.5, 2.0, 1.0]} if loss is CrossEntropy else {"min_kept": 10}
    capture = Capture()
    hooks = {"capture": capture}
    trained(world, batch_size, loss(NUM_CLASSES, **options), accumulate, hooks=hooks, max_steps=1, **changes)
    return capture.losses[0], [gradient.tolist() for gradient in capture.gradients[0]]


def unused_parts(world: World, batch_size: int, **finetune: Any) -> Any:
    """Return the losses, what is trained in the end, and the weights after training a network with unused parts."""
    capture = Capture()
    finetuning = FinetuneConfig(**finetune)
    options = {"model": Unused, "finetune": finetuning, "hooks": {"capture": capture}, "log_every": 1}
    trainer = trained(world, batch_size, MainOutput(NUM_CLASSES), **options)
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    return capture.losses, names, [value.tolist() for value in trainer.model.state_dict().values()]


def sample_order(world: World, batch_size: int, accumulate: int = 1) -> list[list[SampleKey]]:
    """Return the samples of the first two steps over all processes."""
    loader = make_components(world=world, num_train=12, batch_size=batch_size, accumulate=accumulate).loader
    return [
        sorted(key for rank in range(world.size) for batch in loader.sample_keys(step, step + 1, rank) for key in batch)
        for step in (0, 1)
    ]


def validation(world: World) -> Any:
    """Return all results of a network whose outputs differ between images, as text since NaN equals nothing."""
    torch.manual_seed(5)
    metrics = {
        "boundary_iou": BoundaryIoU(NUM_CLASSES),
        "kappa": MulticlassCohenKappa(NUM_CLASSES, ignore_index=255),  # synchronises itself
    }
    components = make_components(world=world, num_train=12, num_val=13)
    found = evaluate(replace(components, metrics=metrics), Net())
    samples = [(sample.name, sample.label.sum(), sample.prediction.sum()) for sample in found.samples]
    worst = [(sample.name, sample.label.sum(), sample.prediction.sum()) for sample in found.worst]
    assert len(worst) == 10
    assert [name for name, *_ in worst] == [image.name for image in found.images[:10]]
    return repr((found.report, found.loss, samples, found.images, worst))


class BadImage(CrossEntropy):
    """A loss that is infinite in the third batch of process 1."""

    calls, bad_call = 0, 3

    def forward(self, outputs: Any, target: Tensor) -> LossSum:
        self.calls += 1
        loss, weight = super().forward(outputs, target)
        bad = os.environ["RANK"] == "1" and self.calls == self.bad_call
        return LossSum(loss * float("inf") if bad else loss, weight)


def bad_image(world: World) -> Any:
    """Return the error, whether the weights are unchanged, and the image names after one process had a bad loss."""
    good = Capture()
    trained(world, 2, CrossEntropy(NUM_CLASSES), max_steps=2, hooks={"capture": good})
    with TemporaryDirectory() as run:
        trainer = make(world, 2, BadImage(NUM_CLASSES), run=Path(run), log_every=4)
        with pytest.raises(NonFiniteError) as caught:
            trainer.fit()
    same = [torch.equal(*pair) for pair in zip(trainer.model.parameters(), good.weights[1], strict=True)]
    bad = [key.index for key in next(trainer.loader.sample_keys(2, 3, rank=1))]
    return str(caught.value), all(same), [trainer.components.training.names[index] for index in bad]


def stop_request(world: World) -> int:
    """Return the step at which training stops after one process received a stop signal."""
    with TemporaryDirectory() as run:
        trainer = make(world, 2, CrossEntropy(NUM_CLASSES), run=Path(run))
        trainer.stop_signal = lambda: 15 if world.rank == 1 and trainer.state.step >= 2 else None
        with pytest.raises(Interrupted, match="stopped after step"):
            trainer.fit()
    world.all_reduce_max_async(0)  # consumes the pending request, which would stop the next training
    return trainer.state.step


def all_reduces(world: World, accumulate: int) -> int:
    """Return the number of gradient all-reduces in a step."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    sent: list[int] = []

    def counted(group: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(bucket.index())
        done: torch.futures.Future[Tensor] = allreduce_hook(group, bucket)
        return done

    with TemporaryDirectory() as run:
        trainer = make(world, 1, CrossEntropy(NUM_CLASSES), accumulate, run=Path(run), max_steps=1)
        trainer.network.register_comm_hook(None, counted)  # type: ignore[operator]
        trainer.fit()
    return len(sent)


def validation_of_one_image(world: World) -> Any:
    """Return the results of a validation on fewer images than there are processes, as text since NaN equals nothing."""
    torch.manual_seed(5)
    found = evaluate(make_components(world=world, num_val=1), Net())
    return repr((found.report, found.loss, found.images, found.skipped))


class Overflowing(Net):
    """Gives NaN in process 1."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": super().forward(images)["out"] * (float("nan") if os.environ["RANK"] == "1" else 1)}


def bad_outputs(world: World) -> Any:
    """Return what each process finds if one process evaluates images with outputs that are NaN."""
    found = evaluate(make_components(world=world), Overflowing())
    return found.nonfinite, math.isnan(found.report.mean_iou)


class SpoilStatistics(Hook):
    """Makes running statistics infinite in process 1."""

    def on_step_end(self, trainer: TrainingLoop) -> None:
        if os.environ["RANK"] == "1":
            trainer.model.layers[1].running_var.fill_(math.inf)  # type: ignore[union-attr, index]


def bad_statistics(world: World) -> Any:
    """Return the error and the files if only one process has bad statistics when the training state is saved."""
    hooks = {"save": PeriodicSave(1), "spoil": SpoilStatistics()}
    with TemporaryDirectory() as run:
        trainer = make(world, 2, CrossEntropy(NUM_CLASSES), run=Path(run), model=Frozen, hooks=hooks)
        with pytest.raises(NonFiniteError) as caught:
            trainer.fit()
        return str(caught.value), [file.name for file in Path(run).rglob("*.pt")]


def different_problems(world: World) -> None:
    world.raise_collectively(["a: wrong", *(["b: wrong"] if world.rank else [])])


def main_returns(world: World) -> Any:
    def make() -> int:
        if world.rank:
            raise AssertionError("called in process 1")
        return 7

    return world.broadcast_from_main(make)


def main_raises(world: World) -> Any:
    def make() -> int:
        raise UserError("x=1: must be 2")

    return world.broadcast_from_main(make)


TWO: dict[str, Task] = {
    "step": partial(one_step, batch_size=2),
    "accumulated step": partial(one_step, batch_size=1, accumulate=2),
    "step with frozen norms": partial(one_step, batch_size=2, model=Frozen),
    "unused parts": partial(unused_parts, batch_size=2),
    "unused parts, some unfrozen later": partial(
        unused_parts, batch_size=2, freeze=["auxiliary", "layers.0"], unfreeze_at=2
    ),
    "step of ohem": partial(one_step, batch_size=2, loss=OHEM),
    "order": partial(sample_order, batch_size=2),
    "accumulated order": partial(sample_order, batch_size=1, accumulate=2),
    "validation": validation,
    "bad image": bad_image,
    "validation of one image": validation_of_one_image,
    "bad outputs": bad_outputs,
    "bad statistics": bad_statistics,
    "stop request": stop_request,
    "all-reduces": partial(all_reduces, accumulate=1),
    "all-reduces of an accumulated step": partial(all_reduces, accumulate=3),
    "different problems": different_problems,
    "main returns": main_returns,
    "main raises": main_raises,
}


@pytest.fixture(scope="module")
def two() -> dict[str, list[Any]]:
    """Return the results of all tasks in two processes."""
    return in_processes(2, TWO)


@pytest.mark.parametrize(
    ("name", "changes"), [("step", {}), ("accumulated step", {}), ("step with frozen norms", {"model": Frozen})]
)
def test_step_of_two_processes_equals_a_step_of_one(
    two: dict[str, list[Any]], name: str, changes: dict[str, Any]
) -> None:
    expected_loss, expected = in_one_process(partial(one_step, batch_size=4, **changes))
    for found_loss, found in two[name]:
        assert found_loss == pytest.approx(expected_loss, rel=1e-6)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "finetune"),
    [
        ("unused parts", {}),
        ("unused parts, some unfrozen later", {"freeze": ["auxiliary", "layers.0"], "unfreeze_at": 2}),
    ],
)
def test_parts_on_which_the_loss_does_not_depend_are_frozen(
    two: dict[str, list[Any]], name: str, finetune: dict[str, Any]
) -> None:
    expected_losses, _, expected = in_one_process(partial(unused_parts, batch_size=4, **finetune))
    for losses, names, found in two[name]:
        assert names == ["layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias"]
        assert losses == pytest.approx(expected_losses, rel=1e-5)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-6)


def test_processes_agree_on_the_ohem_loss(two: dict[str, list[Any]]) -> None:
    first, second = two["step of ohem"]
    assert first == second


def test_sample_order_depends_only_on_the_images_per_step(two: dict[str, list[Any]]) -> None:
    expected = in_one_process(partial(sample_order, batch_size=4))
    assert [expected] * 4 == two["order"] + two["accumulated order"]


@pytest.mark.slow
def test_validation_is_identical_for_one_two_and_three_processes(two: dict[str, list[Any]]) -> None:
    one = in_one_process(validation)  # 13 images, divisible by neither 2 nor 3
    assert two["validation"] == [one] * 2
    assert in_processes(3, {"validation": validation})["validation"] == [one] * 3


def test_bad_image_of_one_process_is_named_by_all_processes(two: dict[str, list[Any]]) -> None:
    for message, unchanged, names in two["bad image"]:
        assert f"step 3: the loss is inf, the gradient norm nan (images {', '.join(names)})" in message
        assert unchanged


def test_validation_on_fewer_images_than_processes(two: dict[str, list[Any]]) -> None:
    assert two["validation of one image"] == [in_one_process(validation_of_one_image)] * 2


def test_bad_outputs_of_one_process_are_known_to_all(two: dict[str, list[Any]]) -> None:
    assert two["bad outputs"] == [(["val_00001"], True)] * 2


def test_bad_statistics_of_one_process_end_all_before_saving(two: dict[str, list[Any]]) -> None:
    first, second = two["bad statistics"]
    assert first == second
    assert first[1] == []
    assert first[0].startswith("after step 1, 1 tensor of the network holds")
    assert "layers.1.running_var" in first[0]


def test_all_processes_stop_at_the_same_step(two: dict[str, list[Any]]) -> None:
    first, second = two["stop request"]
    assert first == second
    assert first in (2, 3)  # possibly one step later, because the all-reduce is asynchronous


def test_synchronised_batch_norms_keep_the_activation_that_timm_puts_into_them() -> None:
    from timm.layers import BatchNormAct2d

    world, images = World(ProcessInfo(), Device("cpu")), torch.randn(2, 3, 4, 4)
    model = nn.Sequential(BatchNormAct2d(3, act_layer=nn.ReLU6), nn.BatchNorm2d(3))
    expected = model(images)
    converted = world.convert_sync_batchnorm(model)
    assert converted is not None
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()) == 2
    torch.testing.assert_close(converted(images), expected)
    assert converted.state_dict().keys() == model.state_dict().keys()


def test_gradients_are_all_reduced_once_per_step(two: dict[str, list[Any]]) -> None:
    assert two["all-reduces"] == two["all-reduces of an accumulated step"] == [1, 1]


def test_every_process_raises_the_problems_of_all_processes(two: dict[str, list[Any]]) -> None:
    assert two["different problems"] == [("a: wrong", "b: wrong")] * 2


def test_results_and_errors_of_process_0_are_broadcast(two: dict[str, list[Any]]) -> None:
    assert two["main returns"] == [7, 7]
    assert two["main raises"] == [("x=1: must be 2",)] * 2


def test_store_listens_on_the_given_address() -> None:
    create_store("127.0.0.2", 0).set("key", "value")  # like a host name that does not resolve to 127.0.0.1


def test_port_in_use_is_refused() -> None:
    store = create_store("127.0.0.1", 0)
    with pytest.raises(UserError, match=rf"port {store.port}: cannot listen on it \(Address already in use\)"):
        create_store("127.0.0.1", store.port)
