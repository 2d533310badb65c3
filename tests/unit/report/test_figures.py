"""Pictures: real PNGs of the promised width, the same bytes for the same run."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.report.figures.heat_map import changes, loss_heat_map
from perennial.report.figures.layers import layers
from perennial.report.figures.pareto import pareto
from perennial.report.figures.run import learning_rate, loss_lines, tokens_by_source
from perennial.report.figures.style import Picture
from perennial.report.figures.training import time_spent, train_loss
from perennial.report.figures.transfer import forgotten, learned, learned_and_forgotten
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
CROWD = LossMatrix(
    tuple(
        (f"{i:02d}-c{i}", {f"c{j}": _loss(f"c{j}", 3.0 + abs(i - j)) for j in range(40)})
        for i in range(40)
    )
)
CROWD_TOKENS = [StageTokens(stage, {"c": 900}, {"b": 300}) for stage, _ in CROWD.stages]
CROWD_TIMES = [StageTime(stage, 100.0, {"forward": 40.0}, 1) for stage, _ in CROWD.stages]
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

CROWD_RATES = [RatePoint(i, 1e-3, "constant", stage) for i, (stage, _) in enumerate(CROWD.stages)]

PICTURES: dict[str, Callable[[], Picture]] = {
    "heat map": lambda: loss_heat_map(MATRIX),
    "heat map of many": lambda: loss_heat_map(MANY),
    "heat map of a crowd": lambda: loss_heat_map(CROWD),
    "lines of a crowd": lambda: loss_lines(CROWD, CROWD_TOKENS),
    "transfer of a crowd": lambda: learned_and_forgotten(CROWD),
    "tokens of a crowd": lambda: tokens_by_source(CROWD_TOKENS),
    "time of a crowd": lambda: time_spent(CROWD_TIMES),
    "learning rate of a crowd": lambda: learning_rate(CROWD_RATES),
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
def test_a_picture_has_two_looks_for_a_page_whose_colours_are_the_pages(name: str) -> None:
    picture = PICTURES[name]()
    wide, narrow = picture.svg("a"), picture.svg("a", narrow=True)
    assert wide != narrow
    assert picture.svg("a") == wide
    assert len(wide) < 80_000
    for svg in (wide, narrow):
        element = ElementTree.fromstring(svg)
        assert element.tag.endswith("svg")
        assert not {"width", "height"} & element.attrib.keys(), "as wide as its place"
        assert "var(--ink)" in svg and "var(--paper)" in svg
        ids = re.findall(r'\bid="([^"]+)"', svg)
        refers = re.findall(r'(?:url\(|href=")#([^")]+)', svg)
        assert all(name.startswith("a-") for name in ids)
        assert {*refers} <= {*ids}


def test_numbers_that_are_text_are_not_rounded() -> None:
    drawn = loss_heat_map(MATRIX).svg("a")
    assert "4.900 ± 0.020" in drawn
    assert "5.000" in drawn and "+0.100" in drawn
    assert "0.003" in learning_rate(TRUNK).svg("a")
    places = re.findall(r' d="([^"]*)"', drawn)
    assert places and not re.search(r"\d\.\d{3}", " ".join(places))


def test_a_name_of_the_run_stays_text_in_a_picture() -> None:
    hostile = "<script>"
    matrix = LossMatrix((("00-a", {hostile: _loss(hostile, 3.0)}),))
    assert "<script>" not in loss_heat_map(matrix).svg("a")
    assert "&lt;script&gt;" in loss_heat_map(matrix).svg("a")


def test_a_cell_changed_since_its_corpuss_own_stage_or_the_base() -> None:
    release_first = {"v1": "00-english"}
    assert changes(MATRIX) == [
        {"english": 0.0},
        {"english": pytest.approx(0.1), "french": 0.0},
        {"english": pytest.approx(-0.1), "french": pytest.approx(-0.1)},
    ]
    assert changes(MATRIX, release_first)[-1] == {"english": pytest.approx(-0.1)}, (
        "a release off the first stage has no change on a corpus that came later"
    )
    base = {"english": _loss("english", 5.1), "french": _loss("french", 7.0)}
    first = {"english": _loss("english", 4.9), "french": _loss("french", 7.2)}
    based = LossMatrix((("00-english", first),), origins=(("base", base),))
    assert changes(based) == [{}, {"english": 0.0, "french": pytest.approx(0.2)}]


def test_learned_and_forgotten_are_panels_of_their_own() -> None:
    assert [bar.corpus for bar in learned(TOGETHER)] == ["c1", "c2"]
    assert [bar.nats for bar in learned(TOGETHER)] == [pytest.approx(1.0), pytest.approx(1.0)]
    assert [bar.nats for bar in forgotten(MATRIX)] == [pytest.approx(0.1)]
    assert forgotten(FROM_BASE) == []
    drawn = learned_and_forgotten(MANY).svg("a")
    assert "Learned: fall on its own corpus" in drawn
    assert "Forgotten: rise on the others" in drawn


@pytest.mark.parametrize("name", [name for name in PICTURES if "crowd" in name])
def test_a_picture_of_a_crowd_names_some_of_it(name: str) -> None:
    drawn = PICTURES[name]().svg("a")
    assert 5 <= len(re.findall(r">\d\d-c\d+<", drawn)) <= 12


def test_a_stage_of_several_corpora_is_drawn_with_each_of_them() -> None:
    apart = LossMatrix((MANY.stages[0], ("01-c1", MANY.stages[1][1])))
    assert [bar.corpus for bar in learned(TOGETHER)] == ["c1", "c2"]
    assert loss_heat_map(TOGETHER).svg("a") != loss_heat_map(apart).svg("a")
    both, one = StageTokens("s", {"a": 5, "b": 5}, {}), StageTokens("s", {"a": 10}, {})
    assert tokens_by_source([both]).svg("a") != tokens_by_source([one]).svg("a")


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
