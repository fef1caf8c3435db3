"""What a rerun takes over from the original run, and what it does not."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import pspexp
from pspexp.config.compose import compose_checked, saved_choices, without_hydra
from pspexp.config.resolve import resolve
from pspexp.errors import UserError
from pspexp.jobs.records import Request, log_differences
from tests.conftest import TINY

Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Record a configuration as a run does; ``change`` may alter the record."""

    def record(
        *overrides: str, change: Callable[[dict[str, Any]], object] = lambda config: None, tiny: Sequence[str] = TINY
    ) -> Path:
        config: Any = OmegaConf.to_container(pspexp.compose([*tiny, *overrides]))
        change(config)
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
        return tmp_path / "run"

    return record


def rerun(run: Path, *overrides: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(pspexp.compose([f"rerun={run}", *overrides]))
    return dict(config)


def recorded(run: Path) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    return dict(config)


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        pspexp.compose(overrides)
    return str(caught.value)


def test_rerun_takes_everything_that_determines_the_result(saved: Saved) -> None:
    overrides = ("optimizer=sgd", "optimizer.lr=1e-5", "loss=focal", "augment=semseg", "trainer.ema=0.5", "seed=3")
    run = saved(*overrides, "crop_size=65", "dataset.mean=[0.1,0.2,0.3]")
    assert rerun(run) == {**recorded(run), "rerun": str(run)}


def test_rerun_does_not_take_output_locations(saved: Saved) -> None:
    run = saved("output_root=elsewhere", "run_name=first", "tracking=mlflow", "tracking.tracking_uri=http://far")
    config = rerun(run)
    assert (config["output_root"], config["run_name"], config["checkpoint"]["resume"]) == ("outputs", None, None)
    assert config["tracking"]["tracking_uri"] is None
    assert config["tracking"]["output_root"] == "outputs"
    assert rerun(run, "output_root=here")["tracking"]["output_root"] == "here"


def test_masked_secrets_are_not_taken(saved: Saved) -> None:
    def mask(config: dict[str, Any]) -> None:
        config["tracking"]["tracking_uri"] = "http://***@host"
        config["tracking"]["experiment"] = "***"
        config["dataset"]["class_names"][1] = "a//***@b"

    run = saved("tracking=mlflow", change=mask)
    config = rerun(run)
    assert "***" not in str(config)
    assert config["tracking"]["experiment"] == "pspexp"
    assert config["dataset"]["class_names"][1] == "striped disc"


def test_explicit_keys_take_precedence(saved: Saved) -> None:
    run = saved("optimizer=sgd", "optimizer.lr=0.5", "model.bins=[2,4,5,8]")
    config = rerun(run, "optimizer.momentum=0.3", "++trainer.ema=0.7", "model.bins.1=3")
    assert (config["optimizer"]["lr"], config["optimizer"]["momentum"]) == (0.5, 0.3)
    assert config["trainer"]["ema"] == 0.7
    assert config["model"]["bins"] == [2, 3, 5, 8]


def test_explicit_option_replaces_its_whole_group(saved: Saved) -> None:
    run = saved("optimizer=sgd", "optimizer.lr=0.5")
    config = rerun(run, "optimizer=adamw", "optimizer.weight_decay=0.25")
    fresh = OmegaConf.to_container(pspexp.compose([*TINY, "optimizer=adamw", "optimizer.weight_decay=0.25"]).optimizer)
    assert config["optimizer"] == fresh
    assert config["choices"]["optimizer"] == "adamw"


def test_interpolated_keys_stay_interpolated(saved: Saved) -> None:
    run = saved("inference=center_crop", "augment.crop_size=25")
    config = rerun(run, "crop_size=65")
    assert config["inference"]["crop_size"] == 65
    assert config["augment"]["crop_size"] == 25  # was set explicitly


def test_another_data_set_has_its_own_classes(saved: Saved, voc: Path) -> None:
    run = saved("model.dropout=0.3")
    config = rerun(run, "dataset=voc_folder", f"dataset.root={voc}", "dataset.class_names=[a,b,c]")
    assert (config["model"]["num_classes"], config["model"]["dropout"]) == (3, 0.3)


LITE = ("model=pspnet_lite0", "model.backbone_weights=null")
HALF, IMAGENET = [0.5] * 3, [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("before", "now", "mean"),
    [
        ((), LITE, HALF),
        ((), ("model.backbone=tf_efficientnet_lite0",), HALF),
        ((), ("model.dropout=0.3",), IMAGENET),
        (("dataset.mean=[0.1,0.2,0.3]",), LITE, [0.1, 0.2, 0.3]),
        ((), (*LITE, "dataset.mean=[0.1,0.2,0.3]"), [0.1, 0.2, 0.3]),
    ],
)
def test_other_weights_have_their_own_statistics(
    saved: Saved, before: tuple[str, ...], now: tuple[str, ...], mean: list[float]
) -> None:
    small = ("dataset=shapes", "model=pspnet18", "inference=whole", "crop_size=33")
    config = rerun(saved(*before, tiny=small), *now)
    assert config["dataset"]["mean"] == config["augment"]["mean"] == mean


def test_new_keys_get_defaults_and_old_ones_are_ignored(saved: Saved) -> None:
    def age(config: dict[str, Any]) -> None:
        del config["rerun"], config["trainer"]["compile"], config["optimizer"]["weight_decay"]
        config["trainer"]["old"] = 1
        config["optimizer"]["older"] = {"a": 2}
        config["oldest"] = 3

    run = saved(change=age)
    now = OmegaConf.to_container(pspexp.compose(TINY))
    assert rerun(run) == {**now, "rerun": str(run), "choices": rerun(run)["choices"]}  # type: ignore[dict-item]


def test_option_from_the_users_folder(saved: Saved, tmp_path: Path) -> None:
    folder = tmp_path / "own" / "optimizer"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("defaults: [sgd]\nlr: 0.5\n")
    path = f"hydra.searchpath=[file://{tmp_path / 'own'}]"
    run = saved("optimizer=mine", path)
    assert rerun(run)["optimizer"] == recorded(run)["optimizer"]
    assert rerun(run)["choices"]["optimizer"] == "mine"
    assert rerun(run, path, "optimizer.momentum=0.1")["optimizer"]["momentum"] == 0.1


def test_impossible_reruns_are_refused(saved: Saved, tmp_path: Path) -> None:
    run = saved()
    assert refusal(f"rerun={run}/nowhere").startswith(f"{run}/nowhere: no config.yaml there (looked for ")
    assert "experiment=quickstart: rerun=" in refusal(f"rerun={run}", "experiment=quickstart")
    assert "is a run of mode=train; set mode=train" in refusal(f"rerun={run}", "mode=test")
    assert refusal("rerun=5").startswith("rerun=5: must be a valid string")
    assert "runs:/0: there are no MLflow records" in refusal("rerun=runs:/0", f"output_root={tmp_path}/empty")
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml cannot be read" in refusal(f"rerun={run}")
    (run / "config.yaml").write_text("a: 3")
    assert "config.yaml is not the record of a run" in refusal(f"rerun={run}")


def test_missing_data_is_named(saved: Saved, voc: Path) -> None:
    overrides = ("dataset=voc_folder", f"dataset.root={voc}", "dataset.class_names=[a,b,c]")
    run = saved("dataset.num_train=5")
    config = yaml.safe_load((run / "config.yaml").read_text())
    fresh: Any = OmegaConf.to_container(pspexp.compose([*overrides, "inference=whole"]))
    config |= {"dataset": fresh["dataset"], "model": fresh["model"], "loss": fresh["loss"]}
    config["choices"] |= {"dataset": "voc_folder", "model": fresh["choices"]["model"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert rerun(run)["dataset"] == fresh["dataset"]
    voc.rename(voc.with_name("moved"))
    overrides = (f"rerun={run}", *saved_choices([f"rerun={run}"]))
    with pytest.raises(UserError, match=rf"dataset\.root={voc}: no such file or folder"):
        resolve(without_hydra(compose_checked(overrides)), overrides)
    assert rerun(run, f"dataset.root={voc.with_name('moved')}")["dataset"]["class_names"] == ["a", "b", "c"]


def test_moved_data_set_takes_the_classes_from_its_folder(saved: Saved, voc: Path) -> None:
    (voc / "classes.txt").write_text("a\nb\nc\n")
    run = saved("dataset=voc_folder", f"dataset.root={voc}", tiny=("model=pspnet18", "inference=whole"))
    assert rerun(run)["dataset"]["class_names"] == ["a", "b", "c"]
    other = shutil.copytree(voc, voc.with_name("other"))
    (other / "classes.txt").write_text("w\nx\ny\nz\n")
    config = rerun(run, f"dataset.root={other}")
    assert config["dataset"]["class_names"] == ["w", "x", "y", "z"]
    assert (config["dataset"]["num_classes"], config["model"]["num_classes"]) == (4, 4)
    assert "dataset.root=5: " in refusal(f"rerun={run}", "dataset.root=5")
    explicit = rerun(run, f"dataset.root={other}", "dataset.class_names=[a,b]", "dataset.num_classes=2")
    assert explicit["dataset"]["class_names"] == ["a", "b"]


def test_rerun_from_another_folder_finds_the_files(
    saved: Saved, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").touch()
    overrides = ("model.weights=w.pt", "model.backbone_weights=timm", "checkpoint.resume=auto", "output_root=here")
    run = saved(*overrides)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = rerun(Path("..") / "run")
    assert (config["model"]["weights"], Path(config["rerun"]).resolve()) == (str(tmp_path / "w.pt"), run.resolve())
    assert config["model"]["backbone_weights"] == "timm"
    original = recorded(run)
    assert (original["checkpoint"]["resume"], original["output_root"]) == ("auto", "here")


def test_run_that_became_unreachable_is_a_warning(
    saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = saved()
    config = pspexp.compose([f"rerun={run}"])
    run.rename(tmp_path / "gone")
    log_differences(Request(config, tmp_path / "new", []), {})
    assert "rerun: differences are unknown: " in caplog.text


def test_home_folder_is_expanded(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved("optimizer=sgd")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = pspexp.compose(["rerun='~/run'", "optimizer.momentum=0.1"])
    assert (config.rerun, config.optimizer.momentum) == (str(run), 0.1)


@pytest.mark.parametrize("overlay", ["lr_batch", "optuna"])
def test_job_of_a_sweep_is_rerun_alone(saved: Saved, overlay: str) -> None:
    if overlay == "optuna":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    run = saved(f"+sweep={overlay}", "optimizer.weight_decay=0.5")
    original = recorded(run)
    assert original["choices"]["sweep"] == overlay
    choices = {group: option for group, option in original["choices"].items() if group != "sweep"}
    assert rerun(run) == {**original, "rerun": str(run), "choices": choices}
    overrides = [f"rerun={run}"]
    assert str(compose_checked([*overrides, *saved_choices(overrides)]).hydra.mode) != "RunMode.MULTIRUN"


def test_quoted_folder(tmp_path: Path, saved: Saved) -> None:
    run = saved("optimizer=sgd").rename(tmp_path / "it's")
    folder = str(run).replace("'", "\\'")
    assert pspexp.compose([f"rerun='{folder}'", "optimizer.momentum=0.1"]).optimizer.momentum == 0.1
