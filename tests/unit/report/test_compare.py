"""Runs side by side: equal cost, gaps over paired documents, compute saved."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from perennial.config import RunSpec
from perennial.evaluation import HeldoutLoss
from perennial.evaluation.compare import (
    Model,
    average,
    bill,
    common_corpora,
    equal,
    gap,
    groups,
    same_tokens,
)
from perennial.evaluation.loss import DocumentLoss
from perennial.evaluation.seeds import SeededModel
from perennial.report.compare import Comparison
from perennial.report.compare_page import page
from perennial.report.compared_run import ComparedRun, read_run
from perennial.report.figures.compare import average_over_tokens, compute_bars, losses_by_corpus
from perennial.report.figures.style import Picture
from perennial.report.tables import lineage
from perennial.runs import events
from perennial.runs.state import RunState
from perennial.store import open_store
from tests.support.event_factory import AT, BATCH, STEPS, walk
from tests.support.tiny_run import tiny_run


def loss(corpus: str, nats: float, **changes: Any) -> HeldoutLoss:
    told = HeldoutLoss(corpus, nats, nats / 3, 4, 40, 160, 0.1)
    return replace(told, **changes)


def model(run: str, tokens: int, decayed: bool = False, **nats: float) -> Model:
    losses = {corpus: loss(corpus, each) for corpus, each in nats.items()}
    return Model(run, f"{run}-{tokens}", f"checkpoints/{run}", tokens, decayed, losses)


def test_the_bill_of_the_papers_two_shifts_is_half_and_three_fifths_saved() -> None:
    weak = bill([("00-pile", 300), ("01-slimpajama", 300)], {})
    assert [(a.tokens, a.retrained_tokens) for a in weak.arrivals] == [(300, 300), (300, 600)]
    strong = bill([("00-pile", 300), ("01-german", 200)], {})
    saved = [1 - each.arrivals[1].tokens / each.arrivals[1].retrained_tokens
             for each in (weak, strong)]  # fmt: skip
    assert saved == pytest.approx([0.5, 0.6])
    assert weak.saved == pytest.approx(1 - 600 / 900)


def test_a_releases_anneal_is_paid_on_both_sides() -> None:
    told = bill([("a", 100), ("b", 100)], {"b": 20})
    assert [(a.tokens, a.retrained_tokens) for a in told.arrivals] == [(100, 100), (120, 220)]
    assert (told.tokens, told.retrained_tokens) == (220, 320)
    assert bill([], {}).saved == 0.0


def test_models_within_one_percent_cost_the_same() -> None:
    models = [model("a", 1000), model("b", 1011), model("c", 1009), model("d", 500)]
    assert [[m.run for m in group] for group in groups(models)] == [["d"], ["a", "c"], ["b"]]
    assert equal(models[0], models[2]) and not equal(models[0], models[1])


def test_only_corpora_measured_on_the_same_documents_compare() -> None:
    one = model("a", 1, x=2.0, y=3.0, z=4.0)
    other = model("b", 1, x=2.5, y=3.5)
    assert common_corpora([one, other]) == ("x", "y")
    changed = {**other.losses, "y": loss("y", 3.5, documents=5)}
    assert common_corpora([one, Model("b", "", "", 1, False, changed)]) == ("x",)
    assert same_tokens([one, other], ["x"])
    cut = {"x": loss("x", 2.5, tokens=30)}
    assert not same_tokens([one, Model("b", "", "", 1, False, cut)], ["x"])
    assert average(one, ["x", "y"]) == pytest.approx(2.5)
    assert average(one, ["x", "y"], in_nats=False) == pytest.approx(2.5 / 3)
    assert average(other, ["z"]) is None


def test_a_gap_is_over_documents_paired_with_themselves() -> None:
    kept = {
        ("a", "x"): [DocumentLoss(20.0, 10, 40), DocumentLoss(60.0, 10, 40)],
        ("b", "x"): [DocumentLoss(18.0, 10, 40), DocumentLoss(58.0, 10, 40)],
    }

    def documents(of: Model, corpus: str) -> Sequence[DocumentLoss] | None:
        return kept.get((of.run, corpus))

    told = gap(model("a", 1, x=4.0, y=3.0), model("b", 1, x=3.8, y=3.3), ("x", "y"), documents)
    assert told.corpora["x"].nats_per_token == pytest.approx(0.2)
    assert told.corpora["x"].stderr == pytest.approx(0.0), "each document differs by the same"
    assert told.corpora["y"].nats_per_token == pytest.approx(-0.3)
    assert told.corpora["y"].stderr is None, "its documents were not kept"
    assert told.average is not None
    assert told.average.nats_per_token == pytest.approx(-0.05)
    assert told.average.stderr is None


@pytest.fixture
def run(tmp_path: Path) -> ComparedRun:
    """Two stages and a release off the second."""
    spec = RunSpec.model_validate(tiny_run(tmp_path))
    state = RunState()
    walk(state, "a")
    walk(state, "b")
    for stage, nats in (("00-a", 4.0), ("01-b", 4.2)):
        told = {c: loss(c, nats) for c in ("a", "b")}
        state.apply(events.Measured(at=AT, stage=stage, losses=told))
        state.losses[stage] = told
    state.apply(
        events.Releasing(
            at=AT, name="r", stage="01-b", step=2 * STEPS, source="s", mix=None, schedule=None,
            claim=1,
        )
    )  # fmt: skip
    state.apply(
        events.Released(
            at=AT, name="r", source="s", folder="releases/r", steps=5, schedule={},
            losses={c: loss(c, 3.9) for c in ("a", "b")}, samples=[],
        )
    )  # fmt: skip
    found = read_run(spec, open_store(tmp_path / "store"), state)
    assert found is not None
    return found


def test_a_stage_counts_the_tokens_of_its_own_batch(tmp_path: Path) -> None:
    """`training.global_batch` may change with a stage, and the run file has the last one."""
    document = tiny_run(tmp_path)
    document["training"]["global_batch"] = 2 * BATCH
    spec = RunSpec.model_validate(document)
    state = RunState()
    for corpus in ("a", "b"):
        walk(state, corpus)
    for stage in state.stages:
        told = {c: loss(c, 4.0) for c in ("a", "b")}
        state.apply(events.Measured(at=AT, stage=stage.name, losses=told))
        state.losses[stage.name] = told
    found = read_run(spec, open_store(tmp_path / "store"), state)
    assert found is not None
    tokens = STEPS * BATCH * spec.corpora.sequence_length
    assert [model.tokens for model in found.models] == [tokens, 2 * tokens]
    assert [sum(model.sources.values()) for model in found.models] == [tokens, 2 * tokens]
    assert [arrival.tokens for arrival in found.bill.arrivals] == [tokens, tokens]
    (table,) = lineage(spec, state, {})
    assert [row[3] for row in table.rows] == [f"{tokens:,}"] * 2


def test_a_run_is_read_from_its_ledger(run: ComparedRun) -> None:
    step = run.spec.tokens_per_step
    assert run.spec.training.global_batch == BATCH
    assert [(m.name, m.tokens) for m in run.models] == [
        ("00-a", STEPS * step), ("01-b", 2 * STEPS * step), ("r", (2 * STEPS + 5) * step),
    ]  # fmt: skip
    assert [m.decayed for m in run.models] == [False, False, True]
    assert [m.name for m in run.final] == ["01-b", "r"]
    assert [(a.stage, a.tokens, a.retrained_tokens) for a in run.bill.arrivals] == [
        ("00-a", STEPS * step, STEPS * step),
        ("01-b", (STEPS + 5) * step, (2 * STEPS + 5) * step),
    ]
    length = run.spec.corpora.sequence_length
    assert sum(run.models[1].sources.values()) == 2 * STEPS * BATCH * length
    assert read_run(run.spec, run.store, RunState()) is None


def test_a_base_costs_nothing_and_stands_before_what_it_is_compared_with(
    run: ComparedRun,
) -> None:
    measured = {corpus: loss(corpus, 5.0) for corpus in run.final[-1].losses}
    base = Model(run.name, "base", "models/initial", 0, False, measured)
    started = replace(run, models=(base, *run.models))
    assert (started.base, started.base and started.base.rate) == (base, "base")
    assert [m.name for m in started.final] == ["01-b", "r"]
    told = Comparison((started,), common_corpora(started.final), True, ())
    assert [m.first.name for m in told.groups[0]] == ["base"]
    assert "5.000" in str(page(told, AT))
    unmeasured = replace(started, models=(replace(base, losses={}), *run.models))
    assert [m.first.name for m in replace(told, runs=(unmeasured,)).groups[0]] != ["base"]


def test_the_scores_of_a_base_stand_beside_those_of_what_came_of_it(run: ComparedRun) -> None:
    def score(value: float) -> list[dict[str, Any]]:
        return [{"task": "t", "metric": "acc", "value": value, "stderr": 0.1}]

    def started(label: str, value: float, base: float | None) -> ComparedRun:
        first = Model(label, "base", "models/initial", 0, False, {}, scores=score(base or 0.0))
        trunk = replace(run.models[1], scores=score(value))
        models = (trunk,) if base is None else (first, trunk)
        return replace(run, models=models, label=label)

    one, other = started("one", 0.5, 0.25), started("other", 0.75, 0.25)
    told = Comparison((one, replace(other, spec=other.spec.model_copy(update={"replay": None}))),
                      ("a",), True, ())  # fmt: skip
    titles = ["the base", *(arm.name for arm in told.arms)]
    assert list(told.tasks["t acc"]) == titles
    assert told.tasks["t acc"]["the base"] == "0.250 ± 0.100"
    assert "'the base'" in str(page(told, AT))
    apart = replace(told, runs=(one, started("other", 0.75, 0.5)))
    assert list(apart.tasks["t acc"])[:2] == ["the base of one", "the base of other"]
    alone = replace(told, runs=(started("one", 0.5, None),))
    assert list(alone.tasks["t acc"]) == ["one"]


def test_a_release_of_a_decayed_trunk_is_the_same_model_with_its_scores(run: ComparedRun) -> None:
    trunk, release = run.models[1], replace(run.models[2], tokens=run.models[1].tokens)
    scored = replace(release, scores=[{"task": "t", "metric": "acc", "value": 0.5, "stderr": 0.1}])
    decayed = replace(run, models=(run.models[0], trunk, scored))
    (final,) = decayed.final
    assert (final.key, final.losses) == (trunk.key, trunk.losses)
    other = replace(run, label="other")
    told = Comparison((decayed, other), ("a",), True, ())
    assert told.tasks == {"t acc": {"tiny": "0.500 ± 0.100"}}
    assert "0.500 ± 0.100" in str(page(told, AT))


def test_the_page_tells_the_groups_the_gaps_and_the_bill(run: ComparedRun) -> None:
    other = ComparedRun(run.spec, run.store, run.models[1:2], run.bill, 10)
    gaps = (gap(run.models[1], run.models[1], ("a",), lambda *_: None),)
    told = Comparison((run, other), ("a",), True, gaps)
    text = str(page(told, AT))
    assert f"at {run.models[1].tokens:,} tokens" in text
    assert "+0.000" in text
    assert f"'in all', '{run.bill.tokens:,}', '{run.bill.retrained_tokens:,}'" in text
    plain = told.to_dict()
    assert plain["gaps"][0]["average"] == {"nats_per_token": 0.0, "stderr": None}
    assert plain["runs"][1]["compute"]["flops"] == run.bill.tokens * 10


RUNS = [
    [model("one", 100, x=4.0, y=5.0), model("one", 200, True, x=4.1, y=3.0)],
    [model("two", 200, True, x=3.9, y=3.2)],
]
LAST = [SeededModel(models[-1].run, {0: models[-1]}) for models in RUNS]
ARMS = [(models[0].run, [models]) for models in RUNS]
PICTURES = {
    "losses": lambda: losses_by_corpus(LAST, ("x", "y"), in_nats=True),
    "losses of one corpus": lambda: losses_by_corpus(LAST, ("x",), in_nats=False),
    "on the way": lambda: average_over_tokens(ARMS, ("x", "y"), in_nats=True),
    "compute": lambda: compute_bars(bill([("00-x", 100), ("01-y", 80)], {"01-y": 20})),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_a_png_and_has_two_looks(name: str) -> None:
    drawn: Picture = PICTURES[name]()
    pixels = imread(io.BytesIO(drawn.png()))
    assert pixels.shape[1] == 900
    assert pixels[..., :3].std() > 0.01
    looks = {drawn.svg("a", narrow=slim) for slim in (False, True)}
    assert len(looks) == 2
    assert all(ElementTree.fromstring(svg).tag.endswith("svg") for svg in looks)
