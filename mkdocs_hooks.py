"""Pages of the site: a link to a file of the repository that is no page becomes its path."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^]]*)\]\((\.\./[^)\s]*)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page's text without links that lead out of `docs/`."""
    folder = PurePosixPath("docs", page.file.src_uri).parent
    parts = _FENCE.split(markdown)
    return "".join(
        part if part.lstrip().startswith("```") else _LINK.sub(lambda m: _inside(m, folder), part)
        for part in parts
    )


def _inside(link: re.Match[str], folder: PurePosixPath) -> str:
    """Return a link to a page as it is, and the path of any other file in its place."""
    path = folder
    for step in link[2].partition("#")[0].split("/"):
        path = path.parent if step == ".." else path / step
    if path.parts[:1] == ("docs",):
        return link[0]
    text = " ".join(link[1].split())
    return text if text.strip("`") == str(path) else f"{text} (`{path}` of the repository)"
