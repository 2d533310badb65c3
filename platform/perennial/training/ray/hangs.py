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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, NamedTuple

import ray

from perennial.errors import PerennialError
from perennial.store import open_store
from perennial.training.machines import RankPaces
from perennial.training.ray.internals import WorkerGroupCallback

_ASKS_PER_LIMIT = 20
_LEAST_SECONDS_BETWEEN = 0.5
_FRAMES = 4
"""Calls of a hanging worker that are named, the innermost ones."""
_STACKS_SECONDS = 10.0
"""How long workers have to answer with their stacks before those that hang are killed."""
_PACE_SECONDS = 60.0
"""Interval at which the pace of the ranks is compared."""


class Sign(NamedTuple):
    """A worker's answer.

    begun: number of collectives of training that it has begun.
    in_step: whether it computes a step. Outside of steps it waits for the store, or for Ray Data,
        which may take any time and have time-outs of their own.
    place: the innermost calls of its training thread; empty before the first step.
    steps: that it has finished since this process began.
    computing: seconds that it computed in them; on a GPU, that its host took to launch and to wait.
    """

    begun: int
    in_step: bool = False
    place: str = ""
    steps: int = 0
    computing: float = 0.0


# Of this worker's process: the thread that trains, and whether it computes a step.
_begun = 0
_steps: tuple[int, Callable[[], bool], Callable[[], tuple[int, float]]] | None = None
_done_before: tuple[int, float] = (0, 0.0)
"""steps of the jobs before this one, and the seconds that were computed in them"""


def note_collective() -> None:
    """Count a collective that this worker begins; every rank begins the same ones in one order."""
    global _begun
    _begun += 1


@contextmanager
def steps_watched(
    in_step: Callable[[], bool], done: Callable[[], tuple[int, float]] = lambda: (0, 0.0)
) -> Iterator[None]:
    """Let this thread's steps be watched inside the block. Both are called in another thread.

    Args:
        in_step: returns whether this one computes a step.
        done: returns the steps that it has finished, and the seconds that it computed in them.
    """
    global _begun, _steps, _done_before
    _begun = 0  # the first step of every job may compile
    _steps = (threading.get_ident(), in_step, done)
    try:
        yield
    finally:
        _steps, _done_before = None, _done_so_far(done)


def _done_so_far(done: Callable[[], tuple[int, float]]) -> tuple[int, float]:
    """Return the steps since the process began, and the seconds that were computed in them."""
    (steps, seconds), (before, seconds_before) = done(), _done_before
    return before + steps, seconds_before + seconds


def give_sign() -> Sign:
    """Return how far this worker is, and where."""
    steps = _steps
    if steps is None:
        return Sign(_begun)
    thread, in_step, done = steps
    frame = sys._current_frames().get(thread)
    calls = traceback.extract_stack(frame)[: -_FRAMES - 1 : -1] if frame else []
    place = ", called by ".join(
        f"{call.name} ({PurePath(call.filename).name}:{call.lineno})" for call in calls
    )
    return Sign(_begun, in_step(), place, *_done_so_far(done))


def give_stacks() -> str:
    """Return where every thread of this worker's process is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


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
        self,
        limit_seconds: float,
        driver: Any,
        note_pace: Callable[[Mapping[int, float]], None],
        store_url: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch every worker group of a job.

        Args:
            limit_seconds: time without a sign after which a worker hangs.
            driver: handle of the driver's progress actor, which is sent the reason.
            note_pace: called now and then with the seconds that each rank computes for a step.
            store_url: of the run's store, where the stacks of a group that hangs are put.
            clock: of seconds.
        """
        self._note_pace = note_pace
        self._store_url = store_url
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
        self._pace, self._compared_at = RankPaces(), self._asked_at

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Ask the workers how far they are, and make those that hang errors of the group."""
        now = self._clock()
        self._listen(now)
        if now - self._compared_at > _PACE_SECONDS and (
            paces := self._pace.take(len(self._workers))
        ):
            self._compared_at = now
            self._note_pace(paces)
        silence = self._listener.silence(now)
        if silence is None or worker_group_status.errors:
            return
        names = " and ".join(map(str, silence.ranks))
        place = f", in {silence.place}" if silence.place else ""
        reason = f"worker {names} {silence.why} (training.hang_minutes){place}"
        kept = self._keep_stacks(reason)
        for rank in silence.ranks:
            ray.kill(self._workers[rank].actor)
            worker_group_status.worker_statuses[rank].error = HungWorker(reason)
        self._driver.notice.remote(f"{reason}; {kept}the workers start again")

    def _keep_stacks(self, reason: str) -> str:
        """Store where every thread of every worker is; return a clause that says where that is."""
        asked = {
            worker.execute_async(give_stacks): rank
            for rank, worker in enumerate(self._workers)
            if rank not in self._answers.values()
        }
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_STACKS_SECONDS)
        texts = dict.fromkeys(range(len(self._workers)), "it did not answer\n")
        for answer in done:
            with suppress(ray.exceptions.RayError):
                texts[asked[answer]] = ray.get(answer)
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
        text = "\n".join(f"worker {rank}\n{text}" for rank, text in texts.items())
        try:
            open_store(self._store_url).write(f"hangs/{at}.txt", f"{reason}\n\n{text}".encode())
        except (OSError, PerennialError):
            return ""  # a store that cannot be written to is reported with the checkpoints
        return f"all stacks: hangs/{at}.txt of the store; "

    def _listen(self, now: float) -> None:
        """Take the answers that have arrived; ask the workers that owe none, from time to time."""
        done, _ = ray.wait(list(self._answers), num_returns=len(self._answers), timeout=0)
        for answer in done:
            rank = self._answers.pop(answer)
            try:
                sign = ray.get(answer)
            except ray.exceptions.RayError:
                continue  # a dead worker, which Ray Train learns of by itself
            self._listener.hear(rank, sign, now)
            self._pace.hear(rank, sign.steps, sign.computing)
        if now - self._asked_at < self._every_seconds:
            return
        self._asked_at = now
        for rank in set(range(len(self._workers))) - set(self._answers.values()):
            self._answers[self._workers[rank].execute_async(give_sign)] = rank
            self._listener.ask(rank, now)
