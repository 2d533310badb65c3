"""A real file system of a few kilobytes, which can be filled, made larger and made read-only."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    """Mount a file system of so many kilobytes; skip the test where this user may not."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system needs the right to mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: what a test left open must not fail the next one.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a mounted file system: `size=900k`, `ro`."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file until there is no room left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as sink:
        while True:
            try:
                sink.write(bytes(4096))
            except OSError as full:
                assert full.errno == errno.ENOSPC
                return ballast
