"""A matrix worked by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from perennial.cli.console import print_matrix
from perennial.config.gates import GatesSpec
from perennial.evaluation import HeldoutLoss, LossMatrix, corpus_of, pareto_front
from perennial.evaluation.budget import Draw
from perennial.evaluation.gates import Measurements, judge
from perennial.report.tables import transfer


def row(**losses: float) -> dict[str, HeldoutLoss]:
    return {
        corpus: HeldoutLoss(corpus, nats, nats / 2, 10, 1000, 4000, 0.01)
        for corpus, nats in losses.items()
    }


FULL = LossMatrix(
    stages=(
        ("00-english", row(english=4.0, french=9.0, spanish=8.0)),
        ("01-french", row(english=4.5, french=3.0, spanish=7.0)),
        ("02-spanish", row(english=4.25, french=3.5, spanish=2.0)),
    ),
    releases=(("v1", row(english=4.1, french=3.2, spanish=1.8)),),
)
TOGETHER = LossMatrix(
    stages=(
        ("00-english", row(english=4.0, french=9.0, spanish=8.0, german=9.0)),
        ("01-french-and-1-more", row(english=4.5, french=3.0, spanish=2.0, german=7.0)),
        ("02-german", row(english=4.25, french=3.5, spanish=2.25, german=3.0)),
    ),
    together={"01-french-and-1-more": ("french", "spanish")},
)
LOWER = LossMatrix(
    stages=(
        ("00-english", row(english=4.0)),
        ("01-french", row(english=4.5, french=3.0)),
    )
)


def test_a_stages_corpus_is_in_its_name() -> None:
    assert corpus_of("07-common-crawl.2") == "common-crawl.2"


def test_adaptation_is_the_diagonal() -> None:
    assert [FULL.adaptation(i) for i in range(3)] == [4.0, 3.0, 2.0]


def test_forgetting_is_the_rise_since_a_corpus_own_stage() -> None:
    assert FULL.forgetting(0) == {}
    assert FULL.forgetting(1) == {"english": 0.5}
    assert FULL.forgetting(2) == {"english": 0.25, "french": 0.5}


def test_averages_count_each_trained_corpus_once() -> None:
    assert [FULL.average_loss(i) for i in range(3)] == [4.0, 3.75, 3.25]
    assert [FULL.average_forgetting(i) for i in range(3)] == [None, 0.5, 0.375]


def test_backward_transfer_is_what_later_stages_gave_to_earlier_corpora() -> None:
    assert FULL.backward_transfer() == -0.375


def test_forward_transfer_compares_with_a_model_that_knows_nothing() -> None:
    # French after stage 0 is 9.0, Spanish after stage 1 is 7.0; an untrained model gives 8.5.
    assert FULL.forward_transfer(8.5) == ((8.5 - 9.0) + (8.5 - 7.0)) / 2


def test_what_was_not_measured_is_unknown_and_never_zero() -> None:
    gap = LossMatrix((("00-english", row()), ("01-french", row(english=4.5, french=3.0))))
    assert gap.adaptation(0) is None
    assert gap.forgetting(1) == {"english": None}
    assert gap.average_forgetting(1) is None
    assert gap.average_loss(1) == 3.75
    assert LOWER.forward_transfer(8.5) is None


def test_a_mean_over_fewer_corpora_is_not_given() -> None:
    part = LossMatrix((*FULL.stages[:2], ("02-spanish", row(french=3.5, spanish=2.0))))
    assert part.forgetting(2) == {"english": None, "french": 0.5}
    assert part.average_loss(2) is None
    assert part.average_forgetting(2) is None


def test_a_single_stage_has_neither_forgetting_nor_transfer() -> None:
    first = LossMatrix(LOWER.stages[:1])
    assert first.backward_transfer() is None
    assert first.forward_transfer(8.5) is None


def test_columns_are_the_stages_corpora_and_then_what_else_was_measured() -> None:
    matrix = LossMatrix((("00-english", row(other=1.0, english=2.0)), ("01-french", row())))
    assert matrix.corpora == ("english", "french", "other")


def test_the_plain_form_is_json_and_says_trunk_or_release() -> None:
    plain = json.loads(json.dumps(FULL.to_dict(), allow_nan=False))
    assert plain["corpora"] == ["english", "french", "spanish"]
    assert plain["stages"][1]["losses"]["english"]["nats_per_token"] == 4.5
    assert plain["stages"][2]["forgetting"] == {"english": 0.25, "french": 0.5}
    assert plain["releases"][0]["release"] == "v1"
    assert plain["backward_transfer"] == -0.375
    assert plain["forward_transfer"] is None
    assert FULL.to_dict(8.5)["forward_transfer"] == FULL.forward_transfer(8.5)


def test_csv_has_one_line_for_each_cell() -> None:
    lines = list(csv.DictReader(io.StringIO(FULL.to_csv())))
    assert len(lines) == 12
    assert [line["kind"] for line in lines] == ["stage"] * 9 + ["release"] * 3
    assert lines[3] == {
        "kind": "stage",
        "name": "01-french",
        "corpus": "english",
        "domain": "",
        "nats_per_token": "4.5",
        "bits_per_byte": "2.25",
        "documents": "10",
        "tokens": "1000",
        "bytes": "4000",
        "stderr_nats_per_token": "0.01",
        "stderr_of_change": "",
    }


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto_front([(3.0, 1.0), (2.0, 2.0), (3.0, 2.0), (1.0, 3.0)]) == [3, 1, 0]
    assert pareto_front([(1.0, 1.0), (1.0, 1.0)]) == [0, 1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_a_point_is_on_the_front_unless_another_beats_it(points: list[tuple[int, int]]) -> None:
    front = pareto_front([(float(x), float(y)) for x, y in points])
    for i, p in enumerate(points):
        beaten = any(q[0] <= p[0] and q[1] <= p[1] and (q[0] < p[0] or q[1] < p[1]) for q in points)
        assert (i in front) is not beaten


def test_of_a_stage_of_several_corpora_each_counts_the_same() -> None:
    assert TOGETHER.corpora == ("english", "french", "spanish", "german")
    assert (TOGETHER.own(1), TOGETHER.own(2)) == (("french", "spanish"), ("german",))
    assert TOGETHER.trained(1) == ("english", "french", "spanish")
    assert (TOGETHER.adaptation(1), TOGETHER.adaptation(2)) == (2.5, 3.0)
    assert TOGETHER.forgetting(1) == {"english": 0.5}
    assert TOGETHER.forgetting(2) == {"english": 0.25, "french": 0.5, "spanish": 0.25}
    assert TOGETHER.forward_transfer(10.0) == pytest.approx((1 + 2 + 3) / 3)


def test_an_empty_mean_is_none_not_an_error() -> None:
    assert LossMatrix((("00-english", row()),)).average_loss(0) is None
    with pytest.raises(IndexError):
        FULL.adaptation(3)


FROM_STORED = LossMatrix(
    stages=(
        ("00-law", row(law=3.0, proxy=2.5, code=6.0)),
        ("01-code", row(law=3.2, proxy=2.25, code=4.0)),
    ),
    origins=(("base", row(law=5.0, proxy=2.0, code=5.0)), ("reference", row(law=4.0))),
)


def test_what_the_base_knew_is_forgotten_against_the_base() -> None:
    assert FROM_STORED.forgetting(0) == {"proxy": 0.5, "code": 1.0}
    assert FROM_STORED.forgetting(1) == {"law": pytest.approx(0.2), "proxy": 0.25}
    assert FROM_STORED.forgetting_stderr(1).keys() == FROM_STORED.forgetting(1).keys()
    assert FROM_STORED.average_forgetting(0) == 0.75
    (_, last), gained = FROM_STORED.stages[1], {"law": -1.8, "proxy": 0.25, "code": -1.0}
    assert FROM_STORED.against_base(last) == pytest.approx(gained)
    assert FULL.against_base(FULL.stages[1][1]) == {}


def test_a_release_is_held_against_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    released = replace(FROM_STORED, releases=(("01-code-9-anneal2", row(proxy=1.5, late=3.0)),))
    (told,) = released.to_dict()["releases"]
    assert told["against_base"] == {"proxy": -0.5}
    assert transfer(released).rows[-1] == ["release 01-code-9-anneal2", "", "", "", "proxy -0.500"]
    print_matrix(released)
    assert "proxy -0.500" in capsys.readouterr().out


def test_forward_transfer_starts_from_the_base_where_there_is_one() -> None:
    assert FROM_STORED.forward_transfer(8.5) == 5.0 - 6.0
    unmeasured = LossMatrix(FROM_STORED.stages, origins=(("base", row(law=5.0)),))
    assert unmeasured.forward_transfer(8.5) is None, "not mixed with another reference"
    assert unmeasured.forgetting(0) == {}


def test_stored_models_are_the_first_rows() -> None:
    assert [name for name, _ in FROM_STORED.rows] == ["base", "reference", "00-law", "01-code"]
    assert [each["model"] for each in FROM_STORED.to_dict()["origins"]] == ["base", "reference"]
    kinds = [line.split(",")[:2] for line in FROM_STORED.to_csv().splitlines()]
    assert kinds[1] == ["origin", "base"]
    assert FROM_STORED.corpora == ("law", "code", "proxy")


def test_a_proxy_is_averaged_from_the_stage_on_that_replays_it() -> None:
    matrix = LossMatrix(
        FROM_STORED.stages, origins=FROM_STORED.origins, proxies={"01-code": ("proxy",)}
    )
    assert matrix.average_loss(0) == 3.0
    assert matrix.average_loss(1) == pytest.approx((3.2 + 4.0 + 2.25) / 3)


def test_a_run_without_a_stage_has_an_empty_matrix() -> None:
    empty = LossMatrix((), ()).to_dict()
    assert (empty["stages"], empty["backward_transfer"]) == ([], None)


DRAWN = LossMatrix(
    (
        ("00-english", row(english=4.0)),
        ("01-french", row(english=4.5, french=3.0)),
        ("02-spanish", row(french=3.25, spanish=2.0)),
        ("03-german", row(english=4.25, spanish=2.5, german=3.0)),
    ),
    draws={
        "02-spanish": Draw((), ("french",), 2),
        "03-german": Draw(("english",), ("spanish",), 2),
    },
)


def test_what_a_budget_left_out_is_no_missing_cell() -> None:
    assert [DRAWN.left_out(stage) for stage in range(4)] == [set(), set(), {"english"}, {"french"}]
    assert DRAWN.forgetting(2) == {"french": 0.25}
    assert DRAWN.average_loss(3) is None
    mean = DRAWN.mean_forgetting(3)
    assert mean is not None
    assert (mean.nats_per_token, mean.measured, mean.of) == ((0.25 + 2 * 0.5) / 3, 2, 3)


def test_forgetting_says_over_how_many_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_matrix(DRAWN)
    printed = capsys.readouterr().out
    assert printed.count("not drawn") == 2
    assert "mean +0.417, over" in printed
    assert transfer(DRAWN).rows[3][3] == "+0.417, over 2 of 3"
    german = json.loads(json.dumps(DRAWN.to_dict()))["stages"][3]
    assert german["draw"] == {"always": ["english"], "drawn": ["spanish"], "of": 2}
    assert german["mean_forgetting"]["of"] == 3
    assert FULL.to_dict()["stages"][2]["draw"] is None


def test_a_gate_asks_what_was_measured_or_what_it_names() -> None:
    measured = Measurements(DRAWN)
    asked = [verdict.subject for verdict in judge(GatesSpec(max_forgetting=1.0), measured)]
    assert asked == ["english", "spanish"]
    bounds = GatesSpec(max_forgetting=1.0, corpora=("eng*",))
    assert [verdict.subject for verdict in judge(bounds, measured)] == ["english"]
    with pytest.raises(ValidationError, match="max_forgetting"):
        GatesSpec(corpora=("eng*",))
