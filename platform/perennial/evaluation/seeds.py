"""Models of runs that differ in their seed alone: means over seeds, differences by seed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from perennial.evaluation.compare import Model, average, equal, value_of
from perennial.evaluation.statistics import Estimate, estimate, paired_difference


@dataclass(frozen=True)
class SeededModel:
    """A model of an arm, by the seed that it was trained with; one seed is a model of one run."""

    arm: str
    by_seed: Mapping[int, Model]

    @property
    def first(self) -> Model:
        """Return the model of the first seed."""
        return next(iter(self.by_seed.values()))

    @property
    def seeds(self) -> int:
        """Return the number of seeds."""
        return len(self.by_seed)


@dataclass(frozen=True)
class SeededValues:
    """Losses, or differences of losses, by corpus and on average over corpora."""

    corpora: Mapping[str, Estimate]
    average: Estimate


@dataclass(frozen=True)
class SeededGap:
    """One arm's model minus another's that cost the same, over the seeds that both have."""

    ours: SeededModel
    theirs: SeededModel
    difference: SeededValues


def pool(arm: str, models: Mapping[int, Sequence[Model]]) -> list[SeededModel]:
    """Return the models of an arm, those of equal rate, cost and corpora together.

    Args:
        arm: its name.
        models: of the run of each seed.
    """
    pools: list[dict[int, Model]] = []
    for seed, its in models.items():
        for model in its:
            like = (p for p in pools if seed not in p and _alike(next(iter(p.values())), model))
            match = next(like, None)
            if match is None:
                pools.append({seed: model})
            else:
                match[seed] = model
    return [SeededModel(arm, pooled) for pooled in pools]


def _alike(one: Model, other: Model) -> bool:
    same = one.rate == other.rate and {*one.sources} == {*other.sources}
    return same and equal(one, other)


def mean_losses(
    model: SeededModel, corpora: Sequence[str], in_nats: bool = True
) -> SeededValues | None:
    """Return the losses of an arm's model over its seeds; None without corpora.

    Args:
        model: measured on the corpora with every seed.
        corpora: to measure on and to average over.
        in_nats: nats per token; otherwise bits per byte.
    """
    if not corpora:
        return None
    by_seed = [_losses(its, corpora, in_nats) for its in model.by_seed.values()]
    columns = [estimate(values) for values in zip(*by_seed, strict=True)]
    return SeededValues(dict(zip(corpora, columns, strict=False)), columns[-1])


def gap_by_seed(
    ours: SeededModel, theirs: SeededModel, corpora: Sequence[str], in_nats: bool = True
) -> SeededGap | None:
    """Return the loss of `ours` minus that of `theirs`, paired by seed.

    None where they have no seed in common, or no corpora are given.

    Args:
        ours: the model of interest.
        theirs: the model that it is compared with.
        corpora: that models of one seed were measured on.
        in_nats: nats per token; otherwise bits per byte.
    """
    losses_of = partial(_losses, corpora=corpora, in_nats=in_nats)
    mine = {seed: losses_of(model) for seed, model in ours.by_seed.items()}
    other = {seed: losses_of(model) for seed, model in theirs.by_seed.items()}
    columns = [
        paired_difference(
            {seed: values[i] for seed, values in mine.items()},
            {seed: values[i] for seed, values in other.items()},
        )
        for i in range(len(corpora) + 1)
    ]
    known = [column for column in columns if column is not None]
    if not corpora or not known:
        return None
    difference = SeededValues(dict(zip(corpora, known, strict=False)), known[-1])
    return SeededGap(ours, theirs, difference)


def _losses(model: Model, corpora: Sequence[str], in_nats: bool) -> list[float]:
    """Return the loss on every corpus, then the average over them."""
    values = [value_of(model.losses[corpus], in_nats) for corpus in corpora]
    mean = average(model, corpora, in_nats)
    return values if mean is None else [*values, mean]
