"""The options ``custom``, for targets of the user's own."""

from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf

from pspexp.config.signatures import CUSTOM_GROUPS, OWN_ARGS
from pspexp.config.targets import takes, try_target

# The keys in conf/<group>/custom.yaml.
OFFERED = {
    "model": ("num_classes",),
    "augment": ("crop_size", "mean", "ignore_index"),
    "loss": ("num_classes", "ignore_index"),
    "optimizer": ("lr",),
    "scheduler": (),
}


def leave_out_untaken(config: DictConfig, explicit: Collection[str]) -> None:
    """Remove what an option ``custom`` offers (the number of classes and so on) and its target does not take.

    Args:
        config: The configuration.
        explicit: Overridden keys, which are kept, so that they are refused if the target does not take them.
    """
    for group in CUSTOM_GROUPS:
        node = OmegaConf.select(config, group)
        if OmegaConf.select(config, f"choices.{group}") != "custom" or not OmegaConf.is_dict(node):
            continue
        target = try_target(node.get("_target_"))
        offered = {*OFFERED[group]} - {*OWN_ARGS.get(group, ())} - {key.removeprefix(f"{group}.") for key in explicit}
        for key in offered & {*map(str, node)} if target is not None else ():
            if not takes(target, key):
                del node[key]
