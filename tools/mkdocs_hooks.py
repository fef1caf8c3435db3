"""Hooks of MkDocs, which builds the site of docs/ (mkdocs.yml)."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

# Pages that are still to be written: left out of the navigation until they are there.
PENDING = {
    "from-mmsegmentation.md",
    "from-semseg.md",
    "from-smp.md",
    "reproducing.md",
    "troubleshooting.md",
}


@event_priority(100)  # before the plugin for languages copies the navigation
def on_config(config: MkDocsConfig) -> None:
    """Leave out entries of pending pages, and sections without pages."""
    missing = {page for page in PENDING if not Path(config.docs_dir, page).is_file()}
    config.nav = without(missing, config.nav)


def without(missing: set[str], entries: list[Any]) -> list[Any]:
    """Entries of the navigation, ``{title: page or entries}``, without some pages."""
    found = []
    for entry in entries:
        ((title, content),) = entry.items()
        kept = without(missing, content) if isinstance(content, list) else content
        if kept and (isinstance(kept, list) or kept not in missing):
            found.append({title: kept})
    return found
