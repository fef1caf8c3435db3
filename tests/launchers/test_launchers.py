"""Launchers refuse invalid settings and read the SLURM environment."""

import os
from typing import Any

import pytest

from pspexp.errors import ArgumentError
from pspexp.launchers.cluster import Slurm
from pspexp.launchers.elastic import Elastic


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ({"nnodes": 2}, ["master_port=null: must be the same on all machines; choose a free port, e.g. 29505"]),
        ({"node_rank": 3}, ["node_rank=3: must be from 0 to 0 (nnodes - 1)"]),
        (
            {"nproc_per_node": 0, "max_restarts": -1},
            [
                "nproc_per_node=0: must be greater than or equal to 1",
                "max_restarts=-1: must be greater than or equal to 0",
            ],
        ),
        ({"master_port": 70000}, ["master_port=70000: must be less than 65536"]),
    ],
)
def test_elastic_refuses_invalid_arguments(arguments: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        Elastic(**arguments)
    assert list(caught.value.problems) == problems


def test_unknown_address_is_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"^master_addr=no\.such\.invalid: cannot be resolved \(.+\); give the name"
    ):
        Elastic(master_addr="no.such.invalid")


@pytest.fixture
def _slurm_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROCID": 1, "NTASKS": 2, "LOCALID": 0, "JOB_ID": 7, "STEP_ID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


@pytest.mark.usefixtures("_slurm_task")
def test_slurm_task_is_recognised_without_changing_the_environment() -> None:
    before = dict(os.environ)
    launcher = Slurm()
    assert (launcher.is_main_process, launcher.world_size, launcher.is_restart) == (False, 2, False)
    assert dict(os.environ) == before


@pytest.mark.usefixtures("_slurm_task")
def test_slurm_needs_both_address_and_port() -> None:
    with pytest.raises(ArgumentError, match=r"^master_addr=null: must be set together with master_port; set both or n"):
        Slurm(master_port=29505)
    with pytest.raises(ArgumentError, match=r"^master_port=null: must be set together with master_addr; set both or n"):
        Slurm(master_addr="127.0.0.1")
