"""Kill commands at random moments, and repeat the tests of other faults, until the wanted numbers are reached.

    python -m tools.soak                                     # what is missing; hours
    python -m tools.soak train predict --kills 20            # some scenarios only
    python -m tools.soak --report docs/reliability.md        # only write the table

Results are kept in the folder: the same command continues where it was stopped. Every start uses other moments.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pspexp.utils.files import write_text_atomic
from pspexp.utils.tables import markdown_table
from tools.soak.commands import CHECKOUT
from tools.soak.kills import soak
from tools.soak.scenarios import scenarios

RESULTS = "results.json"
AT_ONCE = 10  # kills between two looks at the clock, and between two records
TRAINING_KILLS, OTHER_KILLS = 100, 20
OUTAGES = "tests/faults/test_server.py::test_records_follow_in_order_after_each_outage"
# Faults that tests bring about: which tests, and the faults in each of them.
TESTS = {
    "tracking server away, hanging, killed (sqlite)": (f"{OUTAGES}[sqlite]", 3),
    "tracking server away, hanging, killed (PostgreSQL)": (f"{OUTAGES}[postgresql]", 3),
    "tracking server answers errors, rejects, is full": ("tests/faults/test_server.py -k 'not in_order'", 1),
    "disk full, read-only, limited, small /dev/shm": ("tests/faults/test_disk.py", 1),
    "hostile files and configurations": ("tests/config/test_trust.py tests/models/test_pt2_files.py", 1),
    "numbers that are NaN or infinite": ("tests/faults/test_bad_numbers.py", 1),
    "two commands at once": ("tests/faults/test_two_at_once.py", 1),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; returns the exit code."""
    options = parse(arguments)
    folder = options.folder.absolute()
    results = read(folder)
    if options.report is None:
        for name in options.scenarios or [*scenarios(), *TESTS]:
            wanted = options.kills or default_number(name)
            while results.get(name, {"tried": 0})["tried"] < wanted:
                results[name] = add(results.get(name), one_round(name, wanted, results, folder))
                write_text_atomic(folder / RESULTS, json.dumps(results, indent=1) + "\n")
                print(f"{name}: {results[name]['tried']} of {wanted}, {len(results[name]['lost'])} lost", flush=True)
    else:
        write_text_atomic(options.report, report(results))
    lost = [line for result in results.values() for line in result["lost"]]
    print(*lost, sep="\n", file=sys.stderr)
    return int(bool(lost))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*scenarios(), *TESTS]
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of: {'; '.join(names)} (default: all)")
    parser.add_argument("--kills", type=int, help="how many of each (default: 100 of a training, 20 of the others)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/soak"), help="for runs and results")
    parser.add_argument("--report", type=Path, help="write the table of the results so far to this file, and stop")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.scenarios if name not in names]:
        parser.error(f"unknown: {', '.join(unknown)}; choose from: {'; '.join(names)}")
    return options


def default_number(name: str) -> int:
    """How often a fault is tried."""
    return TRAINING_KILLS if name == "train" else OTHER_KILLS


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The results so far."""
    file = folder / RESULTS
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def one_round(name: str, wanted: int, results: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Try a fault some more times."""
    before = results.get(name, {"tried": 0})["tried"]
    if name in TESTS:
        return repeat_test(name)
    place = folder / f"{name.replace(', ', '_').replace('=', '_')}_{before}"
    shutil.rmtree(place, ignore_errors=True)
    outcome = soak(scenarios()[name], min(AT_ONCE, wanted - before), before, place)
    if not outcome.lost:
        shutil.rmtree(place)
    return {"tried": outcome.tried, "lost": outcome.lost, "command": f"python -m tools.soak {shlex.quote(name)}"}


def repeat_test(name: str) -> dict[str, Any]:
    """Run the tests of a fault once."""
    arguments, faults = TESTS[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *shlex.split(arguments)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    passed, failed = (
        sum(map(int, re.findall(rf"(\d+) (?:{word})", done.stdout))) for word in ("passed", "failed|error")
    )
    lost = [] if done.returncode == 0 else [f"{name}: {done.stdout[-2000:]}"] * max(failed, 1)
    return {"tried": faults * passed + len(lost), "lost": lost, "command": f"pytest {arguments}"}


def add(before: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
    """Both results together."""
    if before is None:
        return more
    return {**more, "tried": before["tried"] + more["tried"], "lost": before["lost"] + more["lost"]}


def report(results: dict[str, dict[str, Any]]) -> str:
    """``docs/reliability.md``."""
    rows = [
        (name, str(one["tried"]), str(one["tried"] - lost), str(lost), f"`{one['command']}`")
        for name, one in results.items()
        for lost in [min(one["tried"], len(one["lost"]))]
    ]
    head = (CHECKOUT / "tools" / "soak" / "reliability.md").read_text(encoding="utf-8")
    table = markdown_table(["fault", "tried", "survived", "lost", "command"], rows, right_aligned=(1, 2, 3))
    return head.replace("TABLE", "\n".join(table)).replace("DATE", time.strftime("%Y-%m-%d"))


if __name__ == "__main__":
    sys.exit(main())
