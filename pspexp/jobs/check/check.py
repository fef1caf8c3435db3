"""``mode=check``: look at the environment, the configuration and the data, and say everything that is wrong at once."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from pspexp.config.build import build, build_training, init_distributed
from pspexp.data.inspection.findings import Finding, find
from pspexp.data.loader import steps_per_epoch
from pspexp.engine.components import TrainingComponents
from pspexp.engine.distributed import ProcessInfo
from pspexp.errors import UserError
from pspexp.jobs import records
from pspexp.jobs.check import environment, machine, report, suggestions, terminal, weights
from pspexp.jobs.check.data import RULES, check_data
from pspexp.jobs.check.report_images import examples, first_batch
from pspexp.utils.text import count


def check(config: DictConfig, folder: Path) -> None:
    """Print versions and devices, build everything that training needs, and inspect all files of the data set.

    Tables are printed, and written to ``check/report.csv`` and ``check/report.html`` in ``folder``.

    Raises:
        UserError: Something cannot be built, or the data set has errors.
    """
    console = terminal.console()
    rows = environment.environment(config)
    console.print(environment.as_table(rows))
    if config.check.config:
        console.print(OmegaConf.to_yaml(OmegaConf.create(records.public(config))), markup=False, highlight=False)
    missing = weights.to_download(config)
    components, problems = build_everything(config, start_weights=config.checkpoint.resume is None and not missing)
    data = check_data(components.dataset if components else built_dataset(config), config)
    problems = [line for line in problems if line not in data.gaps]
    findings = [Finding("error", "configuration", None, *as_message(line)) for line in problems]
    if data.inspection:
        findings += find(data.inspection, RULES)
    findings += [*data.findings, *machine.findings(config, components, data, folder)]
    start, warnings = weights.describe(config, components, missing)
    console.print(Text(f"Initial weights: {start}"), soft_wrap=True)
    rows.append(("initial weights", start))
    findings += warnings
    findings.sort(key=lambda finding: (finding.level, finding.kind != "configuration"))
    advice = suggestions.suggestions(config, components, data, findings)
    content = report.Content(
        rows, findings, data, advice, examples(data, config.check.examples), first_batch(config, data)
    )
    files = report.write(content, folder / "check")
    terminal.show(console, findings, data, advice, files)
    refuse(findings, problems, files)


def refuse(findings: list[Finding], problems: list[str], files: list[Path]) -> None:
    """Raise UserError if there are errors."""
    numbers = [sum(finding.level == level for finding in findings) for level in ("error", "warning")]
    if numbers[0]:
        total = f"{count(numbers[0], 'error')} and {count(numbers[1], 'warning')}; details in {files[0]}"
        raise UserError(*problems, total)


def build_everything(config: DictConfig, *, start_weights: bool) -> tuple[TrainingComponents | None, list[str]]:
    """What training needs, or None and the problems with it."""
    try:
        launcher = build(config.launcher)
        components, _ = build_training(config, *init_distributed(config, ProcessInfo()), start_weights=start_weights)
        if launcher.world_size > 1:
            components.device.backends()
            steps_per_epoch(  # called for its error
                len(components.training), config.loader.batch_size, config.trainer.accumulate, launcher.world_size
            )
    except UserError as error:
        return None, list(error.problems)
    return components, []


def built_dataset(config: DictConfig) -> Any:
    """The data set, if at least that can be built; else None."""
    try:
        return build(config.dataset)
    except UserError:  # reported with everything else that cannot be built
        return None


def as_message(line: str) -> tuple[str, str]:
    """Message and fix of a line about the configuration."""
    message, _, fix = line.rpartition("; ")
    return (message, fix) if message else (line, "correct it")
