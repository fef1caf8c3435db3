"""The results of a sweep: a table on the terminal, ``sweep.csv``, figures, and an overview run in MLflow."""

import logging
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from pspexp.config.overrides import short_names
from pspexp.config.trust import refuse_untrusted
from pspexp.errors import UserError
from pspexp.jobs.next_steps import mlflow_lines
from pspexp.jobs.records import Request, build_loggers, close_abandoned, wait_s
from pspexp.metrics import percent
from pspexp.sweep.job_record import JobRecord, load, name_of, shown, summary_of
from pspexp.sweep.sweep import JOB_FILE, Sweep
from pspexp.tracking import figures
from pspexp.tracking.local import optional
from pspexp.tracking.logger import Status
from pspexp.tracking.manifest import Manifest
from pspexp.tracking.mlflow_client import sweep_filter
from pspexp.tracking.provenance import origin_tags
from pspexp.tracking.secrets import mask_secrets
from pspexp.tracking.senders import Senders, warn_missing
from pspexp.tracking.sweep_figures import heat_map, parallel_coordinates
from pspexp.utils.files import shown_path, write_text_atomic
from pspexp.utils.tables import PIPED_WIDTH, csv_table, escape_markdown, markdown_table
from pspexp.utils.text import duration, quoted

log = logging.getLogger(__name__)

Row = tuple[JobRecord, Path]
BEST = "* "  # marks the best result
CSV, NOTE, PLOTS = "sweep.csv", "sweep.md", ("plots/parallel_coordinates.png", "plots/heat_map.png")


def report_sweep(sweep: Sweep, config: DictConfig, *, stopped: bool) -> bool:
    """Print, plot and record how the jobs ended; returns whether all are finished.

    Args:
        sweep: A sweep whose jobs have ended.
        config: The configuration composed from the sweep's command line, which names the loggers.
        stopped: Whether the user stopped the sweep.
    """
    rows = collect(sweep)
    if not rows:  # Hydra refused the command
        return False
    write_text_atomic(sweep.folder / CSV, as_csv(sweep, rows))
    write_text_atomic(sweep.folder / NOTE, as_markdown(sweep, rows) + "\n")
    draw(sweep, rows)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(as_table(sweep, rows), *failures(rows), sep="\n")
    complete = all(record.state == "FINISHED" for record, _ in rows)
    in_mlflow = log_overview(sweep, config, "KILLED" if stopped else "FINISHED" if complete else "FAILED")
    console.print(*advice(sweep, rows, in_mlflow=in_mlflow), *(mlflow_lines(config) if in_mlflow else ()), sep="\n")
    return complete


def collect(sweep: Sweep) -> list[Row]:
    """The jobs, ordered by number."""
    found = [(loaded(file.parent), file.parent) for file in sweep.folder.rglob(JOB_FILE)]
    mine = [(completed(sweep, one), folder) for one, folder in found if one is not None and one.sweep == sweep.id]
    for record, folder in mine:
        if record.state == "KILLED":
            close_killed(folder)
    return sorted(mine, key=lambda row: row[0].number)


def completed(sweep: Sweep, record: JobRecord) -> JobRecord:
    """A job's record with its values of keys that did not vary when it ran."""
    if not sweep.jobs or record.values.keys() >= sweep.varies.keys():
        return record
    values = {key: sweep.jobs[record.number][key] for key in sweep.varies}
    return replace(record, values=values, name=name_of(values, record.number))


def loaded(folder: Path) -> JobRecord | None:
    """A job's record; None, with a warning, if it cannot be read: the other jobs are still reported."""
    try:
        return load(folder)
    except UserError as error:
        log.warning("omitted from the table: %s", error)
        return None


def close_killed(folder: Path) -> None:
    """Close the records of a job that was killed before it could close them."""
    if (folder / "config.yaml").is_file():
        overrides = (folder / "overrides.txt").read_text(encoding="utf-8").splitlines()
        config: Any = OmegaConf.load(folder / "config.yaml")
        try:
            tracking = OmegaConf.to_container(config.tracking) if "tracking" in config else {}
            refuse_untrusted({"tracking": tracking}, str(folder), own=True)
        except UserError as error:
            log.warning("%s", error)
        else:
            close_abandoned(Request(config, folder, overrides), "KILLED")


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Best first; jobs without a result last, ordered by number."""
    return sorted(rows, key=lambda row: (row[0].result is None, -(row[0].result or 0), row[0].number))


def as_csv(sweep: Sweep, rows: Sequence[Row]) -> str:
    """One row per job."""
    metric = next((record.metric for record, _ in rows if record.metric), "result")
    header = ["job", *sweep.varies, "status", metric, "seconds", "folder", "mlflow_run_id", "error"]
    lines: list[list[object]] = [[*header]]
    for record, folder in rows:
        values = [record.values.get(key) for key in sweep.varies]
        place = folder.relative_to(sweep.folder).as_posix()
        ends = [record.state, record.result, record.seconds, place, mlflow_run(folder), record.error]
        lines.append([record.number, *values, *ends])
    return csv_table(lines)


def mlflow_run(folder: Path) -> str | None:
    """The id of a job's MLflow run, if known."""
    with suppress(UserError):
        return summary_of(folder).get("mlflow_run_id")
    return None


def as_table(sweep: Sweep, rows: Sequence[Row]) -> Table:
    """The jobs for the terminal."""
    names = short_names(sweep.varies)
    table = Table(title=f"sweep {sweep.id}", title_justify="left")
    table.add_column("job", justify="right", no_wrap=True)
    for name in names.values():
        table.add_column(name, overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("mean IoU %", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    best = best_row(rows)
    for row in rows:
        record, folder = row
        values = [shown(record.values.get(key)) for key in names]
        result = f"{BEST if row is best else ''}{percent(record.result)}"
        cells = [str(record.number), *values, record.state, result, duration(record.seconds)]
        table.add_row(*cells, folder.relative_to(sweep.folder).as_posix(), style="bold" if row is best else None)
    return table


def best_row(rows: Sequence[Row]) -> Row | None:
    """The job with the best result; None if none has one, or there is only one job."""
    first = ranked(rows)[0]
    return first if len(rows) > 1 and first[0].result is not None else None


def as_markdown(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The ranking, the best job in bold, and how to find the jobs in MLflow."""
    best = best_row(rows)

    def bold(row: Row, text: str) -> str:
        return f"**{text}**" if row is best else text

    lines = [
        *([f"Best: {escape_markdown(best[0].name)}, mean IoU {percent(best[0].result)} %", ""] if best else []),
        f"Show the jobs with the filter `{sweep_filter(sweep.id)}`. Varied: "
        + (", ".join(f"`{key}={values}`" for key, values in sweep.varies.items()) or "nothing"),
        "",
        *markdown_table(
            ["rank", "job", "mean IoU %", "status", "time"],
            [
                [
                    str(rank),
                    bold(row, escape_markdown(row[0].name)),
                    bold(row, percent(row[0].result)),
                    row[0].state,
                    duration(row[0].seconds),
                ]
                for rank, row in enumerate(ranked(rows), start=1)
            ],
            right_aligned=(0, 2, 4),
        ),
        "",
    ]
    lines += [f"- job {record.number}: {escape_markdown(record.error)}" for record, _ in rows if record.error]
    return "\n".join(lines)


def failures(rows: Sequence[Row]) -> list[str]:
    """One line for each unfinished job."""
    return [
        f"job {record.number}: {record.error or record.state.lower()}; see {folder / 'run.log'}"
        for record, folder in rows
        if record.state != "FINISHED"
    ]


def advice(sweep: Sweep, rows: Sequence[Row], *, in_mlflow: bool) -> list[str]:
    """Where the results are, and how to resume."""
    lines = [f"results: {sweep.folder}" + (f"; in MLflow: {sweep_filter(sweep.id)}" if in_mlflow else "")]
    if best := best_row(rows):
        record, folder = best
        score = f"mean IoU {percent(record.result)} %"
        lines.insert(0, f"best: job {record.number} ({record.name}), {score}, in {shown_path(folder)}")
    states = {record.state for record, _ in rows}
    if states - {"FINISHED"}:
        again = " sweep.retry_failed=true" if "FAILED" in states else ""
        override = shlex.quote(f"hydra.sweep.dir={quoted(sweep.folder)}")
        lines.append(f"to resume, rerun the command with: {override}{again}")
    return lines


def draw(sweep: Sweep, rows: Sequence[Row]) -> None:
    """Plot the result against the varied settings."""
    if not sweep.varies:
        return
    names = short_names(sweep.varies)
    axes = {name: [record.values.get(key) for record, _ in rows] for key, name in names.items()}
    results = [None if record.result is None else 100 * record.result for record, _ in rows]
    with optional("the figures of the sweep"):
        figures.save(parallel_coordinates(axes, results, "mean IoU (%)"), sweep.folder / PLOTS[0])
        if len(axes) == 2:
            x, y = axes.items()
            if (figure := heat_map(x, y, results, "mean IoU (%)")) is not None:
                figures.save(figure, sweep.folder / PLOTS[1])


def log_overview(sweep: Sweep, config: DictConfig, status: Status) -> bool:
    """Record the overview with the configured loggers; returns whether MLflow has it."""
    tags = {"kind": "sweep", **origin_tags(sweep.folder)}
    tracking = mask_secrets(OmegaConf.to_container(config.tracking, resolve=True), "tracking")
    name, files = f"sweep {sweep.id}", (CSV, NOTE, *PLOTS)
    manifest = Manifest(name, sweep.varies, tags, NOTE, files, status=status, tracking=tracking)
    manifest.save(sweep.folder)
    senders = Senders(build_loggers(config.tracking, sweep.folder), sweep.folder)
    senders.start(manifest)
    missing = senders.finish(manifest, wait_s(config.tracking))
    for delivery in missing:
        warn_missing(delivery)
    return "mlflow" in senders.names - {delivery.name for delivery in missing}
