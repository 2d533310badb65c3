"""Graceful ends: SIGTERM to a worker or to the driver, and nodes that are drained.

A worker that is asked to end saves and raises; the driver that is asked to end has its workers save
before it does.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ray.train.torch import TorchConfig

from perennial.training.ray.internals import TorchBackend, is_node_drained


class PreemptibleTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's torch configuration, whose workers take SIGTERM as a notice."""

    @property
    def backend_cls(self) -> type:
        """Return the backend that Ray Train starts the workers with."""
        return _PreemptibleBackend


class _PreemptibleBackend(TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(catch_sigterm)


# Of this worker's process: the handler runs in its main thread, training in another.
_wake: socket.socket | None = None
_announced = False


def catch_sigterm() -> None:
    """Take SIGTERM as a notice from now on; call it in the worker's main thread.

    Ray's own handler would end the process. Python calls handlers only in the main thread, which
    sits in Ray's loop; the wake-up socket reaches the training thread at once.
    """
    global _wake, _announced
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    # The handler does nothing: without one the default action would end the process.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    _wake, _announced = reader, False


def announce_end() -> None:
    """Announce the end of this worker's process, as SIGTERM would."""
    global _announced
    _announced = True


def is_ending() -> bool:
    """Return whether this process ends soon, by SIGTERM, `announce_end`, or a drained node."""
    global _announced
    if not _announced and _wake is not None:
        with suppress(BlockingIOError):  # no signal has arrived
            _announced = signal.SIGTERM in _wake.recv(4096)
    return _announced or is_node_drained()


class Termination:
    """A request to this process (the driver) to end, as SIGTERM makes it.

    requested: whether SIGTERM arrived. Another one changes nothing: Ray and Kubernetes both send
        one to a job that is deleted, and the second must not cut off the save.
    graceful: whether there is something to save. Without it the process ends at once with
        SystemExit.
    """

    def __init__(self) -> None:
        self.requested = False
        self.graceful = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle SIGTERM inside the block; without effect outside the main thread.

        Python lets handlers be set in the main thread only; a search trains in others.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.graceful:
            raise SystemExit(128 + number)
        self.requested = True
