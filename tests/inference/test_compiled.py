"""Compiled networks in validation, test and prediction."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pspexp
from pspexp.inference import CenterCrop, Inference, Slide, Whole
from pspexp.models.exported import ExportedNetwork
from tests.conftest import TINY, Cli, last

pytestmark = pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="needs torch 2.6")
SIZES = [(48, 64), (57, 40), (40, 40), (33, 81), (64, 48), (90, 30)]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each graph that is compiled; without generating code, which is slow and needs a C++ compiler."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compile = torch.compile
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda network: compile(network, backend=backend, fullgraph=True))
    return graphs


@pytest.fixture(scope="module")
def network() -> nn.Module:
    config = pspexp.compose([*TINY])
    model: nn.Module = pspexp.build(config.model).eval()
    return model


@torch.inference_mode()
def test_number_of_sizes_does_not_matter(compilations: list[Any], network: nn.Module) -> None:
    for _ in range(2):  # as in the next validation, with another folded copy
        whole = Whole(compile=True)
        compiled = whole.network(network, torch.zeros(1, 3, 1, 1))
        for height, width in SIZES:
            images = torch.randn(1, 3, height, width)
            torch.testing.assert_close(whole.logits(compiled, images), Whole().logits(network, images))
    assert 1 <= len(compilations) <= 3


@pytest.mark.parametrize("mode", [Slide(33, compile=True), CenterCrop(33, compile=True), Whole(compile=True)])
def test_predictions_are_the_same(compilations: list[Any], tmp_path: Path, mode: Inference, cli: Cli) -> None:
    assert cli(*TINY, "trainer.max_steps=2", "hydra.run.dir=run") == 0
    name = type(mode).__name__
    option = {"Slide": "slide", "CenterCrop": "center_crop", "Whole": "whole"}[name]
    eager, compiled = (
        pspexp.load("run", [f"inference={option}", f"inference.compile={value}"]) for value in ("false", "true")
    )
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    np.testing.assert_allclose(compiled.probabilities(image), eager.probabilities(image), atol=1e-5)
    assert compilations


def test_training_validates_with_the_compiled_network(compilations: list[Any], cli: Cli, tmp_path: Path) -> None:
    assert cli(*TINY, "inference.compile=true", "hydra.run.dir=compiled") == 0
    assert 1 <= len(compilations) <= 3
    assert cli(*TINY, "hydra.run.dir=eager") == 0
    for ours, theirs in zip(*(last(tmp_path / run)["model"].values() for run in ("compiled", "eager")), strict=True):
        assert torch.equal(ours, theirs)  # training is not affected


def test_exported_network_is_not_compiled(compilations: list[Any]) -> None:
    exported = ExportedNetwork.__new__(ExportedNetwork)
    nn.Module.__init__(exported)
    assert Whole(compile=True).network(exported.eval(), torch.zeros(1, 3, 8, 8)) is exported


@pytest.mark.parametrize("key", ["trainer.compile", "inference.compile"])
def test_missing_compiler_is_reported(
    key: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cli(*TINY, f"{key}=true") == 2
    assert f"{key}=true: torch.compile needs a C++ compiler on CPUs, and no-such-compiler was not found" in (
        capsys.readouterr().err
    )


def test_whether_to_compile_is_not_taken_from_the_checkpoint(compilations: list[Any], cli: Cli) -> None:
    assert cli(*TINY, "trainer.max_steps=1", "inference.compile=true", "hydra.run.dir=run") == 0
    during_training = len(compilations)
    torch.compiler.reset()
    assert cli("mode=test", "checkpoint.path=run", "tracking=none") == 0
    assert len(compilations) == during_training > 0
    assert cli("mode=test", "checkpoint.path=run", "tracking=none", "inference.compile=true") == 0
    assert len(compilations) > during_training
