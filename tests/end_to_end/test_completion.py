"""Completion in bash, as a user installs it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Press = Callable[..., list[list[str]]]
CHECKOUT = Path(__file__).parents[2]
# What bash does when the user presses the tab key: it sets these variables and calls the function of the command.
TAB = """
eval "$(pspexp -sc install=bash)"
complete -p pspexp
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE} COMP_WORDS=($COMP_LINE)
    [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    hydra_bash_completion pspexp
    echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture
def press_tab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Press:
    """A function that returns the completions of each line."""
    if (bash := shutil.which("bash")) is None:
        pytest.skip("there is no bash")
    command = tmp_path / "bin" / "pspexp"  # as pip installs it
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom pspexp.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))

    def press(*lines: str) -> list[list[str]]:
        done = subprocess.run(
            [bash, "--norc", "-c", TAB], input="\n".join([*lines, ""]), capture_output=True, text=True, cwd=tmp_path
        )
        assert done.stderr == ""
        registered, *found = done.stdout.splitlines()
        assert registered.endswith("-F hydra_bash_completion pspexp")
        return [line.split() for line in found]

    return press


def test_groups_keys_and_values_complete(press_tab: Press) -> None:
    options, group, key, modes = press_tab(
        "pspexp model=psp", "pspexp optim", "pspexp experiment=debug trainer.ep", "pspexp mode=t"
    )
    assert {"model=pspnet18", "model=pspnet50", "model=pspnet101"} <= {*options}
    assert all(word.startswith("model=pspnet") for word in options)
    assert group == ["optimizer.", "optimizer="]
    assert key == ["trainer.epochs="]
    assert modes == ["mode=train", "mode=test"]


def test_flags_and_own_options_complete(press_tab: Press, tmp_path: Path) -> None:
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("_target_: mine.Net\n")
    flags, cfg, own = press_tab("pspexp --con", "pspexp --cfg ", "pspexp --config-dir own model=mi")
    assert flags == ["--config-name", "--config-dir"]
    assert cfg == ["job", "hydra", "all"]
    assert own == ["model=mine"]


def test_mistakes_print_nothing(press_tab: Press) -> None:
    assert press_tab("pspexp --nonsense mod", "pspexp dataset=nowhere mode=", "pspexp 'mode=") == [[], [], []]
