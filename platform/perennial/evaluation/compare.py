"""Comparison of runs: models of equal cost, gaps between them, compute saved. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from perennial.evaluation.loss import Change, DocumentLoss, HeldoutLoss, paired_change
from perennial.evaluation.matrix import BASE

EQUAL = 0.01
"""Token counts that differ by no more than this share are equal: a stage is whole steps."""


@dataclass(frozen=True)
class Model:
    """A measured model of a run.

    name: its stage, or its release.
    key: its folder in the run's store.
    tokens: trained since the run's beginning, its anneal included.
    decayed: whether its learning rate was annealed, which lowers the loss at once.
    sources: its tokens by corpus.
    scores: of lm-eval tasks, as the ledger holds them.
    """

    run: str
    name: str
    key: str
    tokens: int
    decayed: bool
    losses: Mapping[str, HeldoutLoss]
    sources: Mapping[str, int] = field(default_factory=dict)
    scores: Sequence[Mapping[str, Any]] = ()

    @property
    def rate(self) -> str:
        """Return where its learning rate stands; "base" for a stored model, not trained here."""
        if not self.tokens:
            return BASE
        return "annealed" if self.decayed else "constant"


@dataclass(frozen=True)
class Arrival:
    """The cost of a stage, with the anneal of its release where it has one.

    retrained_tokens: the cost of training on everything so far from scratch instead.
    """

    stage: str
    tokens: int
    retrained_tokens: int


@dataclass(frozen=True)
class Bill:
    """The cost of a run's models, and of retraining at each arrival instead, in tokens."""

    arrivals: tuple[Arrival, ...]

    @property
    def tokens(self) -> int:
        """Return all tokens that were trained."""
        return sum(arrival.tokens for arrival in self.arrivals)

    @property
    def retrained_tokens(self) -> int:
        """Return all tokens that retraining from scratch at every arrival would have trained."""
        return sum(arrival.retrained_tokens for arrival in self.arrivals)

    @property
    def saved(self) -> float:
        """Return the share of the retrainings' compute that was saved, from 0 to 1."""
        return saved_share(self.tokens, self.retrained_tokens)


def saved_share(tokens: int, retrained_tokens: int) -> float:
    """Return the share of `retrained_tokens` that was saved, from 0 to 1."""
    return 1 - tokens / retrained_tokens if retrained_tokens else 0.0


def bill(stages: Sequence[tuple[str, int]], anneals: Mapping[str, int]) -> Bill:
    """Return the cost of every arrival.

    Args:
        stages: names and tokens of the trunk's stages, in order.
        anneals: by stage, tokens of the anneal of the release off its end; a retrained model needs
            the same anneal.
    """
    arrivals, so_far = [], 0
    for name, tokens in stages:
        so_far += tokens
        anneal = anneals.get(name, 0)
        arrivals.append(Arrival(name, tokens + anneal, so_far + anneal))
    return Bill(tuple(arrivals))


def equal(one: Model, other: Model) -> bool:
    """Return whether two models cost the same."""
    return abs(one.tokens - other.tokens) <= EQUAL * max(one.tokens, other.tokens)


def groups(models: Sequence[Model]) -> list[list[Model]]:
    """Group models of equal cost, the cheapest group first; a group keeps the given order."""
    grouped: list[list[Model]] = []
    for model in sorted(models, key=lambda m: m.tokens):
        if grouped and equal(grouped[-1][0], model):
            grouped[-1].append(model)
        else:
            grouped.append([model])
    place = {id(model): i for i, model in enumerate(models)}
    return [sorted(group, key=lambda m: place[id(m)]) for group in grouped]


def common_corpora(models: Sequence[Model]) -> tuple[str, ...]:
    """Return the corpora that all models were measured on, on the same documents.

    Those of token ids, whose bytes are not known, compare under one tokenizer alone.
    """
    first = models[0].losses if models else {}
    common = tuple(
        corpus
        for corpus, loss in first.items()
        if all(_same_text(model.losses.get(corpus), loss) for model in models)
    )
    if same_tokens(models, common):
        return common
    return tuple(corpus for corpus in common if first[corpus].bytes)


def _same_text(one: HeldoutLoss | None, other: HeldoutLoss) -> bool:
    if one is None or (one.documents, one.bytes) != (other.documents, other.bytes):
        return False
    return bool(one.bytes) or one.tokens == other.tokens


def same_tokens(models: Sequence[Model], corpora: Sequence[str]) -> bool:
    """Return whether all models have one tokenizer; otherwise only bits per byte compare.

    Args:
        models: to compare.
        corpora: that all of them were measured on.
    """
    return all(len({model.losses[corpus].tokens for model in models}) == 1 for corpus in corpora)


def value_of(loss: HeldoutLoss, in_nats: bool) -> float:
    """Return the loss in nats per token or in bits per byte.

    Raises ValueError for the bits per byte of token ids, which `common_corpora` leaves out.
    """
    value = loss.nats_per_token if in_nats else loss.bits_per_byte
    if value is None:
        raise ValueError(f"the bytes of {loss.corpus} are not known")
    return value


def average(model: Model, corpora: Sequence[str], in_nats: bool = True) -> float | None:
    """Return the mean loss over corpora, each counting the same; None where one is missing.

    Args:
        model: with its losses.
        corpora: to average over.
        in_nats: nats per token; otherwise bits per byte.
    """
    if not corpora or any(corpus not in model.losses for corpus in corpora):
        return None
    return fmean(value_of(model.losses[corpus], in_nats) for corpus in corpora)


@dataclass(frozen=True)
class Gap:
    """One model's loss minus another's, in nats per token, by corpus and on average.

    Standard errors are over paired documents; None where they cannot be paired.
    """

    ours: Model
    theirs: Model
    corpora: Mapping[str, Change]

    @property
    def average(self) -> Change | None:
        """Return the mean over corpora, each counting the same; None without any."""
        changes = list(self.corpora.values())
        if not changes:
            return None
        errors = [change.stderr for change in changes if change.stderr is not None]
        stderr = math.hypot(*errors) / len(changes) if len(errors) == len(changes) else None
        return Change(fmean(change.nats_per_token for change in changes), stderr)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        average = self.average
        return {
            "run": self.ours.run,
            "model": self.ours.name,
            "against": {"run": self.theirs.run, "model": self.theirs.name},
            "corpora": {name: change._asdict() for name, change in self.corpora.items()},
            "average": average._asdict() if average else None,
        }


Documents = Callable[[Model, str], Sequence[DocumentLoss] | None]
"""returns the losses of a model on a corpus by document, where they were stored"""


def gap(ours: Model, theirs: Model, corpora: Sequence[str], documents: Documents) -> Gap:
    """Return the loss of `ours` minus that of `theirs` on corpora that both were measured on.

    Args:
        ours: the model of interest.
        theirs: the model that it is compared with.
        corpora: measured on the same documents for both.
        documents: reads losses by document.
    """
    changes = {}
    for corpus in corpora:
        mine, other = documents(ours, corpus), documents(theirs, corpus)
        paired = paired_change(mine, other) if mine and other else None
        difference = ours.losses[corpus].nats_per_token - theirs.losses[corpus].nats_per_token
        changes[corpus] = paired or Change(difference, None)
    return Gap(ours, theirs, changes)
