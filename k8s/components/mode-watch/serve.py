"""Run Ray's head and `perennial watch` in one container, which ends when either does.

    python serve.py RUN_FILE

The operator's own command for the head is in KUBERAY_GEN_RAY_START_CMD. `perennial watch` starts
when the head listens at RAY_ADDRESS, and again a while after a failure. After a mistake in the run
file (code 2) it starts when the file has changed, which a mounted ConfigMap does in a running pod:
a mistake costs no new pod and no new cluster. When Ray ends, or `perennial` ends on request (code
143), the container ends, and the operator makes a new head.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

LOOK_EVERY_SECONDS = float(os.environ.get("LOOK_EVERY_SECONDS", "1"))
RETRY_SECONDS = float(os.environ.get("RETRY_SECONDS", "30"))
WRONG_INPUT, ON_REQUEST = 2, 128 + signal.SIGTERM


class Children:
    """The processes of the container; its first process has to reap those of others too."""

    def __init__(self) -> None:
        self.stopping = False
        self._codes: dict[int, int] = {}
        self._running: set[int] = set()
        signal.signal(signal.SIGTERM, self._stop)

    def start(self, command: list[str]) -> int:
        """Start a process; return its id."""
        child = os.posix_spawnp(command[0], command, os.environ)
        self._codes.pop(child, None)  # of a process that had the number before
        self._running.add(child)
        return child

    def code(self, child: int) -> int | None:
        """Return the exit code of a process, negative for a signal; None while it runs."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
                self._running.discard(ended[0])
        except ChildProcessError:  # there is none
            pass
        return self._codes.get(child)

    def has_ended(self, child: int) -> bool:
        """Return whether a process has ended."""
        return self.code(child) is not None

    def end(self, child: int) -> int:
        """Send SIGTERM to a process; return its exit code when it has ended."""
        if child in self._running:
            os.kill(child, signal.SIGTERM)
        while (code := self.code(child)) is None:
            time.sleep(LOOK_EVERY_SECONDS)
        return code

    def _stop(self, _number: int, _frame: object) -> None:
        self.stopping = True


def listens(address: str) -> bool:
    """Return whether something answers at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def may_start_again(code: int, run_file: Path, tried: bytes) -> Callable[[], bool]:
    """Return the condition for another try after `perennial` ended with a code.

    Args:
        code: its exit code.
        run_file: where the run file is.
        tried: what was in it when `perennial` started.
    """
    if code == WRONG_INPUT:
        print(f"waiting for another {run_file}", flush=True)
        return lambda: run_file.read_bytes() != tried
    again = time.monotonic() + RETRY_SECONDS
    return lambda: time.monotonic() >= again


def main() -> int:
    run_file, children = Path(sys.argv[1]), Children()
    command = os.environ["KUBERAY_GEN_RAY_START_CMD"]
    limit = "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}"
    ray = children.start(["/bin/bash", "-c", f"{limit}; exec {command}"])

    def until(condition: Callable[[], bool]) -> bool:
        """Wait until it holds; return False when the container has to end before."""
        while not children.stopping and children.code(ray) is None:
            if condition():
                return True
            time.sleep(LOOK_EVERY_SECONDS)
        return False

    going = until(lambda: listens(os.environ["RAY_ADDRESS"]))
    while going:
        tried = run_file.read_bytes()
        watch = children.start(["perennial", "watch", str(run_file)])
        ended = until(partial(children.has_ended, watch))
        code = children.end(watch)  # where it still runs, by SIGTERM: a checkpoint is stored
        if not ended or code in (0, ON_REQUEST, -signal.SIGTERM):
            break
        going = until(may_start_again(code, run_file, tried))
    went_first = children.has_ended(ray)
    code = children.end(ray)
    # Ray's own code after SIGTERM and its drain is 1.
    return 1 if went_first and code else 0


if __name__ == "__main__":
    sys.exit(main())
