"""What configurations from files may name."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import pspexp
from pspexp.config.targets import try_target
from pspexp.config.trust import refusal, refuse_untrusted
from pspexp.errors import UserError
from tests.conftest import TINY, Cli, run_commands

MODULE = '''
"""A network of the user's own; importing it leaves a trace."""

from pathlib import Path

from tests.small_network import pspnet

Path(__file__).with_name("imported").touch()


def my_net(**arguments):
    return pspnet(**arguments)
'''
QUICK = ("tracking=none", "loader.num_workers=0")
HOSTILE = [
    "os.system", "posix.system", "subprocess.run", "builtins.eval", "builtins.exec", "shutil.rmtree", "runpy.run_path",
    "hydra.utils.get_method", "hydra.utils.get_class", "hydra.utils.get_object", "hydra.utils.instantiate", "pip.main",
    "pspexp.cli.os.system", "pspexp.config.build.instantiate", "pspexp.utils.files.write_text_atomic",
    "pspexp.data.preparation.archive.shutil.rmtree", "torch.hub.load", "torch.load",
    "torch.nn.functional.warnings.sys.exit",    "torch.nn.modules.module.torch.load", "torch.utils.cpp_extension.load",
    "torchvision.models._api.importlib.import_module",
    "torch.nn.functional.np.testing.runstring", "torch.nn.functional.np.savetxt", "timm.models.load_state_dict",
    "timm.models._hub.hf_hub_download", "torch.nn.functional.torch._C.PyTorchFileWriter",
    "pspexp.utils.console_handler.LogFile", "pspexp.tracking.local.LocalTracker",
    "torchvision.models.feature_extraction.create_feature_extractor", "timm.models._features_fx.FeatureGraphNet",
    "timm.data.readers.reader_image_folder.ReaderImageFolder",
    "numpy.load", "mlflow.run", "transformers.pipeline", "timm.models._hub.os.system",
]  # fmt: skip


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_targets_are_refused(path: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if try_target(path) is None and path.partition(".")[0] not in sys.stdlib_module_names:
        pytest.skip("is not installed")
    assert refusal(path, own=own)
    if path.partition(".")[0] in sys.stdlib_module_names or {"os", "sys", "shutil"} & {*path.split(".")}:
        monkeypatch.setenv("PSPEXP_ALLOW_TARGETS", "*")
        assert refusal(path, own=own)


@pytest.mark.parametrize(
    "path",
    [
        "pspexp.models.pspnet.pspnet", "pspexp.losses.Dice", "pspexp.models.exported.ExportedNetwork", "torch.nn.ReLU",
        "torch.optim.RMSprop", "torch.optim.lr_scheduler.StepLR", "torchvision.transforms.v2.RandomCrop",
        "pspexp.data.augment.pipelines.Albumentations", "torch.nn.functional.cross_entropy", "timm.create_model",
        "torchvision.ops.sigmoid_focal_loss", "torchvision.models.resnet18", "pspexp.tracking.MLflowLogger",
    ],
)  # fmt: skip
def test_what_options_and_libraries_build_is_allowed(path: str) -> None:
    assert refusal(path, own=False) is None


def test_own_runs_may_name_parts_of_any_package() -> None:
    assert refusal("torchmetrics.classification.MulticlassCohenKappa", own=True) is None
    assert refusal("torchmetrics.classification.MulticlassCohenKappa", own=False)
    assert refusal("subprocess.Popen", own=True)
    assert refusal("rich.console.Console", own=True)  # a class, but no part of a training


def test_targets_in_lists_of_the_users_own_option_are_theirs() -> None:
    saved = {"loss": {"terms": [{"_target_": "numpy.load"}]}}
    with pytest.raises(UserError):
        refuse_untrusted(saved, "file", own=False)
    refuse_untrusted(saved, "file", own=False, today=OmegaConf.create(saved))


def test_every_option_is_allowed() -> None:
    """Else a run with that option could not be tested from its checkpoint."""
    config: Any = OmegaConf.to_container(pspexp.compose(["dataset=shapes"]))
    refuse_untrusted(config, "file", own=False)


@pytest.mark.parametrize(
    ("saved", "explicit"),
    [
        ({"dataset": {"class_names": ("a", {"_target_": "os.mkdir"})}}, ()),
        ({"dataset": {"root.x": {"_target_": "os.mkdir"}}}, ("dataset.root",)),
        ({"dataset": {"mean": {"_target_": "os.mkdir"}}}, ("dataset",)),
        ({"model": {"_target_": "timm.create_model", "pretrained_cfg_overlay": {"hf_hub_id": "evil/net"}}}, ()),
        ({"model": {"part": {"_target_": "pspexp.engine.device.Device", "plugin": "evil"}}}, ()),
    ],
)
def test_ways_around_are_closed(saved: dict[str, Any], explicit: tuple[str, ...]) -> None:
    with pytest.raises(UserError):
        refuse_untrusted(saved, "checkpoint.path=x.pt", own=False, explicit=explicit)


def test_nested_targets_interpolations_and_imports_are_found() -> None:
    saved = {
        "loss": {"terms": [{"loss": {"_target_": "os.system"}}]},
        "dataset": {"root": "${oc.env:SECRET}"},
        "device": {"plugin": "evil", "grad_scaler": "os.system"},
    }
    with pytest.raises(UserError) as refused:
        refuse_untrusted(saved, "checkpoint.path=x.pt", own=False)
    assert [line.partition(": ")[2].partition(":")[0] for line in refused.value.problems] == [
        "loss.terms.0.loss._target_=os.system",
        "dataset.root=${oc.env",
        "device.plugin=evil",
        "device.grad_scaler=os.system",
    ]
    refuse_untrusted(saved, "rerun=x", own=False, explicit={"loss", "dataset.root", "device"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a network of the user's own, in the working folder."""
    home = tmp_path_factory.mktemp("trained")
    (home / "my_module_of_trust.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home)
        overrides = [one for one in TINY if not one.startswith("model._target_")]
        target = "model._target_=my_module_of_trust.my_net"
        run_commands(home, (*overrides, target, "trainer.max_steps=1", "hydra.run.dir=run"))
    (home / "imported").unlink()
    return home


def tampered(trained: Path, folder: Path, target: str) -> Path:
    """A checkpoint whose network is ``target``."""
    content = torch.load(trained / "run" / "checkpoints" / "best.pt", weights_only=True)
    content["config"]["model"]["_target_"] = target
    torch.save(content, folder / "tampered.pt")
    return folder / "tampered.pt"


def test_own_run_is_usable_and_a_file_from_elsewhere_is_not(
    trained: Path, tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(trained)
    assert cli("mode=test", f"checkpoint.path={trained}/run", *QUICK) == 0
    file = tampered(trained, tmp_path, "my_module_of_trust.my_net")
    (trained / "imported").unlink(missing_ok=True)
    command = ("mode=test", f"checkpoint.path={file}", *QUICK)
    capsys.readouterr()
    assert cli(*command) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"checkpoint.path={file}: model._target_=my_module_of_trust.my_net: is not run because")
    assert "set PSPEXP_ALLOW_TARGETS=my_module_of_trust.* (or pspexp.load(…, allow_targets=[" in message
    with pytest.raises(UserError, match="PSPEXP_ALLOW_TARGETS"):
        pspexp.load(file)

    pspexp.load(file, allow_targets=["my_module_of_trust.*"])
    assert cli(*command, "model._target_=my_module_of_trust.my_net") == 0  # typed by the user
    monkeypatch.setenv("PSPEXP_ALLOW_TARGETS", "other.*, my_module_of_trust.*")
    assert cli(*command) == 0


@pytest.mark.parametrize(
    "key",
    [
        "mode=test checkpoint.path",
        "mode=predict predict.input=. checkpoint.path",
        "mode=export checkpoint.path",
        "rerun",
    ],
)
def test_hostile_configuration_is_refused_by_every_command(
    trained: Path, tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    file = tampered(trained, tmp_path, "os.mkdir")
    if key == "rerun":
        (tmp_path / "hostile").mkdir()
        config = OmegaConf.load(trained / "run" / "config.yaml")
        OmegaConf.update(config, "model._target_", "os.mkdir")
        OmegaConf.save(config, tmp_path / "hostile" / "config.yaml")
        file = tmp_path / "hostile"
    logging.getLogger().handlers.clear()
    assert cli(*f"{key}={file}".split()) == 2
    message = capsys.readouterr().err
    assert "model._target_=os.mkdir: Python's own and Hydra's functions are never run because a file names" in message
    assert "Traceback" not in message
