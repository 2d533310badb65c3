"""Many writers on one store: threads, processes, forks, and writers that are killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import Barrier as ThreadBarrier

import pytest

from perennial.store import Store, open_store

ROUNDS = 5
_barrier: Barrier


def _join(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _race(store: Store, writer: int) -> list[bool]:
    outcomes = []
    for number in range(ROUNDS):
        _barrier.wait(60)
        outcomes.append(store.create(f"ledger/{number}", b"%d" % writer))
    return outcomes


def test_I4_I8_of_eight_threads_that_create_one_key_one_wins(any_store_url: str) -> None:
    store = open_store(any_store_url)
    barrier = ThreadBarrier(8)

    def race(writer: int) -> list[bool]:
        outcomes = []
        for number in range(ROUNDS):
            barrier.wait(60)
            outcomes.append(store.create(f"ledger/{number}", b"%d" % writer))
        return outcomes

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(race, range(8)))
    _assert_one_winner_each(store, outcomes)


def test_I4_I8_of_four_processes_that_create_one_key_one_wins(any_store_url: str) -> None:
    store = open_store(any_store_url)
    context = multiprocessing.get_context("spawn")
    with context.Pool(4, _join, (context.Barrier(4),)) as pool:
        outcomes = pool.starmap(_race, [(store, writer) for writer in range(4)], chunksize=1)
    _assert_one_winner_each(store, outcomes)


def _assert_one_winner_each(store: Store, outcomes: list[list[bool]]) -> None:
    for number in range(ROUNDS):
        winners = [writer for writer, won in enumerate(outcomes) if won[number]]
        assert len(winners) == 1
        assert store.read(f"ledger/{number}") == b"%d" % winners[0]
    assert len(store.list()) == ROUNDS


def test_I6_I8_readers_see_the_old_bytes_or_the_new_ones(any_store_url: str) -> None:
    store = open_store(any_store_url)
    values = [bytes([letter]) * (300_000 + letter) for letter in b"abcd"]
    store.write("a", values[0])

    def read(_: int) -> bytes:
        return store.read("a")

    with ThreadPoolExecutor(4) as pool:
        seen = pool.map(read, range(80))
        for number in range(20):
            store.write("a", values[number % 4])
    assert set(seen) <= set(values)


def test_I8_a_store_works_on_both_sides_of_a_fork(any_store_url: str) -> None:
    store = open_store(any_store_url)
    store.write("before", b"parent")
    child = os.fork()
    if child == 0:
        try:
            store.write("after", store.read("before") + b" and child")
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert store.read("after") == b"parent and child"


def test_I8_a_store_works_in_tasks_of_another_process(any_store_url: str) -> None:
    program = (
        "import pickle, sys; store = pickle.load(sys.stdin.buffer); "
        "store.write('b', store.read('a')); print(store.list()[0].key)"
    )
    store = open_store(any_store_url)
    store.write("a", b"x")
    answer = _python(program, pickle.dumps(store))
    assert answer.stdout == b"a\n", answer.stderr
    assert store.read("b") == b"x"


def test_I6_I8_a_writer_killed_halfway_leaves_no_object(
    any_store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    program = (
        "import os, pickle, signal, sys; store = pickle.load(sys.stdin.buffer); "
        "sink = store.open('a/b', 'wb'); sink.write(bytes(9 << 20)); sink.flush(); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    store = open_store(any_store_url)
    answer = _python(program, pickle.dumps(store))
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    assert store.list() == []
    assert not store.exists("a/b")
    assert store.create("a/b", b"the next writer is not in its way")
    store.remove("a")
    assert store.list() == []


def _python(program: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root / "platform")}
    return subprocess.run(
        [sys.executable, "-c", program],
        input=stdin,
        env=environment,
        capture_output=True,
        timeout=120,
    )
