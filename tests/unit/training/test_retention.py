"""Which checkpoints stay."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from perennial.store import open_store
from perennial.training.checkpoint.retention import kept, sweep

STEPS = st.sets(st.integers(1, 60))


def test_ends_of_phases_and_of_the_stage_and_the_last_ones_stay() -> None:
    assert kept(range(10, 101, 10), {20, 55}, 100, 2) == {20, 90, 100}
    assert kept([10, 20, 30], {20}, 100, 1) == {20, 30}
    assert kept([], {20}, 100, 3) == set()


@given(STEPS, STEPS, st.integers(1, 60), st.integers(1, 5))
def test_the_newest_stays_and_nothing_is_invented(
    steps: set[int], ends: set[int], last: int, count: int
) -> None:
    stay = kept(steps, ends, last, count)
    assert stay <= steps
    assert stay >= steps & (ends | {last})
    assert set(sorted(steps)[-count:]) <= stay
    assert kept(stay, ends, last, count) == stay


def test_a_sweep_leaves_what_is_newer_than_the_newest_and_other_objects(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for step in (10, 20, 30):
        store.write(f"line/{step:08d}/a/weights", b"w")
        store.write(f"line/{step:08d}/manifest.json", b"{}")
    store.write("line/00000025/dead/weights", b"never committed")
    store.write("line/00000040/b/weights", b"under way")
    store.write("line/notes/kept.txt", b"not a checkpoint")
    sweep(store, "line", phase_ends={10}, stage_end=50, last_k=1)
    assert [info.key for info in store.list()] == [
        "line/00000010/a/weights",
        "line/00000010/manifest.json",
        "line/00000030/a/weights",
        "line/00000030/manifest.json",
        "line/00000040/b/weights",
        "line/notes/kept.txt",
    ]
