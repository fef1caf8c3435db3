"""The text of ``--help``: usage, the options of each group, and every key with its value."""

from collections.abc import Iterator, Sequence

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from pspexp.config.compose import add_search_path, compose_checked, named_search_path
from pspexp.config.interpolations import interpolation_problems
from pspexp.config.options import conf_dir
from pspexp.errors import UserError

HELP = """\
Train, test, apply and export networks for semantic segmentation.

  pspexp experiment=quickstart                        train a small network; no data needed
  pspexp dataset.root=data/VOCdevkit optimizer=adam   train PSPNet-50 on PASCAL VOC 2007
  pspexp mode=test checkpoint.path=outputs/<run>      test a trained network
  pspexp mode=predict checkpoint.path=outputs/<run> predict.input=photos
  pspexp -m optimizer.lr=1e-3,1e-4                    run a sweep: a job for each value

Flags
  -m, --multirun     run a sweep
  --cfg job          print the configuration instead of running it; add --resolve to resolve interpolations
  --info defaults    print which files the configuration is composed from
  --config-dir DIR   add a folder with your own options
  --version          print the version
  --hydra-help       print all flags, and how to install shell completion

Groups (<group>=<option>)
{groups}

Keys (<key>=<value>, as in optimizer.lr=1e-3), with their current values
{keys}"""


def help_text(
    overrides: Sequence[str], folders: Sequence[str], name: str, *, sweep: bool = False, resolve: bool = False
) -> str:
    """The text, with the keys as ``overrides`` set them.

    Args:
        overrides: The overrides of the command line.
        folders: The user's own YAML folders.
        name: Name of the primary configuration.
        sweep: Whether to allow several values of a key.
        resolve: Whether to resolve interpolations.

    Raises:
        UserError: Lists every invalid override.
    """
    config = compose_checked(overrides, sweep=sweep, folders=folders, name=name)
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", "choices")])
    if resolve and (problems := interpolation_problems(job)):
        raise UserError(*problems.values())
    with initialize_config_dir(conf_dir(), version_base="1.3", job_name="pspexp"):
        add_search_path([*folders, *named_search_path(overrides)])
        groups = dict(options())
    width = max(map(len, groups))
    lines = "\n".join(f"  {group:<{width}}   {', '.join(groups[group])}" for group in sorted(groups))
    return HELP.format(groups=lines, keys=OmegaConf.to_yaml(job, resolve=resolve))


def options() -> Iterator[tuple[str, list[str]]]:
    """Each of pspexp's config groups, and its options."""
    # The loader itself would copy the whole repository for every query, about a second in total.
    repository = GlobalHydra.instance().config_loader().repository  # type: ignore[attr-defined]
    for group in repository.get_group_options("", results_filter=ObjectType.GROUP):
        found = repository.get_group_options(group, results_filter=ObjectType.CONFIG)
        if group != "hydra" and found:
            yield group, found
