"""What a run of a study keeps in its store beside the run itself: who asked for it, and its time.

`study/run.json` is written once: the study's name and digest, the arm, the seed, the digest of the
run's settings, and the machine and versions on which it was begun. `study/branching.json` is there
while the stages of another run are copied; a store that has it and no `study/run.json` holds half
of them. `study/spent.json` has the seconds that processes worked on the run.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.errors import InputError
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.store import Store

RECORD = "study/run.json"
BRANCHING = "study/branching.json"
SPENT = "study/spent.json"
_BEAT_SECONDS = 10.0


@dataclass(frozen=True)
class StudyRecord:
    """Why a run exists.

    study, digest: name and digest of the study when the run was begun.
    settings: digest of what decides its trunk.
    shared: number of its first stages that another run of the study trained, `donor`.
    versions: of this package, Python and libraries.
    machine: cores, memory and processor; no name.
    """

    study: str
    digest: str
    arm: str
    seed: int
    settings: str
    versions: dict[str, str]
    machine: str
    shared: int = 0
    donor: str = ""

    def write(self, store: Store) -> None:
        """Write the record, unless it is there."""
        store.create(RECORD, json.dumps(asdict(self), indent=1).encode())


def read_record(store: Store) -> StudyRecord | None:
    """Return the record of a run; None before it is begun."""
    try:
        return StudyRecord(**parse_json(store.read(RECORD)))
    except FileNotFoundError:
        return None


def check_record(store: Store, where: str, arm: str, settings: str) -> None:
    """Refuse to go on with a run that was begun under other settings.

    Args:
        store: the run's.
        where: the study file, for the message.
        arm: name of its arm.
        settings: digest of what decides its trunk now.

    Raises:
        InputError: it was begun under others.
    """
    record = read_record(store)
    if record is not None and record.settings != settings:
        raise InputError(
            where,
            f"arms.{arm}",
            f"{store.url} was begun under other settings, and its results stay what they are",
            "restore the arm or the base run file, or give the arm another name",
            code="study-arm-changed",
        )


def describe_machine() -> str:
    """Return cores, memory and processor of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def read_spent(store: Store) -> float:
    """Return the seconds that processes worked on a run."""
    try:
        return float(parse_json(store.read(SPENT))["seconds"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return 0.0


@contextmanager
def counted_time(store: Store) -> Iterator[None]:
    """Add the time inside to what was spent on a run, also where the process is killed."""
    before, begun, ended = read_spent(store), time.monotonic(), threading.Event()

    def write() -> None:
        seconds = before + time.monotonic() - begun
        store.write(SPENT, json.dumps({"seconds": round(seconds, 1)}).encode())

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            write()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write()
