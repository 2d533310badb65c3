"""The store of a finished quickstart, without weights and corpora."""

from __future__ import annotations

import tarfile
from pathlib import Path

_ARCHIVE = Path(__file__).parents[1] / "fixtures" / "quickstart" / "store.tar.gz"


def unpack_quickstart(folder: Path) -> Path:
    """Unpack it to where `make quickstart` puts a store in the checkout `folder`; return that."""
    place = folder / "build" / "quickstart"
    place.mkdir(parents=True)
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    return place / "store"
