"""Compiled code, in a process of its own: the compiler imports setuptools, which must come before distutils."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import TINY, Cli
from tests.end_to_end.conftest import TIMEOUT_S, Start, wait_for


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="needs torch 2.6")
def test_compiled_code_predicts_the_same(cli: Cli, start: Start, tmp_path: Path) -> None:
    assert cli(*TINY, "trainer.max_steps=2", "hydra.run.dir=run") == 0
    predict = ("mode=predict", "checkpoint.path=run", "predict.input=split:val", "predict.save=[probabilities]")
    for name, compile in (("eager", False), ("compiled", True)):
        process = start(*predict, f"inference.compile={compile}", f"predict.output={name}")
        codes, _, errors = wait_for([process], 3 * TIMEOUT_S)
        assert codes == [0], errors
    eager, compiled = (sorted((tmp_path / folder / "probabilities").iterdir()) for folder in ("eager", "compiled"))
    assert len(eager) == len(compiled) == 3
    for one, other in zip(eager, compiled, strict=True):
        np.testing.assert_allclose(*(np.load(file)["probabilities"] for file in (one, other)), atol=1e-4)
