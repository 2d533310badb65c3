"""Which machines are left out, and which workers lag: rules without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.store import open_store
from perennial.training.machines import (
    KEY,
    REMEMBERED_SECONDS,
    Failure,
    MachineRecord,
    Machines,
    MachineSpeed,
    RankPaces,
    blame,
    read_machines,
    rooms_of,
    slow_machines,
    stragglers,
    write_machines,
)
from perennial.training.preflight import RankSpeed, combine, neighbours

ON_TWO = ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("failures", "machines", "blamed"),
    [
        ({1: "died", 0: "lost-connection", 2: "lost-connection"}, ON_TWO, {"a"}),
        ({2: "raised", 0: "lost-connection"}, ON_TWO, {"b"}),
        ({0: "raised", 3: "died"}, ON_TWO, {"b"}),
        ({0: "lost-connection", 3: "lost-connection"}, ON_TWO, set()),
        ({0: "raised", 2: "raised"}, ON_TWO, set()),
        ({0: "died", 3: "died"}, ON_TWO, set()),
        ({0: "died"}, ["a"], {"a"}),
        ({}, ON_TWO, set()),
    ],
    ids=[
        "who-died",
        "who-raised",
        "a-death-explains-an-error",
        "all-only-lost-the-others",
        "a-bug-raises-everywhere",
        "all-died",
        "a-lone-machine",
        "nobody",
    ],
)
def test_the_machine_of_the_first_cause_is_blamed(
    failures: dict[int, Failure], machines: list[str], blamed: set[str]
) -> None:
    assert blame(failures, machines) == blamed


def met(*names: str, most: int = 2) -> Machines:
    machines = Machines(most, {})
    for name in names:
        machines.meet(name, f"10.0.0.{len(machines.records)}", 0.0)
    return machines


def test_a_machine_is_left_out_after_failures_within_a_day() -> None:
    machines = met("a", "b")
    assert machines.note_failures(["a"], 0.0) == []
    assert machines.note_failures(["a"], REMEMBERED_SECONDS) == [], "the first one is a day old"
    assert machines.note_failures(["a"], REMEMBERED_SECONDS + 60) == ["a"]
    assert machines.note_failures(["a"], REMEMBERED_SECONDS + 90) == [], "it is told once"
    rooms = {"a": 1, "b": 1, "c": 1}
    assert machines.left_out(rooms, fewest=2) == {"a"}
    machines.forget(2 * REMEMBERED_SECONDS)
    assert machines.left_out(rooms, fewest=2) == {"a"}
    machines.forget(2 * REMEMBERED_SECONDS + 91)
    assert machines.left_out(rooms, fewest=2) == set()


def test_a_machine_that_workers_are_on_all_the_time_is_left_out_and_measured_for_a_day() -> None:
    machines = met("a", "b")
    machines.leave_out("a", "slow", 0.0)
    machines.records["a"].measure(MachineSpeed(1.0), 0.0)
    rooms = {"a": 1, "b": 1}
    for hour in range(1, 25):
        machines.meet("a", "10.0.0.1", hour * 3600.0)
        machines.forget(hour * 3600.0)
        is_new = hour < 24
        assert machines.left_out(rooms, fewest=1) == ({"a"} if is_new else set())
        assert (machines.records["a"].speed is not None) is is_new


def test_none_is_left_out_where_the_others_have_no_room() -> None:
    machines = met("a", "b")
    machines.leave_out("a", "slow", 0.0)
    assert machines.left_out({"a": 4, "b": 4}, fewest=4) == {"a"}
    assert machines.left_out({"a": 4, "b": 4}, fewest=5) == set()
    assert machines.left_out({"b": 4}, fewest=5) == set(), "a is gone"


def test_room_is_counted_on_live_machines_with_the_labels() -> None:
    def node(name: str, cpus: float, zone: str, alive: bool = True) -> dict[str, object]:
        return {
            "NodeID": name,
            "Alive": alive,
            "Labels": {"zone": zone},
            "Resources": {"CPU": cpus},
        }

    nodes = [
        node("a", 5.0, "x"),
        node("b", 1.0, "x"),
        node("c", 9.0, "y"),
        node("d", 9, "x", False),
    ]
    needs = {"CPU": 2.0}
    assert rooms_of(nodes, needs, {"zone": "x"}) == {"a": 2, "b": 0}
    assert rooms_of(nodes, needs, {}) == {"a": 2, "b": 0, "c": 4}
    assert rooms_of(nodes, {"CPU": 1.0, "GPU": 1.0}, {}) == {"a": 0, "b": 0, "c": 0}


def test_slow_machines_are_named_by_what_is_slow_in_them() -> None:
    speeds = {
        "a": MachineSpeed(100.0, 80.0, 40.0),
        "b": MachineSpeed(95.0, 82.0, 40.0),
        "c": MachineSpeed(60.0, 80.0, 10.0),
        "d": MachineSpeed(100.0, None, 41.0),
    }
    (name, why), *others = slow_machines(speeds, 0.7).items()
    assert name == "c"
    assert "matrix products at 60%" in why
    assert "all-reduce at 25%" in why
    assert not others
    assert slow_machines(speeds, 0.0) == {}
    assert list(slow_machines({"a": MachineSpeed(10.0), "b": MachineSpeed(1.0)}, 0.7)) == ["b"]
    assert slow_machines({"a": MachineSpeed(1.0)}, 0.7) == {}


@pytest.mark.parametrize("count", range(1, 9))
def test_every_machine_meets_one_or_two_others_and_none_is_alone(count: int) -> None:
    machines = [f"m{number // 2}" for number in range(2 * count)]
    pairs = neighbours(machines)
    met = {rank: sum(rank in pair for pair in pairs) for rank in range(0, 2 * count, 2)}
    assert set(met) >= {rank for pair in pairs for rank in pair}, "the first rank of each machine"
    assert set(met.values()) <= ({0} if count == 1 else {1} if count == 2 else {2})


def test_a_machine_counts_by_its_slowest_rank_and_its_best_exchange() -> None:
    measured = [RankSpeed(9.0, 5.0, 2.0), RankSpeed(7.0, 5.0, None), RankSpeed(8.0, None, 3.0)]
    assert combine(measured, ["a", "a", "b"]) == {
        "a": MachineSpeed(7.0, 5.0, 2.0),
        "b": MachineSpeed(8.0, None, 3.0),
    }


def test_pace_is_told_when_all_ranks_have_done_enough_steps() -> None:
    pace = RankPaces()
    for rank in (0, 1):
        pace.hear(rank, 10, 100.0)  # its first steps took long
    pace.hear(0, 40, 130.0)
    assert pace.take(2) == {}
    pace.hear(1, 40, 160.0)
    assert pace.take(2) == {0: 1.0, 1: 2.0}
    assert pace.take(2) == {}, "from here on it is another stretch"
    for rank in (0, 1):
        pace.hear(rank, 70, 190.0)
    assert pace.take(2) == {0: 2.0, 1: 1.0}


def test_a_rank_lags_behind_the_median() -> None:
    assert stragglers({0: 1.0, 1: 1.1, 2: 1.8, 3: 1.2}) == {2: pytest.approx(1.8 / 1.1)}
    assert stragglers({0: 1.0, 1: 1.6}) == {1: 1.6}
    assert stragglers({0: 1.0, 1: 1.4}) == {}
    assert stragglers({0: 5.0}) == {}
    assert stragglers({0: 0.0, 1: 0.0}) == {}


def test_what_is_known_is_stored_for_a_day(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert read_machines(store, 0.0) == {}
    old = MachineRecord("10.0.0.1", at=0.0)
    new = MachineRecord(
        "10.0.0.2", [60.0], MachineSpeed(1e12, None, 2e9), {3: 0.5}, "slow", 100.0, 70.0, 80.0
    )
    write_machines(store, {"a": old, "b": new}, 200.0)
    assert read_machines(store, 200.0) == {"a": old, "b": new}
    assert read_machines(store, REMEMBERED_SECONDS + 50) == {"b": new}
    (parted,) = read_machines(store, REMEMBERED_SECONDS + 85).values()
    assert (parted.failures, parted.left_out, parted.speed) == ([], "", None)
    line = new.describe()
    for told in ("10.0.0.2", "left out: slow", "1 TFLOP/s", "2 GB/s", "worker 3 computes 0.5 s"):
        assert told in line


@pytest.mark.parametrize("data", [b"", b"{}", b'{"machines": {"a": 1}}', b'{"machines": []}'])
def test_a_damaged_record_is_as_none(tmp_path: Path, data: bytes) -> None:
    store = open_store(tmp_path)
    store.write(KEY, data)
    assert read_machines(store, 0.0) == {}
