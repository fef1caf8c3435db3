"""Every command in the README and the documentation runs; those that cannot run here are listed, and parsed.

Each block of commands runs in a folder of its own with what its commands name (home.py), in this process where
possible. Trainings take one step of a small network on small crops: overrides that do so are added to what is written.
Exceptions are in listed.py, with reasons.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from pspexp.config import compose as composition
from tests.conftest import Cli
from tests.docs.home import RUN, SWEEP_ID, Finished, furnish, needs_runs
from tests.docs.listed import LISTED, listed, run_tool
from tests.docs.pages import CHECKOUT, COMMANDS, PAGES, Block, fenced, inline
from tests.faults.servers import free_port

# Added to each training: one step on a CPU of two cores.
TRAIN = (
    "crop_size=33",
    "loader.num_workers=0",
    "loader.max_eval_images=1",
    "trainer.max_steps=1",
    "scheduler.warmup_steps=0",
    "tracking=none",
)
PSPNET = "pspexp.models.pspnet.pspnet"
# Added where that is the network, and it does not start from a file.
NETWORK = (
    "model._target_=tests.small_network.pspnet",
    "model.backbone_weights=null",
    "model.pyramid_channels=4",
    "model.head_channels=8",
    "model.aux_channels=4",
)
# Added to a sweep of this file: two jobs.
FEWER_JOBS = {"+sweep=optuna": ("hydra.sweeper.n_trials=2",), "+sweep=lr_batch": ("loader.batch_size=4",)}
BENCH = ("--size=33", "--repeats=1", "--warmup=0", "--sample-seconds=0", "--matmul=64", "--no-memory")
# Added to other commands with a word that contains the pattern, which names a mode or a tool.
SMALLER = {
    "experiment=voc2012aug_semseg": (
        *(
            "loader.num_workers=0",
            "loader.max_eval_images=1",
            "crop_size=33",
            "inference.base_size=48",
            "tracking=none",
        ),
    ),
    "mode=test": ("loader.num_workers=0", "loader.max_eval_images=1", "crop_size=33", "tracking=none"),
    "export.(register|images)": ("export.format=[onnx]", "export.num_images=1"),
    "mode=export": ("export.num_images=1", "export.num_calibration_images=2"),
    "rerun=": ("tracking=none",),
    "checkpoint.resume=(?!auto)": ("tracking=none",),
    "tools.bench": BENCH,
    "tools/": ("--workers", "1"),
}
# Replaced in commands and Python, in this order: what would take long, and placeholders.
REPLACED = (
    ("nproc_per_node=[48]", "nproc_per_node=2"),
    ("nproc-per-node=4", "nproc-per-node=2"),
    ("seed=1,2,3", "seed=1,2"),
    (r"range\(10,40,10\)", "range(10,20,10)"),
    (r"\b321\b", "33"),
    ("loader.batch_size=4,8", "loader.batch_size=4"),
    ("n_trials=50", "n_trials=2"),
    ("pspnet50_pt2,pspnet50_onnx", "pspnet50_onnx"),
    (r"\[0\.5,0\.75,1\.0,1\.25,1\.5,1\.75\]", "[0.25,0.5]"),
    (r'\["experiment=quickstart"\]', f'["experiment=quickstart", *{[*TRAIN, *NETWORK]}]'),
    ("backbone_weights=timm", "backbone_weights=null"),
    ("/?data/cracks(?=[^`]*label_values)", "data/cracks255"),
    ("/data/", "data/"),
    ("best/mean_iou` > 0.5", "best/mean_iou` >= 0"),
    ("first-3fa2|<id>", SWEEP_ID),
)


# Synopses: code spans that name a command without being one.
SYNOPSES = {
    "pspexp",
    "python -m pspexp",
    "python -m pspexp experiment= hydra.run.dir=DIR",
    "python tools/convert_labels.py FORMAT SOURCE --output_dir DIR",
}
# Pages whose commands, translations included, other tests run.
ELSEWHERE = {
    "docs/extend.md": "tests/end_to_end/test_extend.py",
    "docs/from-reference.md": "tests/end_to_end/test_reference_commands.py",
    "docs/tutorial.md": "tests/end_to_end/test_tutorial.py",
}
# Python that does not run here, by its first words, and why.
PYTHON = {
    "import segmentation_models_pytorch as smp": "downloads weights",
    "tp, fp, fn, tn = smp.metrics": "a fragment of a program of others",
}
# What commands print, by its first word. Better marked with the language `text`.
OUTPUT = {"class"}
FIRST_WORDS = {
    "python",
    "pspexp",
    "torchrun",
    "srun",
    "mlflow",
    ".venv/bin/mlflow",
    "make",
    "pip",
    "base64",
    "pytest",
    "mkdir",
}


def blocks() -> Iterator[Block]:
    """All blocks to run."""
    elsewhere = {command for page in PAGES if name(page) in ELSEWHERE for command in commands_in(page)}
    for page in PAGES:
        found = [*fenced(page), *inline(page)]
        yield from (one for one in found if not one.commands or not {*one.commands} <= elsewhere)


def name(page: Path) -> str:
    """The path of a page relative to the checkout."""
    return page.relative_to(CHECKOUT).as_posix()


def commands_in(page: Path) -> list[str]:
    return [command for block in [*fenced(page), *inline(page)] for command in block.commands]


def python_blocks() -> list[Block]:
    """Blocks of Python to run, each once: translations differ in comments only."""
    found = {
        ast.dump(ast.parse(one.text)): one for one in [*blocks()][::-1] if one.language == "python" and not one.file
    }
    return [*found.values()][::-1]


def is_output(block: Block) -> bool:
    return block.language == "text" or block.text.split()[0] in OUTPUT


def command_blocks() -> list[Block]:
    """Blocks with commands to run, without those that repeat an earlier block or a part of it, as translations do."""
    found: dict[Block, set[str]] = {}
    for block in blocks():
        commands = {re.sub(RUN, "RUN", command) for command in commands_of(block) if not listed(command)}
        if commands and not any(commands <= earlier for earlier in found.values()):
            found[block] = commands
    return [*found]


def commands_of(block: Block) -> list[str]:
    return [] if is_output(block) else [command for command in block.commands if command not in SYNOPSES]


def replaced(text: str, finished: Callable[[], Finished]) -> str:
    for pattern, by in REPLACED:
        text = re.sub(pattern, lambda _, by=by: by, text)  # type: ignore[misc]
    if "runs:/" in text:
        text = re.sub("runs:/([0-9a-f]+|ID)", f"runs:/{finished().run_ids[1]}", text)
    return text


def smaller(words: list[str]) -> list[str]:
    """The words with what makes a command of pspexp or a tool quick."""
    for mark, more in SMALLER.items():
        if any(re.search(mark, word) for word in words):
            return [*words, *more]
    modes = [word.removeprefix("mode=") for word in words if word.startswith("mode=")] or ["train"]
    if "pspexp" not in words or "--help" in words or modes[0] not in ("train", "check"):
        return words
    arguments, _ = get_args_parser().parse_known_args(words[words.index("pspexp") + 1 :])
    folders = [arguments.config_dir] if arguments.config_dir else []
    config = composition.compose_checked(arguments.overrides, sweep=arguments.multirun, folders=folders)
    own = any(word.startswith("model.weights=") for word in words) or config.model._target_ != PSPNET
    fewer = next((more for sweep, more in FEWER_JOBS.items() if sweep in words), ())
    return [*words, *TRAIN, *(() if own else NETWORK), *fewer]


def exit_code(command: str, cli: Cli) -> int:
    words = smaller(shlex.split(command))
    program, *arguments = words
    if program == "pspexp" or arguments[:2] == ["-m", "pspexp"]:
        return cli(*words[words.index("pspexp") + 1 :])
    if program == "torchrun":
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
        environment["PET_MASTER_PORT"] = str(free_port())  # another test may be using torchrun's default
        torchrun = [sys.executable, "-m", "torch.distributed.run", *arguments]
        return subprocess.run(torchrun, env=environment, timeout=600).returncode
    assert program == "python", f"not known how to run: {command}"
    try:
        run_tool(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Finished]:
    """Two finished runs, made when they are first needed."""
    made: list[Finished] = []

    def get() -> Finished:
        if not made:
            made.append(Finished(tmp_path_factory.mktemp("finished")))
        return made[0]

    return get


def prepare(text: str, home: Path, finished: Callable[[], Finished], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what a block names: files in ``home``, runs, and records in MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))  # jobs in processes of their own find the network of the tests
    furnish(text, home)
    if needs_runs(text):
        finished().copy(text, home)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", finished().uri)


@pytest.mark.slow
@pytest.mark.parametrize("block", command_blocks(), ids=str)
def test_commands_run(
    block: Block, cli: Cli, finished: Callable[[], Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    to_run = [command for command in commands_of(block) if not listed(command)]
    home = Path.cwd()
    for other in fenced(CHECKOUT / block.page):
        if other.file:
            (home / other.file).parent.mkdir(parents=True, exist_ok=True)
            (home / other.file).write_text(replaced(other.text, finished))
    prepare("\n".join(to_run), home, finished, monkeypatch)
    for command in to_run:
        if "device=sdaa" in command:
            pytest.importorskip("torch_sdaa", exc_type=ImportError)
        assert exit_code(replaced(command, finished), cli) == 0, command


@pytest.mark.parametrize(
    "command", sorted({command for block in blocks() for command in commands_of(block) if listed(command)})
)
def test_commands_that_do_not_run_here_are_valid(command: str) -> None:
    exception = listed(command)
    assert exception
    exception.check(command)


@pytest.mark.slow
@pytest.mark.parametrize("block", python_blocks(), ids=str)
@pytest.mark.usefixtures("cli")  # works in an empty folder
def test_python_runs(block: Block, finished: Callable[[], Finished], monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(block.text, Path.cwd(), finished, monkeypatch)
    code = compile(replaced(block.text, finished), str(block), "exec")
    if not block.text.startswith((*PYTHON,)):
        exec(code, {"__name__": str(block)})


def test_every_block_is_known() -> None:
    """A block is commands of known programs, Python, a file with its name, or output: nothing is passed over."""
    for block in blocks():
        if block.language in COMMANDS and not is_output(block):
            assert block.commands, block
            assert {shlex.split(command)[0] for command in block.commands} <= FIRST_WORDS, block
        elif block.language != "python":
            assert block.language == "text" or block.file or is_output(block), block


def test_what_is_listed_is_in_the_pages() -> None:
    """Entries of the tables whose commands no longer exist are removed."""
    commands = [command for page in PAGES for command in commands_in(page)]
    assert [one.pattern for one in LISTED if not any(listed(command) is one for command in commands)] == []
    assert sorted(SYNOPSES - {*commands}) == []
    assert {*ELSEWHERE} - {name(page) for page in PAGES} == set()
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [text for text in PYTHON if text not in everything] == []
    assert [text for text, _ in REPLACED if not re.search(text, everything)] == []
