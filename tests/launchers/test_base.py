"""Stop signals are recorded, so that the job can poll for them between steps."""

import os
import signal
from collections.abc import Iterator

import pytest

from pspexp.launchers.base import catch_stop_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def _restore_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the suite may run with SIGINT ignored
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_restore_handlers")
def test_signal_is_recorded_and_handlers_are_restored() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with catch_stop_signals() as stop_signal:
        assert stop_signal() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_signal() == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]  # a second signal takes effect immediately
        assert signal.getsignal(signal.SIGINT) != before[signal.SIGINT]
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.usefixtures("_restore_handlers")
def test_repeated_signals_can_be_recorded() -> None:
    with catch_stop_signals(repeatedly=True) as stop_signal:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop_signal() == signal.SIGTERM


@pytest.mark.usefixtures("_restore_handlers")
def test_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # like in a background job of a script
    with catch_stop_signals() as stop_signal:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_signal() is None
