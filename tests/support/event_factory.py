"""Events of a run that nobody trains: for the controller's pure core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from perennial.config.search import Point
from perennial.evaluation import HeldoutLoss
from perennial.evaluation.gates import Verdict
from perennial.mixture import ReplayRule, stage_mix
from perennial.runs import events
from perennial.runs.entities import Stage
from perennial.runs.stage_planner import decide_resumed, stage_name
from perennial.runs.state import RunState
from perennial.runs.trunk.rewinding import resuming
from perennial.schedules import ConstantSchedule, to_dict

AT = "2026-01-01T00:00:00+00:00"
ROWS, STEPS, BATCH = 80, 10, 8
TOKENS = ROWS * 32


def event_of(
    kind: str,
    state: RunState,
    corpus: str,
    next_try: str | None = None,
    joined: Sequence[str] = (),
) -> events.CorpusEvent:
    """An event of that kind for a corpus, whether it can happen or not.

    joined: with `started`, the corpora that become one stage with it.
    """
    if kind == "started":
        return started(state, corpus, joined)
    known = state.corpora.get(corpus)
    loss = HeldoutLoss(corpus, 1.0, 0.5, 2, 10, 40, 0.1)
    verdict = Verdict("max_adaptation", corpus, 1.0, 0.1, 0.9, False)
    attempt = known.attempt + 1 if known else 1
    made: list[events.CorpusEvent] = [
        events.Landed(at=AT, corpus=corpus, size_bytes=100),
        events.Ingesting(at=AT, corpus=corpus),
        extended(state, corpus),
        events.Ready(at=AT, corpus=corpus, sequences=ROWS, tokens=TOKENS, digest="d"),
        events.Refused(at=AT, corpus=corpus, reason="too small"),
        events.Held(at=AT, corpus=corpus, reason="later"),
        events.Retried(at=AT, corpus=corpus),
        events.Retired(at=AT, corpus=corpus),
        events.Unretired(at=AT, corpus=corpus),
        events.Failed(
            at=AT, corpus=corpus, attempt=attempt, attempts=3, reason="it broke", next_try=next_try
        ),
        events.Trained(at=AT, corpus=corpus, checkpoint=_end(state, corpus), step=STEPS),
        events.Evaluating(at=AT, corpus=corpus),
        events.Evaluated(at=AT, corpus=corpus, losses={corpus: loss}),
        events.Passed(at=AT, corpus=corpus, verdicts=[]),
        events.Gated(at=AT, corpus=corpus, verdicts=[verdict]),
        events.Accepted(at=AT, corpus=corpus, reason="good enough"),
        erased(state, corpus),
    ]
    return next(event for event in made if event.kind == kind)


def erased(state: RunState, corpus: str, *, whole: bool = True) -> events.Erased:
    """The next erasure of a corpus, of all of it or of a document."""
    known = state.corpora.get(corpus)
    return events.Erased(
        at=AT,
        corpus=corpus,
        number=known.erasures if known else 0,
        whole=whole,
        documents=1,
        tokens=32,
        digest="e",
        tombstone="t",
    )


def _end(state: RunState, corpus: str) -> str:
    """A key of the end of a corpus's stage; each time that it is trained another."""
    again = f"-{len(state.ends)}" if f"c/{corpus}" in state.ends.values() else ""
    return f"c/{corpus}{again}"


def rewound(stage: Stage, step: int | None = None) -> events.Rewound:
    """The trunk taken back to a step of a stage, or to its end."""
    at = stage.last_step if step is None else step
    return events.Rewound(at=AT, stage=stage.name, step=at, reason="it diverged")


def extended(state: RunState, corpus: str) -> events.Extended:
    """Ten entries after those of what passed."""
    before = state.extension
    first = before.vocabulary if before else 300
    return events.Extended(
        at=AT,
        corpus=corpus,
        folder=f"tokenizer/grown/{corpus}",
        fingerprint=f"of {corpus}",
        grew_from=before.fingerprint if before else "of the first",
        first=first,
        vocabulary=first + 10,
    )


def started(state: RunState, corpus: str, joined: Sequence[str] = ()) -> events.Started:
    """The stage of a corpus, or of several, next on the trunk."""
    again = resuming(state)
    if again is not None:
        return decide_resumed(state, again, AT)
    stages, new = state.stages, dict.fromkeys((corpus, *joined), ROWS)
    # A corpus that was trained may not be: that is for the machine to say.
    rule = ReplayRule(share=0.25, retired=(*state.retired, *new))
    mix = stage_mix(state.history, new, STEPS, BATCH, rule)
    return events.Started(
        at=AT,
        corpus=corpus,
        stage=stage_name(len(state.started_stages), mix.corpora),
        first_step=stages[-1].last_step if stages else 0,
        start=state.ends.get(stages[-1].name) if stages else None,
        mix=mix,
        schedule=to_dict(ConstantSchedule(1e-3)),
        tracking_run="r",
    )


def imported(name: Literal["base", "reference"] = "base") -> events.Imported:
    """A stored model that the trunk starts from."""
    return events.Imported(
        at=AT,
        name=name,
        folder=f"models/{name}",
        path="/models/small",
        inherit_layers=None,
        parameters=1000,
        manifest="0" * 64,
    )


def releasing(state: RunState, name: str) -> events.Releasing:
    """The end of the last stage as a release, begun once more."""
    stage = state.stages[-1]
    begun = state.releasing.get(name)
    return events.Releasing(
        at=AT,
        name=name,
        stage=stage.name,
        step=stage.last_step,
        source=state.ends[stage.name],
        mix=None,
        schedule=None,
        claim=begun.claim + 1 if begun else 1,
    )


def released(name: str) -> events.Released:
    """That release, made."""
    return events.Released(
        at=AT, name=name, source="c", folder="r", steps=0, schedule={}, losses={}, samples=[]
    )


WALK = [
    "landed",
    "ingesting",
    "ready",
    "started",
    "trained",
    "evaluating",
    "evaluated",
    "passed",
]
"""How a corpus without any trouble goes."""


def walk(state: RunState, corpus: str, *kinds: str, joined: Sequence[str] = ()) -> None:
    """Apply events of these kinds, one after the other; all of them by default."""
    for kind in kinds or WALK:
        state.apply(event_of(kind, state, corpus, joined=joined))


def search_of(state: RunState) -> list[events.SearchEvent]:
    """A search off the end of the last stage: its claim, one trial, one measurement."""
    stage = state.stages[-1]
    source = state.ends[stage.name]
    return [
        events.Searching(at=AT, name="s", corpus="z", source=source, spec={}, claim=1),
        events.Branched(
            at=AT,
            search="s",
            trial="tune-s",
            corpus="z",
            point=Point(1e-3, 0.1, "seen"),
            stage=stage.name,
            step=stage.last_step,
            source=source,
            mix=stage.mix,
            schedule=stage.schedule,
            optimizer="reset",
        ),
        events.Tried(
            at=AT,
            trial="tune-s",
            step=stage.last_step + 1,
            checkpoint="branches/tune-s/00000011",
            trained_steps=1,
            values={"adaptation": 3.0, "forgetting": 0.1},
            losses={},
        ),
    ]
