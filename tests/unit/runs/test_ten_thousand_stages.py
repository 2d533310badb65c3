"""What a trunk of years costs to look at, to take charge of and to go on with: counted.

The bounds are the same for a tenth of the stages, so nothing that is bounded here grows with them
but what the listings hold, a page for each thousand objects.
"""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from perennial.api.status import read_status
from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.controller.loop import _Controller
from perennial.mixture import group_of
from perennial.report.build import page
from perennial.report.html import render
from perennial.runs.event_codec import encode
from perennial.runs.events import Evaluated, Evaluating, Started
from perennial.runs.job_factory import stage_job
from perennial.runs.summary import SHOWN_STAGES
from perennial.store.local import LocalStore
from tests.support.event_factory import AT
from tests.support.long_run import (
    REQUESTS,
    counting,
    draw_within,
    lay_around,
    lay_down,
    stage_events,
)
from tests.support.small_manifest import small_manifest

GROUPS = ("corpus-0000", "corpus-0")
BUDGET = 20
MOST_REQUESTS = 300
MOST_BYTES = 200 << 20
MOST_PAGE_BYTES = 1_000_000


@pytest.fixture(
    scope="module",
    params=[pytest.param(10_000, marks=pytest.mark.long), 1_000],
    ids="{} stages".format,
)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    folder = tmp_path_factory.mktemp("years")
    replay = {"share": 0.05, "groups": GROUPS}
    written = lay_down(folder, request.param, evaluation={"corpora": BUDGET}, replay=replay)
    lay_around(Path(written.store), request.param)
    return written


def _count(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the requests from now on, a listing as the pages that S3 would give."""
    asked: Counter[str] = Counter()

    for name in REQUESTS:
        monkeypatch.setattr(LocalStore, name, counting(getattr(LocalStore, name), asked))
    return asked


def test_status_costs_its_tail(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _count(monkeypatch)
    tracemalloc.start()
    status = read_status(Workspace(spec, "run.yaml"), BUDGET)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(status.stages) == BUDGET
    assert asked.total() < MOST_REQUESTS
    assert peak < MOST_BYTES
    forgotten = status.stages[-1].forgetting
    assert forgotten is not None
    assert forgotten.measured == BUDGET
    assert forgotten.of == len(status.corpora) - 1
    assert forgotten.stderr is not None


def test_the_report_reads_what_it_shows_one_by_one(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Workspace(spec, "run.yaml")
    state = work.ledger.read()
    asked = _count(monkeypatch)
    tracemalloc.start()
    made = page(work, AT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert asked.total() < 10 * SHOWN_STAGES
    assert peak < MOST_BYTES
    assert len(render(made).encode()) < MOST_PAGE_BYTES
    (by_time, by_group) = next(s for s in made.sections if s.title == "Earlier stages").tables
    assert len(by_time.rows) <= 20
    folded = sum(int(row[1].replace(",", "")) for row in by_time.rows)
    assert folded == len(state.stages) - SHOWN_STAGES
    assert {row[0] for row in by_group.rows} == {*GROUPS}


def test_taking_charge_and_a_look_cost_their_tail(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _count(monkeypatch)
    tracemalloc.start()
    work = Workspace(spec, "run.yaml")
    work.take_charge()
    try:
        assert _Controller(work, reschedule=False).next() is None
    finally:
        work.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert asked.total() < MOST_REQUESTS
    assert peak < MOST_BYTES


def test_a_stage_books_what_has_a_share_in_it(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _count(monkeypatch)
    work = Workspace(spec, "run.yaml")
    state = work.ledger.read()
    events = []
    asked.clear()
    for event in draw_within(spec, state, stage_events(spec, state)):
        work.ledger.append(event)
        events.append(event)
    assert asked.total() <= 2 * len(events) + 3, "an entry and the head each; or a snapshot"
    started = next(event for event in events if isinstance(event, Started))
    groups = {group_of(GROUPS, source.corpus) for source in started.mix.replayed}
    assert groups <= {group_of(GROUPS, name) for name in state.corpora}
    assert len(started.mix.sources) <= 1 + 2 * len(GROUPS)
    read: list[str] = []
    monkeypatch.setattr("perennial.corpora.read_manifest", lambda _, name: read.append(name))
    work.manifests(started.mix)
    assert len(read) == len(started.mix.sources)
    stage = state.stages[-1]
    mixed = {source.corpus for source in stage.mix.sources}
    job = stage_job(spec, state, stage, {name: small_manifest(name).sealed() for name in mixed})
    assert job.tokens_seen.keys() <= mixed
    told = sum(job.tokens_seen.values()) + job.tokens_elsewhere
    seen = sum(state.seen(stage, stage.first_step).values())
    assert told == seen * spec.corpora.sequence_length > 0
    evaluated = next(event for event in events if isinstance(event, Evaluated))
    assert len(evaluated.losses) == BUDGET + 1
    sizes = {type(event): len(encode(event)) for event in events}
    assert max(size for kind, size in sizes.items() if kind is not Evaluated) < 8_000
    assert sizes[Evaluated] < 500 * (BUDGET + 2)
    assert sizes[Evaluating] < 50 * (BUDGET + 5)
