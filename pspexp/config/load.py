"""Trained networks from Python."""

from collections.abc import Sequence
from os import PathLike, fspath

from torch import nn

from pspexp.config.build import build, build_trained, init_distributed
from pspexp.config.compose import compose
from pspexp.config.targets import without_start_weights
from pspexp.engine.distributed import ProcessInfo
from pspexp.engine.predictor import Predictor
from pspexp.utils.allowed import allowing
from pspexp.utils.text import quoted


def load(path: str | PathLike[str], overrides: Sequence[str] = (), *, allow_targets: Sequence[str] = ()) -> Predictor:
    """A trained network that maps images to class ids, as ``mode=predict`` does.

    Args:
        path: A run folder, a checkpoint, an exported file, ``runs:/<MLflow run id>`` or ``models:/<name>@<alias>``.
        overrides: Overrides such as ``device=cuda`` and ``inference=slide``.
        allow_targets: Patterns of classes and functions of your own that a file from elsewhere may name, as in
            ``my_net.*``; see `pspexp.config.trust`.

    Raises:
        UserError: The configuration is invalid; lists every problem.
    """
    with allowing(allow_targets):
        config = compose(["mode=predict", f"checkpoint.path={quoted(path)}", "predict.input=.", *overrides])
    components, _ = build_trained(config, *init_distributed(config, ProcessInfo()))
    return Predictor(components)


def network(
    option: str, num_classes: int = 21, weights: str | PathLike[str] | None = None, **arguments: object
) -> nn.Module:
    """A network of ``conf/model``, without any data set.

    Args:
        option: Name of the option, such as ``pspnet50``.
        num_classes: Number of classes.
        weights: A checkpoint to load, of this project or in one of the layouts it knows; None: random weights. A
            classifier for another number of classes is initialised randomly, with a warning.
        arguments: Further arguments of the option's target, such as ``dropout=0``.

    Raises:
        UserError: An argument is wrong, or the weights cannot be loaded.
    """
    node = compose(["dataset=shapes", f"model={option}"]).model
    weights = None if weights is None else fspath(weights)
    given = {**without_start_weights(node), **arguments, "num_classes": num_classes, "weights": weights}
    built: nn.Module = build(node, **given)
    return built
