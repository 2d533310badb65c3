"""Sources of kind `command`: new data that a program of the user writes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from perennial.config.cron import show_duration
from perennial.config.sources import show_size
from perennial.errors import PullFailed, PullRefused
from perennial.sources.address import storable
from perennial.sources.base import FetchedFile, Pull

WATERMARK_FILE = "_WATERMARK"
_SHOWN_CHARACTERS = 300
_READ_BYTES = 1 << 16
"""end of what a program prints that is read"""


def fetch_command(command: Sequence[str], pull: Pull) -> Iterator[FetchedFile]:
    """Run the program and yield the files that it writes into $OUT.

    The program gets the last watermark as $WATERMARK, "" the first time. The new watermark is the
    content of $OUT/_WATERMARK, else the last line of standard output, else the old one.

    Args:
        command: the program and its arguments; no shell is involved.
        pull: the pull to fill.

    Raises:
        PullFailed: when the program cannot be started, fails, takes too long or writes too much.
            A file that is too large is noted instead.
    """
    out = pull.folder / "out"
    out.mkdir()
    output = _run(command, pull, {"WATERMARK": pull.watermark, "OUT": str(out)})
    files = sorted(_wanted_files(out, pull))
    total = sum(local.stat().st_size for local in files)
    if total > pull.spec.max_pull:
        # What is left out would never come again: the next run begins behind it.
        limit = show_size(pull.spec.max_pull)
        raise PullFailed(f"{command[0]} wrote {total:,} bytes, more than `max_pull` of {limit}")
    pull.watermark = _read_watermark(out, output) or pull.watermark
    for local in files:
        name = _name(local, out)
        yield FetchedFile(local, name, name, "")


def _wanted_files(out: Path, pull: Pull) -> Iterator[Path]:
    for local in out.rglob("*"):
        name = _name(local, out)
        if local.is_dir() or not pull.wants(name):
            continue
        try:
            if local.is_symlink() or not local.is_file():
                # An archive that was unpacked may hold a link to any file of this machine.
                raise PullRefused("is a link or no regular file")
            pull.check_size(local.stat().st_size, copied=True)
        except PullRefused as refused:
            pull.note(name, PullRefused(f"{name} {refused}"))
        else:
            yield local


def _name(local: Path, out: Path) -> str:
    return storable(local.relative_to(out).as_posix())


def _run(command: Sequence[str], pull: Pull, variables: dict[str, str]) -> str:
    """Run the program and return the end of its standard output."""
    # Into files: a program may print more than fits into memory.
    printed, complained = pull.folder / "stdout", pull.folder / "stderr"
    try:
        with printed.open("wb") as stdout, complained.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                # A session of its own, so that all that it starts can be ended with it.
                start_new_session=True,
                env={**os.environ, **variables},
            )
    except OSError as error:
        raise PullFailed(f"{command[0]} cannot be started: {error.strerror}") from None

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timeout = pull.spec.timeout
    try:
        with pull.breaker.limit(timeout.total_seconds(), kill) as limit:
            # Not reaped yet, so that its number stays that of its group.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        # Also after SIGTERM or Ctrl-C of this process: no orphan goes on writing into $OUT.
        kill()
        process.wait()
    if limit.late:
        raise PullFailed(f"{command[0]} took longer than {show_duration(timeout)}")
    if process.returncode:
        last = _read_end(complained).strip().rpartition("\n")[2][-_SHOWN_CHARACTERS:]
        raise PullFailed(f"{command[0]} ended with {process.returncode}: {last}")
    return _read_end(printed)


def _read_end(file: Path) -> str:
    """Return the last `_READ_BYTES` of a file as text."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _READ_BYTES))
        return stream.read().decode(errors="replace")


def _read_watermark(out: Path, output: str) -> str:
    """Return the watermark that the program left, "" for none."""
    file = out / WATERMARK_FILE
    text = _read_end(file) if file.is_file() and not file.is_symlink() else output
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
