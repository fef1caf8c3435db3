"""Fixtures and helpers shared by all tests."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def pytest_configure(config: pytest.Config) -> None:
    """Hide CUDA devices, unless the tests that need one are selected with ``-m cuda``.

    All other tests expect the CPU's results and a machine without GPUs. And they load the stand-in, which torch would
    then take for the machine's accelerator although there is CUDA.
    """
    if config.option.markexpr.startswith("cuda"):
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Torch counts the devices of all types at its first backward pass, so the stand-in must be loaded before.
    sys.path.append(str(Path(__file__).parent / "stand_in"))
    with suppress(ImportError):
        import torch_sdaa  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a CUDA device if none is visible."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA card and pytest -m cuda"))


# The smallest configuration that exercises the whole package: two steps per epoch, a few seconds per run.
TINY = (
    "dataset=shapes",
    "dataset.num_train=5",
    "dataset.num_val=3",
    "dataset.image_size=48",
    "model=pspnet18",
    "model._target_=tests.small_network.pspnet",
    "model.pyramid_channels=4",
    "model.head_channels=8",
    "model.aux_channels=4",
    "crop_size=33",
    "inference=whole",
    "loader.batch_size=2",
    "loader.num_workers=0",
    "trainer.epochs=2",
    "trainer.validate_every=1",
    "trainer.log_every=1",
    "precision=fp32",  # results to compare must not depend on the machine
    "tracking=none",
)
PSPNET18 = tuple(override for override in TINY if not override.startswith("model._target_"))  # with the real network


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> Iterator[None]:
    """Use at most two threads, and one under pytest-xdist, to avoid oversubscription."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is cached about data sets away from the user's cache, in processes that tests start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PSPEXP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_checkpoints_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Delete a test's checkpoints when it ends: together they take over 20 GB. Its folder stays, see setup.cfg."""
    folder: Path | None = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    for file in folder.rglob("*.pt") if folder else ():
        with suppress(OSError):
            file.unlink()


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test imports from its folder: another test may have a file of the same name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]


def default_signals() -> None:
    """``preexec_fn`` for commands that receive signals: they would inherit signals ignored by a background test run."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def run_commands(home: Path, *commands: tuple[str, ...]) -> None:
    """Run command lines in this process, one after another, with ``home`` as the working directory: for fixtures."""
    from pspexp import cli as main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for overrides in commands:
            patch.setattr("sys.argv", ["/bin/pspexp", *overrides])
            main.main()


def last(run: Path) -> dict[str, Any]:
    """Return the run's last checkpoint without its timer."""
    saved: dict[str, Any] = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    saved["training"].pop("timer")
    return saved


def losses(run: Path) -> list[float]:
    """Return the losses in a run's records."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines for key in ("train/loss", "val/loss") if key in line]


Cli = Callable[..., int]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cli]:
    """Run a command line in this process, in an empty folder; returns its exit code."""
    import logging

    from pspexp import cli as main

    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["pspexp", *arguments])
        try:
            main.main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0

    yield run
    for handler in [added for added in root.handlers if added not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A data set in the VOC layout: six grey images with labels of three classes."""
    import numpy as np
    from PIL import Image

    root = tmp_path / "voc"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(6):
        label = np.repeat(np.repeat(rng.integers(0, 3, (4, 5), np.uint8), 10, 0), 10, 1)
        Image.fromarray(label * 80).convert("RGB").save(root / "JPEGImages" / f"{index}.jpg")
        Image.fromarray(label).save(root / "SegmentationClass" / f"{index}.png")
    for split, names in (("train", range(4)), ("val", range(4, 6))):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root
