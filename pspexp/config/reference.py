"""What each key of the configuration is, for help and documentation: type, value, and the comment in its YAML file.

The comments in ``conf/`` are the only explanations of keys and options; types are those that the schema checks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from pspexp.config.annotations import argument_types, type_text
from pspexp.config.comments import Comments, file_comment, read_comments
from pspexp.config.compose import add_search_path, compose_checked, named_search_path
from pspexp.config.interpolations import interpolation_problems
from pspexp.config.options import conf_dir
from pspexp.config.schema import Config
from pspexp.config.signatures import SPECIAL_KEYS
from pspexp.config.targets import MISSING
from pspexp.errors import UserError
from pspexp.utils.trees import flatten

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: Dotted, as on the command line: ``trainer.epochs``.
        type: What it may be: ``int > 0``, ``uniform | class_balanced``; empty if anything, or unknown.
        value: Its value: the default, unless overridden. A mapping if it is a node, whose keys follow.
        comment: Its explanation in one line; empty if there is none.
    """

    name: str
    type: str
    value: Any
    comment: str

    @property
    def is_node(self) -> bool:
        """Whether it has keys below it."""
        return isinstance(self.value, Mapping) and bool(self.value)


class Reference:
    """The groups, options and keys of a configuration.

    Args:
        overrides: Overrides, as on the command line.
        folders: The user's own YAML folders.
        name: Name of the primary configuration.
        sweep: Whether to allow several values of a key.
        resolve: Whether values are resolved. Otherwise they are as written, such as ``${dataset.num_classes}``.

    Attributes:
        choices: The option chosen in each group; None for none.
        config: The configuration without Hydra's part.
        values: The same as plain values.

    Raises:
        UserError: Lists every invalid override.
    """

    def __init__(
        self,
        overrides: Sequence[str] = (),
        folders: Sequence[str] = (),
        name: str = "config",
        *,
        sweep: bool = False,
        resolve: bool = False,
    ) -> None:
        config = compose_checked(overrides, sweep=sweep, folders=folders, name=name)
        job = OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", "choices")])
        if resolve and (problems := interpolation_problems(job)):
            raise UserError(*problems.values())
        self.name = name
        self.choices: dict[str, str | None] = dict(config.hydra.runtime.choices)
        self.config = job
        self.values: Any = OmegaConf.to_container(job, resolve=resolve)
        with initialize_config_dir(conf_dir(), version_base="1.3", job_name="pspexp"):
            add_search_path([*folders, *named_search_path(overrides)])
            # The loader itself would copy the whole repository for every query, about a second in total.
            self._repository: Any = GlobalHydra.instance().config_loader().repository  # type: ignore[attr-defined]

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The config groups of pspexp in the order of the configuration, and the options of each."""
        found = self._repository.get_group_options("", results_filter=ObjectType.GROUP)
        names = sorted(found, key=lambda name: [*self.values, name].index(name))
        found = {name: self._repository.get_group_options(name, results_filter=ObjectType.CONFIG) for name in names}
        return {name: options for name, options in found.items() if name != "hydra" and options}

    def option_comment(self, group: str, option: str) -> str:
        """What an option is: the comment at the top of its file, with its line breaks."""
        return file_comment(self._text(f"{group}/{option}"))

    def comment(self, key: str) -> str:
        """The comment on a group, node or key; empty if there is none."""
        group, _, below = key.partition(".")
        if not below:
            return self._primary.get(f"defaults.{group}") or self._primary.get(group, "")
        option = self.choices.get(group)
        return self._primary.get(key) or (self._comments(f"{group}/{option}").get(below, "") if option else "")

    def keys(self, topic: str) -> list[Key]:
        """A node and the keys below it, or a single key, in the order of the configuration; empty if there is none."""
        *parents, name = topic.split(".")
        node = self.values
        for part in parents:
            node = node.get(part) if isinstance(node, Mapping) else None
        return list(self._keys(topic, node[name])) if isinstance(node, Mapping) and name in node else []

    def is_preset(self, group: str, option: str) -> bool:
        """Whether an option, such as an experiment, sets keys of other nodes instead of its own."""
        return "# @package _global_" in self._text(f"{group}/{option}").splitlines()

    def preset(self, group: str, option: str) -> list[Key]:
        """What an experiment or a sweep sets: options of groups, and keys."""
        comments = self._comments(f"{group}/{option}")
        return [
            Key(name, "" if name in self.groups else self.type(name), value, comments.get(name) or self.comment(name))
            for name, value in self._preset(group, option).items()
        ]

    def type(self, key: str) -> str:
        """What a key may be, see `Key`."""
        return type_text(self.annotation(key))

    def annotation(self, key: str) -> Any:
        """The type of a key that the schema checks; None or Any if it is unknown."""
        annotation: Any = Config
        node: Any = self.values
        for part in key.split("."):
            if is_dataclass(annotation) and isinstance(annotation, type):
                annotation = get_type_hints(annotation, include_extras=True).get(part)
            else:
                target = node.get("_target_") if isinstance(node, Mapping) else None
                annotation = argument_types(target).get(part) if target else None
            node = node.get(part) if isinstance(node, Mapping) else None
        return annotation

    def _keys(self, name: str, value: Any) -> Iterator[Key]:
        is_node = isinstance(value, Mapping) and bool(value)
        yield Key(name, "" if is_node else self.type(name), value, self.comment(name))
        for part, below in value.items() if is_node else ():
            if part not in SPECIAL_KEYS or below == MISSING:
                yield from self._keys(f"{name}.{part}", below)

    def _preset(self, group: str, option: str) -> dict[str, Any]:
        text = self._text(f"{group}/{option}")
        found = dict[str, Any]()
        for base in read_comments(text).bases:
            found |= self._preset(group, base)
        tree: Any = OmegaConf.to_container(OmegaConf.create(text))
        for entry in tree.pop("defaults", []):
            chosen = entry if isinstance(entry, dict) else {}
            found |= {key.removeprefix("override ").lstrip("/"): one for key, one in chosen.items()}
        return found | flatten(tree)

    @cached_property
    def _primary(self) -> dict[str, str]:
        return self._comments(self.name)

    def _comments(self, name: str) -> dict[str, str]:
        """The comments on the keys of a file, those of the files that it extends included."""
        own = self._read(name)
        found = dict[str, str]()
        for base in own.bases:
            found |= self._comments(base.lstrip("/") if base.startswith("/") else str(Path(name).with_name(base)))
        return found | own.keys

    def _read(self, name: str) -> Comments:
        if name not in self._files:
            self._files[name] = read_comments(self._text(name))
        return self._files[name]

    @cached_property
    def _files(self) -> dict[str, Comments]:
        return {}

    def _text(self, name: str) -> str:
        """The text of the file of a configuration; empty if it has none."""
        for source in self._repository.get_sources():
            if source.is_config(name) and source.scheme() in ("file", "pkg"):
                root: Any = Path(source.path) if source.scheme() == "file" else resources.files(source.path)
                return str((root / f"{name}.yaml").read_text(encoding="utf-8", errors="replace"))
        return ""
