"""Messages about interpolations that cannot be resolved, in any key."""

from pathlib import Path

import pytest

import pspexp
from pspexp.config.compose import compose_checked
from pspexp.config.help import help_text
from pspexp.config.reference import Reference
from pspexp.errors import UserError
from tests.conftest import Cli


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODATA", raising=False)
    monkeypatch.delenv("NOROOT", raising=False)
    monkeypatch.setenv("WITH_VALUE", "x")


def problems(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        pspexp.compose(["dataset=shapes", *overrides])
    return list(caught.value.problems)


@pytest.mark.parametrize(
    "key",
    [
        "dataset.root",
        "output_root",
        "checkpoint.path",
        "checkpoint.resume",
        "tracking.tracking_uri",
        "optimizer.lr",
        "model.weights",
        "hydra.run.dir",
        "mode",
        "rerun",
        "predict.output",
        "launcher._target_",
    ],
)
@pytest.mark.parametrize("mode", ["train", "test"])
def test_unset_variable_is_named_with_its_key(key: str, mode: str) -> None:
    overrides = ["dataset=voc2007", f"{key}=${{oc.env:NODATA}}"]
    if key != "mode":
        overrides.append(f"mode={mode}")
    line, *others = problems(*overrides)
    assert line == (
        f"{key}=${{oc.env:NODATA}}: environment variable NODATA is not set; set it, or give {key} another value"
    )
    assert [other.partition("=")[0] for other in others] == ["checkpoint.path"] * (
        (key, mode) == ("hydra.run.dir", "test")
    )


def test_all_of_them_are_named_at_once_without_what_follows_from_them() -> None:
    assert sorted(
        problems(
            "dataset.num_val=${dataste.num_train}",
            "output_root=${oc.env:NOROOT}/${oc.env:WITH_VALUE}/${oc.env:NODATA}",
            "run_name=${oc.env:NODATA,unnamed}",
            "crop_size=${dataset.image_sice}",
            "optimizer.lr=${hydra:job.num}",
            "seeed=1",
        )
    ) == [
        "crop_size=${dataset.image_sice}: there is no key dataset.image_sice; did you mean 'dataset.image_size'?",
        "dataset.num_val=${dataste.num_train}: there is no key dataste.num_train; did you mean 'dataset.num_train'?",
        "optimizer.lr=${hydra:job.num}: ValueError raised while resolving interpolation: HydraConfig was not set",
        "output_root=${oc.env:NOROOT}/${oc.env:WITH_VALUE}/${oc.env:NODATA}: environment variables NOROOT and NODATA "
        "are not set; set them, or give output_root another value",
        "seeed: unknown key; did you mean 'seed'?",
    ]


def test_lists_relative_references_and_cycles_are_named() -> None:
    wrong = ("model.bins=[1,'${oc.env:NODATA}']", "dataset.test_split=${.vall_split}", "crop_size=${seed}")
    assert sorted(problems(*wrong, "seed=${crop_size}")) == [
        "crop_size=${seed}: Recursive interpolation detected",
        "dataset.test_split=${.vall_split}: there is no key dataset.vall_split; did you mean 'dataset.val_split'?",
        "model.bins.1=${oc.env:NODATA}: environment variable NODATA is not set; set it, or give model.bins.1 another "
        "value",
        "seed=${crop_size}: Recursive interpolation detected",
    ]


@pytest.mark.parametrize("key", ["hydra.sweep.dir", "output_root", "optimizer.lr"])
def test_sweeps_name_them(key: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_checked(["dataset=shapes", "seed=1,2", f"{key}=${{oc.env:NODATA}}"], sweep=True)
    (line,) = caught.value.problems
    assert line.startswith(f"{key}=${{oc.env:NODATA}}: environment variable NODATA is not set")


def test_help_with_resolved_values_names_them() -> None:
    wrong = ["output_root=${oc.env:NODATA}"]
    assert help_text(Reference(wrong), ["output_root"]).startswith("output_root=${oc.env:NODATA}\n")
    with pytest.raises(UserError, match=r"^output_root=.*NODATA is not set"):
        Reference(wrong, resolve=True)


def test_command_exits_with_code_2(cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli("dataset=voc_folder", "dataset.root=${oc.env:NODATA}", "hydra.run.dir=${oc.env:NOROOT}/run") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("=")[0] for line in lines] == ["hydra.run.dir", "dataset.root"]
    assert list(tmp_path.iterdir()) == []


def test_set_variables_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODATA", str(tmp_path))
    assert pspexp.compose(["dataset.root=${oc.env:NODATA}"]).dataset.root == str(tmp_path)
