"""The stage x corpus loss matrix, and the adaptation and forgetting derived from it.

Losses are held-out nats per token and lower is better. L[i][j] is the loss on corpus j after stage
i, and stage i trains corpus i (Lopez-Paz and Ranzato 2017, arXiv 1706.08840, with losses in place
of accuracies); where several corpora became one stage, each counts the same. A trunk that starts
from a stored model has that model as a row of its own, the base, before any stage.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from perennial.evaluation.budget import Draw, MeanForgetting, mean_forgetting
from perennial.evaluation.loss import Change, HeldoutLoss

Row = tuple[str, Mapping[str, HeldoutLoss]]
"""A stage, release or stored model and its losses by corpus."""

BASE = "base"
"""name of the stored model that the trunk starts from, as it is at step 0"""


def corpus_of(stage: str) -> str:
    """Return the corpus that a stage trains: "french" for "01-french"."""
    return stage.partition("-")[2]


@dataclass(frozen=True)
class LossMatrix:
    """Held-out losses after each stage of the trunk, in training order, and of releases off it.

    Cells may be missing: a corpus that had not landed when a stage ended has no loss for it. Any
    value derived from a missing cell is None.

    together: the corpora of a stage that trains several; any other stage has one in its name.
    origins: the base, and the whole model whose first layers the base has; () for a trunk that
        starts from random weights.
    proxies: by stage, the corpora that it replays and that never have a stage of their own.
    erased: corpora that are measured no more, and of which nothing is derived.
    draws: by stage, the earlier corpora that its end was measured on within a budget.
    since: index of the first stage that is shown; those before it have the losses on their own
        corpora alone, from which forgetting is counted.
    """

    stages: tuple[Row, ...]
    releases: tuple[Row, ...] = ()
    together: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    origins: tuple[Row, ...] = ()
    proxies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    erased: frozenset[str] = frozenset()
    draws: Mapping[str, Draw] = field(default_factory=dict)
    since: int = 0

    @property
    def base(self) -> Mapping[str, HeldoutLoss]:
        """Return the losses of the model at step 0; none for a trunk from random weights."""
        return dict(self.origins).get(BASE, {})

    @property
    def rows(self) -> tuple[Row, ...]:
        """Return all rows as they are shown: stored models, the trunk's stages, releases."""
        released = ((f"release {name}", losses) for name, losses in self.releases)
        return (*self.origins, *self.stages[self.since :], *released)

    @property
    def shown(self) -> range:
        """Return the indices of the stages that are shown."""
        return range(self.since, len(self.stages))

    @property
    def corpora(self) -> tuple[str, ...]:
        """Return the columns: the stages' own corpora in training order, then all others.

        Those of stages that are not shown are first, as far as a row has a loss on them.
        """
        own = [corpus for stage in self.shown for corpus in self.own(stage)]
        measured = dict.fromkeys(corpus for _, losses in self.rows for corpus in losses)
        first = self._own_stage
        earlier = [corpus for corpus in measured if first.get(corpus, self.since) < self.since]
        earlier.sort(key=first.__getitem__)
        return tuple(dict.fromkeys([*earlier, *own, *measured]))

    def nats(self, stage: int, corpus: str) -> float | None:
        """Return the loss on a corpus after the stage of this index."""
        loss = self.stages[stage][1].get(corpus)
        return None if loss is None else loss.nats_per_token

    def own(self, stage: int) -> tuple[str, ...]:
        """Return the corpora that are new in a stage, without erased ones."""
        name = self.stages[stage][0]
        corpora = self.together.get(name, (corpus_of(name),))
        return tuple(corpus for corpus in corpora if corpus not in self.erased)

    @cached_property
    def _own_stage(self) -> Mapping[str, int]:
        """The index of the stage in which each corpus was new, in the order of the stages."""
        return {corpus: i for i in range(len(self.stages)) for corpus in self.own(i)}

    def trained(self, stage: int) -> tuple[str, ...]:
        """Return the corpora that the trunk has been trained on by the end of a stage."""
        names = [name for name, _ in self.stages[: stage + 1]]
        proxies = [corpus for name in names for corpus in self.proxies.get(name, ())]
        replayed = [corpus for corpus in proxies if corpus not in self.erased]
        return tuple(dict.fromkeys([*self.before(stage), *self.own(stage), *replayed]))

    def before(self, stage: int) -> tuple[str, ...]:
        """Return the corpora that the trunk had been trained on when a stage began."""
        return tuple(corpus for earlier in range(stage) for corpus in self.own(earlier))

    def adaptation(self, stage: int) -> float | None:
        """Return the loss on the stage's own corpus after it, `L[i][i]`; the mean of several."""
        return _mean([self.nats(stage, corpus) for corpus in self.own(stage)])

    def forgetting(self, stage: int) -> dict[str, float | None]:
        """Return the rise of the loss on each corpus that is not new; above 0 is forgotten.

        It is counted from the end of the corpus's own stage, `L[i][j] - L[j][j]`. A corpus without
        a stage so far is compared with the base: what that knew can be forgotten too. A corpus that
        a budget left out is not among them.
        """
        name, losses = self.stages[stage]
        if name in self.draws:
            # No more work than what was measured, however many stages there are.
            before = {c: n for c in losses if (n := self._own_stage.get(c, stage)) < stage}
        else:
            before = {corpus: n for corpus, n in self._own_stage.items() if n < stage}
        known = {corpus: self.nats(earlier, corpus) for corpus, earlier in before.items()}
        own = self.own(stage)
        for corpus, loss in self.base.items():
            if corpus in losses and corpus not in own:
                known.setdefault(corpus, loss.nats_per_token)
        return {corpus: _difference(self.nats(stage, corpus), k) for corpus, k in known.items()}

    def left_out(self, stage: int) -> frozenset[str]:
        """Return the earlier corpora that a budget left out when a stage's end was measured."""
        name, losses = self.stages[stage]
        return frozenset(self.before(stage)) - {*losses} if name in self.draws else frozenset()

    def against_base(self, losses: Mapping[str, HeldoutLoss]) -> dict[str, float]:
        """Return a row's losses minus the base's on each corpus that both have; below 0: gained."""
        base = self.base
        return {
            corpus: loss.nats_per_token - base[corpus].nats_per_token
            for corpus, loss in losses.items()
            if corpus in base
        }

    def forgetting_stderr(self, stage: int) -> dict[str, float | None]:
        """Return the standard error of each `forgetting`, over paired documents."""
        losses = self.stages[stage][1]
        return {
            corpus: losses[corpus].stderr_of_change if corpus in losses else None
            for corpus in self.forgetting(stage)
        }

    def average_loss(self, stage: int) -> float | None:
        """Return the mean loss over the corpora trained so far, each counting the same."""
        return _mean([self.nats(stage, corpus) for corpus in self.trained(stage)])

    def mean_forgetting(self, stage: int) -> MeanForgetting | None:
        """Return the mean of `forgetting` with its error; None where there is nothing to forget.

        Where a budget left corpora out, it is estimated from those that were drawn. It is None too
        where a corpus was not measured for another reason: other means are over more corpora.
        """
        draw = self.draws.get(self.stages[stage][0])
        errors = self.forgetting_stderr(stage)
        always, drawn = list[Change](), list[Change]()
        for corpus, nats in self.forgetting(stage).items():
            if nats is None:
                return None
            is_drawn = draw is not None and corpus not in draw.always
            (drawn if is_drawn else always).append(Change(nats, errors[corpus]))
        return mean_forgetting(always, drawn, 0 if draw is None else draw.of)

    def average_forgetting(self, stage: int) -> float | None:
        """Return the value of `mean_forgetting`."""
        mean = self.mean_forgetting(stage)
        return None if mean is None else mean.nats_per_token

    def backward_transfer(self) -> float | None:
        """Return the last stage's mean forgetting with its sign turned; above 0 where it helped."""
        if not self.stages:
            return None
        forgetting = self.average_forgetting(len(self.stages) - 1)
        return None if forgetting is None else -forgetting

    def forward_transfer(self, untrained_nats: float) -> float | None:
        """Return the mean over shown later corpora of the loss before any stage minus `L[j-1][j]`.

        This is the gain of a corpus from the stages before its own. The loss before any stage is
        the base's, or `untrained_nats`, that of a uniform prediction, log(vocabulary).
        """
        start = {corpus: loss.nats_per_token for corpus, loss in self.base.items()}
        gains = [
            _difference(
                start.get(corpus) if self.origins else untrained_nats, self.nats(stage - 1, corpus)
            )
            for stage in self.shown[1:]
            for corpus in self.own(stage)
        ]
        return _mean(gains)

    def to_dict(self, untrained_nats: float | None = None) -> dict[str, Any]:
        """Return the matrix and all derived values for JSON; see `forward_transfer`.

        Args:
            untrained_nats: as for `forward_transfer`; None leaves that out.
        """
        return {
            "corpora": list(self.corpora),
            "origins": [{"model": name, "losses": _plain(losses)} for name, losses in self.origins],
            "stages": [
                {
                    "stage": name,
                    "losses": _plain(losses),
                    "adaptation": self.adaptation(i),
                    "forgetting": self.forgetting(i),
                    "forgetting_stderr": self.forgetting_stderr(i),
                    "against_base": self.against_base(losses),
                    "average_loss": self.average_loss(i),
                    "average_forgetting": self.average_forgetting(i),
                    "mean_forgetting": _as_dict(self.mean_forgetting(i)),
                    "draw": asdict(self.draws[name]) if name in self.draws else None,
                }
                for i, (name, losses) in enumerate(self.stages[self.since :], start=self.since)
            ],
            "releases": [
                {
                    "release": name,
                    "losses": _plain(losses),
                    "against_base": self.against_base(losses),
                }
                for name, losses in self.releases
            ],
            "backward_transfer": self.backward_transfer(),
            "forward_transfer": (
                None if untrained_nats is None else self.forward_transfer(untrained_nats)
            ),
        }

    def to_csv(self) -> str:
        """Return a CSV text: a header, a line per cell and a line per domain of it."""
        out = io.StringIO()
        fields = [f for f in HeldoutLoss.__dataclass_fields__ if f not in ("corpus", "domains")]
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["kind", "name", "corpus", "domain", *fields])
        shown = self.stages[self.since :]
        kinds = {"origin": self.origins, "stage": shown, "release": self.releases}
        for kind, rows in kinds.items():
            for name, losses in rows:
                for corpus, whole in losses.items():
                    for domain, loss in {"": whole, **whole.domains}.items():
                        values = [getattr(loss, f) for f in fields]
                        writer.writerow([kind, name, corpus, domain, *values])
        return out.getvalue()


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other beats; less is better in both coordinates.

    Sorted by the first coordinate; of equal points all are on the front.
    """
    return sorted(
        (
            i
            for i, p in enumerate(points)
            if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
        ),
        key=lambda i: points[i],
    )


def _plain(losses: Mapping[str, HeldoutLoss]) -> dict[str, Any]:
    return {corpus: asdict(loss) for corpus, loss in losses.items()}


def _as_dict(mean: MeanForgetting | None) -> dict[str, Any] | None:
    return None if mean is None else mean._asdict()


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where a value is missing, as other means are over more corpora."""
    present = [value for value in values if value is not None]
    return fmean(present) if present and len(present) == len(values) else None
