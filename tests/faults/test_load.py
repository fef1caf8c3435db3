"""Nothing grows while a training runs, nothing is left when it ends; `python -m tools.load` measures large loads."""

import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pspexp.sweep.job_record import JobRecord, save
from pspexp.sweep.overview import report_sweep
from pspexp.sweep.sweep import Sweep
from tests.conftest import TINY
from tests.end_to_end.conftest import CHECKOUT, Start, wait_for, wait_until
from tools.load.loads import growth, watch
from tools.load.watch import in_session

ENDS = '''
"""A training that ends at its third step, in one of several ways."""

import os
import signal
import time

from pspexp.data.augment.cropping import ScaleCropFlip
from pspexp.engine.hooks import Hook


class Crash(ScaleCropFlip):
    def __call__(self, *sample):
        raise RuntimeError("crash in a worker")


class Signals(Hook):
    """Sends signals to the process group, as a terminal does: the workers get them, too."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def on_log(self, trainer, metrics):
        if trainer.state.step == 3:
            for number in self.numbers:
                handler = signal.getsignal(number)
                os.killpg(0, number)
                while signal.getsignal(number) is handler:  # until the first one has been noticed
                    time.sleep(0.01)
'''


@pytest.mark.slow
def test_memory_files_and_threads_do_not_grow(start: Start, tmp_path: Path) -> None:
    """With two workers, a validation after every second epoch, and MLflow."""
    watched, own = tmp_path / "watched.jsonl", ("tracking=mlflow", "loader.max_eval_images=1")
    process = start(*TINY, *watch(watched), *own)
    codes, _, errors = wait_for([process])
    assert codes == [0], errors
    broken = [one.cells() for one in growth(watched, "short") if not one.holds]
    assert broken == []
    assert in_session(process.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ("+hooks.signals._target_=ends.Signals +hooks.signals.numbers=[15]", 143),
        ("+hooks.signals._target_=ends.Signals +hooks.signals.numbers=[2,2]", 130),
        ("augment._target_=ends.Crash", 1),
    ],
    ids=["SIGTERM", "SIGINT twice", "error in a worker"],
)
def test_no_process_is_left_after_any_ending(overrides: str, code: int, start: Start, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    workers = ("loader.num_workers=2", "trainer.epochs=20", "trainer.validate_every=20")
    process = start(*TINY, *workers, *overrides.split(), PYTHONPATH=f"{CHECKOUT}:.")
    (found,), _, (error,) = wait_for([process])
    assert found == code, error
    wait_until(lambda: not in_session(process.pid))


def test_table_of_a_sweep_takes_time_proportional_to_its_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = OmegaConf.create({"tracking": {"_target_": "pspexp.tracking.other_loggers"}})

    def seconds(number: int) -> float:
        sweep = Sweep(tmp_path / str(number), "s", {"seed": f"range(0,{number})"}, {})
        for job in range(number):
            values = {"seed": job}
            save(sweep.folder / str(job), JobRecord("s", job, f"seed={job}", values, "FINISHED", "best", job / number))
        began = time.process_time()
        assert report_sweep(sweep, config, stopped=False)
        return time.process_time() - began

    seconds(2)  # imports matplotlib
    few, many = seconds(40), seconds(400)
    assert capsys.readouterr().out.count("FINISHED") == 442
    assert many < 15 * few
