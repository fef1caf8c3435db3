"""The stand-in for the vendor's accelerator, which other tests use, gives the CPU's results."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

STAND_IN = Path(__file__).parents[1] / "stand_in"
CHECKOUT = STAND_IN.parents[1]
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
BATCH = 8


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_net(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Conv2d(8, 5, 1)]
    return nn.Sequential(*layers)


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(BATCH, 3, 12, 12, generator=seeded(1))
    return images, torch.randint(5, (BATCH, 10, 10), generator=seeded(2))


@pytest.fixture(scope="module", autouse=True)
def plug_in() -> Any:
    """The plugin, imported like in a user's program; it needs a compiler."""
    sys.path.insert(0, str(STAND_IN))
    yield pytest.importorskip("torch_sdaa", exc_type=ImportError)
    sys.path.remove(str(STAND_IN))


@pytest.fixture(autouse=True)
def _first_device(plug_in: Any) -> Any:
    with torch.sdaa.device(0):
        yield


def run_python(code: str, *folders: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that can import the stand-in."""
    path = os.pathsep.join(map(str, (*folders, STAND_IN)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


# ---- devices


def test_two_devices_and_a_current_device() -> None:
    assert torch.sdaa.is_available()
    assert torch.sdaa.device_count() == 2
    with torch.sdaa.device("sdaa:1"):
        assert torch.sdaa.current_device() == 1
        assert torch.zeros(1, device="sdaa").device == torch.device("sdaa", 1)
    assert torch.sdaa.current_device() == 0
    torch.sdaa.set_device(1)
    assert torch.sdaa.current_device() == 1
    torch.sdaa.synchronize()


@pytest.mark.parametrize("use", [torch.empty, torch.zeros, torch.ones])
def test_missing_device_is_refused(use: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(RuntimeError, match="invalid sdaa device ordinal 2: 2 available"):
        use(1, device="sdaa:2")
    with pytest.raises(RuntimeError, match="invalid sdaa device ordinal"):
        torch.sdaa.set_device(2)


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("0", 1)])
def test_environment_sets_the_number_of_devices(visible: str, count: int) -> None:
    code = """
import torch, torch_sdaa
print(torch.sdaa.device_count(), torch.sdaa.is_available())
from pspexp.engine.device import unavailable_reason
print(unavailable_reason("sdaa"))
"""
    done = run_python(code, CHECKOUT, SDAA_VISIBLE_DEVICES=visible)
    reason = None if count else "invalid sdaa device ordinal 0: 0 available"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{count} {count > 0}\n{reason}")


@pytest.mark.skipif(TORCH < (2, 6), reason="torch.accelerator exists since torch 2.6")
def test_torch_accelerator_reports_the_device() -> None:
    assert torch._C._get_privateuse1_backend_name() == "sdaa"
    assert torch.accelerator.current_accelerator(check_available=True) == torch.device("sdaa")
    assert torch.accelerator.device_count() == 2


def test_tensors_of_different_devices_cannot_be_mixed() -> None:
    here = torch.ones(3, device="sdaa")
    assert (here * torch.tensor(2.0)).tolist() == [2, 2, 2]  # scalars may be on the CPU
    for other in ("cpu", "sdaa:1"):
        with pytest.raises(RuntimeError, match="same device"):
            here + torch.ones(3, device=other)


# ---- computing


def train(device: str, make: Callable[..., torch.optim.Optimizer], **layout: Any) -> dict[str, torch.Tensor]:
    net = make_net().to(device, **layout)
    images, labels = (part.to(device) for part in make_batch())
    optimizer = make(net.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(net(images.to(**layout)), labels).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    assert {weights.device.type for weights in net.state_dict().values()} == {device}
    return {name: weights.cpu() for name, weights in net.state_dict().items()}


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
}


@pytest.mark.parametrize("fused", [None, True], ids=["foreach", "fused"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_bit_identical_to_the_cpu(name: str, fused: bool | None) -> None:
    on_cpu, on_device = (train(device, partial(OPTIMIZERS[name], fused=fused)) for device in ("cpu", "sdaa"))
    for key, weights in on_cpu.items():
        assert torch.equal(weights, on_device[key]), key


def test_training_in_channels_last_is_bit_identical_to_the_cpu() -> None:
    layout = {"memory_format": torch.channels_last}
    on_cpu, on_device = (train(device, OPTIMIZERS["sgd"], **layout) for device in ("cpu", "sdaa"))
    for key, weights in on_cpu.items():
        assert torch.equal(weights, on_device[key]), key
        assert weights.stride() == on_device[key].stride()


OPERATIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "interpolate": lambda x: F.interpolate(x[None, None], size=(7, 9), mode="bilinear", align_corners=False),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x[None], 2),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "mask": lambda x: x[x > 0],
    "index_put with a mask": lambda x: x.clone().index_put_((x > 0,), x.new_tensor(3.0)),
    "index_put with a CPU mask": lambda x: x.index_put((x.cpu() > 0,), x.new_tensor(3.0)),
    "bincount": lambda x: torch.bincount((x > 0).long().flatten(), minlength=5),
    "scatter": lambda x: torch.zeros_like(x).scatter_add_(1, (x > 0).long(), x),
    "cumsum into an output of another shape": lambda x: torch.cumsum(x, 0, out=x.new_empty(0)),
    "resize": lambda x: x.clone().resize_(2, 3),
    "write to a view": lambda x: x.t()[1:, ::2].add_(1) + x.unfold(0, 3, 1).sum(),
    "sort": lambda x: list(x.sort(dim=0)),
    "argmax": lambda x: x.argmax(1),
    "half": lambda x: (x.half() @ x.half().t()).float(),
    "mean in half precision": lambda x: x.bfloat16().mean(0),
    "scalar type promotion": lambda x: x.half() * torch.tensor(2.0),
    "foreach": lambda x: torch._foreach_lerp([x, x + 1], [x * 2, x * 3], 0.25),
    "norm": lambda x: torch._foreach_norm([x, x + 1]),
    "item": lambda x: x.sum().item(),
    "softmax": lambda x: x.softmax(0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operators_match_the_cpu(name: str) -> None:
    x = torch.randn(6, 8, generator=seeded(0))
    with torch.inference_mode():
        result = OPERATIONS[name](x.to("sdaa"))
        expected = OPERATIONS[name](x.clone())
    assert not isinstance(result, torch.Tensor) or result.device.type == "sdaa"
    torch.testing.assert_close(result, expected, rtol=0, atol=0, check_device=False)


def test_weights_can_be_averaged() -> None:
    net, average = (make_net().to("sdaa") for _ in range(2))
    with torch.no_grad():
        for weights in net.parameters():
            weights.add_(1)
        torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), weight=0.25)
    for mean, start in zip(average.parameters(), make_net().parameters(), strict=True):
        torch.testing.assert_close(mean.cpu(), start + 0.25)


# ---- random numbers


def test_device_generators_are_independent() -> None:
    one, same = (torch.Generator("sdaa").manual_seed(5) for _ in range(2))
    state = torch.sdaa.get_rng_state()
    drawn = torch.rand(4, device="sdaa", generator=one)
    assert torch.equal(torch.rand(4, device="sdaa", generator=same), drawn)
    assert not torch.equal(torch.rand(4, device="sdaa", generator=one), drawn)
    assert torch.equal(torch.sdaa.get_rng_state(), state)
    assert torch.equal(torch.rand(4, generator=seeded(5)), drawn.cpu())
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(4, device="sdaa", generator=seeded(5))


def test_dropout_uses_the_device_generator() -> None:
    ones = torch.ones(1000, device="sdaa")
    torch.manual_seed(3)
    on_cpu = torch.rand(4)
    torch.manual_seed(3)
    first = F.dropout(ones, 0.5)
    state = torch.sdaa.get_rng_state()
    second = F.dropout(ones, 0.5)
    assert torch.equal(torch.rand(4), on_cpu)  # the CPU generator is not advanced
    assert 400 < (first == 0).sum() < 600
    assert not torch.equal(first, second)
    torch.sdaa.set_rng_state(state)
    assert torch.equal(F.dropout(ones, 0.5), second)
    torch.manual_seed(3)
    assert torch.equal(F.dropout(ones, 0.5), first)
    torch.sdaa.manual_seed(3)
    assert torch.equal(F.dropout(ones, 0.5), first)
    assert torch.equal(F.dropout(ones.to("sdaa:1"), 0.5).cpu(), first.cpu())  # torch.manual_seed seeds all devices


# ---- mixed precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_follows_torchs_operator_lists(dtype: torch.dtype) -> None:
    x = torch.ones(2, 3, 8, 8, device="sdaa")
    weight = torch.ones(4, 3, 3, 3, device="sdaa", requires_grad=True)
    with torch.autocast("sdaa", dtype=dtype):
        y = F.conv2d(x, weight)
        assert y.dtype == dtype
        assert F.softmax(y, 1).dtype == F.cross_entropy(y, y.argmax(1)).dtype == torch.float32
        assert torch.cat([y, y.float()]).dtype == torch.float32
    assert F.conv2d(x, weight).dtype == torch.float32
    if dtype == torch.bfloat16:  # not every CPU has this backward in float16
        y.sum().backward()
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32
    assert torch.sdaa.is_bf16_supported()
    assert torch.sdaa.get_amp_supported_dtype() == [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("vendor_module", [False, True], ids=["torch.amp", "torch.sdaa.amp"])
def test_scaler_scales_and_skips_overflowing_steps(vendor_module: bool) -> None:
    scaler = (
        torch.sdaa.amp.GradScaler(init_scale=8.0) if vendor_module else torch.amp.GradScaler("sdaa", init_scale=8.0)
    )
    weight = torch.ones(2, device="sdaa", requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    assert scaler.is_enabled()

    def step(factor: float) -> list[float]:
        optimizer.zero_grad()
        loss = scaler.scale((weight * factor).sum())
        assert loss.item() == pytest.approx(8 * (weight * factor).sum().item())
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
        return weight.tolist()

    assert step(0.5) == [0.5, 0.5]
    assert step(float("inf")) == [0.5, 0.5]
    assert scaler.get_scale() == 4


def test_vendor_names_exist() -> None:
    import torch.sdaa.amp

    with torch.sdaa.amp.autocast(dtype=torch.bfloat16):
        assert (torch.ones(2, 2, device="sdaa") @ torch.ones(2, 2, device="sdaa")).dtype == torch.bfloat16
    converted = torch.sdaa.nn.SyncBatchNorm.convert_sync_batchnorm(make_net())
    assert type(converted[1]) is torch.sdaa.nn.SyncBatchNorm
    assert torch.ones(1).sdaa().is_sdaa


# ---- saving


def test_saved_weights_load_on_any_device(tmp_path: Path) -> None:
    expected = make_net().state_dict()
    for device, where in (("sdaa", "cpu"), ("cpu", "sdaa"), ("sdaa", "sdaa:1"), ("sdaa:1", None)):
        torch.save(make_net().to(device).state_dict(), tmp_path / "net.pt")
        loaded = torch.load(tmp_path / "net.pt", map_location=where, weights_only=True)
        net = make_net().to(where or device)
        net.load_state_dict(loaded)
        for name, weights in loaded.items():
            assert weights.device.type == torch.device(where or device).type
            assert weights.device.index == torch.device(where or device).index or not weights.device.index
            assert torch.equal(weights.cpu(), expected[name])


# ---- several processes


def train_on_half_batch(net: nn.Module, rank: int, **options: Any) -> dict[str, Any]:
    """Run one training step on this process's half of the batch."""
    net = nn.parallel.DistributedDataParallel(net.to("sdaa"), **options)
    images, labels = (part.chunk(2)[rank].to("sdaa") for part in make_batch())
    images.requires_grad_()
    F.cross_entropy(net(images), labels).backward()
    assert images.grad is not None
    gradients = {
        name: weights.grad.cpu() for name, weights in net.module.named_parameters() if weights.grad is not None
    }
    return {"gradients": gradients, "buffers": dict(net.module.cpu().named_buffers()), "images": images.grad.cpu()}


def collectives(rank: int) -> dict[str, Any]:
    """Return the results of each collective operation in this process."""
    mine = torch.arange(3, device="sdaa") + 10 * rank
    total, largest, first = mine.clone(), mine.float(), mine.clone()
    dist.all_reduce(total)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    dist.broadcast(first, src=0)
    every = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(every, mine)
    joined = mine.new_empty(2, 3)
    dist.all_gather_into_tensor(joined, mine)
    gathered = [torch.empty_like(mine) for _ in range(2)] if rank == 0 else None
    dist.gather(mine, gathered)
    part = mine.new_empty(3)
    dist.scatter(part, [mine, mine + 1] if rank == 0 else None)
    reduced = mine.clone()
    dist.reduce(reduced, dst=0)
    passed = mine.clone()
    dist.send(passed, 1) if rank == 0 else dist.recv(passed, 0)
    objects: list[Any] = [None, None]
    dist.all_gather_object(objects, {"rank": rank})
    broadcast = [rank]
    dist.broadcast_object_list(broadcast, src=1)
    on_cpu = torch.ones(2)
    dist.all_reduce(on_cpu)
    dist.barrier()
    got = {"total": total, "largest": largest, "first": first, "joined": joined, "part": part, "passed": passed}
    lists = {
        "every": torch.stack(every).tolist(),
        "objects": objects,
        "broadcast": broadcast,
        "on_cpu": on_cpu.tolist(),
    }
    if gathered is not None:
        lists |= {"gathered": torch.stack(gathered).tolist(), "reduced": reduced.tolist()}
    return {name: tensor.tolist() for name, tensor in got.items()} | lists


def run_process(rank: int, folder: str) -> None:
    """Entry point of both processes."""
    sys.path.insert(0, str(STAND_IN))
    import torch_sdaa  # noqa: F401

    torch.set_num_threads(1)
    torch.sdaa.set_device(rank)
    address = f"file://{folder}/store"
    dist.init_process_group("cpu:gloo,sdaa:tccl", address, timedelta(seconds=60), world_size=2, rank=rank)
    results = {
        "collectives": collectives(rank),
        "plain": train_on_half_batch(make_net(norm=False), rank),
        "sync": train_on_half_batch(
            nn.SyncBatchNorm.convert_sync_batchnorm(make_net()), rank, gradient_as_bucket_view=True
        ),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(plug_in: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of both processes, computed once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(run_process, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_processes_exchange_tensors_and_objects(two_processes: list[dict[str, Any]]) -> None:
    both = [[0, 1, 2], [10, 11, 12]]
    for rank, results in enumerate(two_processes):
        expected = {
            "total": [10, 12, 14],
            "largest": both[1],
            "first": both[0],
            "joined": both,
            "every": both,
            "part": [value + rank for value in both[0]],
            "passed": both[0],
            "objects": [{"rank": 0}, {"rank": 1}],
            "broadcast": [1],
            "on_cpu": [2, 2],
        }
        if rank == 0:
            expected |= {"gathered": both, "reduced": [10, 12, 14]}
        assert results["collectives"] == expected


@pytest.mark.parametrize("kind", ["plain", "sync"])
def test_two_processes_match_the_gradients_of_one(two_processes: list[dict[str, Any]], kind: str) -> None:
    net = make_net(norm=kind == "sync")
    images, labels = make_batch()
    images.requires_grad_()
    F.cross_entropy(net(images), labels).backward()
    assert images.grad is not None
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    for results in two_processes:
        for name, weights in net.named_parameters():
            close(results[kind]["gradients"][name], weights.grad)
        for name, buffer in net.named_buffers():
            close(results[kind]["buffers"][name], buffer)
    halves = torch.cat([results[kind]["images"] for results in two_processes])
    close(halves / 2, images.grad)  # each process averaged over its half


def test_process_group_needs_a_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.sdaa, "device_chosen", False)
    with pytest.raises(RuntimeError, match=r"call torch\.sdaa\.set_device before init_process_group"):
        dist.init_process_group("cpu:gloo,sdaa:tccl", store=dist.HashStore(), rank=0, world_size=1)
    assert not dist.is_initialized()


# ---- the package


def test_program_exits_cleanly_after_a_backward_pass() -> None:
    code = """
import torch, torch_sdaa
class Double(torch.autograd.Function):
    forward = staticmethod(lambda context, x: x * 2)
    backward = staticmethod(lambda context, gradient: gradient * 2)
Double.apply(torch.ones(3, device="sdaa:1", requires_grad=True)).sum().backward()
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(TORCH < (2, 5), reason="torch loads such plugins automatically since version 2.5")
def test_installed_plugin_is_loaded_with_torch(tmp_path: Path) -> None:
    info = tmp_path / "torch_sdaa-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_sdaa\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nsdaa = torch_sdaa:_autoload\n")
    for first in ("torch", "torch_sdaa"):
        done = run_python(f"import {first}, torch; print(torch.ones(1, device='sdaa').device)", tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "sdaa:0\n", "")


def test_missing_compiler_is_reported(plug_in: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.prefix", "/dev/null")  # read-only, so the temporary folder is used
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ImportError, match=r"no C\+\+ compiler \(no-such-compiler\) found"):
        plug_in._build.library()
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(RuntimeError, match="false failed"):
        plug_in._build.library()
    assert [file.name for file in tmp_path.glob("*/*")] == ["lock"]
