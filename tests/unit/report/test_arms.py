"""Runs that differ in their seed alone: what belongs together, and what is said of it."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.evaluation.compare import Model, bill, common_corpora
from perennial.evaluation.statistics import estimate
from perennial.report import compare_tables as tables
from perennial.report.arms import group_arms, name_runs
from perennial.report.compare import Comparison
from perennial.report.compare_files import COLUMNS, comparison_csv, comparison_latex
from perennial.report.compare_page import page
from perennial.report.compared_run import ComparedRun
from perennial.store import open_store
from tests.support.event_factory import AT
from tests.support.tiny_run import tiny_run


def losses(nats: dict[str, float]) -> dict[str, HeldoutLoss]:
    return {corpus: HeldoutLoss(corpus, n, n / 3, 4, 40, 160, 0.1) for corpus, n in nats.items()}


def spec_of(folder: Path, name: str, seed: int, store: str = "", **changes: Any) -> RunSpec:
    document = tiny_run(folder, str(folder / (store or f"{name}-{seed}")))
    return RunSpec.model_validate({**document, "name": name, "seed": seed, **changes})


Rows = list[dict[str, float]]


def run_of(spec: RunSpec, stages: Rows, release: dict[str, float], label: str = "") -> ComparedRun:
    """A run of a stage for each of these losses, the first of corpus x, and of one release."""
    names = [f"{i:02}-{corpus}" for i, corpus in zip(range(len(stages)), "xyz", strict=False)]
    if len(stages) == 1:
        names = ["00-x-y"]
    name = label or spec.name
    models = [
        Model(name, stage, f"checkpoints/{stage}", 100 * (i + 1), False, losses(its))
        for i, (stage, its) in enumerate(zip(names, stages, strict=True))
    ]
    tokens = 230
    models.append(Model(name, "r", "releases/r", tokens, True, losses(release)))
    matrix = LossMatrix(
        tuple((model.name, model.losses) for model in models[:-1]),
        together={"00-x-y": ("x", "y")},
    )
    costs = bill([(stage, 100) for stage in names], {names[-1]: 30})
    store = open_store(spec.store)
    return ComparedRun(spec, store, tuple(models), costs, 10, label=label, matrix=matrix)


def compared(*runs: ComparedRun) -> Comparison:
    labels = name_runs([run.spec for run in runs])
    named = tuple(
        replace(run, label=label, models=tuple(replace(model, run=label) for model in run.models))
        for run, label in zip(runs, labels, strict=True)
    )
    finals = [model for run in named for model in run.final]
    return Comparison(named, common_corpora(finals), True, ())


@pytest.fixture
def seeded(tmp_path: Path) -> Comparison:
    """Three seeds of a trunk over x and y, and of its union; the union of one seed more."""
    runs = []
    for seed, shift in ((0, 0.0), (1, 0.3), (2, -0.2)):
        trunk = [{"x": 4.0 + shift, "y": 6.0}, {"x": 4.4 + shift, "y": 3.0 + shift}]
        runs.append(
            run_of(
                spec_of(tmp_path, f"trunk-seed{seed}", seed),
                trunk,
                {"x": 4.2 + shift, "y": 2.8 + shift},
            )
        )
        union = {"x": 4.0 + shift + seed / 100, "y": 2.7 + shift}
        spec = spec_of(tmp_path, f"union-{seed}", seed, stages={"batch_arrivals": {}})
        runs.append(run_of(spec, [union], union))
    spec = spec_of(tmp_path, "union-7", 7, stages={"batch_arrivals": {}})
    runs.append(run_of(spec, [{"x": 9.0, "y": 9.0}], {"x": 9.0, "y": 9.0}))
    return compared(*runs)


def test_runs_that_differ_in_seed_and_place_are_one_arm(seeded: Comparison, tmp_path: Path) -> None:
    assert [(arm.name, [*arm.runs]) for arm in seeded.arms] == [
        ("trunk", [0, 1, 2]), ("union", [0, 1, 2, 7]),
    ]  # fmt: skip
    other = spec_of(tmp_path, "trunk-seed1", 1, "other", replay={"share": 0.5})
    again = spec_of(tmp_path, "again", 1)
    x = {"x": 1.0}
    arms = group_arms([*seeded.runs[:3:2], run_of(other, [x], x), run_of(again, [x], x)])
    assert [(arm.name, [*arm.runs]) for arm in arms] == [
        ("trunk", [0, 1]), ("trunk-seed1", [1]), ("again", [1]),
    ], "another setting, and the same settings with the same seed, stand apart"  # fmt: skip


def test_namesakes_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    specs = [
        spec_of(tmp_path, "run", 0),
        spec_of(tmp_path, "run", 1),
        spec_of(tmp_path, "run", 0, "less", replay={"share": 0.05}),
        spec_of(tmp_path, "alone", 0),
    ]
    assert name_runs(specs) == [
        "run (seed=0, replay.share=0.25)", "run (seed=1, replay.share=0.25)",
        "run (seed=0, replay.share=0.05)", "alone",
    ]  # fmt: skip
    x = {"x": 1.0}
    runs = [run_of(s, [x], x, label) for s, label in zip(specs, name_runs(specs), strict=True)]
    assert [arm.name for arm in group_arms(runs)] == [
        "run (replay.share=0.25)", "run (seed=0, replay.share=0.05)", "alone",
    ]  # fmt: skip
    copies = [spec_of(tmp_path, "run", 0, store) for store in ("a", "b")]
    assert name_runs(copies) == ["run (a)", "run (b)"], "what differs in their stores"


def test_an_arm_has_means_and_intervals_and_gaps_are_paired_by_seed(seeded: Comparison) -> None:
    (decayed,) = [group for group in seeded.groups if group[0].first.decayed]
    table = tables.losses(seeded, decayed)
    assert table.columns == ("run", "rate", "tokens", "seeds", "x", "y", "average")
    expected = estimate([4.2, 4.5, 4.0]).text()
    assert table.rows[0][:5] == ("trunk", "annealed", "230", "3", expected)
    assert table.rows[1][:4] == ("union", "annealed", "230", "4")
    gaps, shown = tables.gaps(seeded), tables.dearest_gaps(seeded)
    assert gaps is not None and shown is not None
    # What a seed adds to both cancels: y differs by 0.1 with every seed, x by 0.2 less 0.01 a seed.
    paired = estimate([0.2, 0.19, 0.18])
    (row,) = gaps.rows
    assert row[:3] == ("union", "230", "3")
    assert shown.rows == [(row[0], *row[2:])], "the terminal has the tokens above"
    assert row[3] == paired.text(signed=True) == "+0.190 ± 0.025"
    assert row[4] == "+0.100 ± 0.000"
    assert row[5] == estimate([0.15, 0.145, 0.14]).text(signed=True)
    assert seeded.gaps == ()


def test_one_seed_has_no_interval(seeded: Comparison) -> None:
    trunk, union = seeded.arms
    lone = compared(trunk.runs[0], union.runs[0])
    assert not lone.is_seeded
    assert "±" not in str([tables.losses(lone, group).rows for group in lone.groups])
    partly = compared(trunk.runs[0], union.runs[0], union.runs[1])
    gaps = tables.gaps(partly)
    assert gaps is not None and gaps.rows[0][2:] == ("1", "+0.200", "+0.100", "+0.150")
    (ours, theirs) = next(group for group in partly.groups if group[0].first.decayed)
    assert "±" not in str(tables.losses(partly, [ours]).rows)
    assert "±" in str(tables.losses(partly, [theirs]).rows)
    apart = compared(trunk.runs[0], trunk.runs[1], union.runs[7])
    assert tables.gaps(apart) is None, "no seed in common"


def test_transfer_and_regret_are_over_seeds(seeded: Comparison) -> None:
    raw, regret = seeded.transfers
    assert (raw.arm, raw.models, raw.against, [*raw.by_seed]) == ("trunk", "trunk", "", [0, 1, 2])
    assert raw.mean("backward") == estimate([4.4, 4.7, 4.2])
    assert raw.text("forward") == "6.000 ± 0.000"
    assert (regret.against, [*regret.by_seed]) == ("union", [0, 1, 2])
    assert regret.text("backward") == estimate([0.4, 0.39, 0.38]).text(signed=True)
    # x after x minus the union's x, and y after y minus the union's y.
    expected = estimate([(0.0 + 0.3) / 2, (-0.01 + 0.3) / 2, (-0.02 + 0.3) / 2])
    assert regret.text("in_distribution") == expected.text(signed=True)


def test_regret_is_also_against_a_retrained_run_of_each_step(tmp_path: Path) -> None:
    rows = [{"x": 4.0, "y": 6.0}, {"x": 4.4, "y": 3.0}]
    trunk = run_of(spec_of(tmp_path, "trunk", 0), rows, {"x": 4.2, "y": 2.8})
    union = run_of(
        spec_of(tmp_path, "union", 1, stages={"batch_arrivals": {}}),
        [{"x": 4.0, "y": 2.7}], {"x": 4.1, "y": 2.6},
    )  # fmt: skip
    first = run_of(
        spec_of(tmp_path, "first", 2, stages={"only": ["x"]}),
        [{"x": 3.9, "y": 7.0}], {"x": 3.8, "y": 7.1},
    )  # fmt: skip
    only_x = LossMatrix((("00-x", first.matrix.stages[0][1]),))
    told = compared(trunk, union, replace(first, matrix=only_x))
    found = {row.against: [row.text(name) for name in ("backward", "in_distribution", "forward")]
             for row in told.transfers}  # fmt: skip
    assert found == {
        "": ["4.400", "3.500", "6.000"],
        "union": ["+0.300", "+0.150", "+3.400"],
        "first, union of each step": ["+0.300", "+0.300", "-1.100"],
    }


def test_a_release_of_every_stage_has_transfer_of_its_own_and_a_hole_is_shown(
    tmp_path: Path,
) -> None:
    rows = [{"x": 4.0}, {"x": 4.4, "y": 3.0}]
    run = run_of(spec_of(tmp_path, "trunk", 0), rows, {"x": 4.2, "y": 2.8})
    (row,) = compared(run).transfers
    assert [row.text(name) for name in ("backward", "in_distribution", "forward")] == [
        "4.400", "3.500", "- (0 of 1 cells)",
    ]  # fmt: skip
    released = {"00-x": losses({"x": 3.9, "y": 5.9}), "01-y": losses({"x": 4.3, "y": 2.9})}
    trunk, releases = compared(replace(run, released=released)).transfers
    assert (trunk.models, releases.models) == ("trunk", "releases")
    assert releases.text("in_distribution") == "3.400"


def test_the_csv_has_a_line_for_every_number(seeded: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_csv(seeded))))
    assert tuple(lines[0]) == COLUMNS
    assert {line["quantity"].partition(",")[0] for line in lines} == {
        "loss", "gap", "transfer", "regret",
    }  # fmt: skip
    (gap,) = [
        line
        for line in lines
        if line["quantity"] == "gap" and line["corpus"] == "x" and line["rate"] == "annealed"
    ]
    paired = estimate([0.2, 0.19, 0.18])
    assert (gap["run"], gap["against"], gap["seeds"]) == ("trunk", "union", "3")
    assert float(gap["value"]) == pytest.approx(paired.mean)
    assert float(gap["half_width_95"]) == pytest.approx(paired.half_width)
    trunk, union = seeded.arms
    lone = compared(trunk.runs[0], union.runs[0])
    alone = list(csv.DictReader(io.StringIO(comparison_csv(lone))))
    assert {line["half_width_95"] for line in alone} == {""}
    assert {line["stderr"] for line in alone if line["corpus"] == "x"} == {"0.1"}


def test_the_latex_is_escaped_and_whole(seeded: Comparison) -> None:
    arm = replace(seeded.arms[0].runs[0], label="50%_of & more")
    models = tuple(replace(model, run="50%_of & more") for model in arm.models)
    renamed = Comparison((replace(arm, models=models),), seeded.corpora, True, ())
    text = comparison_latex(renamed)
    assert r"50\%\_of \& more & annealed & 230 & 4.200 & 2.800 & 3.500 \\" in text
    whole = comparison_latex(seeded)
    assert r"+0.190 $\pm$ 0.025" in whole
    for environment in ("table", "tabular"):
        begun = whole.count(rf"\begin{{{environment}}}")
        assert begun == whole.count(rf"\end{{{environment}}}") == 3
    for table in whole.split(r"\begin{tabular}")[1:]:
        places = re.match(r"\{([lr]+)\}", table)
        assert places is not None
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") + 1 for line in rows} == {len(places[1])}


def test_the_page_and_json_hold_the_arms(seeded: Comparison) -> None:
    shown = page(seeded, AT)
    assert shown.facts["gap to union"] == estimate([0.15, 0.145, 0.14]).text(signed=True)
    assert [section.title for section in shown.sections][:3] == [
        "Losses", "How far trunk is from the others", "Transfer over time steps",
    ]  # fmt: skip
    plain = seeded.to_dict()
    assert plain["arms"][0]["runs"] == {"0": "trunk-seed0", "1": "trunk-seed1", "2": "trunk-seed2"}
    gap = plain["seed_gaps"][-1]
    assert (gap["arm"], gap["against"]["arm"]) == ("trunk", "union")
    assert gap["average"]["count"] == 3
    assert plain["transfer"][1]["against"] == "union"
    assert plain["transfer"][1]["backward"]["by_seed"]["0"] == {
        "value": pytest.approx(0.4), "measured": 1, "cells": 1,
    }  # fmt: skip
