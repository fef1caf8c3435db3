"""What a ``.pt2`` file from elsewhere may contain."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pspexp.errors import UserError
from pspexp.models import pt2_safety
from pspexp.models.exported import DESCRIPTION, ExportedNetwork

DESCRIBED = {"input": "tensor", "mean": [0.5] * 3, "std": [0.5] * 3, "size_rule": {"multiple_of": 2, "plus": 0}}


class Network(nn.Module):
    """Sizes enter its program as expressions."""

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
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Network().eval(), (torch.zeros(2, 3, 16, 24),), dynamic_shapes=(sizes,))
    torch.export.save(program, file, extra_files={DESCRIPTION: json.dumps(DESCRIBED)})
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


def test_own_files_are_accepted(exported: Path) -> None:
    with zipfile.ZipFile(exported) as archive:
        (program,) = (name for name in archive.namelist() if name.endswith(pt2_safety.PROGRAMS))
        assert b"expr_str" in archive.read(program)
    assert ExportedNetwork(str(exported), 5)(torch.zeros(1, 3, 18, 12))["out"].shape == (1, 5, 18, 12)


def test_crafted_pickle_is_refused(exported: Path, tmp_path: Path) -> None:
    trace, pickled = tmp_path / "trace", tmp_path / "pickled.pt"
    torch.save({"": Payload(trace)}, pickled)
    file = rewritten(
        exported, tmp_path / "x.pt2", lambda name, old: pickled.read_bytes() if name.endswith(".pt") else old
    )
    with pytest.raises(UserError, match=r"x\.pt2: not a readable exported network .*eights.only"):
        ExportedNetwork(str(file), 5)
    assert not trace.exists()


def test_pickled_constant_is_refused(exported: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}

    def change(name: str, old: bytes) -> bytes:
        return json.dumps({"config": {"x": payload}}).encode() if name.endswith("_constants_config.json") else old

    file = rewritten(exported, tmp_path / "x.pt2", change)
    with zipfile.ZipFile(file, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        if f"{root}/data/constants/model_constants_config.json" not in archive.namelist():
            pytest.skip("this torch stores constants in another way")
        archive.writestr(f"{root}/data/constants/opaque_obj_0", pickle.dumps(Payload(trace)))
    with pytest.raises(UserError, match="opaque_obj_0 is a pickle"):
        ExportedNetwork(str(file), 5)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"torch.ops.aten.conv2d.default", b"torch.os.system", "it calls torch.os.system, which"),
        (b"torch.ops.aten.conv2d.default", b"torch.hub.load", "it calls torch.hub.load, which"),
        (b"torch.ops.aten.conv2d.default", b"torch.ops.load_library", "it calls torch.ops.load_library, which"),
        (b"torch.ops.aten.conv2d.default", b"_operator.attrgetter", "it calls _operator.attrgetter, which"),
        (b'"expr_str": "', b'"expr_str": "__import__(\'os\').getpid() + ', "is not an expression of sizes"),
    ],
)
def test_programs_that_call_other_functions_are_refused(
    exported: Path, tmp_path: Path, old: bytes, new: bytes, said: str
) -> None:
    file = rewritten(exported, tmp_path / "x.pt2", lambda name, content: content.replace(old, new))
    with pytest.raises(UserError, match=said):
        ExportedNetwork(str(file), 5)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"input": "tensor"}', b"\xff"])
def test_damaged_description_is_refused(exported: Path, tmp_path: Path, text: bytes) -> None:
    file = rewritten(exported, tmp_path / "x.pt2", lambda name, old: text if name.endswith(DESCRIPTION) else old)
    with pytest.raises(UserError, match=r"x\.pt2: (is damaged|not a readable exported network)"):
        ExportedNetwork(str(file), 5)


def test_second_entry_of_the_same_name_is_refused(exported: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.pt2"
    file.write_bytes(exported.read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(archive.namelist()[0].upper(), b"")
    with pytest.raises(UserError, match="several entries have the same name"):
        ExportedNetwork(str(file), 5)


@pytest.mark.parametrize(
    "text",
    [
        "s0", "4*s0 - 1", "Max(1, s0//2)", "Add(Symbol('s7', positive=True, integer=True), Integer(-1))",
        "FloorDiv(s62, Integer(8))", "PythonMod(-s0, 8)", "u0 >= 2", "-int_oo",
    ],
)  # fmt: skip
def test_expressions_of_sizes(text: str) -> None:
    assert pt2_safety.is_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "exit()", "eval('1')", "sympify('exit()')", "().__class__", "s0.func", "[s0]", "lambda: s0", "Add('exit()')",
        "Symbol('a b')", "lambdify(s0, s0)", "S('exit()')", "preview(s0)", "open(s0)", "s0(1)", "__import__", "", "(",
    ],
)  # fmt: skip
def test_other_expressions_are_refused(text: str) -> None:
    assert not pt2_safety.is_expression(text)
