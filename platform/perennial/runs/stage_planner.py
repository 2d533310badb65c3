"""Plan stages and releases: steps, mix, schedule and start. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perennial.config.changes import held_settings
from perennial.config.stage_settings import stage_settings
from perennial.errors import InputError
from perennial.mixture import (
    AUTO,
    History,
    Mixture,
    StageMix,
    TrunkUse,
    annealed_corpora,
    branch_mix,
    list_new,
    mixture_suffix,
    rows_of,
    stage_mix,
    truncate_mix,
)
from perennial.runs.actions import Order
from perennial.runs.averaging import AskedAverage, Average, AveragedCheckpoint, weights_of
from perennial.runs.events import Releasing, Started
from perennial.runs.state import RunState, Stage
from perennial.runs.unattended.replay_share import ShareDecision
from perennial.runs.unattended.stage_replay import decided_share, stage_rule
from perennial.schedules import (
    Anneal,
    Schedule,
    ScheduleConfig,
    build_curve,
    differences,
    from_dict,
    release_anneal,
    to_dict,
)
from perennial.training.checkpoint.manifest import folder_of

if TYPE_CHECKING:
    from perennial.config import AmountValue, RunSpec
    from perennial.config.run import ReleaseSpec


def decide_stage(
    spec: RunSpec,
    state: RunState,
    corpus: str,
    at: str,
    tracking_run: str,
    reschedule: bool,
    joined: Sequence[str] = (),
    auto: ShareDecision | float | None = None,
) -> Started:
    """Plan the stage of a ready corpus, next on the trunk.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        corpus: the corpus, which gives the stage its name.
        at: UTC time of the event, ISO 8601.
        tracking_run: id of the stage's run in the tracker, or "".
        reschedule: accept another schedule than the trunk's.
        joined: other ready corpora that are new in the same stage.
        auto: what a replay share of `auto` is for this stage; a number is a forecast.

    Raises:
        InputError: the corpus or the budget gives no full batch, weights do not fit the corpus's
            parts, the schedule does not fit, it is not the one that the trunk was trained under
            (invariant I1), or the replay share is to be measured and was not.
    """
    named = (corpus, *joined)
    rows = {name: state.corpora[name].parts or state.corpora[name].sequences for name in named}
    weights = {name: own.weights for name, own in spec.stages.corpora.items()}
    new = list_new(named, rows, weights)
    steps = stage_steps(spec, corpus, sum(map(rows_of, new.values())))
    first_step = state.stages[-1].last_step if state.stages else 0
    own = state.corpora[corpus]
    settings = stage_settings(spec, corpus, own.replay, own.rate)
    is_auto = settings.replay.share == AUTO
    share = decided_share(spec, state, named, auto) if is_auto else None
    rule = stage_rule(spec, state, corpus, share)
    mix = stage_mix(state.use, new, steps, spec.training.global_batch, rule)
    return Started(
        at=at,
        corpus=corpus,
        stage=stage_name(len(state.stages) + len(state.abandoned), mix.corpora),
        first_step=first_step,
        start=state.ends[state.stages[-1].name] if state.stages else None,
        mix=mix,
        schedule=to_dict(_schedule(spec, settings.schedule, state, first_step, steps, reschedule)),
        tracking_run=tracking_run,
        optimizer=settings.optimizer,
        settings=held_settings(spec),
        share_decision=auto if is_auto and isinstance(auto, ShareDecision) else None,
        gpus=spec.gpus,
    )


def decide_resumed(state: RunState, stage: Stage, at: str) -> Started:
    """Plan the stage that goes on where the trunk was taken back to: its plan stays what it was.

    Args:
        state: the run as of the last read of the ledger, which goes on with a stage that left it.
        stage: that stage.
        at: UTC time of the event, ISO 8601.
    """
    assert state.resumption is not None
    return Started(
        at=at,
        corpus=stage.corpora[0],
        stage=stage_name(len(state.started_stages), stage.corpora),
        first_step=stage.first_step,
        start=stage.start,
        mix=stage.mix,
        schedule=stage.schedule,
        tracking_run="",
        optimizer=stage.optimizer,
        settings=stage.settings,
        resumes=folder_of(stage.folder, state.resumption.step),
    )


def warn_of_start(spec: RunSpec, mix: StageMix, schedule: Schedule) -> list[str]:
    """Return warnings about how a first stage treats the stored model that it starts from.

    Args:
        spec: the run file.
        mix: the first stage of the trunk.
        schedule: its learning rate.
    """
    if spec.model.path is None:
        return []
    warnings = []
    if not mix.replayed:
        warnings.append(
            f"the first stage starts from {spec.model.path} and replays nothing of what that was "
            "trained on; land a corpus that stands in for it, with stages.corpora.NAME.role: replay"
        )
    warmup = _steps_of_rise(schedule)
    if warmup is not None and warmup < _FEWEST_WARMUP_STEPS:
        warnings.append(
            f"the learning rate is at its peak after {warmup} of {mix.steps} steps, with an "
            "optimizer that knows no gradients yet: so short a warmup raises the loss at first, "
            f"and a short stage may not make that good; give schedule.warmup: "
            f"{_FEWEST_WARMUP_STEPS} steps"
        )
    return warnings


def explain_rewarming(spec: RunSpec, schedule: Schedule) -> list[str]:
    """Return how the rate of a stored model rises again, and what is known about that.

    Args:
        spec: the run file.
        schedule: of the first stage.
    """
    warmup = _steps_of_rise(schedule)
    if spec.model.path is None or warmup is None:
        return []
    start = getattr(schedule, "warmup_start", 0.0)
    later = "" if start else "; schedule.warmup_start lets it begin at the model's last rate"
    return [
        f"the rate rises from {start:g} to {schedule.eta(warmup):g} over {warmup:,} steps: of a "
        "model that was annealed before, the length of this warmup decides little and its peak "
        "much, where a higher one learns more of the new text and forgets more of the old "
        f"(arXiv 2403.08763, section 6){later}"
    ]


def _steps_of_rise(schedule: Schedule) -> int | None:
    """Return the steps of the warmup; None for a rate that goes on where another trunk stood."""
    if getattr(schedule, "steps_before", 0):
        return None
    return getattr(schedule, "warmup_steps", None)


_FEWEST_WARMUP_STEPS = 10
"""over which AdamW's average of the gradient fills up: 1 / (1 - 0.9)"""


def stage_name(number: int, corpora: Sequence[str]) -> str:
    """Return a stage's name: `01-french`, or `01-french-and-2-more` for three corpora.

    Args:
        number: of the stages that were ever started before it.
        corpora: its new corpora.
    """
    more = f"-and-{len(corpora) - 1}-more" if len(corpora) > 1 else ""
    return f"{number:02d}-{corpora[0]}{more}"


def order_of(spec: RunSpec) -> Order:
    """Return the order of corpora under the run file, and which of them may share a stage."""
    stages = spec.stages
    named = () if stages.order == "landing" else stages.order
    priority = {name: settings.priority for name, settings in stages.corpora.items()}
    approval = stages.approval == "manual"
    beside = spec.evaluation.beside_training
    order = Order(
        named, priority, stages.only, proxies=stages.proxies, approval=approval, beside=beside
    )
    extending = {name for name, own in stages.corpora.items() if own.extend_tokenizer is not None}
    own = {
        name for name, read in spec.corpora.read.items() if read.tokens and read.tokens.brought_by
    }
    order = replace(order, extending=frozenset({*filter(order.trains, extending), *own}))
    batch = stages.batch_arrivals
    if batch is None:
        return order
    most = math.inf
    if batch.max_tokens is not None:
        scale = 1 if batch.max_tokens.unit == "tokens" else spec.tokens_per_step
        most = float(batch.max_tokens.number * scale)
    alone = frozenset(name for name, own in stages.corpora.items() if own.changes_the_stage)
    return replace(order, most_corpora=batch.max_corpora, most_tokens=most, alone=alone)


def stage_steps(spec: RunSpec, corpus: str, rows: int) -> int:
    """Return the optimizer steps of a stage.

    Args:
        spec: the run file.
        corpus: the corpus, for its own budget and for the message.
        rows: sequences of all new corpora of the stage.

    Raises:
        InputError: they are less than one global batch, or the budget is less than one step.
    """
    batch = spec.training.global_batch
    if rows < batch:
        raise InputError(
            "inbox",
            corpus,
            f"{rows} sequences of {spec.corpora.sequence_length} tokens are less than one global "
            f"batch of {batch}",
            "land more text, or lower training.global_batch",
            code="corpus-too-small",
        )
    budget = stage_settings(spec, corpus).budget
    steps = budget.steps(rows // batch, spec.tokens_per_step)
    _check_budget(spec, corpus, budget, steps)
    return steps


def check_first_stage(spec: RunSpec, corpus: str) -> None:
    """Raise InputError for a schedule that cannot fit, where the first stage's length is known.

    Args:
        spec: the run file.
        corpus: the first corpus.
    """
    steps = check_stated_budget(spec, corpus)
    if steps is not None:
        build_curve(stage_settings(spec, corpus).schedule, 0, steps, spec.tokens_per_step)


def check_stated_budget(spec: RunSpec, corpus: str) -> int | None:
    """Return the steps that a budget says by itself; None where it is a share of the corpus.

    Args:
        spec: the run file.
        corpus: whose stage it is the budget of.

    Raises:
        InputError: it is less than one step.
    """
    budget = stage_settings(spec, corpus).budget
    if budget.unit == "percent":
        return None
    steps = budget.steps(0, spec.tokens_per_step)
    _check_budget(spec, corpus, budget, steps)
    return steps


def _check_budget(spec: RunSpec, corpus: str, budget: AmountValue, steps: int) -> None:
    if steps < 1:
        own = spec.stages.corpora.get(corpus)
        is_own = own is not None and own.budget is not None
        raise InputError(
            "run file",
            f"stages.corpora.{corpus}.budget" if is_own else "stages.budget",
            f"{budget} is less than one step of {spec.tokens_per_step} tokens",
            "give at least one step, such as 100 steps, or lower training.global_batch",
            code="budget-too-small",
        )


def _schedule(
    spec: RunSpec,
    config: ScheduleConfig,
    state: RunState,
    first_step: int,
    steps: int,
    reschedule: bool,
) -> Schedule:
    """Return the schedule of a stage; the trunk's own where one schedule spans all stages."""
    if not config.spans_trunk or not state.stages:
        return build_curve(config, first_step, steps, spec.tokens_per_step)
    wanted = build_curve(config, 0, state.stages[0].mix.steps, spec.tokens_per_step)
    changed = differences(from_dict(state.stages[-1].schedule), wanted)
    if changed and not reschedule:
        raise InputError(
            "run file",
            "schedule",
            f"the trunk was trained under another one ({'; '.join(changed)})",
            "restore it, or insist with --reschedule",
            code="schedule-changed",
        )
    return wanted


def decide_release(
    spec: RunSpec,
    state: RunState,
    stage: Stage,
    step: int,
    settings: ReleaseSpec | None,
    at: str,
) -> Releasing:
    """Plan a release off the trunk's checkpoint at a step of a stage (invariant I7).

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        stage: the stage.
        step: trunk step of the checkpoint.
        settings: section `release` in place of the run file's.
        at: UTC time of the event, ISO 8601.

    Raises:
        InputError: the anneal has fewer than two steps, or no corpus to train on.
    """
    settings = settings or spec.release
    schedule = stage_settings(spec, stage.corpora[0]).schedule
    eta = release_anneal(
        settings, schedule.anneal_end, from_dict(stage.schedule), step, spec.tokens_per_step
    )
    mix = None
    if eta is not None:
        trunk = state.use_before(stage)
        trained = trunk.followed_by(truncate_mix(stage.mix, step - stage.first_step))
        mix = anneal_mix(settings.mixture, trained, eta.steps, state)
    return Releasing(
        at=at,
        name=_release_name(state, f"{stage.name}-{step}", eta, settings.mixture),
        stage=stage.name,
        step=step,
        source=folder_of(stage.folder, step),
        mix=mix,
        schedule=None if eta is None else to_dict(eta),
        claim=1,
        settings=held_settings(spec),
    )


def decide_average(
    spec: RunSpec, checkpoints: Sequence[tuple[Stage, int]], asked: AskedAverage, at: str
) -> Releasing:
    """Plan the release of an average of checkpoints of the trunk; nothing is trained for it.

    Args:
        spec: the run file.
        checkpoints: the last ones of the trunk that the store holds, by stage and trunk step, the
            latest last.
        asked: how many of them are averaged, and how.
        at: UTC time of the event, ISO 8601.

    Raises:
        InputError: there are fewer.
    """
    if len(checkpoints) < asked.checkpoints:
        there = ", ".join(f"{stage.name}@{step}" for stage, step in checkpoints)
        raise InputError(
            "command line",
            "--average",
            f"the store holds {len(checkpoints)} checkpoints of the trunk until there ({there}) "
            f"with one vocabulary, not {asked.checkpoints}",
            "average fewer, or keep more: training.keep_last",
            code="too-few-checkpoints",
        )
    weights = weights_of(asked.weighting, asked.checkpoints)
    members = [
        AveragedCheckpoint(
            stage=stage.name, step=step, source=folder_of(stage.folder, step), weight=weight
        )
        for (stage, step), weight in zip(checkpoints[-asked.checkpoints :], weights, strict=True)
    ]
    last, shape = members[-1], "" if asked.weighting == "uniform" else f"-{asked.weighting}"
    return Releasing(
        at=at,
        name=f"{last.stage}-{last.step}-average{asked.checkpoints}{shape}",
        stage=last.stage,
        step=last.step,
        source=last.source,
        mix=None,
        schedule=None,
        claim=1,
        settings=held_settings(spec),
        average=Average(weighting=asked.weighting, of=tuple(members)),
    )


def anneal_mix(mixture: Mixture, trained: History, steps: int, state: RunState) -> StageMix:
    """Return what an anneal trains on.

    Args:
        mixture: `release.mixture`.
        trained: all stages until the anneal.
        steps: its length.
        state: the run, for the corpora that are not replayed any more.

    Raises:
        InputError: no corpus is left to train on, or one that is named is none of the trunk's.
    """
    trained, left_out = TrunkUse.of(trained), state.retired
    if mixture != "stage":
        # What a stage replays is decided when it begins; its shares are kept as they are.
        held = (
            name for name in trained.proxies if state.corpora[name].state in ("held", "refused")
        )
        left_out = tuple(dict.fromkeys((*left_out, *held)))
    known = annealed_corpora(trained, left_out, mixture)
    if not known:
        remedy = f"replay one again with `perennial unretire`: {', '.join(state.retired)}"
        raise InputError(
            "run file",
            "release.mixture",
            "there is nothing to anneal on: every corpus of the stage is retired",
            remedy,
            code="every-corpus-retired",
        )
    strange = [] if isinstance(mixture, str) else [name for name in mixture if name not in known]
    if strange:
        name = strange[0]
        is_out = name in left_out
        why = f"it is {state.corpora[name].state}" if is_out else "the trunk has not trained on it"
        raise InputError(
            "run file",
            f"release.mixture.{name}",
            f"the anneal cannot take {name}: {why}",
            f"weigh {', '.join(known)}",
            code="mixture-corpus",
        )
    return branch_mix(trained, steps, left_out, mixture)


def _release_name(state: RunState, branched: str, eta: Anneal | None, mixture: Mixture) -> str:
    """Return the name of a release, with shape and mixture where they are not the usual."""
    if eta is None:
        return branched
    plain = f"{branched}-anneal{eta.steps}"
    made = state.branches.get(plain)
    if made is not None and made.mix is not None and made.schedule is not None:
        same = not differences(from_dict(made.schedule), eta) and made.mix.mixture == mixture
        if same:
            return plain  # planned when names did not tell the shape
    shape = "" if eta.shape == "exponential" else f"-{eta.shape}"
    return plain + shape + mixture_suffix(mixture)


def check_not_another(state: RunState, decided: Releasing) -> None:
    """Refuse a release whose name another one has that was annealed by another schedule.

    Args:
        state: the run as of the last read of the ledger.
        decided: the release as it would be planned now.
    """
    made = state.branches.get(decided.name)
    if made is None or made.schedule is None or decided.schedule is None:
        return
    changed = differences(from_dict(made.schedule), from_dict(decided.schedule))
    if changed:
        raise InputError(
            "run file",
            "release",
            f"there is a release {decided.name} with another anneal ({'; '.join(changed)})",
            "restore its settings, or give this one another length with --tokens",
            code="release-name-taken",
        )
