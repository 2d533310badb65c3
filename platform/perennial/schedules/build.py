"""From the run file's schedule section to a schedule in optimizer steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.errors import InputError
from perennial.schedules import (
    Anneal,
    ConstantSchedule,
    CosineSchedule,
    InfiniteSchedule,
    Schedule,
    WarmupStableDecay,
)

if TYPE_CHECKING:
    from perennial.config import AmountValue
    from perennial.config.run import ReleaseSpec, ScheduleSpec


def stage_schedule(
    spec: ScheduleSpec, first_step: int, steps: int, tokens_per_step: int
) -> Schedule:
    """The rate of a stage of `steps` steps that begins at trunk step `first_step`.

    An infinite or constant schedule is made once, for the first stage, and then belongs to the
    trunk; cosine and wsd are made anew for every stage.
    Raises InputError when the phases do not fit into the stage.
    """

    def resolve(amount: AmountValue) -> int:
        return amount.steps(steps, tokens_per_step)

    warmup = resolve(spec.warmup)
    try:
        if spec.kind == "infinite":
            cooldown = resolve(spec.cooldown)
            _check_fit(steps, warmup=warmup, cooldown=cooldown)
            return InfiniteSchedule(
                spec.eta_max, spec.constant_rate, spec.eta_min, warmup, cooldown,
                spec.cooldown_shape, spec.alpha,
            )  # fmt: skip
        if spec.kind == "constant":
            _check_fit(steps, warmup=warmup)
            return ConstantSchedule(spec.constant_rate, warmup)
        if spec.kind == "cosine":
            _check_fit(steps, warmup=warmup)
            return CosineSchedule(spec.eta_max, spec.eta_min, warmup, steps, first_step)
        decay = resolve(spec.decay)
        _check_fit(steps, warmup=warmup, decay=decay)
        return WarmupStableDecay(
            spec.eta_max, spec.eta_min, warmup, steps, decay, "exponential", first_step
        )
    except ValueError as wrong:
        problem, _, remedy = str(wrong).partition("; ")
        raise InputError("run file", "schedule", problem, remedy or "correct it") from None


def release_anneal(
    release: ReleaseSpec, eta_min: float, trunk: Schedule, step: int, tokens_per_step: int
) -> Anneal | None:
    """The branch's rate from trunk step `step` on; None where the trunk has decayed already.

    Raises InputError for an anneal of fewer than two steps.
    """
    if trunk.phase(step) == "anneal":
        return None
    steps = release.anneal.steps(step, tokens_per_step)
    if steps < 2:
        raise InputError(
            "run file",
            "release.anneal",
            f"{release.anneal} is {steps} steps at trunk step {step}",
            "give an anneal of at least 2 steps",
        )
    return Anneal(step, steps, trunk.eta(step), eta_min, release.shape)


def _check_fit(steps: int, **phases: int) -> None:
    if sum(phases.values()) > steps:
        longest = max(phases, key=lambda name: phases[name])
        told = " and ".join(f"{name} ({count} steps)" for name, count in phases.items())
        raise InputError(
            "run file",
            f"schedule.{longest}",
            f"{told} do not fit into a first stage of {steps} steps",
            f"use at most {steps} steps in all",
        )
