"""Rules across nodes of the configuration: each problem is one line that names every key involved."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import pspexp
from pspexp.config import schema
from pspexp.errors import UserError

THREE = ("dataset=shapes", "dataset.num_classes=3", "dataset.class_names=[a,b,c]")


def problems(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        pspexp.compose(overrides)
    return list(caught.value.problems)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "ohem", "dice", "tversky", "lovasz", "boundary", "sum"])
def test_loss_ignores_other_labels_than_the_data(loss: str) -> None:
    assert problems(*THREE, f"loss={loss}", "loss.ignore_index=250") == [
        "loss.ignore_index=250: must equal dataset.ignore_index=255, its default; remove it, or set "
        "dataset.ignore_index=250"
    ]


def test_terms_of_a_sum_are_checked() -> None:
    terms = "loss.terms=[dise,{name:dice,smoth:1.0},{loss:{_target_:pspexp.losses.Dice,num_classes:3,smoth:2.0}}]"
    assert problems(*THREE, "loss=sum", terms) == [
        "loss.terms.2.loss.smoth: unknown key; did you mean 'smooth'?",
        "loss.terms.0.name=dise: must be one of boundary, cross_entropy, dice, focal, lovasz, ohem, tversky; "
        "did you mean 'dice'?",
        "loss.terms.1.smoth: unknown key; did you mean 'smooth'?",
    ]
    assert problems(*THREE, "loss=sum", "loss.terms=dice") == ["loss.terms=dice: must be a list"]


def test_a_term_is_changed_on_the_command_line() -> None:
    config = pspexp.compose([*THREE, "loss=sum", "loss.terms.1.weight=0.5", "+loss.terms.1.smooth=0.0"])
    assert config.loss.terms[1] == {"name": "dice", "weight": 0.5, "smooth": 0.0}


def test_class_weights_are_numbers_or_a_method() -> None:
    assert pspexp.compose([*THREE, "loss.class_weights=inverse"]).loss.class_weights == "inverse"
    (line,) = problems(*THREE, "loss.class_weights=invers")
    assert line.startswith("loss.class_weights=invers: must be null, a list with one weight for each class, auto, ")
    assert line.endswith("; did you mean 'inverse'?")


def test_loss_of_torch_has_to_ignore_the_labels_that_the_data_ignores() -> None:
    loss = "loss=custom", "loss._target_=torch.nn.CrossEntropyLoss"
    assert problems(*THREE, *loss, "~loss.ignore_index") == [
        "loss.ignore_index=-100: set it to dataset.ignore_index=255"
    ]
    assert problems(*THREE, "loss=sum", "loss.terms=[{loss:{_target_:torch.nn.CrossEntropyLoss}}]") == [
        "loss.terms.0.loss.ignore_index=-100: set it to dataset.ignore_index=255"
    ]
    wrapped = "loss.terms=[{loss:{_target_:pspexp.losses.TensorLoss,loss:{_target_:torch.nn.NLLLoss,ignore_index:0}}}]"
    assert problems(*THREE, "loss=sum", wrapped) == [
        "loss.terms.0.loss.loss.ignore_index=0: set it to dataset.ignore_index=255"
    ]
    inner = "loss.terms=[{loss:{_target_:pspexp.losses.Dice,num_classes:3,ignore_index:250}}]"
    assert [line.partition(":")[0] for line in problems(*THREE, "loss=sum", inner)] == [
        "loss.terms.0.loss.ignore_index=250"
    ]
    built = pspexp.build(pspexp.compose([*THREE, *loss, "dataset.ignore_index=254"]).loss)
    assert built.ignore_index == 254


def test_loss_of_torch_without_ignored_labels_is_accepted() -> None:
    assert pspexp.compose([*THREE, "loss=sum", "loss.terms=[{loss:{_target_:torch.nn.BCEWithLogitsLoss}}]"])


@pytest.mark.parametrize("mode", ["train", "check"])
def test_check_refuses_what_training_refuses(mode: str) -> None:
    stop = "+hooks.stop={_target_:pspexp.engine.hooks.EarlyStopping,metric:val/mean_dise}"
    assert [line.partition(":")[0] for line in problems(*THREE, f"mode={mode}", "loader.batch_size=1", stop)] == [
        "loader.batch_size=1",
        "hooks.stop.metric=val/mean_dise",
    ]


@pytest.mark.parametrize("augment", ["none", "scale_crop_flip", "semseg", "mmseg", "torchvision_v2"])
def test_augmentation_pads_with_other_labels(augment: str) -> None:
    (line,) = problems(*THREE, f"augment={augment}", "augment.ignore_index=254")
    assert line.startswith("augment.ignore_index=254: must equal dataset.ignore_index=255")


@pytest.mark.parametrize("mode", ["train", "check"])
def test_loss_has_other_classes_than_the_data(mode: str) -> None:
    assert problems(*THREE, f"mode={mode}", "loss.num_classes=4", "loss.ignore_index=7") == [
        "loss.num_classes=4: must equal dataset.num_classes=3, its default; remove it",
        "loss.ignore_index=7: must equal dataset.ignore_index=255, its default; remove it, or set "
        "dataset.ignore_index=7",
    ]


def test_model_has_other_classes_than_the_data() -> None:
    (line,) = problems(*THREE, "model.num_classes=4", "loss.num_classes=${model.num_classes}")
    assert line.startswith("model.num_classes=4: but the data set has 3 classes (dataset.num_classes=3)")


def test_all_follow_the_data() -> None:
    config = pspexp.compose([*THREE, "dataset.ignore_index=250"])
    assert (config.loss.ignore_index, config.augment.ignore_index, config.loss.num_classes) == (250, 250, 3)


@pytest.mark.parametrize(
    ("overrides", "start", "fix"),
    [
        (("dataset=voc_folder", "dataset.class_names=[cat]"), "dataset.num_classes=1: ", "[background,cat]"),
        (("dataset=shapes", "dataset.num_classes=1"), "dataset.num_classes=1: ", "[background,<name>]"),
        (("dataset=shapes", "dataset.class_names=[cat]"), "dataset.class_names=[cat]: ", "[background,cat]"),
        (
            ("dataset=voc2007", "dataset.num_classes=1", "dataset.class_names=[aeroplane]"),
            "dataset.num_classes=1: ",
            "[background,aeroplane] dataset.reduce_zero_label=false",
        ),
    ],
)
def test_one_class_is_refused_once_with_the_fix(overrides: tuple[str, ...], start: str, fix: str) -> None:
    (line,) = problems(*overrides)
    assert line.startswith(start)
    assert line.endswith(f"add the background as a class: dataset.class_names={fix}")


def test_one_class_in_the_folder_is_refused_once(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("background\n")
    (line,) = problems("dataset=voc_folder", f"dataset.root={tmp_path}")
    assert line.startswith("dataset.num_classes=1: ")


def test_configuration_changed_from_python_is_checked_again() -> None:
    config = pspexp.compose(THREE)
    config.loss.ignore_index = 3
    with pytest.raises(UserError, match=r"^loss\.ignore_index=3: must equal"):
        schema.check(OmegaConf.to_container(config))  # type: ignore[arg-type]


def test_network_takes_other_bands_than_the_data_has() -> None:
    four = ("dataset=folder", "dataset.class_names=[a,b]", "dataset.root=.", "dataset.mean=[0,0,0,0]")
    expected = "model.in_channels=3: but dataset.mean has 4 values; make them agree"
    assert problems(*four) == [expected]
    four = (*four, "dataset.std=[1,1,1,1]", "model.in_channels=4")
    assert pspexp.compose(four).model.in_channels == 4
    assert problems(*four, "augment.mean=[0.5,0.5,0.5]") == [
        "augment.mean=[0.5, 0.5, 0.5]: must equal dataset.mean=[0, 0, 0, 0], its default; remove it"
    ]
    (line,) = problems(*four, "tracking.register=net")
    assert line == "tracking.register=net: serves RGB images, but dataset.mean has 4 values; set it to null"
