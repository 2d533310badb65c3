"""The outbox under any order of logging, restarts and sending."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perennial.tracking.outbox import MetricPoint, Outbox, Pending

METRICS = ("train/loss", "train/eta")


@given(
    already=st.dictionaries(st.sampled_from(METRICS), st.integers(0, 20)),
    attached_before=st.integers(0, 8),
    logged=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=8),
    sends=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_every_new_value_is_sent_once_and_steps_rise(
    already: dict[str, int],
    attached_before: int,
    logged: list[tuple[int, int]],
    sends: list[bool],
) -> None:
    """Stretches of steps are logged, each going back or ahead as a restart does; MLflow has
    values up to `already` from an earlier process, which is found out at any time."""
    box = Outbox()
    run = box.add(Pending("quick/00-english", "00-english", None, {}, {}))
    sent: list[MetricPoint] = []
    seen = {name: already.get(name, -1) for name in METRICS}
    new: dict[str, list[int]] = {name: [] for name in METRICS}
    for turn, (first, count) in enumerate(logged):
        if turn == attached_before:
            box.attach(run, "id", already)
        for step in range(first, first + count):
            box.put(run, [MetricPoint(name, float(step), 0, step) for name in METRICS])
            for name in METRICS:
                if step > seen[name]:
                    new[name].append(step)
                    seen[name] = step
        if run.attached and sends[turn]:
            batch = box.batch(run)
            sent += batch
            box.done(run, batch)
    if not run.attached:
        box.attach(run, "id", already)
    sent += box.batch(run)
    assert {name: [p.step for p in sent if p.name == name] for name in METRICS} == new
