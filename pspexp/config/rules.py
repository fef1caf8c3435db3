"""The rules of a configuration that concern several of its values: each yields lines about what breaks it."""

from collections.abc import Callable, Iterator
from typing import Any

from pspexp.config.modes import uses_checkpoint
from pspexp.config.signatures import Plain
from pspexp.config.targets import takes, try_target
from pspexp.errors import as_yaml, did_you_mean

TRAINING_MODES = ("train", "check")  # the second refuses what the first does


def crop_fits_stride(config: Plain) -> Iterator[str]:
    model, size = config["model"], config["crop_size"]
    stride = model.get("output_stride", 1)
    if model.get("align_corners") is True and isinstance(stride, int) and stride > 0 and (size - 1) % stride:
        near = max(round((size - 1) / stride), 1) * stride + 1
        yield f"crop_size={size}: (crop_size - 1) must be divisible by {stride} (model.output_stride); try {near}"


def batch_is_normalisable(config: Plain) -> Iterator[str]:
    normalised = config["mode"] in TRAINING_MODES and config["finetune"]["freeze_batch_norm"] is not True
    if normalised and config["loader"]["batch_size"] < 2:
        yield (
            "loader.batch_size=1: training needs at least 2, since batch normalisation of the globally "
            "pooled features needs more than one value per channel; try loader.batch_size=2"
        )


def classes_agree(config: Plain) -> Iterator[str]:
    dataset, count = config["dataset"], config["dataset"].get("num_classes")
    if count is None:  # the names are read from the folder of the data set, once it exists
        return
    names = dataset.get("class_names")
    if 1 in (count, len(names or ())):
        given = "dataset.num_classes=1" if count == 1 else f"dataset.class_names=[{names[0]}]"
        name = names[0] if names and names[0].lower() != "background" else "<name>"
        labels = " dataset.reduce_zero_label=false" if dataset.get("reduce_zero_label") else ""
        yield (
            f"{given}: a network that knows one class predicts it everywhere; add the background as a class: "
            f"dataset.class_names=[background,{name}]{labels}"
        )
        return
    if names is not None and len(names) != count:
        yield f"dataset.num_classes={count}: but dataset.class_names has {len(names)} names; make them agree"
    model, loss = config["model"].get("num_classes", count), config["loss"].get("num_classes", count)
    if model != count:
        yield (
            f"model.num_classes={model}: but the data set has {count} classes (dataset.num_classes={count}); "
            "choose the data set the model was trained on, or start from its weights with model.weights"
        )
    elif loss != count:  # otherwise it may follow the model
        yield f"loss.num_classes={loss}: must equal dataset.num_classes={count}, its default; remove it"
    weights = config["loss"].get("class_weights")
    if isinstance(weights, list) and len(weights) != count:
        yield f"loss.class_weights: {len(weights)} values for {count} classes; give one per class"


def loss_terms_are_known(config: Plain) -> Iterator[str]:
    loss = config["loss"]
    if loss.get("_target_") == "pspexp.losses.Sum" and isinstance(loss["terms"], list):
        from pspexp.losses.sum import term_problems  # imports torch, which takes seconds

        yield from (f"loss.{line}" for line in term_problems(loss["terms"], loss["num_classes"]))


def torch_ignores_labels(config: Plain) -> Iterator[str]:
    ignored = config["dataset"].get("ignore_index")
    for key, node in nodes(config["loss"], "loss"):
        target = try_target(node["_target_"]) if str(node["_target_"]).startswith("torch.nn.") else None
        if takes(target, "ignore_index") and node.get("ignore_index", -100) != ignored:
            yield f"{key}.ignore_index={node.get('ignore_index', -100)}: set it to dataset.ignore_index={ignored}"


def ignored_labels_agree(config: Plain) -> Iterator[str]:
    ignored = config["dataset"].get("ignore_index")
    for key, node in [*nodes(config["loss"], "loss"), *nodes(config["augment"], "augment")]:
        value = node.get("ignore_index", ignored)
        if ignored is not None and value != ignored:
            yield (
                f"{key}.ignore_index={value}: must equal dataset.ignore_index={ignored}, its default; remove it, or "
                f"set dataset.ignore_index={value}"
            )


def nodes(value: Any, key: str) -> Iterator[tuple[str, Plain]]:
    """Each node with ``_target_`` in a value, and its dotted key; ``key`` is that of the value."""
    if isinstance(value, dict) and "_target_" in value:
        yield key, value
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nodes(item, f"{key}.{name}")


def bands_agree(config: Plain) -> Iterator[str]:
    mean, channels = config["dataset"].get("mean"), config["model"].get("in_channels")
    if mean is None:
        return
    if channels is not None and channels != len(mean):
        yield f"model.in_channels={channels}: but dataset.mean has {len(mean)} values; make them agree"
    padding = config["augment"].get("mean", mean)
    if isinstance(padding, list) and len(padding) != len(mean):
        yield f"augment.mean={padding}: must equal dataset.mean={mean}, its default; remove it"
    if len(mean) != 3:
        for key in ("export.register", "tracking.register"):
            group, name = key.split(".")
            if config[group].get(name) is not None:
                value = config[group][name]
                yield f"{key}={value}: serves RGB images, but dataset.mean has {len(mean)} values; set it to null"


def class_map_has_effect(config: Plain) -> Iterator[str]:
    if config["dataset"].get("class_map") is not None and not uses_checkpoint(config["mode"]):
        yield (
            f"dataset.class_map: has no effect on mode={config['mode']}; "
            "remove it, or give several dataset.label_values to one class"
        )


def checkpoint_is_given(config: Plain) -> Iterator[str]:
    if uses_checkpoint(config["mode"]) and config["checkpoint"]["path"] is None:
        mode = config["mode"]
        yield f"checkpoint.path=null: mode={mode} needs a checkpoint; give a file, a run folder or runs:/<id>"


def input_is_given(config: Plain) -> Iterator[str]:
    if config["mode"] == "predict" and config["predict"]["input"] is None:
        yield "predict.input=null: mode=predict needs images; give a file, a folder, a glob, @list.txt or split:val"
    for key in ("input", "output"):
        value = config["predict"][key]
        if config["mode"] != "predict" and value is not None:
            yield f"predict.{key}={value}: has no effect on mode={config['mode']}; add mode=predict"


def model_can_be_registered(config: Plain) -> Iterator[str]:
    wanted = config["export"]
    if wanted["register"] is None:
        if wanted["alias"] is not None:
            yield f"export.alias={wanted['alias']}: names a registered model; set export.register, too"
    elif config["mode"] != "export":
        yield f"export.register={wanted['register']}: has no effect on mode={config['mode']}; add mode=export"
    elif wanted["input"] != "image" or "onnx" not in wanted["format"]:
        name = wanted["register"]
        yield f"export.register={name}: serves an ONNX file; needs export.input=image and onnx in export.format"


def states_are_saved(config: Plain) -> Iterator[str]:
    checkpoint = config["checkpoint"]
    if checkpoint["keep"] and not checkpoint["every_steps"]:
        yield f"checkpoint.keep={checkpoint['keep']}: keeps the states of checkpoint.every_steps; set it, too"


def comparison_is_clear(config: Plain) -> Iterator[str]:
    given = {key: value for key, value in config["compare"].items() if value not in (None, [])}
    for key, value in given.items():
        if config["mode"] != "compare":
            yield f"compare.{key}={value}: has no effect on mode={config['mode']}; add mode=compare"
        elif "runs" in given and key in ("experiment", "sweep", "filter"):
            yield f"compare.{key}={value}: selects runs from MLflow, but compare.runs names runs; remove one of them"


def runs_have_effect(config: Plain) -> Iterator[str]:
    for mode in ("sync", "clean"):
        if config["mode"] != mode and (given := config[mode]["runs"]) not in (None, []):
            yield f"{mode}.runs={as_yaml(given)}: has no effect on mode={config['mode']}; add mode={mode}"


def new_folder_is_named(config: Plain) -> Iterator[str]:
    output, mode = config["init"]["output"], config["mode"]
    if mode == "init" and not output:
        yield f"init.output={as_yaml(output)}: mode=init needs a new folder, e.g. init.output=my_project"
    elif mode != "init" and output is not None:
        yield f"init.output={output}: has no effect on mode={mode}; add mode=init"


def unfreezing_has_effect(config: Plain) -> Iterator[str]:
    epoch = config["finetune"]["unfreeze_at"]
    if epoch is not None and not config["finetune"]["freeze"]:
        yield f"finetune.unfreeze_at={epoch}: nothing is frozen until then; set finetune.freeze, or this to null"


def stopping_metrics_exist(config: Plain) -> Iterator[str]:
    from pspexp.metrics.report import MEANS

    further = [name for name, node in config["metrics"].items() if node is not None]
    known = ["loss", *MEANS, *further, *(f"mean_{name}" for name in further)]
    for name, hook in config["hooks"].items():
        if (
            config["mode"] not in TRAINING_MODES
            or hook is None
            or hook["_target_"] != "pspexp.engine.hooks.EarlyStopping"
        ):
            continue
        metric = hook.get("metric", "val/mean_iou")
        kind = metric.removeprefix("val/").partition("/")[0]
        if kind not in (*known, "iou"):  # whether the class exists is known once the data set is open
            hint = did_you_mean(metric, [f"val/{one}" for one in known])
            yield f"hooks.{name}.metric={metric}: is not a validation metric{hint or '; try val/mean_iou'}"


def graphs_hold_gradients(config: Plain) -> Iterator[str]:
    mode, accumulate = config["trainer"]["compile"], config["trainer"]["accumulate"]
    if mode in ("reduce-overhead", "max-autotune") and accumulate > 1:
        yield (
            f"trainer.compile={mode}: CUDA graphs overwrite gradients that trainer.accumulate={accumulate} adds up; "
            "try trainer.compile=true or max-autotune-no-cudagraphs"
        )


RULES: list[Callable[[Plain], Iterator[str]]] = [
    crop_fits_stride,
    batch_is_normalisable,
    classes_agree,
    loss_terms_are_known,
    torch_ignores_labels,
    ignored_labels_agree,
    bands_agree,
    class_map_has_effect,
    checkpoint_is_given,
    input_is_given,
    model_can_be_registered,
    states_are_saved,
    comparison_is_clear,
    runs_have_effect,
    new_folder_is_named,
    unfreezing_has_effect,
    stopping_metrics_exist,
    graphs_hold_gradients,
]
