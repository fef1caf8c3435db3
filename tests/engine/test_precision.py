"""``precision=auto`` on CPUs, and what becomes of it after the training."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pspexp.engine import cpu_bf16
from pspexp.engine import precision as precisions
from pspexp.engine.device import Device
from pspexp.engine.precision import Precision
from tests.conftest import TINY, Cli

AUTO = (*(override for override in TINY if override != "precision=fp32"), "precision=auto", "device=cpu")


def multiplies(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    """Let this CPU multiply bfloat16 in hardware, or not."""
    monkeypatch.setattr(precisions, "bf16_on_this_cpu", lambda: (found, "tried"))


@pytest.mark.parametrize(
    ("instructions", "gain", "expected"),
    [
        ({"avx2", "avx512_f"}, 9.0, (False, "this CPU does not multiply bfloat16 in hardware")),
        ({"avx512_f", "avx512_bf16"}, 1.3, (True, "this CPU has avx512_bf16")),
        ({"avx512_bf16", "amx_bf16"}, 1.3, (True, "this CPU has amx_bf16")),
        ({"neon", "bf16"}, 0.9, (False, "this CPU has bf16, but a convolution in bfloat16 is slower")),
    ],
)
def test_instructions_decide_and_a_slow_convolution_vetoes(
    monkeypatch: pytest.MonkeyPatch, instructions: set[str], gain: float, expected: tuple[bool, str]
) -> None:
    monkeypatch.setattr(cpu_bf16, "_capabilities", lambda: instructions)
    monkeypatch.setattr(cpu_bf16, "remembered", lambda *_: gain)
    assert cpu_bf16.bf16_on_this_cpu.__wrapped__() == expected


def test_measurement_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPEXP_CACHE", str(tmp_path / "cache"))
    assert cpu_bf16.remembered("here", lambda: 1.5) == 1.5
    assert cpu_bf16.remembered("here", lambda: 0.5) == 1.5
    assert cpu_bf16.remembered("there", lambda: 0.5) == 0.5
    (tmp_path / "cache" / cpu_bf16.CACHE).write_text("{")
    assert cpu_bf16.remembered("here", lambda: 2.0) == 2.0
    (tmp_path / "file").touch()
    monkeypatch.setenv("PSPEXP_CACHE", str(tmp_path / "file"))
    assert cpu_bf16.remembered("here", lambda: 3.0) == 3.0


def test_gain_is_a_ratio_of_times() -> None:
    assert 0.01 < cpu_bf16.measure_gain() < 100


@pytest.mark.parametrize(("found", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_the_cpu(monkeypatch: pytest.MonkeyPatch, found: bool, expected: str) -> None:
    multiplies(monkeypatch, found)
    device = Device("cpu")
    assert Precision("auto").resolve(device) == expected
    assert Precision("auto").explain(device) == f"{expected} (tried)"
    assert Precision("fp32").explain(device) == "fp32"
    assert Precision("auto", resolved="fp32").resolve(device) == "fp32"
    assert Precision("auto", resolved="fp16").resolve(device) == expected  # of another device


def test_later_commands_use_what_the_training_used(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    multiplies(monkeypatch, False)
    assert cli(*AUTO, "trainer.max_steps=2", "hydra.run.dir=run") == 0
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").precision.resolved == "fp32"
    multiplies(monkeypatch, True)
    capsys.readouterr()
    for command in (
        ("mode=test", "checkpoint.path=run", "hydra.run.dir=test"),
        ("mode=predict", "checkpoint.path=run", "predict.input=split:val", "hydra.run.dir=predictions"),
        ("checkpoint.resume=run", "trainer.max_steps=3"),
    ):
        assert cli(*command, "device=cpu", "tracking=none") == 0
        assert "fp32 (as in the training)" in capsys.readouterr().out


def test_resume_where_the_precision_is_of_no_use_is_refused(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    multiplies(monkeypatch, True)
    assert cli(*AUTO, "trainer.max_steps=2", "hydra.run.dir=run") == 0
    multiplies(monkeypatch, False)
    capsys.readouterr()
    assert cli(*AUTO, "hydra.run.dir=run", "checkpoint.resume=auto") == 2
    assert "precision=auto: bf16 in the saved run, fp32 here; set precision=bf16" in capsys.readouterr().err
    assert cli("checkpoint.resume=run", "precision=bf16", "device=cpu") == 0
