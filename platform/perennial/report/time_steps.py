"""Transfer of compared runs over time steps, and their regret against retrained runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from perennial.evaluation.loss import HeldoutLoss
from perennial.evaluation.statistics import Estimate, estimate
from perennial.evaluation.time_steps import (
    CellMean,
    Losses,
    TransferMeans,
    cells_of,
    new_corpora,
    regret,
    transfer_means,
)
from perennial.report.arms import Arm
from perennial.report.compared_run import ComparedRun

MEANS = ("backward", "in_distribution", "forward")


@dataclass(frozen=True)
class TransferRow:
    """Means over time steps of an arm's models, by seed.

    models: "trunk", or "releases" where one branches off every stage's end.
    against: the retrained models whose losses were subtracted; "" for none.
    """

    arm: str
    models: str
    against: str
    by_seed: Mapping[int, TransferMeans]

    def mean(self, name: str) -> Estimate | None:
        """Return one of MEANS over the seeds; None where a cell was not measured."""
        values = [cell.value for cell in self._cells(name)]
        known = [value for value in values if value is not None]
        return estimate(known) if known and len(known) == len(values) else None

    def text(self, name: str) -> str:
        """Return one of MEANS as text; where a cell is absent, a dash and how many there are."""
        mean, cells = self.mean(name), self._cells(name)
        if mean is not None:
            return mean.text(signed=bool(self.against))
        fewest = min(cells, key=lambda cell: cell.measured)
        return f"- ({fewest.measured} of {fewest.cells} cells)" if fewest.cells else "-"

    def _cells(self, name: str) -> list[CellMean]:
        return [getattr(means, name) for means in self.by_seed.values()]


def transfer_rows(arms: Sequence[Arm], corpora: Sequence[str]) -> list[TransferRow]:
    """Return the transfer of every arm of two stages and more, then its regret.

    Regret is taken against an arm that was retrained from scratch on everything that the last stage
    had seen, and, where several steps have such an arm, against that of each step.

    Args:
        arms: that are compared.
        corpora: on which their losses compare in nats per token; () where they do not.
    """
    return [row for arm in arms for row in _rows(arm, arms, corpora)]


def _rows(arm: Arm, arms: Sequence[Arm], corpora: Sequence[str]) -> Iterator[TransferRow]:
    columns = new_corpora(arm.first.matrix)
    steps = len(columns)
    if steps < 2:
        return
    same = {seed: run for seed, run in arm.runs.items() if new_corpora(run.matrix) == columns}
    seen = [{*(c for own in columns[: i + 1] for c in own)} for i in range(steps)]
    oracles = [next((a for a in arms if _retrained_on(a) == its), None) for its in seen]
    for models in ("trunk", "releases"):
        losses = {seed: _losses(run, models) for seed, run in same.items()}
        if any(row is None for its in losses.values() for row in its):
            continue
        means = {seed: transfer_means(cells_of(its, columns)) for seed, its in losses.items()}
        yield TransferRow(arm.name, models, "", means)
        references = [("", [oracles[-1]] * steps)]
        if sum(oracle is not None for oracle in oracles) > 1:
            references.append((" of each step", oracles))
        for which, chosen in references:
            if corpora and chosen[-1] is not None:
                names = dict.fromkeys(oracle.name for oracle in chosen if oracle is not None)
                means = dict(_regrets(losses, chosen, columns, corpora))
                if means:
                    yield TransferRow(arm.name, models, ", ".join(names) + which, means)


def _regrets(
    losses: Mapping[int, Losses],
    oracles: Sequence[Arm | None],
    columns: Sequence[Sequence[str]],
    corpora: Sequence[str],
) -> Iterator[tuple[int, TransferMeans]]:
    """Yield the means of the regret of each seed that the last oracle has too."""
    alone = len(losses) == 1 and all(len(a.runs) == 1 for a in oracles if a is not None)
    for seed, its in losses.items():
        # Runs that stand alone compare whatever their seeds, as their gaps do.
        theirs = [
            None if arm is None else _retrained(arm, None if alone else seed) for arm in oracles
        ]
        if theirs[-1] is not None:
            ours, oracle = (cells_of(_only(side, corpora), columns) for side in (its, theirs))
            yield seed, transfer_means(regret(ours, oracle))


def _retrained(arm: Arm, seed: int | None) -> Mapping[str, HeldoutLoss] | None:
    """Return the losses of the last model of an arm's run; of the first seed for None."""
    run = arm.first if seed is None else arm.runs.get(seed)
    return None if run is None else run.final[-1].losses


def _losses(run: ComparedRun, models: str) -> Losses:
    if models == "trunk":
        return [losses for _, losses in run.matrix.stages]
    return [run.released.get(stage) for stage, _ in run.matrix.stages]


def _only(losses: Losses, corpora: Sequence[str]) -> list[Mapping[str, HeldoutLoss] | None]:
    return [row and {c: loss for c, loss in row.items() if c in corpora} for row in losses]


def _retrained_on(arm: Arm) -> set[str] | None:
    """Return the corpora of an arm that was trained from scratch in one stage; else None."""
    run = arm.first
    if run.base is not None or len(run.matrix.stages) != 1:
        return None
    return {*run.matrix.own(0)}
