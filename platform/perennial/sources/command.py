"""New data that a program of the user writes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from perennial.errors import PullFailed
from perennial.sources.base import FetchedFile, Pull

WATERMARK_FILE = "_WATERMARK"
_SHOWN_CHARACTERS = 300


def fetch_command(
    command: Sequence[str], timeout_seconds: float, pull: Pull
) -> Iterator[FetchedFile]:
    """What the program writes into $OUT when it is told $WATERMARK, "" the first time.

    The new watermark is what it leaves in $OUT/_WATERMARK, else its last line on standard output,
    else the old one. Raises PullFailed when it cannot be started, fails, or takes too long.
    """
    out = pull.folder / "out"
    out.mkdir()
    printed = _run(command, timeout_seconds, {"WATERMARK": pull.watermark, "OUT": str(out)})
    pull.watermark = _watermark(out, printed) or pull.watermark
    for local in sorted(path for path in out.rglob("*") if path.is_file()):
        name = local.relative_to(out).as_posix()
        if pull.wants(name):
            yield FetchedFile(local, name, name, "")


def _run(command: Sequence[str], timeout_seconds: float, told: dict[str, str]) -> str:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, **told},
        )
    except OSError as refused:
        raise PullFailed(f"{command[0]} cannot be started: {refused.strerror}") from None
    try:
        printed, complained = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise PullFailed(f"{command[0]} took longer than {timeout_seconds:g} s") from None
    finally:
        # Whatever it started in its own session ends with it.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        last = complained.strip().rpartition("\n")[2][-_SHOWN_CHARACTERS:]
        raise PullFailed(f"{command[0]} ended with {process.returncode}: {last}")
    return printed


def _watermark(out: Path, printed: str) -> str:
    file = out / WATERMARK_FILE
    text = file.read_text(errors="replace") if file.is_file() else printed
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
