"""Several processes find what one would have found."""

import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed import GradBucket

from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World, create_store, process_info_from_torchrun
from pspexp.engine.trainer import Trainer
from pspexp.errors import Interrupted, UserError
from pspexp.launchers.elastic import exit_without_teardown
from pspexp.losses import OHEM, CrossEntropy, LossSum, SegmentationLoss
from tests.training import NUM_CLASSES, Capture, evaluate, make_components, make_trainer

Work = Callable[[World], Any]


def in_processes(size: int, works: dict[str, Work]) -> dict[str, list[Any]]:
    """What each of ``works`` returns in each of ``size`` processes, by rank; started once, for that takes seconds."""
    store = create_store("127.0.0.1", 0)
    with TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            one_of, (size, store.port, Path(folder), works), nprocs=size, start_method="spawn"
        )
        found = [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(size)]
    return {name: [one[name] for one in found] for name in works}


def one_of(rank: int, size: int, port: int, folder: Path, works: dict[str, Work]) -> None:
    torch.set_num_threads(1)
    environment = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in environment.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    world = World(process_info_from_torchrun(), Device("cpu"))
    found = {}
    for name, work in works.items():
        try:
            found[name] = work(world)
        except UserError as error:
            found[name] = error.problems
    (folder / str(rank)).write_bytes(pickle.dumps(found))
    world.close()
    exit_without_teardown()


def alone(work: Work) -> Any:
    return work(World(ProcessInfo(), Device("cpu")))


class Net(nn.Module):
    """A convolution without batch norm: every image stands for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, NUM_CLASSES, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(images)}


class Frozen(Net):
    """The same with a batch norm that uses its running statistics only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.insert(1, nn.BatchNorm2d(8))

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.layers[1].eval()
        return self


def trained(world: World, batch_size: int, loss: SegmentationLoss, accumulate: int = 1, **changes: Any) -> Trainer:
    """A trainer after its run; it records nothing that is kept."""
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
    """Loss and gradients of the first step."""
    options: dict[str, Any] = {"class_weights": [1.0, 3.0, 0.5, 2.0, 1.0]} if loss is CrossEntropy else {"min_kept": 10}
    capture = Capture()
    hooks = {"capture": capture}
    trained(world, batch_size, loss(NUM_CLASSES, **options), accumulate, hooks=hooks, max_steps=1, **changes)
    return capture.losses[0], [gradient.tolist() for gradient in capture.gradients[0]]


def orders(world: World, batch_size: int, accumulate: int = 1) -> list[list[tuple[int, int]]]:
    """The samples of the first two steps, of all processes together."""
    loader = make_components(world=world, num_train=12, batch_size=batch_size, accumulate=accumulate).loader
    return [
        sorted(one for rank in range(world.size) for batch in loader.plan(step, step + 1, rank) for one in batch)
        for step in (0, 1)
    ]


def validation(world: World) -> Any:
    """Report and loss of a network whose answers differ from image to image."""
    torch.manual_seed(5)
    found = evaluate(make_components(world=world, num_train=12, num_val=5), Net())
    return found.report, found.loss, [sample.name for sample in found.samples]


class BadImage(CrossEntropy):
    """The loss is not finite in the second process's third batch, or in none."""

    calls, bad_call = 0, 3

    def forward(self, outputs: Any, target: Tensor) -> LossSum:
        self.calls += 1
        loss, weight = super().forward(outputs, target)
        bad = os.environ["RANK"] == "1" and self.calls == self.bad_call
        return LossSum(loss * float("inf") if bad else loss, weight)


def refused(world: World) -> Any:
    """How a training ends in which one process has a bad image."""
    good = Capture()
    trained(world, 2, CrossEntropy(NUM_CLASSES), max_steps=2, hooks={"capture": good})
    with TemporaryDirectory() as run:
        one = make(world, 2, BadImage(NUM_CLASSES), run=Path(run), log_every=4)
        with pytest.raises(ArithmeticError) as caught:
            one.fit()
    same = [torch.equal(*pair) for pair in zip(one.model.parameters(), good.weights[1], strict=True)]
    bad = [index for _, index in next(one.loader.plan(2, 3, rank=1))]
    return str(caught.value), all(same), [one.components.training.names[index] for index in bad]


def asked_to_stop(world: World) -> int:
    """The step at which a training stops that only one process is asked to stop."""
    with TemporaryDirectory() as run:
        one = make(world, 2, CrossEntropy(NUM_CLASSES), run=Path(run))
        one.stop_signal = lambda: 15 if world.rank == 1 and one.state.step >= 2 else None
        with pytest.raises(Interrupted, match="stopped after step"):
            one.fit()
    world.all_reduce_max_async(0)  # takes the answer to the last question, or the next training would stop
    return one.state.step


def exchanges(world: World, accumulate: int) -> int:
    """How often a step sends gradients."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    sent: list[int] = []

    def counted(group: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(bucket.index())
        done: torch.futures.Future[Tensor] = allreduce_hook(group, bucket)
        return done

    with TemporaryDirectory() as run:
        one = make(world, 1, CrossEntropy(NUM_CLASSES), accumulate, run=Path(run), max_steps=1)
        one.network.register_comm_hook(None, counted)  # type: ignore[operator]
        one.fit()
    return len(sent)


def quarrel(world: World) -> None:
    world.raise_collectively(["a: wrong", *(["b: wrong"] if world.rank else [])])


def only_the_first(world: World) -> Any:
    def make() -> int:
        if world.rank:
            raise AssertionError("the leader alone is asked")
        return 7

    return world.broadcast_from_main(make)


def fails_in_the_first(world: World) -> Any:
    def make() -> int:
        raise UserError("x=1: must be 2")

    return world.broadcast_from_main(make)


TWO: dict[str, Work] = {
    "step": partial(one_step, batch_size=2),
    "accumulated step": partial(one_step, batch_size=1, accumulate=2),
    "step with frozen norms": partial(one_step, batch_size=2, model=Frozen),
    "step of ohem": partial(one_step, batch_size=2, loss=OHEM),
    "order": partial(orders, batch_size=2),
    "accumulated order": partial(orders, batch_size=1, accumulate=2),
    "validation": validation,
    "refused": refused,
    "asked to stop": asked_to_stop,
    "exchanges": partial(exchanges, accumulate=1),
    "exchanges of an accumulated step": partial(exchanges, accumulate=3),
    "quarrel": quarrel,
    "only the first": only_the_first,
    "fails in the first": fails_in_the_first,
}


@pytest.fixture(scope="module")
def two() -> dict[str, list[Any]]:
    """What two processes found."""
    return in_processes(2, TWO)


@pytest.mark.parametrize(
    ("name", "changes"), [("step", {}), ("accumulated step", {}), ("step with frozen norms", {"model": Frozen})]
)
def test_a_step_of_two_processes_is_that_of_one_on_the_same_images(
    two: dict[str, list[Any]], name: str, changes: dict[str, Any]
) -> None:
    expected_loss, expected = alone(partial(one_step, batch_size=4, **changes))
    for found_loss, found in two[name]:
        assert found_loss == pytest.approx(expected_loss, rel=1e-6)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-7)


def test_processes_agree_where_a_loss_needs_its_whole_batch(two: dict[str, list[Any]]) -> None:
    first, second = two["step of ohem"]
    assert first == second


def test_the_order_of_samples_depends_on_the_images_of_a_step_only(two: dict[str, list[Any]]) -> None:
    expected = alone(partial(orders, batch_size=4))
    assert [expected] * 4 == two["order"] + two["accumulated order"]


@pytest.mark.slow
def test_validation_of_one_two_and_three_processes_is_identical(two: dict[str, list[Any]]) -> None:
    one = alone(validation)  # of 5 images, which neither 2 nor 3 divides
    assert two["validation"] == [one] * 2
    assert in_processes(3, {"validation": validation})["validation"] == [one] * 3


def test_a_bad_image_of_one_process_is_named_by_all_and_touches_no_weights(two: dict[str, list[Any]]) -> None:
    for message, untouched, names in two["refused"]:
        assert f"step 3: the loss is inf, the gradient norm nan (images {', '.join(names)})" in message
        assert untouched


def test_all_processes_stop_at_the_same_step(two: dict[str, list[Any]]) -> None:
    first, second = two["asked to stop"]
    assert first == second
    assert first in (2, 3)  # a step later: nobody waits for the answer


def test_gradients_are_sent_once_a_step_however_many_batches_it_has(two: dict[str, list[Any]]) -> None:
    assert two["exchanges"] == two["exchanges of an accumulated step"] == [1, 1]


def test_problems_of_all_processes_are_told_by_all(two: dict[str, list[Any]]) -> None:
    assert two["quarrel"] == [("a: wrong", "b: wrong")] * 2


def test_the_first_process_tells_the_others_what_it_found(two: dict[str, list[Any]]) -> None:
    assert two["only the first"] == [7, 7]
    assert two["fails in the first"] == [("x=1: must be 2",)] * 2


def test_the_address_that_others_are_told_is_the_one_listened_at() -> None:
    create_store("127.0.0.2", 0).set("word", "heard")  # as with a machine's own name, which need not mean 127.0.0.1


def test_a_port_that_is_taken_is_refused() -> None:
    store = create_store("127.0.0.1", 0)
    with pytest.raises(UserError, match=rf"port {store.port}: cannot listen on it \(Address already in use\)"):
        create_store("127.0.0.1", store.port)
