"""What holds for every schedule: purity (I1), continuity, falling phases, ranges, trunk (I7)."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from itertools import groupby, pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perennial.schedules import (
    Anneal,
    AnnealShape,
    ConstantSchedule,
    CooldownShape,
    CosineSchedule,
    InfiniteSchedule,
    Phase,
    Schedule,
    WarmupStableDecay,
    differences,
    from_dict,
    to_dict,
)

untimed = settings(deadline=None)

ROUNDING = 1e-12  # of the largest rate; a few units in the last place, with room
RATES = st.floats(1e-9, 10.0)
COOLDOWN_SHAPES: st.SearchStrategy[CooldownShape] = st.sampled_from(["cosine", "inverse-sqrt"])
ANNEAL_SHAPES: st.SearchStrategy[AnnealShape] = st.sampled_from(
    ["exponential", "1-sqrt", "linear", "cosine"]
)
STARTS = st.integers(0, 10**6)


def lengths(least: int, short: bool) -> st.SearchStrategy[int]:
    return st.integers(least, 40 if short else 10**6)


def warmup_start(draw: st.DrawFn, peak: float, warmup_steps: int) -> float:
    """Where a warmup begins: at 0, or anywhere below its peak."""
    return draw(st.sampled_from([0.0, 0.1, 1.0])) * peak if warmup_steps else 0.0


@st.composite
def infinite_schedules(draw: st.DrawFn, short: bool = False) -> InfiniteSchedule:
    eta_min, eta_const, eta_max = sorted(draw(st.tuples(RATES, RATES, RATES)))
    cooldown_steps, warmup_steps = draw(lengths(0, short)), draw(lengths(0, short))
    return InfiniteSchedule(
        eta_max=eta_max,
        eta_const=eta_const if cooldown_steps else eta_max,
        eta_min=eta_min,
        warmup_steps=warmup_steps,
        cooldown_steps=cooldown_steps,
        cooldown_shape=draw(COOLDOWN_SHAPES),
        alpha=draw(st.floats(1e-3, 1e3)),
        warmup_start=warmup_start(draw, eta_max, warmup_steps),
    )


@st.composite
def anneals(draw: st.DrawFn, short: bool = False) -> Anneal:
    eta_min, eta_start = sorted(draw(st.tuples(RATES, RATES)))
    return Anneal(draw(STARTS), draw(lengths(2, short)), eta_start, eta_min, draw(ANNEAL_SHAPES))


@st.composite
def cosine_schedules(draw: st.DrawFn, short: bool = False) -> CosineSchedule:
    eta_min, eta_max = sorted(draw(st.tuples(RATES, RATES)))
    warmup_steps = draw(lengths(0, short))
    steps = warmup_steps + draw(lengths(1, short))
    start = warmup_start(draw, eta_max, warmup_steps)
    return CosineSchedule(eta_max, eta_min, warmup_steps, steps, draw(STARTS), start)


@st.composite
def wsd_schedules(draw: st.DrawFn, short: bool = False) -> WarmupStableDecay:
    eta_min, eta_max = sorted(draw(st.tuples(RATES, RATES)))
    warmup_steps, decay_steps = draw(lengths(0, short)), draw(lengths(2, short))
    return WarmupStableDecay(
        eta_max=eta_max,
        eta_min=eta_min,
        warmup_steps=warmup_steps,
        steps=warmup_steps + draw(lengths(0, short)) + decay_steps,
        decay_steps=decay_steps,
        decay_shape=draw(ANNEAL_SHAPES),
        first_step=draw(STARTS),
        warmup_start=warmup_start(draw, eta_max, warmup_steps),
    )


@st.composite
def constant_schedules(draw: st.DrawFn, short: bool = False) -> ConstantSchedule:
    eta, warmup_steps = draw(RATES), draw(lengths(0, short))
    return ConstantSchedule(eta, warmup_steps, warmup_start(draw, eta, warmup_steps))


OF_KIND: dict[type[Schedule], st.SearchStrategy[Schedule]] = {
    InfiniteSchedule: infinite_schedules(),
    Anneal: anneals(),
    CosineSchedule: cosine_schedules(),
    WarmupStableDecay: wsd_schedules(),
    ConstantSchedule: constant_schedules(),
}


def schedules(short: bool = False) -> st.SearchStrategy[Schedule]:
    return st.one_of(
        infinite_schedules(short),
        anneals(short),
        cosine_schedules(short),
        wsd_schedules(short),
        constant_schedules(short),
    )


def first_step(schedule: Schedule) -> int:
    if isinstance(schedule, Anneal):
        return schedule.start_step
    return getattr(schedule, "first_step", 0)


def axis(schedule: Schedule) -> range:
    """Every step of a short schedule, and some beyond its last boundary."""
    return range(first_step(schedule), max(schedule.phase_ends().values(), default=0) + 10)


def steps_of(schedule: Schedule) -> st.SearchStrategy[int]:
    """Steps near the boundaries and anywhere, within the schedule's axis."""
    steps = axis(schedule)
    edges = [steps.start, *schedule.phase_ends().values()]
    near = st.sampled_from(edges).flatmap(lambda edge: st.integers(edge - 2, edge + 2))
    return st.one_of(near, st.integers(steps.start, steps.stop)).filter(lambda s: s >= steps.start)


def peak(schedule: Schedule) -> float:
    if isinstance(schedule, Anneal):
        return schedule.eta_start
    if isinstance(schedule, ConstantSchedule):
        return schedule.eta_const
    assert isinstance(schedule, InfiniteSchedule | CosineSchedule | WarmupStableDecay)
    return schedule.eta_max


def steepest(shape: str, start: float, end: float, steps: int, alpha: float = 10.0) -> float:
    """The most that one of `steps` steps can lower the rate, from the shape's largest slope."""
    if shape == "exponential":
        return start * math.log(start / end) / steps
    slope = {
        "linear": 1 / steps,
        "cosine": math.pi / 2 / steps,
        "1-sqrt": 1 / math.sqrt(steps),  # infinitely steep at 0: the first step itself
        "inverse-sqrt": alpha / 2 / (1 - 1 / math.sqrt(1 + alpha)) / steps,
    }[shape]
    return (start - end) * slope


def largest_change(schedule: Schedule, phase: Phase) -> float:
    """The most that the rate can change in one optimizer step that begins in `phase`."""
    if phase == "constant":
        return 0.0
    match schedule:
        case InfiniteSchedule(eta_max=high, eta_const=low, cooldown_steps=n) if phase == "cooldown":
            return steepest(schedule.cooldown_shape, high, low, n, schedule.alpha)
        case Anneal(eta_start=high, eta_min=low, steps=n):
            return steepest(schedule.shape, high, low, n - 1)
        case CosineSchedule(eta_max=high, eta_min=low) if phase == "anneal":
            return steepest("cosine", high, low, schedule.steps - schedule.warmup_steps)
        case WarmupStableDecay(eta_max=high, eta_min=low, decay_steps=n) if phase == "anneal":
            return steepest(schedule.decay_shape, high, low, n - 1)
        case _:
            assert phase == "warmup"
            return peak(schedule) / (schedule.phase_ends()["warmup"] - first_step(schedule))


@untimed
@given(st.data(), schedules())
def test_i1_rate_is_a_pure_function_of_schedule_and_step(
    data: st.DataObject, schedule: Schedule
) -> None:
    steps = data.draw(st.lists(steps_of(schedule), min_size=1, max_size=20))
    rates = {step: (schedule.eta(step), schedule.phase(step)) for step in steps}
    stored = from_dict(json.loads(json.dumps(to_dict(schedule))))
    assert stored == schedule and differences(schedule, stored) == []
    for step in data.draw(st.permutations(steps)):
        assert (schedule.eta(step), schedule.phase(step)) == rates[step]
        assert (stored.eta(step), stored.phase(step)) == rates[step]


@untimed
@given(st.data(), schedules())
def test_i1_each_changed_field_is_named_with_both_values(
    data: st.DataObject, schedule: Schedule
) -> None:
    name = data.draw(st.sampled_from([field.name for field in fields(schedule)]))
    other = data.draw(OF_KIND[type(schedule)])
    before, after = getattr(schedule, name), getattr(other, name)
    assume(before != after)
    assert f"{name}: {before!r} -> {after!r}" in differences(schedule, other)


@untimed
@given(st.data(), schedules())
def test_rate_is_continuous(data: st.DataObject, schedule: Schedule) -> None:
    step = data.draw(steps_of(schedule))
    change = abs(schedule.eta(step + 1) - schedule.eta(step))
    # At a boundary the optimizer step that begins there belongs to the next phase's curve.
    allowed = max(
        largest_change(schedule, schedule.phase(step)),
        largest_change(schedule, schedule.phase(step + 1)),
    )
    assert change <= allowed + ROUNDING * peak(schedule)


@untimed
@given(st.data(), schedules())
def test_rate_rises_in_warmup_falls_in_cooldown_and_anneal_and_rests_in_constant(
    data: st.DataObject, schedule: Schedule
) -> None:
    step = data.draw(steps_of(schedule))
    rise = schedule.eta(step + 1) - schedule.eta(step)
    phase = schedule.phase(step)
    assume(phase == schedule.phase(step + 1))
    if phase == "warmup":
        assert rise >= 0
    elif phase == "constant":
        assert rise == 0
    else:
        assert rise <= ROUNDING * peak(schedule)


@untimed
@given(schedules(short=True))
def test_phases_partition_the_axis(schedule: Schedule) -> None:
    steps = axis(schedule)
    found: list[tuple[Phase, int]] = []
    for phase, group in groupby(steps, key=schedule.phase):
        found.append((phase, list(group)[-1]))
    ends = schedule.phase_ends()
    assert len({phase for phase, _ in found}) == len(found)
    assert list(ends) == [phase for phase, _ in found][: len(ends)]
    assert [end for _, end in found[:-1]] == list(ends.values())[: len(found) - 1]


@untimed
@given(st.data(), schedules())
def test_rate_stays_within_the_schedule_s_range(data: st.DataObject, schedule: Schedule) -> None:
    step = data.draw(steps_of(schedule))
    floor = float(getattr(schedule, "eta_min", peak(schedule)))
    assert 0.0 <= schedule.eta(step) <= peak(schedule)
    if step >= schedule.phase_ends().get("warmup", 0):
        assert schedule.eta(step) >= floor


@untimed
@given(infinite_schedules())
def test_both_cooldowns_have_the_same_end_points(schedule: InfiniteSchedule) -> None:
    cosine = replace(schedule, cooldown_shape="cosine")
    inverse_sqrt = replace(schedule, cooldown_shape="inverse-sqrt")
    start = schedule.warmup_steps
    end = start + schedule.cooldown_steps
    assert cosine.eta(start) == inverse_sqrt.eta(start) == schedule.eta_max
    assert cosine.eta(end) == inverse_sqrt.eta(end) == schedule.eta_const


@untimed
@given(infinite_schedules(), st.floats(0.001, 0.999))
def test_inverse_sqrt_cooldown_is_the_published_formula(
    schedule: InfiniteSchedule, x: float
) -> None:
    step = schedule.warmup_steps + int(x * schedule.cooldown_steps)
    assume(schedule.cooldown_steps)

    def h(fraction: float) -> float:
        return 1 / math.sqrt(1 + schedule.alpha * fraction) - 1

    high, low = schedule.eta_max, schedule.eta_const
    published = high + (low - high) / h(1) * h(
        (step - schedule.warmup_steps) / schedule.cooldown_steps
    )
    rate = replace(schedule, cooldown_shape="inverse-sqrt").eta(step)
    assert math.isclose(rate, published, rel_tol=1e-9, abs_tol=ROUNDING * high)


@untimed
@given(st.floats(5e-324, 1e308), st.integers(0, 100))
def test_any_alpha_gives_a_rate_in_range(alpha: float, step: int) -> None:
    schedule = InfiniteSchedule(3e-4, 1.65e-4, 3e-5, 0, 100, "inverse-sqrt", alpha)
    assert 1.65e-4 <= schedule.eta(step) <= 3e-4


@untimed
@given(st.data(), infinite_schedules(), lengths(2, short=False), ANNEAL_SHAPES)
def test_anneal_leaves_the_trunk_at_its_rate_and_ends_at_eta_min(
    data: st.DataObject, trunk: InfiniteSchedule, steps: int, shape: AnnealShape
) -> None:
    start = data.draw(steps_of(trunk))
    assume(trunk.eta(start) >= trunk.eta_min)
    branch = Anneal(start, steps, trunk.eta(start), trunk.eta_min, shape)
    assert branch.eta(start) == trunk.eta(start)
    assert branch.eta(start + steps - 1) == branch.eta(start + steps) == trunk.eta_min


@untimed
@given(st.data(), infinite_schedules())
def test_i7_trunk_never_decays_below_eta_const(
    data: st.DataObject, trunk: InfiniteSchedule
) -> None:
    end = trunk.warmup_steps + trunk.cooldown_steps
    step = data.draw(st.integers(trunk.warmup_steps, 10**9))
    assert trunk.eta(step) >= trunk.eta_const
    assert trunk.phase(step) != "anneal"
    assert trunk.eta(end + step) == trunk.eta_const


@untimed
@given(cosine_schedules(short=True), st.integers(1, 5))
def test_every_cosine_stage_warms_up_again_to_the_same_curve(
    schedule: CosineSchedule, stage: int
) -> None:
    later = replace(schedule, first_step=schedule.first_step + stage * schedule.steps)
    shift = later.first_step - schedule.first_step
    assert [later.eta(step + shift) for step in axis(schedule)] == [
        schedule.eta(step) for step in axis(schedule)
    ]


@untimed
@given(schedules(short=True))
def test_a_whole_short_curve_rises_then_falls_once(schedule: Schedule) -> None:
    rates = [schedule.eta(step) for step in axis(schedule)]
    top = max(rates)
    assert top == peak(schedule)
    turn = rates.index(top)
    assert all(a <= b for a, b in pairwise(rates[: turn + 1]))
    assert all(b <= a + ROUNDING * top for a, b in pairwise(rates[turn:]))
