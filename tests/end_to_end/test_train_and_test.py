"""A user's first steps: train, look at the run folder, test the checkpoint, train from it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import PSPNET18, Cli, run_commands


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, tracked in MLflow, that tests only read."""
    home = tmp_path_factory.mktemp("trained")
    run_commands(home, (*PSPNET18, "tracking=mlflow", "trainer.ema=0.9", "run_name=first"))
    (folder,) = (home / "outputs" / "shapes").iterdir()
    return folder


def test_run_folder_holds_the_documented_files(trained: Path) -> None:
    documented = [
        *("config.yaml", "overrides.txt", "run.log", "metrics.jsonl", "summary.json", "tables/val_iou.csv"),
        *("checkpoints/last.pt", "checkpoints/best.pt"),
        *("plots/train_loss.png", "plots/val_loss.png", "plots/confusion_matrix.png"),
    ]
    assert [name for name in documented if not (trained / name).is_file()] == []
    assert len(list((trained / "plots" / "samples").glob("*.png"))) == 3

    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["num_classes"] == 5
    assert "model=pspnet18" in (trained / "overrides.txt").read_text().split()
    assert "epoch 2, step 4" in (trained / "run.log").read_text()


def test_records_have_the_documented_names(trained: Path) -> None:
    lines = records(trained)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    validation = [line for line in lines if "val/mean_iou" in line]
    assert [(line["step"], line["epoch"]) for line in validation] == [(2, 1), (4, 2)]
    train_names = {"train/loss", "train/lr", "train/images_per_second", "train/data_time", "train/step_time"}
    assert train_names <= lines[0].keys()
    val_names = {"val/loss", "val/overall_acc", "val/mean_acc", "val/freqw_acc", "val/iou/background"}
    val_names |= {"val/mean_dice", "val/mean_precision", "val/mean_recall"}
    assert val_names | {"best/mean_iou", "best/epoch"} <= validation[-1].keys()

    result = summary(trained)
    assert result["status"] == "FINISHED"
    assert result["best"]["best/mean_iou"] == max(line["val/mean_iou"] for line in validation)
    assert result["images_per_second"] > 0

    with (trained / "tables" / "val_iou.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", "iou", "accuracy", "pixels", "dice", "precision", "recall"]
    ious = [float(row["iou"]) for row in rows if row["iou"]]
    assert sum(ious) / len(ious) == pytest.approx(validation[-1]["val/mean_iou"], abs=1e-6)


def test_mlflow_holds_the_run(trained: Path) -> None:
    from mlflow import MlflowClient

    outputs = trained.parents[1]
    client = MlflowClient(tracking_uri=f"sqlite:///{outputs / 'mlflow.db'}")
    run = client.get_run(summary(trained)["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params["trainer.epochs"] == "2"
    assert run.data.tags["dataset"] == "shapes"
    assert run.data.tags["model"] == "pspnet18"
    assert "mean IoU" in run.data.tags["mlflow.note.content"]
    validation = [line["val/mean_iou"] for line in records(trained) if "val/mean_iou" in line]
    assert [point.value for point in client.get_metric_history(run.info.run_id, "val/mean_iou")] == validation
    top = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "tables", "plots", "checkpoints"} <= top
    saved = {file.path for file in client.list_artifacts(run.info.run_id, "checkpoints")}
    assert saved == {"checkpoints/best.pt"}


@pytest.mark.parametrize("source", ["file", "folder", "runs:/"])
def test_testing_reproduces_the_validation_metrics_exactly(
    source: str, trained: Path, cli: Cli, tmp_path: Path
) -> None:
    outputs = trained.parents[1]
    path = {
        "file": str(trained / "checkpoints" / "best.pt"),
        "folder": str(trained),
        "runs:/": f"runs:/{summary(trained)['mlflow_run_id']}",
    }[source]
    uri = f"tracking.tracking_uri=sqlite:///{outputs / 'mlflow.db'}" if source == "runs:/" else "tracking=none"
    assert cli("mode=test", f"checkpoint.path={path}", "hydra.run.dir=tested", uri) == 0

    best = {key: value for key, value in summary(trained)["best"].items() if key.startswith("val/")}
    (line,) = records(tmp_path / "tested")
    tested = {key.replace("test/", "val/"): value for key, value in line.items() if key.startswith("test/")}
    assert tested == best
    assert (tmp_path / "tested" / "tables" / "test_iou.csv").is_file()
    assert yaml.safe_load((tmp_path / "tested" / "config.yaml").read_text())["choices"]["model"] == "pspnet18"


def test_override_wins_over_the_checkpoint(trained: Path, cli: Cli, tmp_path: Path) -> None:
    overrides = ("mode=test", f"checkpoint.path={trained}", "hydra.run.dir=tested", "tracking=none")
    assert cli(*overrides, "dataset.num_val=2", "inference=center_crop", "crop_size=25") == 0
    config = yaml.safe_load((tmp_path / "tested" / "config.yaml").read_text())
    assert config["dataset"]["num_val"] == 2
    assert config["dataset"]["image_size"] == 48
    assert config["inference"]["_target_"] == "pspexp.inference.CenterCrop"
    assert config["inference"]["crop_size"] == 25


def test_checkpoint_with_different_classes_is_refused(
    trained: Path, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("mode=test", f"checkpoint.path={trained}", "dataset=voc_folder", f"dataset.root={tmp_path}")
    assert cli(*overrides, "dataset.class_names=[a,b]", "tracking=none") == 2
    error = capsys.readouterr().err
    assert "0 is a here, background there; 1 is b here, striped disc there" in error
    assert "'dataset.class_map={a: ignore, b: ignore}'" in error


def test_weights_from_another_project_can_be_tested(trained: Path, cli: Cli, tmp_path: Path) -> None:
    ours = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in ours["ema"].items()}}, "foreign.pth"
    )
    overrides = [override for override in PSPNET18 if not override.startswith("trainer")]
    assert cli("mode=test", "checkpoint.path=foreign.pth", "hydra.run.dir=tested", *overrides) == 0
    (line,) = records(tmp_path / "tested")
    assert line["test/mean_iou"] == summary(trained)["best"]["val/mean_iou"]


def test_fine_tuning_with_different_classes(trained: Path, cli: Cli, tmp_path: Path, voc: Path) -> None:
    weights = trained / "checkpoints" / "best.pt"
    overrides = [override for override in PSPNET18 if not override.startswith("dataset")]
    code = cli(
        *overrides,
        "dataset=voc_folder",
        f"dataset.root={voc}",
        "dataset.class_names=[a,b,c]",
        f"model.weights={weights}",
        "trainer.max_steps=1",
        "optimizer.lr=1e-8",
        "hydra.run.dir=tuned",
    )
    assert code == 0
    log = (tmp_path / "tuned" / "run.log").read_text()
    assert "classifier" in log
    tuned = torch.load(tmp_path / "tuned" / "checkpoints" / "last.pt", weights_only=True)["model"]
    first = torch.load(weights, weights_only=True)["ema"]
    torch.testing.assert_close(tuned["backbone.layer4.1.conv2.weight"], first["backbone.layer4.1.conv2.weight"])
    assert tuned["classifier.weight"].shape[0] == 3

    weights.rename(weights.with_suffix(".moved"))  # the initial weights may be gone by now
    try:
        assert cli("mode=test", "checkpoint.path=tuned", "hydra.run.dir=tested", "tracking=none") == 0
    finally:
        weights.with_suffix(".moved").rename(weights)


@pytest.mark.parametrize(
    "choice",
    [
        ("loss=focal", "optimizer=sgd", "scheduler=poly", "augment=semseg"),
        ("loss=ohem", "optimizer=adamw", "scheduler=step", "precision=bf16"),
        ("scheduler=constant", "augment=none", "channels_last=true", "inference=center_crop"),
        ("model.aux_channels=0", "trainer.accumulate=2", "trainer.grad_clip=1.0"),
    ],
    ids=lambda choice: choice[0],
)
def test_every_option_trains(choice: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    assert cli(*PSPNET18, *choice, "trainer.max_steps=1", "hydra.run.dir=run") == 0
    assert summary(tmp_path / "run")["status"] == "FINISHED"


@pytest.mark.parametrize("model", ["fcn_resnet50", "deeplabv3_resnet50", "pspnet50_mmseg"])
def test_every_model_family_trains(model: str, cli: Cli, tmp_path: Path) -> None:
    overrides = [override for override in PSPNET18 if not override.startswith("model")]
    overrides += [f"model={model}", "model.output_stride=32", "trainer.max_steps=1", "loader.max_eval_images=1"]
    assert cli(*overrides, "hydra.run.dir=run") == 0
    assert summary(tmp_path / "run")["status"] == "FINISHED"
