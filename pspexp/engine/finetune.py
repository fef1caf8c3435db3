"""Fine-tuning: what is frozen, until when, and learning rates that fall from stage to stage of the backbone."""

import logging
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from pspexp.engine.finetune_config import FinetuneConfig
from pspexp.errors import UserError, setting
from pspexp.models.segmenter import Segmenter
from pspexp.utils.text import count, first_names

OPENED_SHARE = 0.8  # a child with more of a module's parameters than this is no stage: its own children are the stages

log = logging.getLogger(__name__)


class Freezing:
    """The parts of a network that are not trained. It depends on the epoch alone, so there is no state to save.

    Parts that stay frozen to the end are frozen at once: optimizers leave out parameters that need no gradient. Others
    must be in the optimizer from the start; without a gradient it does not change them.

    Args:
        model: The network, with its final modules and parameters.
        config: What to freeze, and until when.

    Raises:
        UserError: Lists the names that match nothing, or nothing is left to train.
    """

    def __init__(self, model: nn.Module, config: FinetuneConfig) -> None:
        self.config = config
        found = {name: named_parts(model, name) for name in config.freeze}
        if problems := [unknown_name(model, name) for name, parts in found.items() if not any(parts)]:
            raise UserError(*problems)
        parameters = set[nn.Parameter]().union(*(parts[0] for parts in found.values()))
        self._norms = set[nn.Module]().union(*(parts[1] for parts in found.values()))
        # Parameters that the network itself has frozen stay so.
        self._parameters = [one for one in parameters if one.requires_grad]
        self._always_frozen_norms = self._norms_without_statistics(model)
        self._num_parameters = number_of(model.parameters())
        self._num_trained = number_of(one for one in model.parameters() if one.requires_grad and one not in parameters)
        if config.freeze and not self._num_trained:
            raise UserError(f"{setting('finetune.freeze', list(config.freeze))}: nothing is left to train; freeze less")
        self._frozen = False
        if config.unfreeze_at is None:
            self.update(1)

    def update(self, epoch: int) -> bool:
        """Freeze what is frozen in this epoch, from 1: to be called before each step, after ``model.train()``.

        Returns:
            Whether other parameters are trained than in the step before.
        """
        frozen = self.config.unfreeze_at is None or epoch < self.config.unfreeze_at
        for norm in [*self._always_frozen_norms, *(self._norms if frozen else [])]:
            norm.eval()
        if frozen == self._frozen:
            return False
        self._frozen = frozen
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)
        return bool(self._parameters)

    def describe(self) -> Iterator[str]:
        """Log lines about what is frozen, if anything is."""
        if self.config.freeze:
            names, until = ", ".join(self.config.freeze), self.config.unfreeze_at
            again = "" if until is None else f", trained again from epoch {until}"
            yield (
                f"frozen: {names} ({number_of(self._parameters):,} of {self._num_parameters:,} parameters, "
                f"{count(len(self._norms), 'batch norm')}){again}; {self._num_trained:,} parameters are trained"
            )
        if self.config.freeze_batch_norm:
            of = " of the backbone" if self.config.freeze_batch_norm == "backbone" else ""
            yield f"frozen: the statistics of all {count(len(self._always_frozen_norms), 'batch norm')}{of}"

    def _norms_without_statistics(self, model: nn.Module) -> list[nn.Module]:
        where = self.config.freeze_batch_norm
        part = backbone_of(model, setting("finetune.freeze_batch_norm", where)) if where == "backbone" else model
        return batch_norms(part) if where else []


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The batch norms in a module, which may be one itself."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def named_parts(model: nn.Module, pattern: str) -> tuple[set[nn.Parameter], set[nn.Module]]:
    """The parameters and batch norms in what a name or pattern such as ``backbone.layer[12]`` means."""
    modules = [module for name, module in model.named_modules() if name and fnmatchcase(name, pattern)]
    parameters = {parameter for name, parameter in model.named_parameters() if fnmatchcase(name, pattern)}
    parameters.update(parameter for module in modules for parameter in module.parameters())
    return parameters, {norm for module in modules for norm in batch_norms(module)}


def unknown_name(model: nn.Module, name: str) -> str:
    """A line about a name in ``finetune.freeze`` that stands for no parameter, with the names near it."""
    modules = {key: part for key, part in model.named_modules() if key and any(True for _ in part.parameters())}
    if name in dict(model.named_modules()):
        return f"{setting('finetune.freeze')}: {name} has no parameters; remove it"
    parent = name.rpartition(".")[0]
    while parent and parent not in modules:
        parent = parent.rpartition(".")[0]
    within = f"{parent}." if parent else ""
    children = [key for key, _ in modules.get(parent, model).named_children() if within + key in modules]
    near = [within + key for key in get_close_matches(name.removeprefix(within), children)]
    near += [key for key in modules if key.endswith(f".{name}")]
    hint = f"did you mean {near[0]}? " if near else ""
    return (
        f"{setting('finetune.freeze')}: the network has no module or parameter {name}; {hint}"
        f"{parent or 'it'} has {first_names(children, 12) or 'no modules'}"
    )


def decay_learning_rates(optimizer: Optimizer, model: nn.Module, decay: float) -> None:
    """Split the optimizer's groups so that the learning rate falls by ``decay`` from each stage to the one below it.

    The last stage comes first in each group and keeps the group's learning rate. Parameters outside the backbone are
    left alone.

    Raises:
        UserError: The network has no backbone.
    """
    found = stages(backbone_of(model, setting("finetune.layer_decay", decay)))
    factors = {name: decay**depth for depth, name in enumerate(reversed(found))}
    stage_of = {parameter: name for name, parameters in found.items() for parameter in parameters}
    groups = []
    for group in optimizer.param_groups:
        for stage, factor in [*factors.items(), (None, 1.0)]:
            name = group.get("name", "") + (f"/{stage}" if stage else "")
            parameters = [parameter for parameter in group["params"] if stage_of.get(parameter) == stage]
            groups.append({**group, "name": name, "params": parameters, "lr": group["lr"] * factor})
    optimizer.param_groups[:] = [group for group in groups if group["params"]]
    log.info("learning rates of the stages: %s", ", ".join(f"{name} ×{factors[name]:.3g}" for name in found))


def backbone_of(model: nn.Module, asked_by: str) -> nn.Module:
    """The part of a network whose weights may be pretrained.

    Raises:
        UserError: There is none, but ``asked_by`` needs it.
    """
    name = getattr(model, "backbone_prefix", Segmenter.backbone_prefix).rstrip(".")
    backbone: nn.Module | None = dict(model.named_modules()).get(name) if name else None
    if backbone is None:
        wanted = f"no module {name}" if name else "no backbone"
        raise UserError(f"{asked_by}: {type(model).__name__} has {wanted}; remove this setting")
    return backbone


def stages(backbone: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each stage of a backbone, from its input on, by the name of the stage's first module.

    The stages are the backbone's children in the order of their definition. A norm belongs to the convolution before
    it, and a child with nearly all parameters stands for its own children.
    """
    found: dict[str, list[nn.Parameter]] = {}
    for name, module in _layers(backbone):
        parameters = [*module.parameters()]
        if not found or any(parameter.ndim > 1 for parameter in parameters):
            found[name] = []
        found[next(reversed(found))] += parameters
    assigned = {parameter for parameters in found.values() for parameter in parameters}
    # Parameters of the backbone itself, such as position embeddings, act on its input.
    next(iter(found.values())).extend(one for one in backbone.parameters() if one not in assigned)
    return found


def _layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    children = {name: child for name, child in module.named_children() if number_of(child.parameters())}
    if not children:
        yield prefix.rstrip(".") or "all", module
    for name, child in children.items():
        if number_of(child.parameters()) > OPENED_SHARE * number_of(module.parameters()):
            yield from _layers(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def number_of(parameters: Iterable[nn.Parameter]) -> int:
    """The number of weights."""
    return sum(parameter.numel() for parameter in parameters)
