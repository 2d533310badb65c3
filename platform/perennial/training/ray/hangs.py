"""Ending a worker group of which one worker hangs, with the name of that worker.

A worker hangs when its process does not answer, when it does not begin a collective for which the
others wait, or when all of them stay inside a step. Time-outs of process groups do not say which:
they end the workers that wait. And DeepSpeed makes groups of its own, whose time-outs it leaves at
torch's 30 minutes.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, NamedTuple

import ray

from perennial.training.ray.internals import WorkerGroupCallback

_ASKS_PER_LIMIT = 20
_LEAST_SECONDS_BETWEEN = 0.5
_FRAMES = 4
"""Calls of a hanging worker that are named, the innermost ones."""


class Sign(NamedTuple):
    """A worker's answer.

    begun: number of collectives of training that it has begun.
    in_step: whether it computes a step. Outside of steps it waits for the store, or for Ray Data,
        which may take any time and have time-outs of their own.
    place: the innermost calls of its training thread; empty before the first step.
    """

    begun: int
    in_step: bool = False
    place: str = ""


# Of this worker's process: the thread that trains, and whether it computes a step.
_begun = 0
_steps: tuple[int, Callable[[], bool]] | None = None


def note_collective() -> None:
    """Count a collective that this worker begins; every rank begins the same ones in one order."""
    global _begun
    _begun += 1


@contextmanager
def steps_watched(in_step: Callable[[], bool]) -> Iterator[None]:
    """Let this thread's steps be watched inside the block.

    in_step: returns, in another thread, whether this one computes a step.
    """
    global _begun, _steps
    _begun = 0  # the first step of every job may compile
    _steps = (threading.get_ident(), in_step)
    try:
        yield
    finally:
        _steps = None


def give_sign() -> Sign:
    """Return how far this worker is, and where."""
    steps = _steps
    if steps is None:
        return Sign(_begun)
    thread, in_step = steps
    frame = sys._current_frames().get(thread)
    calls = traceback.extract_stack(frame)[: -_FRAMES - 1 : -1] if frame else []
    place = ", called by ".join(
        f"{call.name} ({PurePath(call.filename).name}:{call.lineno})" for call in calls
    )
    return Sign(_begun, in_step(), place)


class Silence(NamedTuple):
    """Workers that hang, in what way, and where the first of them is; empty where it is unknown."""

    ranks: tuple[int, ...]
    why: str
    place: str = ""


class Listener:
    """Judges which workers hang by what they answer and when; all times are in seconds."""

    def __init__(self, world_size: int, limit_seconds: float, now: float) -> None:
        """Begin to listen to a worker group, at the time `now`."""
        self._limit_seconds = limit_seconds
        self._signs = dict.fromkeys(range(world_size), Sign(0))
        self._asked: dict[int, float] = {}
        self._moved = now
        self._outside = now

    def ask(self, rank: int, now: float) -> None:
        """Note that a worker was asked."""
        self._asked[rank] = now

    def hear(self, rank: int, sign: Sign, now: float) -> None:
        """Note a worker's answer."""
        self._asked.pop(rank, None)
        if sign.begun != self._signs[rank].begun:
            self._moved = now
        if not sign.in_step:
            self._outside = now
        self._signs[rank] = sign

    def silence(self, now: float) -> Silence | None:
        """Return which workers hang, or None.

        Workers that are at the same collective all compute, and none waits for another: they hang
        together when none leaves its step. Before the first collective they may compile.
        """
        asked = {rank: at for rank, at in self._asked.items() if now - at > self._limit_seconds}
        if asked:
            seconds = now - min(asked.values())
            return Silence(tuple(sorted(asked)), f"has not answered for {seconds:.0f} s")
        fewest = min(sign.begun for sign in self._signs.values())
        behind = tuple(rank for rank, sign in self._signs.items() if sign.begun == fewest)
        place = self._signs[behind[0]].place
        if len(behind) < len(self._signs):
            seconds = now - self._moved
            why = f"has not gone on for {seconds:.0f} s, and the others wait for it"
        else:
            seconds = now - max(self._moved, self._outside) if fewest else 0.0
            why = f"has not gone on for {seconds:.0f} s"
        return Silence(behind, why, place) if seconds > self._limit_seconds else None


class HungWorker(RuntimeError):
    """A worker that hangs, which was killed."""


class HangWatch(WorkerGroupCallback):  # type: ignore[misc]
    """Kills workers that hang, in Ray Train's controller; the group then starts again."""

    def __init__(
        self, limit_seconds: float, driver: Any, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Watch every worker group of a job.

        Args:
            limit_seconds: time without a sign after which a worker hangs.
            driver: handle of the driver's progress actor, which is sent the reason.
            clock: of seconds.
        """
        self._limit_seconds = limit_seconds
        self._every_seconds = max(_LEAST_SECONDS_BETWEEN, limit_seconds / _ASKS_PER_LIMIT)
        self._driver = driver
        self._clock = clock

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Begin to watch a new group."""
        self._workers = worker_group.get_workers()
        self._answers: dict[Any, int] = {}
        self._asked_at = self._clock()
        self._listener = Listener(len(self._workers), self._limit_seconds, self._asked_at)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Ask the workers how far they are, and make those that hang errors of the group."""
        now = self._clock()
        self._listen(now)
        silence = self._listener.silence(now)
        if silence is None or worker_group_status.errors:
            return
        names = " and ".join(map(str, silence.ranks))
        place = f", in {silence.place}" if silence.place else ""
        reason = f"worker {names} {silence.why} (training.hang_minutes){place}"
        for rank in silence.ranks:
            ray.kill(self._workers[rank].actor)
            worker_group_status.worker_statuses[rank].error = HungWorker(reason)
        self._driver.notice.remote(f"{reason}; the workers start again")

    def _listen(self, now: float) -> None:
        """Take the answers that have arrived; ask the workers that owe none, from time to time."""
        done, _ = ray.wait(list(self._answers), num_returns=len(self._answers), timeout=0)
        for answer in done:
            rank = self._answers.pop(answer)
            try:
                self._listener.hear(rank, ray.get(answer), now)
            except ray.exceptions.RayError:
                continue  # a dead worker, which Ray Train learns of by itself
        if now - self._asked_at < self._every_seconds:
            return
        self._asked_at = now
        for rank in set(range(len(self._workers))) - set(self._answers.values()):
            self._answers[self._workers[rank].execute_async(give_sign)] = rank
            self._listener.ask(rank, now)
