"""What a branch off the trunk trains on: the mixture of a release's annealing phase. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from perennial.mixture.parts import whole_numbers
from perennial.mixture.plan import History, Source, StageMix, TrunkUse, known_corpora
from perennial.mixture.policies import as_written
from perennial.mixture.replay import PartKey, ReplayRule, apportion, split_replay

Mixture = (
    Literal["stage", "seen", "balanced"]
    | Annotated[
        dict[str, Annotated[float, Field(gt=0.0, allow_inf_nan=False)]], Field(min_length=1)
    ]
)
"""shares by rule, or weights by corpus"""
_WEIGHTING = {"seen": "seen", "balanced": "uniform"}
"""Replay policies that give the shares, by mixture."""
_DIGITS = 6


def branch_mix(
    history: History,
    steps: int,
    left_out: Collection[str] = (),
    mixture: str | Mapping[str, float] = "stage",
) -> StageMix:
    """Return a branch off the end of the trunk.

    Its sources go on from where the last stage stopped, and those that are not of the last stage
    from where their last replay did, as a next stage's would. Parts of a corpus have shares by what
    was seen of each.

    Args:
        history: all stages until there.
        steps: optimizer steps of the branch.
        left_out: corpora that the branch does not take; the others take their part.
        mixture: `stage`, the shares of the last stage; `seen`, in proportion to what the trunk has
            seen of each corpus, replays included; `balanced`, equal parts; or weights by corpus,
            where a corpus without one is left out.
    """
    use = TrunkUse.of(history)
    last = _last(use)
    budget = steps * last.global_batch
    going_on = {
        s.key: replace(s, start=s.start + s.sequences)
        for s in last.sources
        if s.corpus not in left_out
    }
    if mixture == "stage":
        counts = apportion(budget, {s.key: s.sequences for s in last.sources if s.key in going_on})
        sources = going_on
    else:
        known = known_corpora(use, last.replay, left_out)
        counts = split_replay(_rule(mixture), budget, {k: v.history for k, v in known.items()})
        replays = {key: use.replay_source(key) for key, use in known.items()}
        sources = _by_corpus({key: going_on.get(key, replays[key]) for key in replays})
    chosen = tuple(
        replace(source, sequences=counts[key]) for key, source in sources.items() if counts.get(key)
    )
    rule = ReplayRule.resolve(last.replay, left_out)
    return StageMix(last.corpora, steps, last.global_batch, chosen, rule, mixture=mixture)


def annealed_corpora(
    history: History, left_out: Collection[str], mixture: str | Mapping[str, float]
) -> tuple[str, ...]:
    """Return the corpora that a branch of this mixture may take; arguments as for `branch_mix`."""
    use = TrunkUse.of(history)
    last = _last(use)
    if mixture == "stage":
        of_stage = (s.corpus for s in last.sources if s.sequences)
        return tuple(dict.fromkeys(name for name in of_stage if name not in left_out))
    known = known_corpora(use, last.replay, left_out)
    return tuple(dict.fromkeys(corpus for corpus, _ in known))


def mixture_suffix(mixture: str | Mapping[str, float]) -> str:
    """Return what sets a branch's name apart from one with the shares of the last stage, or "".

    Weights in the same proportion give the same suffix.
    """
    if isinstance(mixture, str):
        return "" if mixture == "stage" else f"-{mixture}"
    names = sorted(mixture)
    whole = whole_numbers(as_written(mixture[name]) for name in names)
    divisor = math.gcd(*whole)
    shares = [(name, n // divisor) for name, n in zip(names, whole, strict=True)]
    return f"-mix{hashlib.sha256(json.dumps(shares).encode()).hexdigest()[:_DIGITS]}"


def describe_tokens(mix: StageMix, sequence_length: int) -> str:
    """Return the tokens of a mix by source, the largest first, and the rule of its shares."""
    by_size = sorted(mix.sources, key=lambda source: -source.sequences)
    tokens = ", ".join(f"{s.name} {s.sequences * sequence_length:,}" for s in by_size)
    return f"{tokens} tokens ({describe_mixture(mix.mixture)})"


def describe_mixture(mixture: str | Mapping[str, float]) -> str:
    """Return a mixture in words."""
    if isinstance(mixture, str):
        return {"stage": "the shares of the last stage", "seen": "as seen by the trunk"}.get(
            mixture, "all corpora in equal parts"
        )
    return "weights " + ", ".join(f"{name} {weight:g}" for name, weight in mixture.items())


def read_mixture(text: str) -> Any:
    """Return the value of `release.mixture` that a command line gives, not validated yet.

    Args:
        text: `balanced`, or weights such as `english=2,french=1`.
    """
    if "=" not in text:
        return text
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name.strip(): weight.strip() for name, _, weight in pairs}


def _rule(mixture: str | Mapping[str, float]) -> ReplayRule:
    if isinstance(mixture, str):
        return ReplayRule(weighting=_WEIGHTING[mixture])
    return ReplayRule(weighting="fixed", weights=dict(mixture))


def _last(use: TrunkUse) -> StageMix:
    assert use.last is not None, "a branch follows a stage"
    return use.last


def _by_corpus(sources: Mapping[PartKey, Source]) -> dict[PartKey, Source]:
    """Return the sources with the parts of a corpus next to each other."""
    names = dict.fromkeys(corpus for corpus, _ in sources)
    order = {corpus: index for index, corpus in enumerate(names)}
    return dict(sorted(sources.items(), key=lambda item: order[item[0][0]]))
