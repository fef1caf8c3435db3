"""Commands that are killed at planned moments, and run again until they finish."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tools.soak.commands import moments, run
from tools.soak.readable import unreadable
from tools.soak.scenarios import Scenario

ORPHANS_END_S = 60  # how long the other processes of a killed command may take to notice


@dataclass
class Outcome:
    """What kills did."""

    tried: int = 0
    lost: list[str] = field(default_factory=list)


def soak(scenario: Scenario, kills: int, seed: int, folder: Path, say: Callable[[str], None] = print) -> Outcome:
    """Kill a command that often.

    Args:
        scenario: The command.
        kills: How many times.
        seed: Of the moments.
        folder: For the runs; those without a finding are deleted.
        say: Called with a line for each command that has finished.
    """
    chance, outcome = random.Random(f"{scenario.name} {seed}"), Outcome()
    source, reference, log = folder / "source", folder / "reference", folder / "changes.log"
    source.mkdir(parents=True)
    scenario.prepare(source)
    shutil.copytree(source, reference)
    undisturbed = run(reference, scenario.command, log=log)
    assert undisturbed.code == 0, undisturbed.output
    plans = moments(log.read_text().splitlines(), 2 * kills, chance)
    number = 0
    while outcome.tried < kills:
        number += 1
        home = folder / f"run_{number}"
        shutil.copytree(source, home)
        used, found = until_finished(scenario, home, plans, kills - outcome.tried, undisturbed.seconds, chance)
        outcome.tried += len(used)
        found += [f"not as undisturbed: {line}" for line in scenario.differences(home, reference)]
        outcome.lost += [f"{home.name}, killed at {', '.join(used)}: {line}" for line in found]
        say(f"{scenario.name}: {outcome.tried} of {kills} kills, {len(outcome.lost)} findings")
        if not found:
            shutil.rmtree(home)
    return outcome


def until_finished(
    scenario: Scenario, home: Path, plans: list[str], kills: int, seconds: float, chance: random.Random
) -> tuple[list[str], list[str]]:
    """Run a command again and again; returns when it was killed, and what was wrong."""
    used: list[str] = []
    found: list[str] = []
    while True:
        by_time = f"0:{1000 * chance.uniform(0.3, 1) * seconds:.0f}"
        plan = "" if len(used) >= kills else by_time if len(used) % 3 == 2 else chance.choice(plans)
        result = run(home, scenario.command, kill=plan)
        if scenario.leaves_processes and (left := wait_for_orphans(home)):
            found.append(f"processes are left: {left}")
        found += unreadable(home)
        if not result.was_killed:
            if result.code:
                found.append(f"exit code {result.code}: {result.output[-2000:]}")
            return used, found
        used.append(plan)


def wait_for_orphans(home: Path) -> list[str]:
    """The processes that a command in ``home`` has left, after some time; they are then killed."""
    deadline = time.monotonic() + ORPHANS_END_S
    while (found := processes(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return list(found.values())


def processes(home: Path) -> dict[int, str]:
    """The commands of all processes that were started in ``home``."""
    found = {}
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"SOAK_ROOT={home}\0".encode() in environment.read_bytes():
                command = (environment.parent / "cmdline").read_bytes()
                if command:  # else it has ended, and its parent does not know yet
                    found[int(environment.parent.name)] = command.replace(b"\0", b" ").decode()[:100]
    return found
