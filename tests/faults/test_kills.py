"""Commands that are killed at planned moments go on, and end as if nothing had happened; `make soak` tries more."""

from pathlib import Path

import pytest

from tools.soak.kills import soak
from tools.soak.scenarios import scenarios


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"),
    [("train", 2), ("train, launcher=ddp", 1), ("predict", 1), ("prepare_voc", 4), ("convert_voc_label", 4)],
)
def test_killed_commands_go_on(name: str, kills: int, tmp_path: Path) -> None:
    outcome = soak(scenarios()[name], kills, 0, tmp_path / "soak")
    assert (outcome.tried, outcome.lost) == (kills, [])
