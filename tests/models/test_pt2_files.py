"""``.pt2`` files, which torch reads by running what is in them: only those that were exported here are read."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pspexp
from pspexp.errors import UserError
from pspexp.jobs.export import formats
from pspexp.models.exported import DESCRIPTION, ExportedNetwork
from pspexp.utils.allowed import allowing

DESCRIBED = {"input": "tensor", "mean": [0.5] * 3, "std": [0.5] * 3, "size_rule": {"multiple_of": 2, "plus": 0}}


class Network(nn.Module):
    """A small one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.interpolate(self.conv(images), images.shape[-2:], mode="bilinear")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as ``mode=export`` writes it."""
    if not hasattr(torch.export.Dim, "DYNAMIC"):
        pytest.skip("needs torch 2.6")
    file = tmp_path_factory.mktemp("exported") / "model.pt2"
    formats.write_pt2(Network().eval(), "tensor", torch.zeros(2, 3, 16, 24), file, DESCRIBED)
    return file


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def rewritten(file: Path, to: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of an archive with other contents."""
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(to, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return to


@pytest.fixture
def from_elsewhere(exported: Path, tmp_path: Path) -> Path:
    """The same file, changed so that reading it creates the file ``trace``."""
    pickled = tmp_path / "pickled.pt"
    torch.save({"": Payload(tmp_path / "trace")}, pickled)
    return rewritten(
        exported, tmp_path / "x.pt2", lambda name, old: pickled.read_bytes() if name.endswith(".pt") else old
    )


def test_file_exported_here_is_read_wherever_it_lies(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt2"
    copy.write_bytes(exported.read_bytes())
    assert ExportedNetwork(str(copy), 5)(torch.zeros(1, 3, 18, 12))["out"].shape == (1, 5, 18, 12)


def test_file_from_elsewhere_is_not_read(from_elsewhere: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        ExportedNetwork(str(from_elsewhere), 5)
    assert str(refused.value) == (
        f"{from_elsewhere}: was not exported here, and reading a .pt2 file may run code in it; use the ONNX file, or, "
        "if you trust the file, set PSPEXP_ALLOW_TARGETS=torch.export.load "
        "(or pspexp.load(…, allow_targets=['torch.export.load']))"
    )
    assert not (tmp_path / "trace").exists()


def test_user_may_allow_a_file_from_elsewhere(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = rewritten(exported, tmp_path / "x.pt2", lambda name, old: old)
    with pytest.raises(UserError):
        ExportedNetwork(str(file), 5)
    monkeypatch.setenv("PSPEXP_ALLOW_TARGETS", "torch.export.load")
    ExportedNetwork(str(file), 5)
    monkeypatch.delenv("PSPEXP_ALLOW_TARGETS")
    with allowing(["torch.export.load"]):
        ExportedNetwork(str(file), 5)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"input": "tensor"}', b"\xff"])
def test_damaged_description_is_refused(exported: Path, tmp_path: Path, text: bytes) -> None:
    file = rewritten(exported, tmp_path / "x.pt2", lambda name, old: text if name.endswith(DESCRIPTION) else old)
    with pytest.raises(UserError, match=r"x\.pt2: (is damaged|not a readable exported network)"):
        ExportedNetwork(str(file), 5)


@pytest.mark.parametrize("config", [{}, {"choices": 3, "dataset": 3}, {"choices": {}, "dataset": {}, "model": []}])
def test_configuration_of_another_kind_is_refused(exported: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    described = {**DESCRIBED, "config": config, "class_names": ["a"] * 5, "step": 1, "epoch": 1}

    def change(name: str, old: bytes) -> bytes:
        return json.dumps(described).encode() if name.endswith(DESCRIPTION) else old

    file = rewritten(exported, tmp_path / "x.pt2", change)
    with pytest.raises(UserError, match=r"x\.pt2: is damaged"):
        pspexp.load(file)
