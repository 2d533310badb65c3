"""Ending a worker group of which one worker hangs, with the name of that worker.

A worker hangs when its process does not answer, or when it does not begin a collective for which
the others wait. Time-outs of process groups do not say which: they end the workers that wait. And
DeepSpeed makes groups of its own, whose time-outs it leaves at torch's 30 minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from perennial.training.ray.internals import WorkerGroupCallback

_ASKS_PER_LIMIT = 20
_LEAST_SECONDS_BETWEEN = 0.5

# Of this worker's process.
_begun = 0


def note_collective() -> None:
    """Count a collective that this worker begins; every rank begins the same ones in one order."""
    global _begun
    _begun += 1


def collectives_begun() -> int:
    """Return how many collectives of training this worker has begun."""
    return _begun


class Silence(NamedTuple):
    """Workers that hang, and in what way."""

    ranks: tuple[int, ...]
    why: str


class Listener:
    """Judges which workers hang by what they answer and when; all times are in seconds."""

    def __init__(self, world_size: int, limit_seconds: float, now: float) -> None:
        """Begin to listen to a worker group, at the time `now`."""
        self._limit_seconds = limit_seconds
        self._begun = dict.fromkeys(range(world_size), 0)
        self._asked: dict[int, float] = {}
        self._moved = now

    def ask(self, rank: int, now: float) -> None:
        """Note that a worker was asked."""
        self._asked[rank] = now

    def hear(self, rank: int, begun: int, now: float) -> None:
        """Note the collectives that a worker has begun, which is its answer."""
        self._asked.pop(rank, None)
        if begun != self._begun[rank]:
            self._begun[rank] = begun
            self._moved = now

    def silence(self, now: float) -> Silence | None:
        """Return which workers hang, or None.

        Workers that are at the same collective all compute, and none waits for another.
        """
        asked = {rank: at for rank, at in self._asked.items() if now - at > self._limit_seconds}
        if asked:
            seconds = now - min(asked.values())
            return Silence(tuple(sorted(asked)), f"has not answered for {seconds:.0f} s")
        fewest = min(self._begun.values())
        behind = [rank for rank, begun in self._begun.items() if begun == fewest]
        seconds = now - self._moved
        if seconds > self._limit_seconds and len(behind) < len(self._begun):
            return Silence(
                tuple(behind), f"has not gone on for {seconds:.0f} s, and the others wait for it"
            )
        return None


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
        reason = f"worker {names} {silence.why} (training.hang_minutes)"
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
            self._answers[self._workers[rank].execute_async(collectives_begun)] = rank
            self._listener.ask(rank, now)
