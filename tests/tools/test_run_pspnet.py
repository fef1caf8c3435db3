"""The reference's flags as commands of pspexp, and what is said about them."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import pspexp
from pspexp.models.checkpoint_file import FORMAT
from pspexp.utils.trees import flatten
from tools import run_pspnet

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "from-reference.md").read_text()
# The published commands, with their flags and in pspexp's own words: training on one device and on four, resuming,
# testing on one and on four.
BY_FLAGS, NATIVE = (
    [line for line in block.splitlines() if not line.startswith("#")]
    for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)[:2]
)
DATA = "--dataset_path=voc"

Run = Callable[..., tuple[list[str], str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the tool in an empty folder; returns the overrides of the command that it would run, and its notes."""
    monkeypatch.chdir(tmp_path)
    commands: list[Sequence[str]] = []
    monkeypatch.setattr("os.execv", lambda _, command: commands.append(command))

    def run(*arguments: str) -> tuple[list[str], str]:
        monkeypatch.setattr("sys.argv", ["run_pspnet.py", *arguments])
        assert run_pspnet.main() == 0, capsys.readouterr().err
        _, *command = commands.pop()
        shown, said = capsys.readouterr()
        assert shlex.split(shown) == ["python", *command]
        assert command[:2] == ["-m", "pspexp"]
        return command[2:], said

    return run


@pytest.fixture
def refuse(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run the tool, which must exit with code 2; returns the lines that it prints."""

    def refuse(*arguments: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["run_pspnet.py", *arguments])
        assert run_pspnet.main() == 2
        shown, said = capsys.readouterr()
        assert shown == ""
        return said.splitlines()

    return refuse


def configuration(overrides: Sequence[str]) -> dict[str, Any]:
    """The flat configuration that overrides compose to."""
    return flatten(pspexp.compose([one for one in overrides if not one.startswith("hydra.")]))


@pytest.mark.parametrize("number", [0, 1])
def test_published_training_is_the_recipe(run: Run, number: int) -> None:
    by_flags, _ = run(*shlex.split(BY_FLAGS[number])[2:])
    native = shlex.split(NATIVE[number])[3:]
    assert [one for one in native if one.startswith("hydra.run.dir=")] == [
        one for one in by_flags if one.startswith("hydra.run.dir=")
    ]
    ours, recipe = configuration(by_flags), configuration(native)
    different = {key: value for key, value in ours.items() if value != recipe[key]}
    # On sdaa, precision=auto is fp16, too.
    expected = {"precision.name": "fp16"} | ({"launcher.master_port": 29505} if number else {})
    assert {key: value for key, value in different.items() if not key.startswith("choices.")} == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", "experiment=voc2007_single device=sdaa precision=fp32 inference=whole optimizer=sgd optimizer.lr=0.0001"),
        ("", "optimizer.weight_decay=0.0001 scheduler=cosine loss=cross_entropy seed=1122 trainer.epochs=100"),
        ("", "loader.batch_size=8 loader.eval_batch_size=1 trainer.validate_every=5 trainer.log_every=5 crop_size=513"),
        ("--autocast True", "device=sdaa precision=fp16"),
        ("--autocast=true --device=cuda", "device=cuda precision=fp16"),
        ("--autocast yes --device cpu", "device=cpu precision=auto"),
        ("--autocast 0", "precision=fp32"),
        ("--optimizer adamw --weight_decay 0.01 --lr=2e-3", "optimizer=adamw optimizer.weight_decay=0.01"),
        ("--lr=2e-3", "optimizer.lr=0.002"),
        ("--lr_policy poly", "scheduler=poly"),
        ("--lr_policy step", "scheduler=step"),
        ("--loss_type focal_loss", "loss=focal"),
        ("--step 7", "trainer.max_steps=7"),
        ("--crop_val True --crop_size 257", "inference=center_crop crop_size=257"),
        ("--val_batch_size 2 --random_seed 3", "loader.eval_batch_size=2 seed=3"),
        (
            "--val_epoch 2 --print_interval 20 --epoch 7",
            "trainer.validate_every=2 trainer.log_every=20 trainer.epochs=7",
        ),
        ("--work_dir runs/a/", "hydra.run.dir=runs/a"),
        ("--distributed True --nproc_per_node 4", "experiment=voc2007_ddp launcher.nproc_per_node=4"),
        ("--distributed True", "launcher.nproc_per_node=1"),
        ("--distributed True --master_port 1234", "launcher.master_port=1234"),
        (
            "--distributed True --nnodes 3 --node_rank 2",
            "launcher.nnodes=3 launcher.node_rank=2 launcher.master_addr=192.168.1.1 launcher.master_port=29505",
        ),
        ("tracking=none --lr 1 loader.num_workers=0", "tracking=none loader.num_workers=0"),
    ],
)
def test_training_flags(run: Run, flags: str, expected: str) -> None:
    overrides, said = run(DATA, *shlex.split(flags))
    assert set(expected.split()) <= set(overrides)
    assert said == ""
    configuration(overrides)  # which raises an error for what does not exist


@pytest.mark.parametrize(
    ("flags", "absent"),
    [
        ("--optimizer adam", "optimizer.weight_decay"),
        ("--step 0", "trainer.max_steps"),
        ("", "launcher"),
        ("", "hydra.run.dir"),
        ("", "model."),  # voc2007_single starts from timm's ImageNet weights
        ("--distributed True --nproc_per_node 2 --master_addr 10.0.0.1", "launcher.master"),
    ],
)
def test_flags_that_set_nothing(run: Run, flags: str, absent: str) -> None:
    overrides, _ = run(DATA, *shlex.split(flags))
    assert not [one for one in overrides if one.startswith(absent)]


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ("--optimizer adam --weight_decay 0.1", "--weight_decay has no effect with --optimizer adam"),
        ("--default_rank 1", "--default_rank=1 has no effect: process 0 logs and saves"),
        ("--distributed False --nproc_per_node 4", "--nproc_per_node=4 has no effect with --distributed False"),
    ],
)
def test_flags_without_effect_are_noted(run: Run, flags: str, note: str) -> None:
    _, said = run(DATA, *shlex.split(flags))
    assert said.startswith(f"note: {note}")
    assert said.count("\n") == 1


def test_paths_are_quoted(run: Run) -> None:
    overrides, _ = run("--dataset_path", "/my data/it's=voc,$HOME", "--work_dir", "my runs")
    found = pspexp.compose(overrides)
    assert found.dataset.root == "/my data/it's=voc,$HOME"
    assert "hydra.run.dir='my runs'" in overrides


def test_backbone_file_of_the_reference(run: Run, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet50_v2.pth").touch()
    overrides, _ = run(DATA)
    assert "model.backbone_weights=models/resnet50_v2.pth" in overrides


def test_all_problems_are_listed(refuse: Callable[..., list[str]]) -> None:
    flags = """--num_classes 21 --model_name unet --autocast maybe --epochs 60 --optimizer=adan --lr --lr_polic=poly
        --weight_decay -1 --epoch many --batch_size 0 --test_only True
        --distributed True --nnodes 2 --node_rank 2 word"""
    assert refuse(*flags.split()) == [
        "--epochs: no such flag; did you mean '--epoch'?",
        "--lr_polic: no such flag; did you mean '--lr_policy'?",
        "word: not a flag; settings of pspexp are written key=value",
        "--autocast=maybe: must be True or False",
        "--num_classes=21: must be '20'; the background is ignored, and with it as a class, use python -m pspexp "
        "dataset=voc2007_21",
        "--model_name=unet: must be 'pspnet'; other networks: python -m pspexp model=<option>",
        "--epoch=many: must be a valid integer",
        "--batch_size=0: must be greater than or equal to 1",
        "--optimizer=adan: must be 'sgd', 'adam' or 'adamw'",
        "--lr: needs a value",
        "--weight_decay=-1: must be greater than or equal to 0",
        "--dataset_path: missing; give the folder that contains VOC2007",
        "--test_only=True: needs a checkpoint; add --ckpt <file or run folder>",
        "--node_rank=2: must be from 0 to 1 (--nnodes - 1), the number of this machine; the reference ignored it",
    ]


def test_abbreviations_are_not_guessed(refuse: Callable[..., list[str]]) -> None:
    assert refuse(DATA, "--val_batch", "2") == ["--val_batch: no such flag; did you mean '--val_batch_size'?"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--continue_training True", "--continue_training=True: needs a checkpoint; add --ckpt <file or run folder>"),
        ("--test_only True --ckpt no.pth", "--ckpt=no.pth: no such file or folder"),
        ("--ckpt .", "--ckpt=.: not a run folder (it contains no config.yaml); give a checkpoint file"),
        ("--ckpt text.pth", "--ckpt=text.pth: not a checkpoint"),
        (
            "--test_only True --continue_training True --ckpt text.pth",
            "--continue_training=True: contradicts --test_only=True; remove one of them",
        ),
    ],
)
def test_wrong_checkpoints(refuse: Callable[..., list[str]], tmp_path: Path, flags: str, line: str) -> None:
    (tmp_path / "text.pth").write_text("text")
    lines = refuse(DATA, *flags.split())
    assert len(lines) == 1
    assert lines[0].startswith(line)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder of pspexp with two checkpoints, as far as the tool reads it."""
    checkpoints = tmp_path / "pspnet" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints.parent / "config.yaml").touch()
    for name in ("best.pt", "last.pt"):
        torch.save({"format": FORMAT, "config": {}}, checkpoints / name)
    return checkpoints.parent


def save_foreign(file: Path, **content: Any) -> str:
    file.parent.mkdir(exist_ok=True)
    torch.save({"model_state": {"cls.4.bias": torch.zeros(20)}, **content}, file)
    return str(file.name)


@pytest.mark.parametrize("ckpt", ["pspnet", "pspnet/checkpoints/last.pt"])
def test_run_is_resumed_with_the_flags_that_are_given(run: Run, run_folder: Path, ckpt: str) -> None:
    flags = "--continue_training True --work_dir pspnet --lr 0.00005 --optimizer adam --distributed False --device sdaa"
    overrides, said = run(DATA, "--ckpt", ckpt, *flags.split())
    assert sorted(overrides) == [
        f"checkpoint.resume={ckpt}",
        "dataset.root=voc",
        "device=sdaa",
        "hydra.run.dir=pspnet",
        "launcher=single",
        "optimizer.lr=5e-05",
        "optimizer=adam",
    ]
    assert said == ""


def test_run_is_tested_as_it_was_trained_except_for_given_flags(run: Run, run_folder: Path) -> None:
    flags = "--test_only True --distributed True --nproc_per_node 4 --crop_val True --lr 0.1"
    overrides, _ = run(DATA, "--ckpt", "pspnet", *flags.split())
    assert overrides == [
        "mode=test",
        "checkpoint.path=pspnet",
        "device=sdaa",
        "dataset.root=voc",
        "inference=center_crop",
        "launcher=ddp",
        "launcher.nproc_per_node=4",
    ]


@pytest.mark.parametrize(
    ("flags", "override"),
    [
        (
            "--continue_training True --ckpt pspnet/latest_pspnet_voc.pth",
            "checkpoint.resume=pspnet/checkpoints/last.pt",
        ),
        ("--test_only True --ckpt pspnet/best_pspnet_voc.pth", "checkpoint.path=pspnet/checkpoints/best.pt"),
    ],
)
def test_names_of_the_reference_mean_the_checkpoints_of_a_run(
    run: Run, run_folder: Path, flags: str, override: str
) -> None:
    overrides, said = run(DATA, *flags.split())
    assert override in overrides
    assert f"no such file; {override.partition('=')[2]} takes its place" in said

    existing = flags.split()[-1]
    save_foreign(run_folder / Path(existing).name)
    overrides, said = run(DATA, *flags.split())
    assert override not in overrides, "a file of that name takes precedence"


def test_test_of_a_foreign_checkpoint(run: Run, tmp_path: Path) -> None:
    ckpt = save_foreign(tmp_path / "best_pspnet_voc.pth", cur_epochs=50)
    overrides, said = run(DATA, "--ckpt", ckpt, "--test_only", "True", "--work_dir", "pspnet", "--autocast", "True")
    assert overrides == [
        "mode=test",
        "checkpoint.path=best_pspnet_voc.pth",
        "model=pspnet50",
        "dataset=voc2007",
        "device=sdaa",
        "precision=fp16",
        "dataset.root=voc",
        "hydra.run.dir='pspnet/test/${now:%Y-%m-%d_%H-%M-%S}'",
        "crop_size=513",
        "inference=whole",
        "loader.eval_batch_size=1",
        "loss=cross_entropy",
    ]
    assert said == ""


@pytest.mark.parametrize(
    ("content", "epochs"),
    [
        ({}, None),
        ({"cur_epochs": 20}, "after epoch 20: epochs 21 to 50 remain, but this trains 50; --epoch 30 trains as many"),
        ({"epoch": 50}, "after epoch 50, so none of 50 remain; this trains 50 more"),
    ],
)
def test_foreign_checkpoint_is_not_resumed_but_started_from(
    run: Run, tmp_path: Path, content: dict[str, int], epochs: str | None
) -> None:
    ckpt = save_foreign(tmp_path / "latest_pspnet_voc.pth", **content)
    overrides, said = run(DATA, "--ckpt", ckpt, "--continue_training", "True", "--epoch", "50")
    assert {f"model.weights={ckpt}", "experiment=voc2007_single", "trainer.epochs=50"} <= set(overrides)
    assert not [one for one in overrides if one.startswith("checkpoint.")]
    first, *rest = said.splitlines()
    assert "cannot be resumed exactly; a new training starts from its weights, with a new optimizer" in first
    assert len(rest) == (epochs is not None)
    assert epochs is None or epochs in rest[0]


def test_training_from_the_weights_of_a_checkpoint(run: Run, run_folder: Path) -> None:
    overrides, said = run(DATA, "--ckpt", "pspnet")
    assert "model.weights=pspnet" in overrides
    assert "a new training starts from the weights in pspnet" in said


def test_page_lists_every_flag() -> None:
    table = PAGE[PAGE.index("| flag") :]
    documented = set(re.findall(r"`--(\w+)", table.partition("\n\n")[0]))
    assert documented == set(run_pspnet.Flags.model_fields)
