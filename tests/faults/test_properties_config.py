"""Whatever overrides and YAML files say: a configuration or a UserError, nothing else."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

import pspexp
from pspexp.config.compose import compose_checked
from pspexp.config.options import conf_dir
from pspexp.errors import UserError

# Without shrinking, which would take minutes: each example composes a configuration.
FEW = settings(max_examples=7, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
GROUPS = sorted(path.name for path in Path(conf_dir()).iterdir() if path.is_dir() and path.name != "hydra")
KEYS = (
    *("seed", "mode", "crop_size", "experiment", "rerun", "output_root", "optimizer.lr", "model.dropout", "dataset"),
    *("dataset.mean", "dataset.class_names", "dataset.label_values", "dataset.root", "dataset.num_classes", "hooks"),
    *("loader.batch_size", "trainer.epochs", "loss.weight", "metrics", "checkpoint.path", "checkpoint.resume"),
    *("predict.input", "model.weights", "model._target_", "tracking.loggers", "hydra.mode", "hydra.run.dir"),
    *("hydra.sweeper.params", "hydra.searchpath", "augment.scale_min", "scheduler", "hydra/launcher", "+hooks.mine"),
)
VALUES = (
    *("1", "-1", "1e400", "nan", "inf", "null", "true", "''", "[]", "{}", "[1,2,3]", "{a: 1}", "{a: {b: [1]}}", "0x1F"),
    *(
        "1,2",
        "range(3)",
        "interval(0,1)",
        "choice(1,2)",
        "glob(*)",
        "${seed}",
        "${nope}",
        "${optimizer.lr}",
        "${",
        "???",
    ),
    *(
        "${oc.env:HOME}",
        "${oc.env:NO_SUCH_VARIABLE}",
        "${oc.decode:'[1'}",
        "${seed",
        "~",
        "~root/x",
        "/",
        "../..",
        "auto",
    ),
    *(
        "train",
        "test",
        "predict",
        "check",
        "shapes",
        "custom",
        "builtins.dict",
        "os.system",
        "a b",
        "é",
        "'",
        '"',
        "\\",
    ),
    *("${..seed}", "${dataset}", "${hydra:runtime.cwd}", "runs:/x", "models:/x@y", "99999999999999999999", "1_0", "00"),
)


def overrides() -> st.SearchStrategy[str]:
    """Overrides with real and invented keys and values, and other text."""
    keys = st.one_of(st.sampled_from([*KEYS, *GROUPS]), st.text(max_size=6))
    part = st.sampled_from(["", ".", "._target_", ".a", ".0", "@x", ":y", " ", "/"])
    sign = st.sampled_from(["", "", "", "", "+", "++", "~"])
    values = st.one_of(st.sampled_from(VALUES), st.sampled_from(VALUES), st.text(max_size=8))
    usual = st.tuples(sign, keys, st.one_of(st.just(""), part), st.just("="), values).map("".join)
    return st.one_of(
        usual, usual, usual, usual, st.text(max_size=12), st.sampled_from(["", "=", "~seed", "-m", "--help"])
    )


def composed(given: list[str], **options: Any) -> None:
    """Compose a configuration, of a single run and of a sweep."""
    with suppress(UserError):
        assert isinstance(pspexp.compose(["dataset=shapes", *given], **options), DictConfig)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@FEW
@given(texts=st.lists(overrides(), min_size=1, max_size=4))
@example(texts=["dataset.class_names._target_=1"])
def test_any_overrides_compose_or_are_refused(texts: list[str]) -> None:
    composed(texts)


@FEW
@given(text=st.sampled_from([f"{key}={value}" for key in (*KEYS, *GROUPS) for value in VALUES]))
def test_any_value_of_any_key_composes_or_is_refused(text: str) -> None:
    composed([text])


@settings(FEW, max_examples=5)
@given(texts=st.lists(overrides(), min_size=1, max_size=3))
def test_any_overrides_of_a_sweep_compose_or_are_refused(texts: list[str]) -> None:
    with suppress(UserError):
        compose_checked(["dataset=shapes", "optimizer.lr=1,2", *texts], sweep=True)


def plain() -> st.SearchStrategy[Any]:
    """What a YAML file may hold."""
    text = st.one_of(st.sampled_from(VALUES), st.text(max_size=6))
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text, st.dates(), st.binary(max_size=3))
    key = st.one_of(
        st.sampled_from(["_target_", "lr", "defaults", "hydra", "weight", "seed", "params", "_partial_", "a.b"]),
        st.integers(0, 3),
        st.booleans(),
        st.text(max_size=3),
    )
    return st.recursive(
        leaf, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(key, inner, max_size=3))
    )


def yaml_files() -> st.SearchStrategy[bytes]:
    """YAML of any content, with Hydra's own entries, and files that are no YAML."""
    defaults = st.lists(
        st.one_of(
            st.sampled_from(["_self_", "adam", "nosuch", "base", {"/model": "pspnet18"}, {"override /loss": "dice"}]),
            st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.text(max_size=3)), max_size=2),
        ),
        max_size=3,
    )
    tree = st.dictionaries(
        st.sampled_from(["_target_", "lr", "weights", "a", "hydra", "optimizer", "seed", "dataset"]),
        plain(),
        max_size=3,
    )
    both = st.builds(lambda values, chosen: {**values, "defaults": chosen}, tree, defaults)
    header = st.sampled_from(
        ["", "", "# @package _global_\n", "# @package a.b\n", "# @package ${x}\n", "# @package \n"]
    )
    dumped = st.builds(
        lambda start, value: (start + yaml.safe_dump(value, allow_unicode=True)).encode("utf-8", "surrogatepass"),
        header,
        st.one_of(tree, both, plain()),
    )
    text = st.one_of(
        st.sampled_from(
            ["a: &x [*x]", "- 1", "a: [", "\t", "a: 1\na: 2", "!!python/object:os.system x", "%YAML 9\n---"]
        ),
        st.text(max_size=20),
    )
    raw = st.builds(lambda one: one.encode("utf-8", "surrogatepass"), text)
    return st.one_of(dumped, dumped, dumped, raw, st.binary(max_size=20))


@FEW
@given(
    group=st.sampled_from(["optimizer", "model", "loss", "experiment", "sweep", "dataset", "metrics"]),
    content=yaml_files(),
    more=st.lists(overrides(), max_size=1),
)
def test_any_yaml_file_composes_or_is_refused(group: str, content: bytes, more: list[str]) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / group).mkdir()
        (Path(folder) / group / "mine.yaml").write_bytes(content)
        chosen = [f"{'+' * (group == 'sweep')}{group}=mine", *more]
        composed(chosen, config_dir=folder)


@pytest.mark.parametrize(
    "content",
    [
        b"a: &x [*x]",
        b"# @package _global_\n.nan\n",
        b"\x87p",
        b"# @package \n{}\n",
        b"defaults: [{a: null, b: null}]",
        b"defaults: [{}]",
        b"defaults: {a: b}",
        b"defaults: [{'': null}]",
    ],
)
def test_yaml_files_that_hydra_does_not_expect_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match="Hydra cannot compose this"):
        pspexp.compose(["dataset=shapes", "loss=mine"], config_dir=str(tmp_path))


def test_a_key_below_a_list_is_unknown() -> None:
    with pytest.raises(UserError, match=r"^dataset.class_names._target_: unknown key"):
        pspexp.compose(["dataset=shapes", "dataset.class_names._target_=1"])
