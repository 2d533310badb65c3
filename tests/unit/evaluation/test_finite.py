"""What is not a number: named, never stored, a verdict that does not hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from perennial.config.gates import GatesSpec
from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.evaluation.finite import split_finite
from perennial.evaluation.gates import Measurements, judge
from perennial.runs.event_codec import decode, encode
from perennial.runs.events import Evaluated, Measured, Scored, Tried
from tests.support.event_factory import AT

SOUND = HeldoutLoss("a", 2.0, 1.0, 2, 10, 40, 0.1)
BROKEN = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("field", ["nats_per_token", "bits_per_byte"])
def test_a_loss_that_is_no_number_is_named_and_not_kept(field: str, value: float) -> None:
    broken = replace(SOUND, **{field: value})  # type: ignore[arg-type]
    assert split_finite({"a": SOUND, "b": broken}) == ({"a": SOUND}, ("b",))
    event = Evaluated(at=AT, corpus="b", losses={"a": SOUND, "b": broken})
    assert (event.losses, event.not_finite) == ({"a": SOUND}, ("b",))
    assert decode(encode(event)).event == event


@pytest.mark.parametrize("value", BROKEN)
def test_an_error_that_is_no_number_is_unknown_and_such_a_domain_left_out(value: float) -> None:
    domains = {"x": SOUND, "y": replace(SOUND, nats_per_token=value)}
    loss = replace(SOUND, stderr_nats_per_token=value, stderr_of_change=value, domains=domains)
    kept, lost = split_finite({"a": loss})
    assert lost == ()
    assert kept["a"] == replace(SOUND, stderr_nats_per_token=None, domains={"x": SOUND})


@pytest.mark.parametrize("value", BROKEN)
def test_a_score_that_is_no_number_is_a_task_without_one(value: float) -> None:
    score: Any = {"task": "t", "metric": "acc", "value": value, "stderr": 0.1, "asked": "t"}
    event = Scored(at=AT, release="r", tasks=["t"], scores=[score])
    assert event.scores == [{"task": "t", "asked": "t", "reason": "its score is not a number"}]
    sound: Any = score | {"value": 0.5, "stderr": value}
    assert Scored(at=AT, release="r", tasks=["t"], scores=[sound]).scores[0]["stderr"] is None


@pytest.mark.parametrize("written", ["null", "NaN", "Infinity"])
def test_what_older_versions_wrote_is_read(written: str) -> None:
    """Each schema 2 event that can hold a loss, with what is not a number in it."""
    loss = {**vars(SOUND), "domains": {}}
    document = {"schema": 2, "at": AT, "kind": "evaluated", "corpus": "a"}
    losses = {"a": loss, "b": loss | {"nats_per_token": 17.0}}
    text = json.dumps(document | {"losses": losses}).replace("17.0", written)
    event = decode(text.encode()).event
    assert isinstance(event, Evaluated)
    assert (event.losses, event.not_finite) == ({"a": SOUND}, ("b",))
    measured = json.dumps({"at": AT, "kind": "measured", "stage": "s", "losses": losses})
    again = decode(measured.replace("17.0", written).encode()).event
    assert isinstance(again, Measured)
    assert again.losses == {"a": SOUND}


def test_no_event_is_written_with_what_is_no_number() -> None:
    tried = Tried(
        at=AT, trial="t", step=1, checkpoint="c", trained_steps=1, values={"a": math.nan}, losses={}
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        encode(tried)


def test_it_is_a_verdict_that_does_not_hold_whatever_the_bounds() -> None:
    matrix = LossMatrix((("00-a", {}),))
    (verdict,) = judge(GatesSpec(), Measurements(matrix, not_finite=("a",)))
    assert (verdict.gate, verdict.subject, verdict.holds) == ("finite", "a", False)
    assert verdict.reason == "its held-out loss is not a number"
    assert judge(GatesSpec(), Measurements(matrix)) == []
