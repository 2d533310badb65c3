"""Waiting for processes to end."""

from __future__ import annotations

from pathlib import Path


def wait_until_ended(pid: int) -> None:
    """Wait until a process is gone, or only waits for its parent."""
    stat = Path(f"/proc/{pid}/stat")
    while True:
        try:
            state = stat.read_text().split(")")[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
