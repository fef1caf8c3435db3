"""Benchmark tables are complete and consistent; speed is not tested."""

import importlib.util
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.bench import check as bench_check
from tools.bench import compilation, loader, overhead, prediction, timing, works
from tools.bench.__main__ import main

TINY = ("--network", "pspnet18", "--size", "33", "--repeats", "2", "--warmup", "1")
QUICK = ("--sample-seconds", "0", "--matmul", "64", "--no-memory")


def measured(folder: Path, *overrides: str) -> dict[str, Any]:
    file = folder / "bench.json"
    assert main([overrides[0], *TINY, *QUICK, *overrides[1:], "--json", str(file)]) == 0
    record: dict[str, Any] = json.loads(file.read_text())
    assert set(record) == {"command", "date", "machine", "versions", "results"}
    assert record["command"].startswith(f"python -m tools.bench {overrides[0]}")
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"cpu", "cores", "threads"} <= set(record["machine"])
    results: dict[str, Any] = record["results"]
    return results


def check(table: dict[str, Any], *failed: str) -> dict[str, Any]:
    """Check that each row has times and consistent statistics, except for those that ``failed``."""
    rows: dict[str, Any] = table["rows"]
    for name, row in rows.items():
        assert bool(row["failure"]) == (name in failed), row
        if row["failure"]:
            assert row["times_s"] == []
            continue
        assert row["median_s"] == statistics.median(row["times_s"]) > 0
        low, high = row["quartiles_s"]
        assert low <= row["median_s"] <= high
        if table["baseline"] and table["baseline"] not in failed:
            assert row["ratio"] == pytest.approx(rows[table["baseline"]]["median_s"] / row["median_s"])
    return rows


def test_heads_are_compared_with_the_same_weights(tmp_path: Path) -> None:
    tables = measured(tmp_path, "head")["head"]
    assert list(tables) == [f"{mode}, batch 2" for mode in ("forward", "forward+backward", "eval")]
    for table in tables.values():
        rows = check(table)
        assert table["baseline"] == "concat"
        assert rows["factorised"]["flops"] < rows["concat"]["flops"]
        (difference,) = [value for name, value in table["facts"].items() if "difference" in name]
        assert difference < 1e-4


def test_networks_are_compared_for_each_batch_size(tmp_path: Path) -> None:
    overrides = ("--models", "pspnet18,pspnet18_factorised", "--baseline", "pspnet18_factorised", "--batch", "2,3")
    tables = measured(tmp_path, "step", *overrides)["step"]
    assert list(tables) == ["33×33, batch 2", "33×33, batch 3"]
    for batch, table in zip((2, 3), tables.values(), strict=True):
        assert table["baseline"] == "pspnet18_factorised"
        rows = check(table)
        assert rows["pspnet18"]["images_per_s"] == pytest.approx(batch / rows["pspnet18"]["median_s"])
        assert rows["pspnet18"]["flops"] > rows["pspnet18_factorised"]["flops"]
        assert rows["pspnet18"]["share_of_peak"] > 0


def test_missing_network_is_noted_in_its_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = measured(tmp_path, "inference", "--models", "pspnet18,smp_pspnet_resnet50")["inference"]
    missing = importlib.util.find_spec("segmentation_models_pytorch") is None
    rows = check(table["33×33, batch 2"], *(["smp_pspnet_resnet50"] if missing else []))
    printed = capsys.readouterr().out
    assert "inference: 33×33, batch 2\n" in printed
    if missing:
        assert "segmentation-models-pytorch is not installed" in printed
    else:
        assert rows["smp_pspnet_resnet50"]["flops"] < rows["pspnet18"]["flops"]
        assert "encoder depth 3" in printed
        assert "images of 40×40" in printed


def test_training_is_compared_with_a_bare_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "SMALL", ("pspnet18", 33, 2))  # the same network again
    table = measured(tmp_path, "overhead", "--repeats", "1")["overhead"]["pspnet18, crop 33, batch 2"]
    rows = check(table)
    assert table["baseline"] == "bare loop"
    assert [len(rows[name]["times_s"]) for name in ("bare loop", "pspexp")] == [5, 5]


def test_bare_loop_runs_as_many_steps_as_the_trainer() -> None:
    loop = iter([None] * 6)
    pair = overhead.Alongside(loop, "cpu", rounds=2, steps=3)
    for calls in range(10):  # the trainer polls before each step, and during validation
        assert pair() is None
        assert len(pair.ours) == min(calls // 3, 2)
    assert len(pair.bare) == 2
    assert next(loop, "used up") == "used up"


def test_loader_is_measured_by_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "PHOTOGRAPHS", 8)
    rows = check(measured(tmp_path, "loader", "--workers", "0,1", "--repeats", "1")["loader"]["crop 33"])
    assert {"decoding alone", "0 workers, first epoch", "1 workers, later"} <= set(rows)
    assert all(row["images_per_s"] > 0 for row in rows.values())


def test_validation_is_compared_with_forward_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "PHOTOGRAPHS", 2)
    tables = measured(tmp_path, "evaluation", "--repeats", "1")["evaluation"]
    rows = check(tables["pspnet18, whole images"])
    assert list(rows) == ["forward passes", "images in memory", "validation", "confusion matrices"]
    assert all(row["images_per_s"] > 0 for row in rows.values())


@pytest.mark.parametrize(
    ("first", "compiled", "expected"),
    [
        ((1.0, 61.0, 7.0), 0.5, {"compiled": "120 runs", "compiled, from the cache": "12 runs"}),
        ((1.0, 61.0, 7.0), 1.1, {"compiled": "never", "compiled, from the cache": "never"}),
        ((1.0, 61.0, 0.9), 0.5, {"compiled": "120 runs", "compiled, from the cache": "0 runs"}),
        ((1.0, None, None), 0.5, {}),
        ((1.0, 61.0, 7.0), math.nan, {}),
    ],
)
def test_compilation_breaks_even(first: list[float | None], compiled: float, expected: dict[str, str]) -> None:
    facts = compilation.starts(first, 1.0, compiled)
    assert facts["first runs, compiled"] == ("failed" if first[1] is None else "61.0 s")
    assert {name.partition(", ")[2]: value for name, value in facts.items() if name.startswith("break")} == expected


def test_compilation_is_measured_for_training_and_inference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(
        compilation, "probed", lambda what, *_, **environment: float(Path(*environment.values()).is_dir())
    )
    tables = measured(tmp_path, "compile")["compile"]
    assert [key.split()[0] for key in tables] == ["step", "inference"]
    for table in tables.values():
        assert list(check(table)) == ["eager", "compiled"]
        assert "compiled (default)" in table["facts"]["setting"]
        assert table["facts"]["first runs, compiled"] == "1.0 s"


@pytest.mark.slow
def test_memory_is_measured_in_a_separate_process() -> None:
    kept = torch.ones(2**28)  # 1 GiB, which the other process must not inherit
    setting = works.Setting(device="cpu", size=33, batch=2, network="pspnet18")
    weights = sum(parameter.numel() for parameter in works.pspnet("pspnet18").parameters()) / 2**18  # MiB
    assert 1.5 * weights < timing.probed("memory", "step", "pspnet18", setting) < kept.numel() / 2**18


@pytest.mark.parametrize("runs", [0, 3])
def test_out_of_memory_is_noted_in_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: int
) -> None:
    def make(name: str, setting: Any) -> Any:
        left = iter(range(runs if name == "fcn_resnet50" else 99))

        def once() -> None:
            if next(left, None) is None:
                raise torch.cuda.OutOfMemoryError

        return works.Work(once, lambda: None)

    monkeypatch.setitem(works.WORKS, "step", make)
    results = measured(tmp_path, "step", "--models", "pspnet18,fcn_resnet50", "--baseline", "fcn_resnet50")
    rows = check(results["step"]["33×33, batch 2"], "fcn_resnet50")
    assert rows["fcn_resnet50"]["failure"] == "out of memory"
    assert "fcn_resnet50  out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["heads"], "heads: choose from head"),
        (["step", "--models", "unet"], "unet: choose from"),
        (["step", "--models", "pspnet18", "--baseline", "pspnet50"], "--baseline pspnet50: must be one of pspnet18"),
        (["step", "--batch", "1"], "needs at least 2 images"),
        (["step", "--device", "cuda"], "not available here; use --device cpu"),
    ],
)
def test_invalid_arguments_are_named(capsys: pytest.CaptureFixture[str], overrides: list[str], problem: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(overrides)
    assert problem in capsys.readouterr().err


def test_invalid_size_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["overhead", "--size", "96", *QUICK]) == 2
    assert "crop_size=96" in capsys.readouterr().err


def test_prediction_is_compared_with_the_bare_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "IMAGES", 2)
    monkeypatch.setattr(prediction, "SIZE", (48, 36))
    tables = measured(tmp_path, "predict", "--repeats", "1")["predict"]
    rows = check(tables["pspnet18, 48×36, one image at a time"])
    assert list(rows) == ["bare network", "mode=predict"]


def test_exported_networks_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    tables = measured(tmp_path, "inference", "--models", "pspnet18_factorised,pspnet18_onnx", "--batch", "1")
    assert set(check(tables["inference"]["33×33, batch 1"])) == {"pspnet18_factorised", "pspnet18_onnx"}


def test_semseg_form_computes_what_pspnet50_computes() -> None:
    torch.manual_seed(0)
    literal, ours = works.network(works.SEMSEG_FORM, 65)[0].eval(), works.network("pspnet50", 65)[0].eval()
    values = iter(literal.state_dict().values())
    ours.load_state_dict({name: next(values) for name in ours.state_dict()})
    images = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        difference = (ours(images)["out"] - literal(images)["out"]).abs().max()
    assert difference < 1e-4


def test_network_to_compare_with_comes_first(tmp_path: Path) -> None:
    overrides = ("--models", "pspnet18_factorised", "--against", "pspnet18")
    (table,) = measured(tmp_path, "inference", *overrides)["inference"].values()
    assert table["baseline"] == "pspnet18"
    assert list(check(table))[:2] == ["pspnet18", "pspnet18_factorised"]


@pytest.mark.parametrize(
    ("now", "fallen"), [({"a": 1.9, "b": 0.86}, []), ({"a": 1.6, "b": 1.0}, ["a"]), ({"a": 2.0}, ["b"])]
)
def test_fallen_ratios_are_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    now: dict[str, float],
    fallen: list[str],
) -> None:
    file = tmp_path / "expected.json"
    monkeypatch.setattr(bench_check, "measure", lambda: {"a": 2.0, "b": 1.0})
    assert bench_check.main(["--update", "--file", str(file)]) == 0
    monkeypatch.setattr(bench_check, "measure", lambda: now)
    assert bench_check.main(["--file", str(file)]) == bool(fallen)
    assert capsys.readouterr().err.splitlines() == [f"{name}: has fallen by more than 15%" for name in fallen]


def test_ratios_are_those_of_rows_that_are_compared() -> None:
    rows = {"x": {"ratio": 1.0}, "y": {"ratio": 1.23456}, "matrix product in fp32": {"ratio": 3.0}, "z": {}}
    assert bench_check.ratios({"step": {"65": {"baseline": "x", "rows": rows}}}) == {"step, 65: y": 1.235}
