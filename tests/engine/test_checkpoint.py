"""Writing checkpoints atomically, and reading and finding them."""

import json
import os
from pathlib import Path

import pytest
import torch

from pspexp.config.resume import resume_conflicts
from pspexp.engine import checkpoint
from pspexp.errors import UserError
from pspexp.tracking import runs
from pspexp.utils.trees import flatten


def test_saved_checkpoints_are_read_safely(tmp_path: Path) -> None:
    folder = checkpoint.CheckpointDir(tmp_path / "checkpoints", {"seed": 1})
    weights = {"step": 3, "model": {"w": torch.ones(2)}, "ema": None}
    folder.save("last.pt", {**weights, "training": {"state": {"best": {}}}})
    folder.save("best.pt", weights)

    last = checkpoint.read(folder.folder / "last.pt", training=True)
    assert (last["format"], last["config"], last["step"]) == ("pspexp/1", {"seed": 1}, 3)
    assert "training" not in checkpoint.read(folder.folder / "best.pt")
    torch.load(folder.folder / "last.pt", weights_only=True)
    assert sorted(file.name for file in folder.folder.iterdir()) == ["best.pt", "last.pt"]


def test_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint.CheckpointDir(tmp_path, {})
    folder.save("last.pt", {"step": 1})

    def half(content: object, stream: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        folder.save("last.pt", {"step": 2})
    assert checkpoint.read(tmp_path / "last.pt")["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(
    ("content", "training", "message"),
    [
        ({"state_dict": {}}, False, "not a checkpoint of this project"),
        ({"format": "pspexp/1", "model": {}}, True, "holds weights only; resume from the run's last.pt"),
    ],
)
def test_foreign_and_weights_only_files_are_refused(
    content: dict[str, object], training: bool, message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        checkpoint.read(tmp_path / "x.pt", training=training)


def test_truncated_file_is_named(tmp_path: Path) -> None:
    torch.save({"format": "pspexp/1", "model": {"w": torch.ones(1000)}}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"x\.pt"):
        checkpoint.read(tmp_path / "x.pt")


def test_checkpoint_path_may_be_a_file_or_a_run_folder(tmp_path: Path) -> None:
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    best.parent.mkdir(parents=True)
    torch.save({}, best)
    assert runs.find_checkpoint(str(best), "best.pt") == best
    assert runs.find_checkpoint(str(tmp_path / "run"), "best.pt") == best
    assert runs.run_folder(best) is None
    (tmp_path / "run" / "config.yaml").touch()
    assert runs.run_folder(best) == tmp_path / "run"
    with pytest.raises(UserError, match="no checkpoint there"):
        runs.find_checkpoint(str(tmp_path / "run"), "last.pt")


def test_latest_unfinished_run_that_is_not_locked_is_found(tmp_path: Path) -> None:
    for number, (name, status) in enumerate([("a", "KILLED"), ("b", "RUNNING"), ("c", "FINISHED"), ("d", "FAILED")]):
        file = tmp_path / name / "checkpoints" / "last.pt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (number, number))
        (tmp_path / name / "summary.json").write_text(json.dumps({"status": status}))

    def latest(*excluded: str) -> Path | None:
        return runs.latest_unfinished(tmp_path, lambda file: file.parent.parent.name not in excluded)

    assert latest() == tmp_path / "d"
    assert latest("d") == tmp_path / "b"
    with runs.run_dir_lock(tmp_path / "b"):
        assert latest("d") == tmp_path / "a"
        with pytest.raises(UserError, match="another process is writing there"), runs.run_dir_lock(tmp_path / "b"):
            pass
    assert latest("d", "b", "a") is None


def test_nested_tensors_are_moved_to_the_cpu() -> None:
    moved = checkpoint.to_cpu({"a": [torch.ones(1, requires_grad=True)], "b": (1, "x")})
    assert moved["a"][0].device.type == "cpu"
    assert not moved["a"][0].requires_grad
    assert moved["b"] == (1, "x")


def test_nested_keys_become_dotted_keys() -> None:
    flat = flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": {}})
    assert flat == {"a.b": 1, "a.c.d": None, "e": [1, 2], "f": {}}


def test_changed_settings_prevent_a_resume() -> None:
    free = {"allow_world_size_change": False}
    then = {
        "checkpoint": free,
        "seed": 1,
        "optimizer": {"lr": 0.1},
        "dataset": {"root": "/a"},
        "loader": {"num_workers": 2, "batch_size": 4},
    }
    saved = {"config": then}
    now = {
        "checkpoint": free,
        "seed": 1,
        "optimizer": {"lr": 0.2},
        "dataset": {"root": "/b"},
        "loader": {"num_workers": 0, "batch_size": 8},
    }
    (batch, rate) = resume_conflicts(saved, now, 1)
    assert batch.startswith("loader.batch_size=8: the saved run has 4")
    assert rate.startswith("optimizer.lr=0.2: the saved run has 0.1")
    assert resume_conflicts(saved, then, 1) == []
