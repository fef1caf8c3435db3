"""What several rooms' tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# The smallest configuration that goes through every room: two steps an epoch, a few seconds a run.
TINY = (
    "dataset=shapes",
    "dataset.num_train=5",
    "dataset.num_val=3",
    "dataset.image_size=40",
    "model=pspnet18",
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
    "tracking=none",
)


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> Iterator[None]:
    """The same number of threads everywhere: sums depend on it in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


Cli = Callable[..., int]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cli]:
    """Types a command line in this process, in an empty folder; returns its exit code."""
    import logging

    from pspexp import main

    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def type_in(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["pspexp", *words])
        main.started.clear()
        try:
            main.main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0

    yield type_in
    for handler in [one for one in root.handlers if one not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
