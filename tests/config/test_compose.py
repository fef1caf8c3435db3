"""Composing configurations from overrides, and messages about invalid ones."""

from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from hydra.types import RunMode

import pspexp
from pspexp.config import compose as composition
from pspexp.config import overrides
from pspexp.config.options import conf_dir
from pspexp.errors import UserError

CONF = Path(conf_dir())
OPTIONS = sorted(
    (file.parent.name, file.stem)
    for file in CONF.glob("*/*.yaml")
    if file.parent.name not in ("experiment", "sweep", "hydra")
)
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
SWEEPS = sorted(file.stem for file in (CONF / "sweep").glob("*.yaml"))


@pytest.fixture
def root(tmp_path: Path) -> str:
    """An override that sets an existing data folder."""
    return f"dataset.root={tmp_path}"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        pspexp.compose(overrides)
    return list(caught.value.problems)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_fits_its_target(group: str, option: str, root: str, tmp_path: Path) -> None:
    if option == "albumentations":
        pytest.importorskip("albumentations")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    roots = [] if option == "shapes" else [root]
    own = [f"{group}._target_=builtins.dict"] if option == "custom" else []
    config = pspexp.compose([f"{group}={option}", *own, *roots])

    assert config.choices[group] == option


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str, root: str) -> None:
    roots = [] if experiment in ("quickstart", "debug") else [root]
    assert pspexp.compose([f"experiment={experiment}", *roots]).choices.experiment == experiment


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_sweep_composes_and_varies_existing_keys(sweep: str, root: str) -> None:
    if sweep == "optuna":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra 'optuna'")
    whole = composition.compose_checked([root, f"+sweep={sweep}"])
    assert whole.hydra.mode == RunMode.MULTIRUN
    assert "optimizer.lr" in whole.hydra.sweeper.params


def test_search_can_be_resumed_and_survives_failures(root: str) -> None:
    """With a seed and without storage, it suggests the same trials again if given the same results."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra 'optuna'")
    overrides = ("seed=7", "hydra.sweeper.n_trials=3", "optimizer.lr=interval(0.25,0.5)")
    sweeper = composition.compose_checked([root, "+sweep=optuna", *overrides]).hydra.sweeper
    assert (sweeper.sampler.seed, sweeper.storage, sweeper.max_failure_rate) == (7, None, 1.0)
    assert (sweeper.direction, sweeper.n_trials, sweeper.n_jobs) == ("maximize", 3, 1)
    assert pspexp.compose([root, "+sweep=optuna", *overrides]).optimizer.lr == 0.25


def test_sweep_composes_as_its_first_job(root: str) -> None:
    def found(*overrides: str) -> tuple[float, int]:
        config = pspexp.compose([root, "+sweep=lr_batch", *overrides])
        return config.optimizer.lr, config.loader.batch_size

    assert found() == (1e-4, 4)
    assert found("optimizer.lr=0.5") == (0.5, 4)  # Hydra's sweeper takes the explicit override
    assert found("optimizer.lr=0.5,1e-3", "seed=1,2") == (0.5, 4)
    assert found("hydra.mode=RUN") == (5e-5, 4)


def test_users_own_sweep(root: str, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    text = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {optimizer: 'sgd,adam', %s: '0.5,0.9'}}}\n"
    (tmp_path / "sweep" / "good.yaml").write_text(text % "optimizer.momentum")
    (tmp_path / "sweep" / "bad.yaml").write_text(text % "optimizer.momentun")
    overrides = [root, f"hydra.searchpath=[file://{tmp_path}]"]
    config = pspexp.compose([*overrides, "+sweep=good"])
    assert (config.choices.optimizer, config.optimizer.momentum) == ("sgd", 0.5)
    assert problems(*overrides, "+sweep=bad") == ["optimizer.momentun: unknown key; did you mean 'optimizer.momentum'?"]


@pytest.mark.parametrize(("option", "provider"), overrides.ENGINES.items())
def test_missing_plugin_is_named_with_its_extra(option: str, provider: tuple[str, str], root: str) -> None:
    group, _, name = option.rpartition("/")
    package, extra = provider
    if package in {distribution.name for distribution in distributions()}:
        assert pspexp.compose([root, f"{group}={name}"]).seed == 1122
    else:
        (found,) = problems(root, f"{group}={name}", f"{group.replace('/', '.')}.n_jobs=2")
        assert found == f"{group}={name}: {package} is not installed; pip install 'pspexp[{extra}]'"


def test_sweep_file_with_a_missing_plugin(root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(overrides.ENGINES, "hydra/sweeper/nosuch", ("hydra-nosuch-sweeper", "nosuch"))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text("# @package _global_\ndefaults: [override /hydra/sweeper: nosuch]\n")
    (found,) = problems(root, f"hydra.searchpath=[file://{tmp_path}]", "+sweep=mine")
    assert found == "hydra/sweeper=nosuch: hydra-nosuch-sweeper is not installed; pip install 'pspexp[nosuch]'"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("++optimizer.lr=1", "++optimizer.lr=1: this sweep varies the key; write optimizer.lr=<value>"),
        (
            "model.dropout=interval(0,1)",
            "model.dropout=interval(0,1): an interval needs a search; add +sweep=optuna, or give values",
        ),
        (
            "hydra.sweeper.params.optimizer.lr='1,2'",
            "hydra.sweeper.params.optimizer.lr: cannot be set like this; write optimizer",
        ),
        ("optimizer.lrr=1,2", "optimizer.lrr: unknown key; did you mean 'optimizer.lr'?"),
    ],
)
def test_overrides_that_a_sweep_cannot_use_are_named(override: str, message: str, root: str) -> None:
    (found,) = problems(root, "+sweep=lr_batch", override)
    assert found.startswith(message)


def test_glob_selects_options(root: str) -> None:
    whole = composition.compose_checked([root, "model=glob(pspnet*,exclude=*50*)"], sweep=True)
    assert whole.hydra.runtime.choices["model"] == "pspnet101"
    for override, message in (
        ("model=glob(x*)", "model=glob(x*): matches no option; model is one of custom, "),
        ("seed=glob(*)", "seed=glob(*): a glob can only select options of a group; give values"),
    ):
        with pytest.raises(UserError) as refused:
            composition.compose_checked([root, override], sweep=True)
        assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (("seed=1,2", "loader.batch_size=two"), ["loader.batch_size=two: must be a valid integer"]),
        (("seed=1,2", "+model.foo=1"), ["model.foo: unknown key"]),
        (("seed=1,two", "crop_size=34"), ["crop_size=34"]),
        (("seed=two,1", "crop_size=33"), []),  # affects the first job only
        (("model=pspnet50,fcn_resnet50", "model.pyramid_channels=x"), []),  # depends on the varied option
        (("experiment=camvid_cpu,voc2007_single", "loader.batch_size=two"), []),
        (("seed=1,2", "checkpoint.resume=nowhere"), []),  # may exist where the jobs run
    ],
)
def test_problems_of_every_job_are_reported_before_the_sweep_begins(
    overrides: tuple[str, ...], messages: list[str], root: str
) -> None:
    if not messages:
        composition.compose_checked([root, *overrides], sweep=True)
        return
    with pytest.raises(UserError) as refused:
        composition.compose_checked([root, *overrides], sweep=True)
    assert [one.startswith(message) for one, message in zip(refused.value.problems, messages, strict=True)] == [True]


def test_every_documented_option_exists() -> None:
    documented = {
        "model": "pspnet50 pspnet18 pspnet101 pspnet50_mmseg fcn_resnet50 deeplabv3_resnet50",
        "dataset": "voc2007 voc2007_21 voc2012 camvid shapes voc_folder cityscapes ade20k voc2012_aug cocostuff164k "
        "cocostuff10k",
        "augment": "scale_crop_flip semseg mmseg albumentations torchvision_v2 none",
        "loss": "cross_entropy focal ohem dice tversky lovasz boundary sum custom",
        "optimizer": "adam adamw sgd",
        "scheduler": "cosine poly step constant",
        "device": "auto cpu cuda mps",
        "precision": "auto fp32 bf16",
        "launcher": "single",
        "inference": "center_crop whole",
        "tracking": "mlflow none",
    }
    assert {(group, option) for group, options in documented.items() for option in options.split()} <= set(OPTIONS)
    assert {"quickstart", "voc2007_single", "camvid_cpu"} <= set(EXPERIMENTS)


def test_no_yaml_key_is_repeated() -> None:
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Strict, node: yaml.MappingNode) -> dict[object, object]:
        keys = [loader.construct_object(key) for key, _ in node.value]  # type: ignore[no-untyped-call]
        assert len(keys) == len(set(keys)), f"{node.start_mark}"
        return dict(loader.construct_pairs(node))

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    for file in CONF.rglob("*.yaml"):
        yaml.load(file.read_text(), Strict)


def test_defaults_are_those_of_the_reference(root: str) -> None:
    config = pspexp.compose([root])
    assert (config.crop_size, config.seed, config.loader.batch_size, config.loader.eval_batch_size) == (513, 1122, 4, 1)
    assert (config.trainer.epochs, config.trainer.validate_every, config.trainer.log_every) == (50, 5, 5)
    assert (config.optimizer.lr, config.model.output_stride, config.model.dropout) == (5e-5, 8, 0.1)
    assert (config.loss.main_weight, config.loss.aux_weight) == (0.6, 0.4)
    assert config.model.num_classes == config.dataset.num_classes == 20


def test_yaml_floats_are_numbers(root: str) -> None:
    assert pspexp.compose([root, "optimizer.lr=1e-4"]).optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: unknown key; did you mean 'optimizer.lr'?"),
        ("optimiser=adam", "optimiser: unknown key; did you mean 'optimizer'?"),
        ("+trainer.epoch=3", "trainer.epoch: unknown key; did you mean 'epochs'?"),
        ("++model.dropuot=0.2", "model.dropuot: unknown key; did you mean 'dropout'?"),
        ("+foo=3", "foo: unknown key"),
        ("hydra.run.dri=x", "hydra.run.dri: unknown key; did you mean 'hydra.run.dir'?"),
        (
            "optimizer=adm",
            "optimizer=adm: no such option; optimizer is one of adam, adamw, custom, sgd; did you mean 'adam'?",
        ),
        ("optimizer=5", "optimizer=5: no such option; optimizer is one of adam, adamw, custom, sgd"),
        ("optimizer.lr=abc", "optimizer.lr=abc: must be a valid number"),
        ("optimizer.betas=[0.9,x]", "optimizer.betas.1=x: must be a valid number"),
        ("trainer.epochs=1.5", "trainer.epochs=1.5: must be a valid integer"),
        ("trainer.epochs=0", "trainer.epochs=0: must be greater than 0"),
        ("trainer.grad_clip=high", "trainer.grad_clip=high: must be a valid number"),
        ("trainer.ema=1.0", "trainer.ema=1.0: must be less than 1"),
        (
            "mode=tset",
            "mode=tset: must be 'train', 'test', 'predict', 'export', 'check', 'sync', 'clean', 'compare' or 'init'",
        ),
        ("loader=4", "loader=4: must be"),
        ("model.head=concta", "model.head=concta: must be 'concat'"),
        ("trainer.compile=fast", "trainer.compile=fast: must be false, true, 'default', 'reduce-overhead'"),
        ("loader.cache_mib=-1", "loader.cache_mib=-1: must be greater than or equal to 0"),
        ("sweep=lr_batch", "sweep=lr_batch: write +sweep=lr_batch"),
        ("+sweep=lr_bach", "sweep=lr_bach: no such option; sweep is one of lr_batch, optuna; did you mean 'lr_batch'?"),
        ("seed=1,2", "seed=1,2: several values need a sweep; add -m"),
        ("seed", "seed: cannot be read as key=value; write seed=<value>"),
        ("crop_size=470", "crop_size=470: (crop_size - 1) must be divisible by 8 (model.output_stride); try 473"),
        ("loader.batch_size=1", "loader.batch_size=1: training needs at least 2"),
        ("dataset.class_names=[cat,dog]", "dataset.num_classes=20: but dataset.class_names has 2 names"),
        ("loss.class_weights=[1,2]", "loss.class_weights: 2 values for 20 classes"),
        ("mode=test", "checkpoint.path=null: mode=test needs a checkpoint"),
        ("model.weights=no/such.pt", "model.weights=no/such.pt: no such file or folder"),
        ("checkpoint.resume=no/such.pt", "checkpoint.resume=no/such.pt: no such file or folder"),
        ("~mode", "mode: missing; give it a value"),
        ("dataset=null", "dataset=null: no such option"),
        ("model.output_stride=0", "model.output_stride=0: must be 8, 16 or 32"),
        ("optimizer._partial_=false", "optimizer._partial_=false: must be true"),
        ("dataset.root=5", "dataset.root=5: must be a valid string"),
        ("optimizer.lr=-1", "optimizer.lr=-1: must be greater than 0"),
        ("optimizer.lr=null", "optimizer.lr=null: must be a valid number"),
        ("lr=0.1", "lr: unknown key; did you mean 'optimizer.lr'?"),
        ("num_classes=3", "num_classes: unknown key; did you mean 'dataset.num_classes'?"),
        (
            "device=gpu",
            "device=gpu: no such option; device is one of auto, cpu, cuda, mps, npu, sdaa; did you mean 'cuda'",
        ),
        ("hooks.early_stopping.patienc=5", "hooks.early_stopping.patienc: unknown key; did you mean"),
        (
            "hooks.mine._target_=my.Hook",
            "hooks.mine._target_: unknown key; to add it, write +hooks.mine._target_=my.Hook",
        ),
        ("+hooks.mine.start=1", "hooks.mine: no _target_; name a class with +hooks.mine._target_=<module.Class>"),
        ("+hooks.mine._target_=no.Hook", "hooks.mine._target_=no.Hook: cannot be imported"),
        ("+tracking.loggers.x._target_=no.Logger", "tracking.loggers.x._target_=no.Logger: cannot be imported"),
        ("~optimizer.lr", "optimizer.lr: missing; give it a value"),
        ("model._target_=pspexp.models.psp.pspnet", "model._target_=pspexp.models.psp.pspnet: cannot be imported"),
    ],
)
def test_problem_is_named_with_key_value_and_fix(override: str, message: str, root: str) -> None:
    found = problems(root, override)
    assert len(found) == 1, found
    assert found[0].startswith(message), found[0]


@pytest.mark.parametrize(
    "override", ["compare.filter=params.optimizer.lr = '0.001'", "hydra.sweep.dir=outputs/my sweeps/bad ünï"]
)
def test_unreadable_override_explains_how_to_quote(override: str, root: str) -> None:
    (found,) = problems(root, override)
    assert found.startswith(f"{override}: cannot be read as key=value; special characters need quotes")
    assert """'key="some value"'""" in found
    assert "\n" not in found


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    found = "\n".join(
        problems(
            f"dataset.root={tmp_path}/nowhere",
            "optimizer=adm",
            "optimizer.lrr=3",
            "model.dropout=abc",
            "crop_size=470",
            "loader.batch_size=1",
            "hydra.rnu.dir=x",
        )
    )
    keys = (
        "optimizer=adm",
        "optimizer.lrr",
        "model.dropout",
        "crop_size",
        "batch_size",
        "hydra.rnu.dir",
        "dataset.root",
    )
    assert [key for key in keys if key not in found] == []


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("augment/mine.yaml", "defaults: [scale_crop_flip]\nscale_mim: 0.7\n", "augment.scale_mim: unknown key"),
        ("experiment/mine.yaml", "# @package _global_\ntrainer:\n  epoch: 3\n", "trainer.epoch"),
        ("experiment/mine.yaml", "# @package _global_\nnew_key: 3\n", "new_key"),
        ("optimizer/mine.yaml", "lr: [1\n", "mine.yaml"),
    ],
)
def test_mistake_in_a_yaml_file_is_named(
    file: str, text: str, message: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / file).write_text(text)
    monkeypatch.setattr(composition, "conf_dir", lambda: str(tmp_path / "conf"))
    group = file.partition("/")[0]

    assert message in "\n".join(problems(root, f"{group}=mine"))


def test_cuda_graphs_exclude_accumulation(root: str) -> None:
    found = problems(root, "trainer.compile=reduce-overhead", "trainer.accumulate=2")
    assert len(found) == 1
    assert found[0].startswith("trainer.compile=reduce-overhead: CUDA graphs overwrite gradients")


def test_null_key_can_be_set(root: str) -> None:
    assert pspexp.compose([root, "run_name=first"]).run_name == "first"


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pspexp.compose(["dataset.root='~'"]).dataset.root == str(tmp_path)


def test_data_folder_is_stored_as_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pspexp.compose(["dataset.root=data"]).dataset.root == str(tmp_path / "data")


def test_wrong_checkpoint_is_the_only_problem() -> None:
    assert problems("mode=test", "checkpoint.path=no/such.pt") == [
        f"no/such.pt: no checkpoint there (looked for {Path('no/such.pt').absolute()})"
    ]
    assert problems("mode=test", "checkpoint.path=5", "dataset=shapes")[0].startswith("checkpoint.path=5")


def test_class_names_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    config = pspexp.compose(["dataset=voc_folder", f"dataset.root={tmp_path}"])
    assert list(config.dataset.class_names) == ["cat", "dog", "bird"]
    assert config.model.num_classes == 3

    given = pspexp.compose(["dataset=voc_folder", f"dataset.root={tmp_path}", "dataset.class_names=[a,b]"])
    assert given.model.num_classes == 2


@pytest.mark.filterwarnings("error")
def test_argument_names_known_to_pydantic_are_allowed(root: str) -> None:
    assert pspexp.compose([root, "tracking=mlflow"]).tracking.register is None


def test_unknown_keys_are_refused(root: str) -> None:
    config = pspexp.compose([root])
    with pytest.raises(AttributeError):
        _ = config.trainer.epoch


def test_options_from_the_users_folder(root: str, tmp_path: Path) -> None:
    (tmp_path / "own" / "optimizer").mkdir(parents=True)
    (tmp_path / "own" / "optimizer" / "mine.yaml").write_text("defaults: [sgd]\nlr: 0.5\n")
    searchpath = f"hydra.searchpath=[file://{tmp_path / 'own'}]"
    assert pspexp.compose([root, "optimizer=mine", searchpath]).optimizer.lr == 0.5
    config = composition.compose_checked([root, "optimizer=mine"], folders=[str(tmp_path / "own")])
    assert config.optimizer.lr == 0.5


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["optimizer=adm"], ["optimizer=adm: no such option"]),
        (["optimizer=sdg", "optimizer.momentum=0.5"], ["optimizer=sdg: no such option"]),
        (["optimizer=xyz", "optimizer.momentum=0.5"], ["optimizer=xyz: no such option"]),
        (["experiment=quickstrat"], ["experiment=quickstrat: no such option"]),
        (["crop_size=470"], ["crop_size=470"]),
        (["dataset=voc_folder"], ["dataset.root=data/voc_folder: no such file or folder"]),
        (["dataset=voc_folder", "dataset.root=nowhere"], ["dataset.root=nowhere: no such file or folder"]),
        (["dataset=shapes", "dataset.num_classes=abc"], ["dataset.num_classes=abc: must be a valid integer"]),
        (["dataset=shapes", "model.backbone_weights=imagenet"], ["model.backbone_weights=imagenet: no such file"]),
    ],
)
def test_consequences_of_a_problem_are_not_reported(overrides: list[str], messages: list[str]) -> None:
    """The default data folder does not exist: this is reported only if nothing else is wrong."""
    found = problems(*overrides)
    assert [problem.startswith(message) for problem, message in zip(found, messages, strict=True)] == [True], found


def test_key_that_an_experiment_sets_for_another_option_can_be_removed() -> None:
    chosen = ["experiment=quickstart", "augment=none"]
    with pytest.raises(UserError) as refused:
        pspexp.compose([*chosen, "+augment.own=3"])
    assert refused.value.problems == (
        "augment.scale_min: unknown key; if experiment=quickstart sets it for another option, add ~augment.scale_min",
        "augment.scale_max: unknown key; if experiment=quickstart sets it for another option, add ~augment.scale_max",
        "augment.own: unknown key",
    )
    assert "scale_min" not in pspexp.compose([*chosen, "~augment.scale_min", "~augment.scale_max"]).augment


@pytest.mark.parametrize(
    ("file", "override"), [("experiment/mine.yaml", "experiment=mine"), ("sweep/mine.yaml", "+sweep=mine")]
)
def test_experiment_in_the_wrong_package_is_explained(file: str, override: str, root: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text("seed: 3\nhydra: {mode: MULTIRUN}\n")
    (found,) = problems(root, override, f"hydra.searchpath=[file://{tmp_path}]")
    assert "begin the file" in found
    assert "# @package _global_" in found


CUSTOM_NET = """
class Net:
    def __init__(self, width: int, parts: object = None, **anything: object) -> None:
        if width == 3:
            raise ValueError("three is not possible")
        self.width, self.parts = width, parts
"""


@pytest.fixture
def custom_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_net.py").write_text(CUSTOM_NET)
    return "my_net.Net"


def test_users_own_target(custom_net: str, root: str) -> None:
    """A target may take any keyword arguments, and contain nodes in nodes and lists."""
    node = f"{{_target_: {custom_net}, width: 1, other: [2], parts: [{{_target_: {custom_net}, width: 2}}]}}"
    config = pspexp.compose([root, f"+hooks.mine={node}"])
    built = pspexp.build(config.hooks.mine)
    assert (built.width, built.parts[0].width) == (1, 2)
    (found,) = problems(root, f"+hooks.mine={node.replace('width: 2', 'width: two')}")
    assert found == "hooks.mine.parts.0.width=two: must be a valid integer"


def test_invalid_argument_of_a_target_is_named_by_its_full_key(custom_net: str, root: str) -> None:
    node = f"{{_target_: {custom_net}, width: 1, parts: {{_target_: {custom_net}, width: 3}}}}"
    config = pspexp.compose([root, f"+hooks.mine={node}"])
    with pytest.raises(UserError, match=r"^hooks\.mine\.parts: three is not possible$"):
        pspexp.build(config.hooks.mine)
    with pytest.raises(UserError, match=r"^device\.index=-1: must be greater than or equal to 0$"):
        pspexp.build({"device": {"_target_": "pspexp.engine.device.Device", "type": "cpu", "index": -1}})


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        ("dataset.images=scans/{id}_rgb.tif", "dataset.images='scans/{id}_rgb.tif'"),
        ("dataset.images='scans/{id}_rgb.tif'", "dataset.images='scans/{id}_rgb.tif'"),
        ("dataset.masks={id}/it's.png", "dataset.masks='{id}/it\\'s.png'"),
        ("a={lorry: truck, '*': ignore}", "a={lorry: truck, *: ignore}"),
        ('a={"x y": z}', "a={x y: z}"),
        ("a={b: 1}", "a={b: 1}"),
        ("a=[1,2", "a=[1,2"),
    ],
)
def test_patterns_and_quoted_keys_are_read_as_typed(text: str, readable: str) -> None:
    assert overrides.readable_overrides([text]) == [readable]
