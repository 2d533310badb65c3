"""A store that version 0.1 of the code wrote, and what that code did next."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perennial.store import Store, open_store

_FOLDER = Path(__file__).parents[1] / "fixtures" / "store-0.1"


@dataclass(frozen=True)
class OldStore:
    """A copy of the fixture that a test may change.

    run_file: its store is a relative path, so that commands need `override`.
    """

    run_file: Path
    folder: Path

    @property
    def store(self) -> Store:
        return open_store(self.folder)

    @property
    def override(self) -> str:
        """Return the word that points a command at this copy."""
        return f"store={self.folder}"


def unpack_old_store(folder: Path) -> OldStore:
    """Unpack the fixture into `folder`."""
    with tarfile.open(_FOLDER / "store.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return OldStore(folder / "run.yaml", folder / "store")


def read_expected() -> dict[str, Any]:
    """Return what the old code did next: `events`, `model_sha256`, `processor` and `torch`."""
    expected: dict[str, Any] = json.loads((_FOLDER / "expected.json").read_text())
    return expected
