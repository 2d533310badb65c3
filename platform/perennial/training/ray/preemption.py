"""Hearing that a worker's time is nearly over: SIGTERM to its process, or its node is drained."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class NoticedTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's torch backend, whose workers listen for SIGTERM."""

    @property
    def backend_cls(self) -> type:
        return _NoticedBackend


class _NoticedBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(listen)


_wake: socket.socket | None = None
_heard = False


def listen() -> None:
    """Take SIGTERM as a notice from now on; runs in the worker's main thread.

    Ray's own handler would end the process. Python calls handlers only in the main thread, which
    sits in Ray's loop; the wake-up socket tells the training thread at once.
    """
    global _wake, _heard
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    _wake, _heard = reader, False


def give() -> None:
    """Tell this process that it ends, as SIGTERM would; runs in the worker's main thread."""
    global _heard
    _heard = True


def given() -> bool:
    """Whether this process was told that it ends, by SIGTERM, `give`, or Ray for its node."""
    global _heard
    if not _heard and _wake is not None:
        with suppress(BlockingIOError):
            _heard = signal.SIGTERM in _wake.recv(4096)
    return _heard or _node_drained()


def _node_drained() -> bool:
    # Ray's public `get_preemption_info` waits for every worker in an actor, several milliseconds
    # a step; what it would send around is already here.
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None
