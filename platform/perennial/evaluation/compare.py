"""Runs side by side: which models cost the same, how far apart they are, what was saved. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from perennial.evaluation.loss import Change, DocumentLoss, HeldoutLoss, paired_change

EQUAL = 0.01
"""Token counts that differ by no more than this share are equal: a stage is whole steps."""


@dataclass(frozen=True)
class Model:
    """A measured model of a run.

    name: its stage, or its release.
    key: its folder in the run's store.
    tokens: trained to make it, from the run's beginning, its anneal included.
    decayed: whether its learning rate was annealed, which lowers the loss at once.
    sources: of its tokens, by corpus.
    scores: of lm-eval tasks, as the ledger tells them.
    """

    run: str
    name: str
    key: str
    tokens: int
    decayed: bool
    losses: Mapping[str, HeldoutLoss]
    sources: Mapping[str, int] = field(default_factory=dict)
    scores: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Arrival:
    """What a stage cost, with the anneal of its release where it has one.

    retrained_tokens: what the same tokens from scratch would have cost instead: everything so far.
    """

    stage: str
    tokens: int
    retrained_tokens: int


@dataclass(frozen=True)
class Bill:
    """What a run's models cost, and what retraining at each arrival would have. Tokens."""

    arrivals: tuple[Arrival, ...]

    @property
    def tokens(self) -> int:
        """Trained in all."""
        return sum(arrival.tokens for arrival in self.arrivals)

    @property
    def retrained_tokens(self) -> int:
        """Trained in all, had every arrival been a retraining from scratch."""
        return sum(arrival.retrained_tokens for arrival in self.arrivals)

    @property
    def saved(self) -> float:
        """Share of the retrainings' compute that was not needed, from 0 to 1."""
        return saved_share(self.tokens, self.retrained_tokens)


def saved_share(tokens: int, retrained_tokens: int) -> float:
    """How much less one is than the other, from 0 to 1."""
    return 1 - tokens / retrained_tokens if retrained_tokens else 0.0


def bill(stages: Sequence[tuple[str, int]], anneals: Mapping[str, int]) -> Bill:
    """What every arrival cost.

    stages: names and tokens of the trunk's stages, in order.
    anneals: by stage, tokens of the anneal of the release off its end; a retrained model needs one
        as much.
    """
    arrivals, so_far = [], 0
    for name, tokens in stages:
        so_far += tokens
        anneal = anneals.get(name, 0)
        arrivals.append(Arrival(name, tokens + anneal, so_far + anneal))
    return Bill(tuple(arrivals))


def equal(one: Model, other: Model) -> bool:
    """Whether two models cost the same."""
    return abs(one.tokens - other.tokens) <= EQUAL * max(one.tokens, other.tokens)


def groups(models: Sequence[Model]) -> list[list[Model]]:
    """Models of equal cost together, the cheapest group first; the order stays within a group."""
    found: list[list[Model]] = []
    for model in sorted(models, key=lambda m: m.tokens):
        if found and equal(found[-1][0], model):
            found[-1].append(model)
        else:
            found.append([model])
    place = {id(model): i for i, model in enumerate(models)}
    return [sorted(group, key=lambda m: place[id(m)]) for group in found]


def common_corpora(models: Sequence[Model]) -> tuple[str, ...]:
    """Corpora that all models were measured on, on the same documents."""
    first = models[0].losses if models else {}
    return tuple(
        corpus
        for corpus, loss in first.items()
        if all(_same_text(model.losses.get(corpus), loss) for model in models)
    )


def _same_text(one: HeldoutLoss | None, other: HeldoutLoss) -> bool:
    return one is not None and (one.documents, one.bytes) == (other.documents, other.bytes)


def same_tokens(models: Sequence[Model], corpora: Sequence[str]) -> bool:
    """Whether one tokenizer cut the text of all: else bits per byte alone compare."""
    return all(len({model.losses[corpus].tokens for model in models}) == 1 for corpus in corpora)


def value_of(loss: HeldoutLoss, in_nats: bool) -> float:
    """The loss in nats per token or in bits per byte."""
    return loss.nats_per_token if in_nats else loss.bits_per_byte


def average(model: Model, corpora: Sequence[str], in_nats: bool = True) -> float | None:
    """Mean loss over corpora, each counting the same; None where one was not measured."""
    if not corpora or any(corpus not in model.losses for corpus in corpora):
        return None
    return fmean(value_of(model.losses[corpus], in_nats) for corpus in corpora)


@dataclass(frozen=True)
class Gap:
    """How far one model's loss lies above another's, in nats per token, by corpus and on average.

    Standard errors are over documents, each paired with itself; None where it cannot be paired.
    """

    ours: Model
    theirs: Model
    corpora: Mapping[str, Change]

    @property
    def average(self) -> Change | None:
        """Mean over corpora, each counting the same; None without any."""
        changes = list(self.corpora.values())
        if not changes:
            return None
        errors = [change.stderr for change in changes if change.stderr is not None]
        stderr = math.hypot(*errors) / len(changes) if len(errors) == len(changes) else None
        return Change(fmean(change.nats_per_token for change in changes), stderr)


Documents = Callable[[Model, str], Sequence[DocumentLoss] | None]
"""The losses of a model on a corpus, document by document, where they were kept."""


def gap(ours: Model, theirs: Model, corpora: Sequence[str], documents: Documents) -> Gap:
    """How far `ours` lies above `theirs` on corpora that both were measured on."""
    changes = {}
    for corpus in corpora:
        mine, other = documents(ours, corpus), documents(theirs, corpus)
        paired = paired_change(mine, other) if mine and other else None
        difference = ours.losses[corpus].nats_per_token - theirs.losses[corpus].nats_per_token
        changes[corpus] = paired or Change(difference, None)
    return Gap(ours, theirs, changes)
