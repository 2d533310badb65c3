"""Judging a step's loss, and what a person is told."""

from __future__ import annotations

import math
import random

import pytest

from perennial.config.spikes import SpikesSpec
from perennial.corpora.document_spans import DocumentSpan
from perennial.mixture.provenance import Origin
from perennial.training.spikes.batch import TracedBatch
from perennial.training.spikes.detector import SpikeWatch

SPEC = SpikesSpec(threshold=8.0, window=50)


def _falling(count: int) -> list[float]:
    """Losses as training gives them: a steep fall, then noise of 2%."""
    noise = random.Random(1)
    return [3 + 5 * math.exp(-step / 15) + noise.gauss(0, 0.06) for step in range(count)]


def _span(number: int, **metadata: str) -> DocumentSpan:
    return DocumentSpan(0, 0, 5, 0, "a.jsonl", number, "ab" * 8, metadata)


def test_a_batch_names_its_first_documents_once_each() -> None:
    origin = Origin("en", 3, 4, "corpora/en/shard-00000.parquet", 3, 4)
    held = [_span(1, id="doc-1"), _span(1, id="doc-1"), *map(_span, range(2, 9))]
    batch = TracedBatch([origin], {"en": held})
    assert batch.describe() == (
        "rows 3 to 4 of corpora/en/shard-00000.parquet, with a.jsonl at 1 (id doc-1), "
        "a.jsonl at 2, a.jsonl at 3, a.jsonl at 4, 4 documents more"
    )
    assert batch.list_documents()[0] == {"corpus": "en"} | held[0].to_dict()


def test_documents_that_cannot_be_read_are_no_reason_to_fail() -> None:
    origin = Origin("en", 3, 3, "shard", 3, 3)
    assert TracedBatch([origin], {"en": []}).describe() == "row 3 of shard"
    unknown = TracedBatch([origin], {}, "its manifest was altered")
    assert unknown.describe() == "row 3 of shard (documents unknown: its manifest was altered)"


def test_usual_losses_are_no_spikes() -> None:
    watch = SpikeWatch(SPEC)
    assert [watch.judge(loss, 1.0) for loss in _falling(1000)] == [None] * 1000


def test_a_leap_is_a_spike_and_says_how_far_it_is() -> None:
    problem = SpikeWatch(SPEC, _falling(200)).judge(4.5, 1.0)
    assert problem is not None
    assert problem.finite
    assert "the loss is 4.5" in problem.text
    assert "50 steps before it" in problem.text


def test_a_fall_is_no_spike() -> None:
    assert SpikeWatch(SPEC, _falling(200)).judge(0.5, 1.0) is None


def test_equal_losses_leave_a_deviation_of_one_percent() -> None:
    watch = SpikeWatch(SPEC, [3.0] * 50)
    assert watch.judge(3.2, 1.0) is None
    assert watch.judge(3.3, 1.0) is not None


def test_too_few_steps_judge_nothing_but_what_is_not_finite() -> None:
    watch = SpikeWatch(SPEC, _falling(19))
    assert watch.judge(100.0, 1.0) is None
    for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, -1.0)):
        problem = watch.judge(loss, norm)
        assert problem is not None
        assert not problem.finite


def test_i9_a_watch_made_from_the_last_losses_judges_like_one_that_saw_them_all() -> None:
    losses = [*_falling(300), 3.9, *_falling(100)]
    straight = SpikeWatch(SPEC)
    told = [straight.judge(loss, 1.0) for loss in losses]
    resumed = SpikeWatch(SPEC, losses[:280])
    assert [resumed.judge(loss, 1.0) for loss in losses[280:]] == told[280:]
    assert sum(problem is not None for problem in told) >= 1


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"window": 3}, {"policy": "hope"}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpikesSpec.model_validate(wrong)
