"""What files hold, to show that nothing wrote to them."""

from __future__ import annotations

import hashlib
from pathlib import Path


def read_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder`, by its path there."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
