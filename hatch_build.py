"""The package's description for an index: README.md without links into the checkout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"^!\[[^]]*\]\((?!https?://)[^)]*\)\n", re.MULTILINE)
_LINK = re.compile(r"\[([^]]*)\]\((?!https?://)[^)]*\)")


class ReadmeHook(MetadataHookInterface):
    """Writes the field `readme`, in which a relative link would lead nowhere."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Put README.md into the metadata, each relative link as its text."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = _LINK.sub(r"\1", _PICTURE.sub("", text))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
