"""Pictures: real PNGs of the promised width, the same bytes for the same run."""

from __future__ import annotations

import io
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.report.figures.layers import layers
from perennial.report.figures.pareto import pareto
from perennial.report.figures.run import (
    learned_and_forgotten,
    learning_rate,
    loss_heat_map,
    loss_lines,
    tokens_by_source,
)
from perennial.report.figures.style import Picture
from perennial.report.figures.training import time_spent, train_loss
from perennial.runs.history import CurvePoint, StageTime, goodput
from perennial.runs.summary import RatePoint, StageTokens
from tests.support.search_results import sample_layers, sample_result


def _loss(corpus: str, nats: float, stderr: float | None = 0.02) -> HeldoutLoss:
    return HeldoutLoss(corpus, nats, nats / 2, 100, 1000, 4000, stderr)


MATRIX = LossMatrix(
    stages=(
        ("00-english", {"english": _loss("english", 4.9)}),
        ("01-french", {"english": _loss("english", 5.0), "french": _loss("french", 3.2, None)}),
    ),
    releases=(("v1", {"english": _loss("english", 4.8), "french": _loss("french", 3.1)}),),
)
MANY = LossMatrix(
    tuple(
        (f"{i:02d}-c{i}", {f"c{j}": _loss(f"c{j}", 3.0 + abs(i - j)) for j in range(9)})
        for i in range(9)
    )
)
TOGETHER = LossMatrix(
    (MANY.stages[0], ("01-c1-and-1-more", MANY.stages[1][1])),
    together={"01-c1-and-1-more": ("c1", "c2")},
)
FROM_BASE = LossMatrix(MATRIX.stages[:1], origins=(("base", {"english": _loss("english", 5.1)}),))
TRUNK = [
    RatePoint(
        step,
        min(step + 1, 5) * 1e-3,
        "warmup" if step < 5 else "constant",
        "00-english" if step < 20 else "01-french",
    )
    for step in range(40)
]
BRANCH = {"v1": [(40 + i, 5e-3 * 0.5**i) for i in range(6)]}
TOKENS = [
    StageTokens("00-english", {"english": 9000}, {}),
    StageTokens("01-french", {"french": 3000}, {"english": 1000}),
]
POINTS = [(3.0, 0.5), (3.2, 0.1), (3.3, 0.4)]


LOSSES = [CurvePoint(100 * i, 9 - i / 40, "00-a" if i < 50 else "01-b") for i in range(1, 90)]
TIMES = [
    StageTime("00-a", 100.0, {"forward": 30.0, "backward": 40.0, "data": 5.0}, 1),
    StageTime("01-b", 90.0, {"forward": 30.0, "checkpoint": 4.0, "other": 5.0}, 3),
]

PICTURES: dict[str, Callable[[], Picture]] = {
    "heat map": lambda: loss_heat_map(MATRIX),
    "heat map of many": lambda: loss_heat_map(MANY),
    "lines": lambda: loss_lines(MATRIX, TOKENS),
    "lines of many": lambda: loss_lines(
        MANY, [StageTokens(stage, {"c": 900}, {}) for stage, _ in MANY.stages]
    ),
    "transfer": lambda: learned_and_forgotten(MATRIX),
    "transfer of many": lambda: learned_and_forgotten(LossMatrix(MANY.stages[:5])),
    "transfer of a stage of two corpora": lambda: learned_and_forgotten(TOGETHER),
    "heat map from a base": lambda: loss_heat_map(FROM_BASE),
    "lines from a base": lambda: loss_lines(FROM_BASE, TOKENS[:1]),
    "transfer from a base": lambda: learned_and_forgotten(FROM_BASE),
    "learning rate": lambda: learning_rate(TRUNK, BRANCH),
    "learning rate without release": lambda: learning_rate(TRUNK),
    "tokens": lambda: tokens_by_source(TOKENS),
    "training loss": lambda: train_loss(LOSSES),
    "training loss of one step": lambda: train_loss(LOSSES[:1]),
    "time": lambda: time_spent(TIMES),
    "pareto": lambda: pareto(sample_result(POINTS)),
    "pareto of one": lambda: pareto(sample_result(POINTS[:1])),
    "pareto with a law": lambda: pareto(sample_result(POINTS, law=True)),
    "layers": lambda: layers(sample_layers()),
    "layers without parity": lambda: layers(sample_layers(None)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_a_png_900_pixels_wide_and_the_same_every_time(name: str) -> None:
    png = PICTURES[name]().png()
    pixels = imread(io.BytesIO(png))
    height, width = pixels.shape[:2]
    assert width == 900
    assert 300 <= height <= 1000
    assert pixels[..., :3].std() > 0.01
    assert PICTURES[name]().png() == png


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_has_four_looks_for_a_page(name: str) -> None:
    picture = PICTURES[name]()
    looks = [
        picture.svg(dark=dark, narrow=narrow) for dark in (False, True) for narrow in (False, True)
    ]
    assert len(set(looks)) == 4
    assert picture.svg() == looks[0]
    for svg in looks:
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_a_stage_of_several_corpora_is_drawn_with_each_of_them() -> None:
    apart = LossMatrix((MANY.stages[0], ("01-c1", MANY.stages[1][1])))
    assert b"01-c1-and-1-more: c2" in learned_and_forgotten(TOGETHER).svg()
    assert loss_heat_map(TOGETHER).svg() != loss_heat_map(apart).svg()
    both, one = StageTokens("s", {"a": 5, "b": 5}, {}), StageTokens("s", {"a": 10}, {})
    assert tokens_by_source([both]).svg() != tokens_by_source([one]).svg()


def test_pictures_show_what_they_are_given() -> None:
    assert loss_heat_map(MATRIX).png() != loss_heat_map(LossMatrix(MATRIX.stages)).png()
    assert learning_rate(TRUNK, BRANCH).png() != learning_rate(TRUNK).png()
    assert tokens_by_source(TOKENS).png() != tokens_by_source(TOKENS[:1] * 2).png()
    better = [*POINTS[:2], (2.9, 0.05)]
    assert pareto(sample_result(POINTS)).png() != pareto(sample_result(better)).png()
    assert pareto(sample_result(POINTS)).png() != pareto(sample_result(POINTS, law=True)).png()


def test_goodput_is_the_share_of_the_time_in_steps_that_count() -> None:
    assert [time.goodput for time in TIMES] == [0.75, pytest.approx(39 / 90)]
    assert [time.restarts for time in TIMES] == [0, 2]
    assert goodput(TIMES) == pytest.approx(114 / 190)
    unknown = StageTime("02-c", None, {"forward": 1.0}, 0)
    assert (unknown.goodput, unknown.restarts) == (None, None)
    assert goodput([*TIMES, unknown]) is None
    assert goodput([]) is None
