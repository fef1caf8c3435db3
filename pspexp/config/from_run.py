"""The configuration of a rerun or a resume: that of the run it repeats or continues, except for explicit overrides."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pspexp.config import schema
from pspexp.config.class_map import adopt_classes_again
from pspexp.config.class_weights import counted
from pspexp.config.from_checkpoint import Plain, explicit_keys, read_config, read_resumed
from pspexp.config.modes import COMMAND_NODES
from pspexp.config.overrides import ADDED_GROUPS
from pspexp.config.resume import MLFLOW_RUN
from pspexp.config.statistics import weights_statistics
from pspexp.config.targets import START_WEIGHTS
from pspexp.config.trust import refuse_untrusted
from pspexp.errors import UserError
from pspexp.utils.trees import flatten

# What a rerun does not take over: where records go, how it was started, and the sweep that the run was part of.
NOT_REPEATED = (
    "mode",
    "rerun",
    "run_name",
    "output_root",
    "choices",
    "checkpoint.resume",
    "tracking.tracking_uri",
    *COMMAND_NODES,
    "hydra",
)
# What a resume does not take over: it is the same run, so that everything but the command itself is.
NOT_RESUMED = ("mode", "choices", "checkpoint.resume", *COMMAND_NODES, "hydra")
# Which weights a training starts from depends on these.
WEIGHTS_DECIDED_BY = {
    "model",
    *(f"model.{name}" for name in ("_target_", "backbone", "encoder", *START_WEIGHTS)),
}
ABSENT = object()


def take_from_run(config: DictConfig, overrides: Sequence[str]) -> None:
    """Replace everything by the record of the run ``config.rerun``, except for explicit overrides and `NOT_REPEATED`.

    Raises:
        UserError: There is no such run, or it has another mode.
    """
    from pspexp.tracking import runs

    run, where = config.rerun, (config.output_root, config.tracking.get("tracking_uri"))
    saved = read_config(run, *where)
    if not run.startswith("runs:/"):  # for the record of this run, which may be read from another folder
        config.rerun = str(Path(run).absolute())
    problems = []
    if saved["mode"] != ("test" if config.mode == "test" else "train"):
        problems.append(f"mode={config.mode}: rerun={run} is a run of mode={saved['mode']}; set mode={saved['mode']}")
    explicit = explicit_keys(overrides, saved["choices"])
    refuse_untrusted_run(saved, "rerun", run, {*explicit, *NOT_REPEATED}, config)
    if "experiment" in explicit:
        problems.append(f"experiment={config.choices.experiment}: rerun={run} also sets everything; remove one of them")
    if problems:
        raise UserError(*problems)
    take_all(config, saved, explicit, NOT_REPEATED)
    if config.mode != "test":
        derive_again(config, saved, explicit)
    else:
        config.checkpoint.path = str(runs.find_checkpoint(config.checkpoint.path, "best.pt", *where))
        adopt_classes_again(config, saved["dataset"], explicit)


def take_from_resumed(config: DictConfig, overrides: Sequence[str]) -> None:
    """Replace everything by the configuration of the run ``checkpoint.resume``, except for explicit overrides.

    A run that does not exist, perhaps not yet, is left to the check of the configuration.

    Raises:
        UserError: It has no configuration, or that of another experiment.
    """
    run = config.checkpoint.resume
    if not run.startswith(MLFLOW_RUN) and not Path(run).exists():
        return
    saved = read_resumed(run, config.output_root, config.tracking.get("tracking_uri"))
    explicit, then = explicit_keys(overrides, saved["choices"]), saved["choices"].get("experiment")
    refuse_untrusted_run(saved, "checkpoint.resume", run, {*explicit, *NOT_RESUMED}, config)
    if "experiment" in explicit:
        which = f"of experiment={then}" if then else "without an experiment"
        raise UserError(
            f"experiment={config.choices.experiment}: checkpoint.resume={run} is a run {which}, whose configuration it "
            "continues with; remove one of them"
        )
    take_all(config, saved, explicit, NOT_RESUMED)


def take_all(config: DictConfig, saved: Plain, explicit: set[str], left_out: Sequence[str]) -> None:
    """Take over a saved configuration, except for explicit overrides and ``left_out``."""
    today: Any = OmegaConf.to_container(config, resolve=False)
    root = config.dataset.get("root") if "dataset.root" in explicit else None
    merged = Repeated(saved, today["choices"], explicit, root, tuple(left_out))(today, saved)
    for key, value in merged.items():
        OmegaConf.update(config, key, value, merge=False)
    chosen = {group: option for group, option in today["choices"].items() if group in explicit}
    then = {group: option for group, option in saved["choices"].items() if group not in ADDED_GROUPS}
    then = {key: value for key, value in then.items() if not is_given(key, explicit)}
    config.choices = {**today["choices"], **then, **chosen}


def refuse_untrusted_run(saved: Plain, key: str, run: str, not_used: set[str], config: DictConfig) -> None:
    """Refuse targets that a run's configuration may not name, see `pspexp.config.trust`.

    Args:
        saved: The run's configuration.
        key: The setting that names the run.
        run: Its value.
        not_used: Keys that are not taken from the run.
        config: The configuration that the user has composed.
    """
    from pspexp.tracking import runs

    own = runs.is_own(run, config.output_root, config.tracking.get("tracking_uri"))
    refuse_untrusted(saved, f"{key}={run}", own=own, explicit=not_used, today=config)


def is_given(key: str, explicit: Collection[str]) -> bool:
    """Whether a key, or one above it, was overridden."""
    return any(key == one or key.startswith(f"{one}.") for one in explicit)


def derive_again(config: DictConfig, saved: Plain, explicit: Collection[str]) -> None:
    """Undo what the repeated run derived from weights or images, if this run starts from others or is given others.

    Colour statistics become null, and class weights the name of the method by which they were counted.
    """
    if not WEIGHTS_DECIDED_BY.isdisjoint(explicit):
        for key, value in weights_statistics(OmegaConf.create(saved)).items():
            if not is_given(key, explicit) and OmegaConf.select(config, key) == value:
                OmegaConf.update(config, key, None)
    if any(key.partition(".")[0] == "dataset" or key == "loader.max_train_images" for key in explicit):
        for key, method in counted(flatten(saved)).items():
            if not is_given(key, explicit):
                OmegaConf.update(config, key, method, merge=False)
                del config.choices[key]


@dataclass(frozen=True)
class Repeated:
    """Merges a composed configuration with that of the run it repeats or continues.

    Attributes:
        saved: The run's configuration, resolved.
        choices: The options in today's composition.
        explicit: The overridden keys.
        root: The data set's folder if overridden; of any type.
        left_out: Keys that are not taken over, with all below them.
    """

    saved: Plain
    choices: Plain
    explicit: set[str]
    root: object = None
    left_out: tuple[str, ...] = NOT_REPEATED

    def __call__(self, today: Plain, then: Plain, path: str = "") -> Plain:
        """One node of the result; interpolations in it are not resolved.

        Args:
            today: The node in today's composition, with interpolations.
            then: The node in the run's configuration.
            path: Dotted key of the node.
        """
        values = {
            name: self.choose(f"{path}.{name}".lstrip("."), today.get(name, ABSENT), then.get(name, ABSENT))
            for name in {**today, **then}
        }
        return {name: value for name, value in values.items() if value is not ABSENT}

    def choose(self, key: str, today: Any, then: Any) -> Any:
        """The value of a key, or ABSENT."""
        from pspexp.tracking.secrets import is_masked

        if self.left_alone(key) or self.given(key) or self.in_new_folder(key, today):
            return today
        if then is ABSENT or is_masked(then):  # today's default, unless it is another option's
            return today if self.same_option(key) else ABSENT
        if today is ABSENT and not schema.is_known(self.saved, key):
            return ABSENT
        if isinstance(then, dict):
            return self(today if isinstance(today, dict) else {}, then, key)
        if isinstance(then, list) and isinstance(today, list):  # model.bins.0=2 sets one value of several
            overridden = {index for index in range(len(today)) if self.given(f"{key}.{index}")}
            return [today[index] if index in overridden else value for index, value in enumerate(then)]
        return today if isinstance(today, str) and self.gives(key, today, then) else then

    def left_alone(self, key: str) -> bool:
        """Whether a key, or one above it, is not taken over."""
        return any(key == one or key.startswith(f"{one}.") for one in self.left_out)

    def given(self, key: str) -> bool:
        """Whether a key, or one above it, was overridden."""
        return is_given(key, self.explicit)

    def in_new_folder(self, key: str, today: Any) -> bool:
        """Whether the class names come from the folder of another data set."""
        left = key in ("dataset.class_names", "dataset.num_classes") and today is None
        return left and isinstance(self.root, str) and (Path(self.root).expanduser() / "classes.txt").is_file()

    def same_option(self, key: str) -> bool:
        """Whether today's composition has the option of the run in the key's group."""
        group = key.partition(".")[0]
        return bool(self.choices.get(group) == self.saved["choices"].get(group))

    def gives(self, key: str, text: str, value: Any) -> bool:
        """Whether an interpolation gave this value in the run; it is then kept as an interpolation."""
        if "${" not in text:
            return False
        trial = OmegaConf.create(self.saved)
        try:
            OmegaConf.update(trial, key, text, merge=False)
            return bool(OmegaConf.select(trial, key) == value)
        except OmegaConfBaseException:
            return False


def config_changes(
    then: Mapping[str, Any], now: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[list[str], list[str]]:
    """How the configuration of a rerun differs from that of the run it repeats.

    Args:
        then: The repeated run's configuration, flat: dotted key to value.
        now: The rerun's configuration, flat.
        overrides: The overrides that the rerun was composed from.

    Returns:
        Lines about unexpected differences, and lines about those that follow from overrides.
    """
    from pspexp.tracking.secrets import is_masked

    choices = {key.partition(".")[2]: value for key, value in then.items() if key.startswith("choices.")}
    merged = Repeated({}, {}, explicit_keys(overrides, choices))
    unasked, asked = [], []
    for key in sorted(then.keys() | now.keys()):
        before, here, given = then.get(key, ABSENT), now.get(key, ABSENT), merged.given(key)
        if merged.left_alone(key) or (before == here and not is_masked(before)):
            continue
        if is_masked(before):
            unasked.append(f"configuration: {key} was a secret, which no record contains; this run uses its own")
        elif before is ABSENT and not given:
            unasked.append(f"configuration: {key} did not exist then; it is {here} by default")
        elif here is ABSENT and not given:
            unasked.append(f"configuration: {key}={before} no longer exists and is ignored")
        else:
            values = ("absent" if value is ABSENT else value for value in (before, here))
            asked.append("{}: {} then, {} now".format(key, *values))
    return unasked, asked
