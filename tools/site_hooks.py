"""Hooks of ``make docs``: what differs between the languages of the site."""

from typing import Any

from mkdocs.plugins import event_priority


@event_priority(-200)  # after the navigation has been translated
def on_nav(nav: Any, *, config: Any, files: Any) -> Any:
    """Mark the pages that have no translation, in the navigation."""
    if config.theme["language"] == "zh":
        for page in nav.pages:
            if not page.file.src_uri.endswith(".zh.md"):
                page.title = f"{page.title}（英文）"
    return nav


def on_post_template(output: str, *, template_name: str, config: Any) -> str:
    """Write the page for unknown addresses once, in English: the other languages would overwrite it."""
    return "" if template_name == "404.html" and config.theme["language"] != "en" else output
