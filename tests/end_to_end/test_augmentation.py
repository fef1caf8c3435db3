"""Augmentation as a user chooses it: recipes, mixing, class-balanced sampling, pipelines of other libraries."""

from pathlib import Path

import pytest

import pspexp
from pspexp.config import training_data
from pspexp.config.build import build_training, init_distributed
from pspexp.engine.distributed import ProcessInfo
from pspexp.errors import UserError
from pspexp.jobs.check.data import check_data
from pspexp.jobs.check.report_images import first_batch
from tests.conftest import TINY, Cli, last, losses

MIXED = (
    "augment=mmseg",
    "augment.base_size=[80,40]",
    "augment.mix=classmix",
    "augment.mix_probability=1",
    "augment.jpeg_probability=0.5",
    "loader.sampling=class_balanced",
    "dataset.num_train=8",
)


def test_resuming_with_mixing_and_class_balanced_sampling_is_bit_exact(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*TINY, *MIXED, "hydra.run.dir=whole") == 0
    assert cli(*TINY, *MIXED, "hydra.run.dir=parts", "trainer.max_steps=3") == 0
    resumed = ("hydra.run.dir=parts", "checkpoint.resume=parts", "trainer.max_steps=null", "loader.num_workers=1")
    with monkeypatch.context() as patch:  # masks may have been edited since
        patch.setattr(training_data, "pixel_counts", lambda *_: pytest.fail("counted again"))
        assert cli(*TINY, *MIXED, *resumed) == 0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert [last(run)["training"]["state"]["step"] for run in (whole, parts)] == [8, 8]
    assert losses(whole)[-1] == losses(parts)[-1]
    assert "class-balanced sampling: some images are taken up to " in (whole / "run.log").read_text()
    capsys.readouterr()
    assert cli(*TINY, *MIXED, *resumed, "loader.sampling=uniform") == 2
    assert "loader.sampling=uniform: the saved run has class_balanced" in capsys.readouterr().err
    assert cli(*TINY, *MIXED, *resumed, "augment.mix=null") == 2
    assert "augment.mix=null: the saved run has classmix" in capsys.readouterr().err


def test_pipeline_from_the_command_line(cli: Cli, tmp_path: Path) -> None:
    crop = "{_target_: torchvision.transforms.v2.RandomCrop, size: 33}"
    blur = "{_target_: torchvision.transforms.v2.GaussianBlur, kernel_size: 3}"
    overrides = ("augment=torchvision_v2", f"augment.transforms=[{blur},{crop}]", "trainer.max_steps=1")
    assert cli(*TINY, *overrides, "hydra.run.dir=run") == 0
    assert len(losses(tmp_path / "run")) >= 1


def test_wrong_pipeline_is_refused_before_training(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crop = "{_target_: torchvision.transforms.v2.RandomCrop, size: 32}"
    assert cli(*TINY, "augment=torchvision_v2", f"augment.transforms=[{crop}]", "hydra.run.dir=run") == 2
    assert (
        "augment.transforms: returns 32×32 pixels for an image of 66×50 pixels, but crop_size=33 needs 33×33; end the "
        "list with torchvision.transforms.v2.RandomCrop" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"augment\.transforms\.0\.sise: unknown key"):
        pspexp.compose([*TINY, "augment=torchvision_v2", f"augment.transforms=[{crop.replace('size', 'sise')}]"])


def test_pipeline_of_albumentations_trains(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("albumentations")
    assert cli(*TINY, "augment=albumentations", "trainer.max_steps=1", "hydra.run.dir=run") == 0
    assert len(losses(tmp_path / "run")) >= 1


def test_refusal_by_a_transform_is_one_line(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("albumentations")
    crop = "{_target_: albumentations.RandomCrop, height: -1, width: 33}"
    assert cli(*TINY, "augment=albumentations", f"augment.transforms=[{crop}]", "hydra.run.dir=run") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "augment.transforms" in line]
    assert "height Input should be greater than or equal to 1" in line


def test_check_shows_what_mixing_and_sampling_give(cli: Cli, tmp_path: Path) -> None:
    few = "loader.max_train_images=4"
    assert cli(*TINY, *MIXED, few, "mode=check", "hydra.run.dir=run") == 0
    assert (tmp_path / "run" / "check" / "report.html").is_file()
    config = pspexp.compose([*TINY, *MIXED, few, "mode=check", "device=cpu"])
    batch = first_batch(config, check_data(pspexp.build(config.dataset), config))
    components, _ = build_training(config, *init_distributed(config, ProcessInfo()), start_weights=True)
    indices = next(components.loader.batches(0, 1)).indices
    assert [image.name for image in batch] == [f"train_{index:05d}" for index in indices]  # type: ignore[union-attr]
