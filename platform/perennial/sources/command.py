"""Sources of kind `command`: new data that a program of the user writes."""

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
    """Run the program and yield the files that it writes into $OUT.

    The program gets the last watermark as $WATERMARK, "" the first time. The new watermark is the
    content of $OUT/_WATERMARK, else the last line of standard output, else the old one.

    Args:
        command: the program and its arguments; no shell is involved.
        timeout_seconds: the longest that it may run.
        pull: the pull to fill.

    Raises:
        PullFailed: when the program cannot be started, fails, or takes too long.
    """
    out = pull.folder / "out"
    out.mkdir()
    output = _run(command, timeout_seconds, {"WATERMARK": pull.watermark, "OUT": str(out)})
    pull.watermark = _read_watermark(out, output) or pull.watermark
    for local in sorted(path for path in out.rglob("*") if path.is_file()):
        name = local.relative_to(out).as_posix()
        if pull.wants(name):
            yield FetchedFile(local, name, name, "")


def _run(command: Sequence[str], timeout_seconds: float, variables: dict[str, str]) -> str:
    """Run the program and return its standard output."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # A session of its own, so that all that it starts can be ended with it.
            start_new_session=True,
            env={**os.environ, **variables},
        )
    except OSError as error:
        raise PullFailed(f"{command[0]} cannot be started: {error.strerror}") from None
    try:
        output, errors = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise PullFailed(f"{command[0]} took longer than {timeout_seconds:g} s") from None
    finally:
        # Also after SIGTERM or Ctrl-C of this process: no orphan goes on writing into $OUT.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        last = errors.strip().rpartition("\n")[2][-_SHOWN_CHARACTERS:]
        raise PullFailed(f"{command[0]} ended with {process.returncode}: {last}")
    return output


def _read_watermark(out: Path, output: str) -> str:
    """Return the watermark that the program left, "" for none."""
    file = out / WATERMARK_FILE
    text = file.read_text(errors="replace") if file.is_file() else output
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
