"""The report's first sentence: what the last stage learned, what was lost, and at what cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perennial.evaluation import BASE, HeldoutLoss, LossMatrix
from perennial.evaluation.compare import Gap, Model, bill
from perennial.evaluation.loss import Change
from perennial.report.headline import headline


def losses(stderr: float | None = 0.01, **nats: float) -> dict[str, HeldoutLoss]:
    return {
        corpus: HeldoutLoss(corpus, n, n / 3, 4, 40, 160, 0.1, stderr_of_change=stderr)
        for corpus, n in nats.items()
    }


MATRIX = LossMatrix(
    (
        ("00-english", losses(english=5.5, french=7.1, spanish=7.1)),
        ("01-french", losses(english=5.6, french=4.3, spanish=6.4)),
        ("02-spanish", losses(english=5.64, spanish=4.2) | losses(0.02, french=4.32)),
    )
)
BILL = bill([("a", 500), ("b", 250), ("c", 250)], {"c": 100})


def gap_of(nats: float, stderr: float | None, theirs: int = 1100) -> Gap:
    ours = Model("run", "r", "releases/r", 1100, True, {})
    other = Model("union", "00-all", "checkpoints/00-all", theirs, True, {})
    return Gap(ours, other, {"english": Change(nats, stderr)})


def test_it_says_what_was_learned_what_was_lost_and_the_distance_to_retraining() -> None:
    assert headline(MATRIX, gap_of(0.15, 0.01), BILL) == (
        "02-spanish learned 2.20 nats a token of spanish; english lost 0.14 and french is "
        "unchanged (to 0.04); the release is 0.15 nats worse than union, retrained, at 47% "
        "of the compute of retraining at every arrival."
    )


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (gap_of(-0.2, 0.01), "the release is 0.20 nats better than union, retrained, at 47%"),
        (gap_of(0.01, 0.01), "the release is as good as union, retrained, at 47%"),
        (gap_of(0.2, None), "the release is 0.20 nats worse than union"),
        (
            gap_of(0.2, 0.01, 600),
            "the release (1,100 tokens) is 0.20 nats worse than union, retrained (600 tokens).",
        ),
    ],
)
def test_the_distance_is_stated_as_far_as_it_is_known(gap: Gap, words: str) -> None:
    assert words in headline(MATRIX, gap, BILL)


def test_a_first_stage_has_nothing_before_it_but_a_base() -> None:
    first = LossMatrix(MATRIX.stages[:1])
    assert headline(first) == "00-english came to 5.50 nats a token on english."
    based = replace(first, origins=((BASE, losses(english=6.0, french=7.0)),))
    assert headline(based) == "00-english learned 0.50 nats a token of english; french lost 0.10."
    assert headline(LossMatrix(())) == "Nothing was measured yet."


def test_many_corpora_are_told_by_their_mean_and_the_worst() -> None:
    stages = [
        (f"{i:02}-c{i}", losses(**{f"c{j}": 5.0 + (i - j) * (j + 1) / 10 for j in range(5)}))
        for i in range(5)
    ]
    assert headline(LossMatrix(tuple(stages))) == (
        "04-c4 lost 0.50 nats a token of c4; 4 earlier corpora lost 0.50 on average, and of them "
        "c1 lost 0.60, the worst."
    )
    together = LossMatrix(
        (("00-a", losses(a=5.0, b=6.0, c=7.0)), ("01-b-c", losses(a=4.5, b=5.0, c=5.0))),
        together={"01-b-c": ("b", "c")},
    )
    assert headline(together) == (
        "01-b-c learned 1.00 nats a token of b and 2.00 of c; a gained 0.50."
    )


def test_a_cell_that_is_absent_is_left_out() -> None:
    stages = (("00-a", losses(a=5.0)), ("01-b", losses(b=4.0)))
    assert headline(LossMatrix(stages)) == "01-b came to 4.00 nats a token on b."
