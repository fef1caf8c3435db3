"""The model of training on many cards follows its formulas, and the simulated bookkeeping is that of the trainer."""

from dataclasses import replace

import pytest

from tools.scaling import bookkeeping
from tools.scaling.__main__ import ADE20K
from tools.scaling.model import Cluster, all_reduce_s, step

CLUSTER = Cluster(inside=100e9, between=10e9, launch_s=0, hop_inside_s=1e-6, hop_between_s=2e-6)


def test_all_reduce_is_a_ring_and_a_tree() -> None:
    assert all_reduce_s(1e9, 1, CLUSTER) == 0
    assert all_reduce_s(1e9, 2, CLUSTER) == pytest.approx(2 * 0.5 * 1e9 / 100e9 + 2e-6)
    assert all_reduce_s(1e9, 16, CLUSTER) == pytest.approx(2 * 15 / 16 * 1e9 / 10e9 + 8 * 2e-6)


def test_exchange_behind_the_backward_pass_costs_nothing_but_its_end() -> None:
    free = replace(CLUSTER, hop_inside_s=0)
    training = replace(ADE20K, step_s={2: 1.0}, gradient_bytes=10e9, last_bytes=1e9, backward_share=0.5, num_norms=0)
    assert step(training, 2, 8, free).exposed_s == pytest.approx(2 * 7 / 8 * 1e9 / 100e9)
    slow = replace(free, inside=1e9)
    assert step(training, 2, 8, slow).exposed_s == pytest.approx(2 * 7 / 8 * 10 - 0.5)
    assert step(training, 2, 1, free).total_s == 1.0


def test_processes_share_each_epoch() -> None:
    _, complete = bookkeeping.sampling(512, 20210, 2)
    assert complete


def test_main_process_of_many_trains() -> None:
    found = bookkeeping.training(64, num_images=400, steps=3)
    assert found["step ms"] > 0
