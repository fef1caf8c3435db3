"""Each example of docs/extend.md trains, is resumed and tested, from an otherwise empty folder."""

import csv
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import pspexp
from tests.conftest import Cli, last, losses
from tests.docs.pages import CHECKOUT, FENCED, FILE_NAME
from tests.end_to_end.conftest import TIMEOUT_S, Start

PAGE = CHECKOUT / "docs" / "extend.md"

STEPS, RESUMED_STEPS = 2, 3
SHAPES = ("dataset.image_size=48", "dataset.num_train=2", "dataset.num_val=2")
SMALL = (
    "crop_size=48",
    "loader.batch_size=2",
    "loader.num_workers=0",
    "trainer.log_every=1",
    f"trainer.max_steps={STEPS}",
    "tracking=none",
)
NETWORK = (
    "model._target_=tests.small_network.pspnet",
    "model.pyramid_channels=4",
    "model.head_channels=8",
    "model.aux_channels=4",
)


class Section(NamedTuple):
    """The files of a section by name, and its commands."""

    files: dict[str, str]
    commands: list[list[str]]


def read(text: str) -> Section:
    """The blocks of a section: a file each, named in its first line, or commands."""
    files, commands = dict[str, str](), list[list[str]]()
    for language, block in FENCED.findall(text):
        if language == "sh":
            commands += [shlex.split(line, comments=True) for line in block.splitlines()]
            continue
        name = FILE_NAME.match(block)
        assert name is not None, f"no file name:\n{block}"
        assert name[1].endswith({"python": ".py", "yaml": ".yaml"}[language])
        assert name[1] not in files, name[1]
        files[name[1]] = block
    return Section(files, commands)


HEAD, *_SECTIONS = PAGE.read_text(encoding="utf-8").split("\n## ")
SECTIONS = {part.splitlines()[0]: read(part) for part in _SECTIONS}
RESUME, TEST = (shlex.split(command) for command in re.findall("`(pspexp .*?)`", HEAD))


def needed_files(title: str) -> dict[str, str]:
    """The files of a section, and the Python files of other sections that it names."""
    files, commands = SECTIONS[title]
    text = "\n".join([*files.values(), *map(" ".join, commands)])
    others = {name: block for section in SECTIONS.values() for name, block in section.files.items()}
    named = {f"{module}.py" for module in re.findall(r"_target_\W+(\w+)\.", text)}
    return {name: block for name, block in others.items() if name in named} | files


# What a user sees of each command, besides that it works.


def scalars(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def table(run: Path) -> list[dict[str, str]]:
    with (run / "tables" / "val_iou.csv").open() as file:
        return list(csv.DictReader(file))


def augmented(run: Path) -> list[np.ndarray[Any, Any]]:
    """The label of one image, augmented several times by the augmentation of a run."""
    augment = pspexp.build(OmegaConf.load(run / "config.yaml").augment)
    side = augment.crop_size
    label = Image.fromarray(np.arange(side * side).reshape(side, side).astype(np.uint8))
    image = Image.merge("RGB", [label] * 3)
    return [np.asarray(augment(image, label, np.random.default_rng(seed))[1]) for seed in range(20)]


def network_is_used(run: Path) -> None:
    assert len(last(run)["model"]["network.encoder.0.weight"]) == 16


def backbone_is_used(run: Path) -> None:
    assert {f"backbone.stage{number}.0.weight" for number in range(1, 5)} <= {*last(run)["model"]}


def classes_are_reported(run: Path) -> None:
    assert [row["class"] for row in table(run)] == ["background", "square"]


def loss_is_larger_than_cross_entropy(run: Path) -> None:
    assert losses(run)[0] > 2.5  # log 5, plus twice 1 - 1/5


def images_are_turned(run: Path) -> None:
    first = augmented(run)[0]
    found = {crop.tobytes() for crop in augmented(run)}
    assert found == {np.rot90(first, turns).tobytes() for turns in range(4)}


def column_is_in_the_table(run: Path) -> None:
    errors = [float(row["share_error"]) for row in table(run)]
    assert scalars(run, "val/mean_share_error")[-1] == pytest.approx(sum(errors) / len(errors))
    assert 0 < sum(errors) <= 2


def loss_is_reported_and_its_mean_saved(run: Path) -> None:
    one, two, three = scalars(run, "train/loss")
    assert last(run)["training"]["hooks"]["alarm"]["mean"] == pytest.approx(0.81 * one + 0.09 * two + 0.1 * three)
    assert f"step {STEPS}: the loss rose to {two:.3f}" in (run / "run.log").read_text()


def validations_are_in_the_other_table(run: Path) -> None:
    with (run.parent / "results.csv").open(newline="") as file:
        rows = [(run_id, int(step), float(value)) for run_id, step, value in csv.reader(file)]
    run_id = json.loads((run / "summary.json").read_text())["loggers"]["table"]
    steps = STEPS, RESUMED_STEPS
    assert rows == [(run_id, *one) for one in zip(steps, scalars(run, "val/mean_iou"), strict=True)]


def optimizer_and_schedule_are_used(run: Path) -> None:
    training = last(run)["training"]
    assert "square_avg" in training["optimizer"]["state"][0]
    assert scalars(run, "train/lr") == pytest.approx([2e-3 * step / 31 for step in range(2, 5)])


def card_is_used(run: Path) -> None:
    assert "sdaa:0" in (run / "run.log").read_text()


def recipe_is_used(run: Path) -> None:
    assert len(last(run)["model"]["network.encoder.0.weight"]) == 32
    loss_is_larger_than_cross_entropy(run)


class Example(NamedTuple):
    """How a command is made quick, and what is seen of it."""

    overrides: tuple[str, ...]
    effect: Callable[[Path], None]


EXAMPLES = {
    "Network": [Example(SHAPES, network_is_used)],
    "Backbone": [Example((*SHAPES, *NETWORK[1:]), backbone_is_used)],
    "Data set": [Example(("dataset.num_images=2", "scheduler.warmup_steps=0", *NETWORK), classes_are_reported)],
    "Loss": [Example((*SHAPES, *NETWORK), loss_is_larger_than_cross_entropy)],
    "Augmentation": [Example((*SHAPES, *NETWORK), images_are_turned)] * 2,
    "Metric": [Example((*SHAPES, *NETWORK), column_is_in_the_table)],
    "Hook": [Example((*SHAPES, *NETWORK, "++hooks.alarm.factor=0.01"), loss_is_reported_and_its_mean_saved)],
    "Logger": [Example((*SHAPES, *NETWORK), validations_are_in_the_other_table)],
    "Optimizer and schedule": [Example((*SHAPES, *NETWORK), optimizer_and_schedule_are_used)],
    "Device": [Example((*SHAPES, *NETWORK, "precision=fp32"), card_is_used)],
    "A recipe of your own": [Example(SHAPES, recipe_is_used)],
}
COMMANDS = [(title, number) for title, section in SECTIONS.items() for number in range(len(section.commands))]


def write_files(title: str, folder: Path) -> None:
    for name, block in needed_files(title).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block)


def test_every_section_has_files_and_commands() -> None:
    assert {title: len(section.commands) for title, section in SECTIONS.items()} == {
        title: len(examples) for title, examples in EXAMPLES.items()
    }
    assert [title for title, section in SECTIONS.items() if not section.files] == []
    assert all(command[0] == "pspexp" for section in SECTIONS.values() for command in [*section.commands, RESUME, TEST])


@pytest.mark.parametrize(("title", "number"), COMMANDS, ids=lambda value: str(value).replace(" ", "_"))
def test_example_trains_is_resumed_and_tested(cli: Cli, tmp_path: Path, title: str, number: int) -> None:
    command, example = SECTIONS[title].commands[number], EXAMPLES[title][number]
    for package, mark in (("albumentations", "augment=albumentations"), ("torch_sdaa", "device=card")):
        if mark in command:
            pytest.importorskip(package, exc_type=ImportError)
    write_files(title, tmp_path)
    run = tmp_path / "run"
    assert cli(*command[1:], *SMALL, *example.overrides, "hydra.run.dir=run") == 0
    if number == 0:
        assert_used(title, run)
    assert cli(*in_run(RESUME), f"trainer.max_steps={RESUMED_STEPS}") == 0
    assert last(run)["training"]["state"]["step"] == RESUMED_STEPS
    example.effect(run)
    assert cli(*in_run(TEST), "tracking=none", "hydra.run.dir=tested") == 0
    assert scalars(tmp_path / "tested", "test/mean_iou") == [max(scalars(run, "val/mean_iou"))]


def in_run(command: list[str]) -> list[str]:
    return [argument.replace("RUN", "run") for argument in command[1:]]


def assert_used(title: str, run: Path) -> None:
    """Assert that every file was imported, or is the chosen option of its group."""
    choices = OmegaConf.load(run / "config.yaml").choices
    for path in map(Path, needed_files(title)):
        if path.suffix == ".yaml":
            assert choices[path.parent.name] == path.stem
        else:
            assert Path(str(sys.modules[path.stem].__file__)) == run.parent / path


@pytest.mark.slow
def test_example_through_the_installed_command(start: Start, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("pspexp")
    if not script.is_file():
        pytest.skip("pspexp is not installed")
    write_files("Network", tmp_path)
    command = SECTIONS["Network"].commands[0][1:]
    training = (*command, *SMALL, *SHAPES, "hydra.run.dir=run")
    resume, test = (*in_run(RESUME), f"trainer.max_steps={RESUMED_STEPS}"), (*in_run(TEST), "tracking=none")
    for arguments in (training, resume, test):
        process = start(*arguments, command=[str(script)])
        output, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, output + errors
