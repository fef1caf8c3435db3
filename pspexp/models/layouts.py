"""The names that other code bases give to the weights of the same networks."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The naming scheme of a code base.

    Args:
        name: Name of the code base.
        marker: Prefix by which the layout is recognised; the first layout with its marker in a file applies.
        rules: Pairs of a pattern for the prefix of their keys, and our prefix; the first match is applied. None as our
            prefix drops the key, since no segmentation network has that layer.
        backbone_only: Whether such files hold no segmentation head.
    """

    name: str
    marker: str
    rules: tuple[tuple[str, str | None], ...]
    backbone_only: bool = False

    def rename(self, key: str) -> str | None:
        """Our name for their ``key``; None if it is dropped."""
        for pattern, replacement in self.rules:
            if match := re.match(pattern, key):
                return None if replacement is None else match.expand(replacement) + key[match.end() :]
        return key


FOREIGN_LAYOUTS = (
    Layout(
        "semseg and the reference system",
        "layer0.",
        (
            (r"layer0\.7\.", "backbone.bn1."),
            (r"layer0\.", "backbone.conv1."),
            (r"layer([1-4])\.", r"backbone.layer\1."),
            (r"ppm\.features\.(\d+)\.1\.", r"pyramid.branches.\1.conv."),
            (r"ppm\.features\.(\d+)\.2\.", r"pyramid.branches.\1.bn."),
            (r"cls\.0\.", "pyramid.fuse.conv."),
            (r"cls\.1\.", "pyramid.fuse.bn."),
            (r"cls\.4\.", "classifier."),
            (r"aux\.0\.", "auxiliary.features.conv."),
            (r"aux\.1\.", "auxiliary.features.bn."),
            (r"aux\.4\.", "auxiliary.classifier."),
        ),
    ),
    Layout(
        "mmsegmentation",
        "decode_head.",
        (
            (r"backbone\.stem\.7\.", "backbone.bn1."),
            (r"backbone\.stem\.", "backbone.conv1."),
            (r"decode_head\.psp_modules\.(\d+)\.1\.", r"pyramid.branches.\1."),
            (r"decode_head\.bottleneck\.", "pyramid.fuse."),
            (r"decode_head\.conv_seg\.", "classifier."),
            (r"auxiliary_head\.convs\.0\.", "auxiliary.features."),
            (r"auxiliary_head\.conv_seg\.", "auxiliary.classifier."),
        ),
    ),
    Layout(
        "semseg's backbone files (resnet50_v2.pth)",
        "conv3.",
        (
            (r"conv1\.", "backbone.conv1.0."),
            (r"bn1\.", "backbone.conv1.1."),
            (r"conv2\.", "backbone.conv1.3."),
            (r"bn2\.", "backbone.conv1.4."),
            (r"conv3\.", "backbone.conv1.6."),
            (r"bn3\.", "backbone.bn1."),
            (r"layer([1-4])\.", r"backbone.layer\1."),
            (r"fc\.", None),
        ),
        backbone_only=True,
    ),
    Layout(
        "timm and torchvision ResNets",
        "layer1.",
        ((r"fc\.", None), (r"", "backbone.")),
        backbone_only=True,
    ),
)
OWN_LAYOUT = Layout("pspexp", "", ())
TIMM = Layout("timm and torchvision", "", (), backbone_only=True)
# What networks inside others are called: by DDP, by Lightning modules and other classes, and by torch.compile.
WRAPPERS = ("module.", "model.", "_orig_mod.", "net.", "network.")
BACKBONE = "backbone."  # prefix of our names in the rules above


def our_names(
    keys: Iterable[str], ours: Collection[str] = (), backbone_prefix: str = BACKBONE
) -> tuple[Layout, dict[str, str]]:
    """The layout of a foreign state dict with these keys, and each key -> our name for it.

    Args:
        keys: The keys; those of a wrapped network have common prefixes.
        ours: The keys of the network that is to be loaded, if it is known. A file of that very network is not renamed.
        backbone_prefix: Prefix of those that belong to its backbone.
    """
    bare = {key: key for key in keys}
    while not any(key in ours for key in bare.values()) and (prefix := _common_prefix(bare.values())):
        bare = {theirs: key.removeprefix(prefix) for theirs, key in bare.items()}
    if all(key in ours for key in bare.values()):
        return OWN_LAYOUT, bare
    if inside := _names_inside_wrapper(bare, ours):
        return OWN_LAYOUT, inside
    if of_timm := _timm_names(bare, ours, backbone_prefix):
        return TIMM, of_timm
    layout = next((c for c in FOREIGN_LAYOUTS if any(key.startswith(c.marker) for key in bare.values())), OWN_LAYOUT)
    renamed = {theirs: layout.rename(key) for theirs, key in bare.items()}
    return layout, {theirs: _moved(key, backbone_prefix) for theirs, key in renamed.items() if key is not None}


def _common_prefix(keys: Collection[str]) -> str | None:
    """The one of `WRAPPERS` that all keys begin with, or None."""
    return next((prefix for prefix in WRAPPERS if keys and all(key.startswith(prefix) for key in keys)), None)


def _names_inside_wrapper(bare: Mapping[str, str], ours: Collection[str]) -> dict[str, str]:
    """The names if ours is a network inside another and the file is mostly that of the inner one; else empty."""
    prefix = _common_prefix(ours)
    if prefix is None:
        return {}
    names = {theirs: prefix + key for theirs, key in bare.items()}
    return names if 2 * sum(key in ours for key in names.values()) > len(names) else {}


def _timm_names(bare: Mapping[str, str], ours: Collection[str], backbone_prefix: str) -> dict[str, str]:
    """The names if the file has the whole backbone under timm's names; else empty.

    A network from timm that returns feature maps joins the names of nested modules by underscores (``stages_0.`` for
    ``stages.0.``) or is wrapped, and lacks the modules behind its last feature map; their keys are dropped.
    """
    inner = [key.removeprefix(backbone_prefix) for key in ours if key.startswith(backbone_prefix)]
    wrapper = _common_prefix(inner) or ""
    flat = {key.removeprefix(wrapper).replace(".", "_"): f"{backbone_prefix}{key}" for key in inner}
    names = {theirs: flat.get(key.replace(".", "_"), "") for theirs, key in bare.items()}
    needed = {key for key in flat.values() if not key.endswith(".num_batches_tracked")}
    if not needed or needed - set(names.values()):
        return {}
    modules = {flat_key[: match.start()] for flat_key in flat for match in re.finditer("_", flat_key)}
    for theirs, key in bare.items():
        if not names[theirs] and _is_one_of_more(key, modules):
            names[theirs] = f"{backbone_prefix}{key}"  # of a larger backbone: reported as unexpected
    return {theirs: key for theirs, key in names.items() if key}


def _is_one_of_more(key: str, modules: Collection[str]) -> bool:
    """Whether a weight is in a block of a sequence that has fewer blocks in the network with these modules."""
    parts = key.split(".")
    paths = ("_".join(parts[:number]) for number in range(1, len(parts) + 1))
    return next((part.isdigit() for part, path in zip(parts, paths, strict=True) if path not in modules), False)


def _moved(key: str, backbone_prefix: str) -> str:
    return backbone_prefix + key.removeprefix(BACKBONE) if key.startswith(BACKBONE) else key
