"""A hook of mkdocs: links that leave docs/ lead to the repository.

With ``repo_url`` in mkdocs.yml they become its addresses, without it the file's path in text.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)\s]*)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page's text for the site; called by mkdocs."""
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))
    return _LINK.sub(lambda match: _led(match, folder, config.repo_url), markdown)


def _led(match: re.Match[str], folder: str, repo_url: str | None) -> str:
    text, link = match.groups()
    path, _, anchor = link.partition("#")
    path = posixpath.normpath(posixpath.join(folder, path))
    if path.startswith("docs/"):
        return match[0]
    if repo_url:
        return f"[{text}]({repo_url.rstrip('/')}/blob/main/{path}{'#' * bool(anchor)}{anchor})"
    return f"{text} (`{path}` in the repository)"
