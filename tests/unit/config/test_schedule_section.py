"""The section `schedule` of a run file: each kind has keys of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from perennial.config import RunSpec, load_run, parse, read_stored_run
from perennial.errors import InputError
from perennial.schedules import (
    SCHEDULES,
    AbsentSchedule,
    AnnealShape,
    ConstantConfig,
    ConstantSchedule,
    InfiniteConfig,
    Schedule,
    ScheduleConfig,
    WarmupStableDecay,
    build_curve,
)
from tests.support.tiny_run import tiny_run

RATES = {"eta_max": 3e-3, "eta_min": 3e-4}


def _run(schedule: Any) -> RunSpec:
    return parse(tiny_run(Path("/nowhere")) | {"schedule": schedule}, RunSpec, "run.yaml")


def _write(path: Path, document: Any) -> Path:
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "constant", "eta_const": 1e-3, "warmup": "80%"},
        {"kind": "wsd", **RATES, "warmup": "60%", "decay": "30%"},
        {"kind": "cosine", **RATES, "warmup": "90%"},
        {"kind": "infinite", **RATES, "warmup": "40%", "cooldown": "60%"},
        RATES,
    ],
)
def test_phases_that_fit_are_accepted(schedule: dict[str, Any]) -> None:
    config = _run(schedule).schedule
    assert isinstance(build_curve(config, 0, 1000, 1024), config.curve)


@pytest.mark.parametrize(
    ("schedule", "phases"),
    [
        ({"kind": "wsd", **RATES, "warmup": "60%", "decay": "60%"}, "warmup 60% and decay 60%"),
        ({**RATES, "warmup": "60%", "cooldown": "60%"}, "warmup 60% and cooldown 60%"),
        ({"kind": "constant", "eta_const": 1e-3, "warmup": "101%"}, "warmup 101%"),
    ],
)
def test_percentages_above_a_whole_are_refused_by_the_phases_that_the_kind_has(
    schedule: dict[str, Any], phases: str
) -> None:
    with pytest.raises(InputError) as refused:
        _run(schedule)
    assert (refused.value.field, refused.value.code) == ("schedule", "invalid-section")
    assert refused.value.problem.startswith(phases)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("cosine", "eta_const", 1e-3),
        ("cosine", "cooldown", "10%"),
        ("cosine", "cooldown_shape", "cosine"),
        ("cosine", "alpha", 3),
        ("cosine", "decay", "10%"),
        ("wsd", "cooldown", "10%"),
        ("infinite", "decay", "10%"),
        ("constant", "eta_max", 3e-3),
    ],
)
def test_a_key_of_another_kind_is_unknown(kind: str, key: str, value: Any) -> None:
    rates = {"eta_const": 1e-3} if kind == "constant" else RATES
    with pytest.raises(InputError) as refused:
        _run({"kind": kind, **rates, key: value})
    assert (refused.value.field, refused.value.code) == (f"schedule.{key}", "unknown-key")
    for known in SCHEDULES[kind].model_fields:
        assert known in refused.value.remedy


def test_a_constant_schedule_needs_its_rate_alone() -> None:
    config = _run({"kind": "constant", "eta_const": 1e-3}).schedule
    assert config.searched_rate == 1e-3
    assert config.anneal_end == pytest.approx(1e-4)
    curve = build_curve(config, 0, 100, 1024)
    assert (curve.eta(1), curve.eta(10**6)) == (1e-3, 1e-3)
    with pytest.raises(InputError) as refused:
        _run({"kind": "constant"})
    assert (refused.value.field, refused.value.code) == ("schedule.eta_const", "missing-key")
    with pytest.raises(InputError, match="use eta_min <= eta_const"):
        _run({"kind": "constant", "eta_const": 1e-3, "eta_min": 1e-2})


@pytest.mark.parametrize("shape", get_args(AnnealShape))
def test_every_shape_can_be_chosen_for_a_release_and_for_a_decay(shape: str) -> None:
    document = tiny_run(Path("/nowhere"))
    document["release"] |= {"shape": shape}
    document["schedule"] = {"kind": "wsd", **RATES, "decay_shape": shape}
    spec = parse(document, RunSpec, "run.yaml")
    curve = build_curve(spec.schedule, 0, 100, 1024)
    assert isinstance(curve, WarmupStableDecay)
    assert (spec.release.shape, curve.decay_shape) == (shape, shape)
    assert curve.eta(99) == 3e-4


def test_a_kind_that_nothing_brings_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError) as refused:
        _run({"kind": "sawtooth", **RATES})
    assert (refused.value.field, refused.value.code) == ("schedule.kind", "plugin-missing")
    assert "'sawtooth'" in refused.value.problem and "infinite" in refused.value.problem
    with pytest.raises(InputError, match=r"schedule\.kind: \['cosine'\] is refused"):
        _run({"kind": ["cosine"]})
    with pytest.raises(InputError, match="schedule: 3 is refused"):
        _run(3)


def test_a_registered_kind_is_a_kind_of_the_run_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowConfig(ConstantConfig):
        """Half of the rate that is asked for."""

        kind: Any = "slow"

        def build(self, first_step: int, steps: int, tokens_per_step: int) -> ConstantSchedule:
            return ConstantSchedule(self.eta_const / 2)

    known: dict[str, type[ScheduleConfig]] = {**SCHEDULES._known, "slow": SlowConfig}
    monkeypatch.setattr(SCHEDULES, "_known", known)
    spec = _run({"kind": "slow", "eta_const": 1e-3})
    assert build_curve(spec.schedule, 0, 10, 10).eta(5) == 5e-4
    assert spec.model_dump(mode="json")["schedule"]["kind"] == "slow"


def test_the_resolved_section_loads_to_itself(tmp_path: Path) -> None:
    for kind in SCHEDULES:
        rates = {"eta_const": 1e-3} if kind == "constant" else RATES
        spec = _run({"kind": kind, **rates})
        path = _write(tmp_path / "run.yaml", spec.model_dump(mode="json"))
        assert load_run(path) == spec


def test_a_file_that_chooses_another_kind_keeps_of_its_base_what_that_kind_has(
    tmp_path: Path,
) -> None:
    base = _write(tmp_path / "base.yaml", tiny_run(tmp_path))
    top = _write(tmp_path / "top.yaml", {"base": str(base), "schedule": {"kind": "cosine"}})
    for spec in (load_run(top), load_run(base, ["schedule.kind=cosine"])):
        assert spec.schedule.model_dump(mode="json") == {
            "kind": "cosine", "eta_max": 3e-3, "eta_min": 3e-4, "warmup": "10%",
            "warmup_start": None,
        }  # fmt: skip
    wrong = {"base": str(base), "schedule": {"kind": "cosine", "eta_const": 1e-3}}
    with pytest.raises(InputError) as refused:
        load_run(_write(tmp_path / "wrong.yaml", wrong))
    assert refused.value.field == "schedule.eta_const"
    with pytest.raises(InputError) as refused:
        load_run(base, ["schedule.kind=cosine", "schedule.eta_const=1e-3"])
    assert refused.value.field == "schedule.eta_const"


@pytest.mark.parametrize(
    "middle",
    [
        {"gates": None},
        {"replay": None},
        {"sources": None, "stages": {"corpora": None, "batch_arrivals": None}},
        {"stages": {"corpora": {"a": None}}},
        {"schedule": {"kind": "cosine", "eta_const": None}},
        {"evaluation": {"documents": None}},
    ],
)
def test_a_null_in_the_middle_of_a_chain_forgets_what_the_base_says(
    tmp_path: Path, middle: dict[str, Any]
) -> None:
    base = _write(tmp_path / "base.yaml", tiny_run(tmp_path))
    between = _write(tmp_path / "between.yaml", {"base": str(base), **middle})
    top = _write(tmp_path / "top.yaml", {"base": str(between), "name": "top"})
    defaults = parse({**tiny_run(tmp_path), "replay": {}, "evaluation": {}}, RunSpec, "run.yaml")
    spec = load_run(top)
    assert spec.name == "top"
    if middle.get("replay", 0) is None:
        assert spec.replay == defaults.replay
    if "evaluation" in middle:
        assert spec.evaluation == defaults.evaluation


def test_a_null_that_is_a_value_stays_one(tmp_path: Path) -> None:
    base = _write(tmp_path / "base.yaml", tiny_run(tmp_path))
    corpora = {"near_duplicates": None}
    top = _write(tmp_path / "top.yaml", {"base": str(base), "corpora": corpora})
    assert load_run(top).corpora.near_duplicates is None
    assert load_run(base).corpora.near_duplicates == 0.8


@pytest.mark.parametrize("field", [{"name": None}, {"schedule": {"eta_max": None}}])
def test_a_null_for_a_key_that_is_needed_is_a_missing_key(
    tmp_path: Path, field: dict[str, Any]
) -> None:
    base = _write(tmp_path / "base.yaml", tiny_run(tmp_path))
    top = _write(tmp_path / "top.yaml", {"base": str(base), **field})
    with pytest.raises(InputError) as refused:
        load_run(top)
    assert refused.value.code == "missing-key"


# What version 0.1 stored: one flat section with the keys of every kind.
FLAT = {
    "eta_max": 3e-3, "eta_const": None, "eta_min": 3e-4, "warmup": "10%", "cooldown": "60%",
    "cooldown_shape": "cosine", "alpha": 10.0, "decay": "10%",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["infinite", "constant", "cosine", "wsd"])
def test_a_run_that_an_earlier_version_stored_is_read(kind: str) -> None:
    document = _run(RATES).model_dump(mode="json") | {"schedule": {"kind": kind, **FLAT}}
    config = read_stored_run(document).schedule
    assert config.kind == kind
    rate = 1.65e-3 if kind in ("infinite", "constant") else 3e-3
    assert config.searched_rate == pytest.approx(rate)


def test_a_stored_run_whose_plug_in_is_missing_can_be_shown_and_not_trained() -> None:
    section = {"kind": "sawtooth", "teeth": 3}
    document = _run(RATES).model_dump(mode="json") | {"schedule": section}
    config = read_stored_run(document).schedule
    assert config.model_dump() == section
    curve: Schedule = config.build(0, 10, 10)
    assert isinstance(curve, AbsentSchedule)
    with pytest.raises(InputError) as refused:
        curve.installed()
    assert refused.value.code == "plugin-missing" and "'sawtooth'" in refused.value.problem


def test_pinning_keeps_the_phases_of_the_trunk() -> None:
    config = _run({**RATES, "warmup": "10%", "cooldown": "60%"}).schedule
    trunk = build_curve(config, 0, 200, 1024)
    pinned = config.pinned(trunk)
    assert isinstance(pinned, InfiniteConfig)
    assert build_curve(pinned, 0, 150, 1024) == trunk
    constant = _run({"kind": "constant", "eta_const": 1e-3, "warmup": "10%"}).schedule
    once = build_curve(constant, 0, 200, 1024)
    assert build_curve(constant.pinned(once), 0, 150, 1024) == once
    assert constant.pinned(trunk) == constant
