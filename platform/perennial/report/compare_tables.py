"""Build the tables of a comparison. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from perennial.evaluation.compare import Gap
from perennial.evaluation.loss import Change
from perennial.evaluation.seeds import SeededGap, SeededModel, mean_losses
from perennial.report.compare import Comparison
from perennial.report.compared_run import ComparedRun
from perennial.report.html import Table
from perennial.report.time_steps import MEANS

MEAN_NAMES = {"backward": "backward", "in_distribution": "in-distribution", "forward": "forward"}


def losses(comparison: Comparison, group: Sequence[SeededModel]) -> Table:
    """Return the losses of models of equal cost, over seeds where an arm has several."""
    seeded = comparison.is_seeded
    columns = (
        "run", "rate", "tokens", *(["seeds"] if seeded else []), *comparison.corpora, "average",
    )  # fmt: skip
    rows = []
    for model in group:
        means = mean_losses(model, comparison.corpora, comparison.in_nats)
        values = ["-"] if means is None else [m.text() for m in means.corpora.values()]
        values += [] if means is None else [means.average.text()]
        counts = [str(model.seeds)] if seeded else []
        first = model.first
        rows.append((model.arm, first.rate, f"{first.tokens:,}", *counts, *values))
    return Table(columns, rows, frozenset(columns[2:]))


def gaps(comparison: Comparison) -> Table | None:
    """Return the gaps of the first run or arm to the others; None without any."""
    return _gap_table(comparison, comparison.gaps, comparison.seed_gaps)


def dearest_gaps(comparison: Comparison) -> Table | None:
    """Return of every other run or arm the gap alone of the models that cost most."""
    table = _gap_table(
        comparison,
        [*{gap.theirs.run: gap for gap in comparison.gaps}.values()],
        [*{gap.theirs.arm: gap for gap in comparison.seed_gaps}.values()],
    )
    if table is None:
        return None
    rows = [(row[0], *row[2:]) for row in table.rows]
    return Table((table.columns[0], *table.columns[2:]), rows, table.numbers)


def _gap_table(
    comparison: Comparison, document_gaps: Sequence[Gap], seed_gaps: Sequence[SeededGap]
) -> Table | None:
    rows = [
        (
            gap.theirs.run,
            f"{gap.ours.tokens:,}",
            *(change_text(gap.corpora[corpus]) for corpus in comparison.corpora),
            change_text(gap.average) if gap.average else "-",
        )
        for gap in document_gaps
    ]
    rows += [
        (
            gap.theirs.arm,
            f"{gap.ours.first.tokens:,}",
            str(gap.difference.average.count),
            *(mean.text(signed=True) for mean in gap.difference.corpora.values()),
            gap.difference.average.text(signed=True),
        )
        for gap in seed_gaps
    ]
    seeds = ["seeds"] if comparison.is_seeded else []
    columns = ("against", "at tokens", *seeds, *comparison.corpora, "average")
    return Table(columns, rows, frozenset(columns[1:])) if rows else None


def transfer(comparison: Comparison) -> Table | None:
    """Return transfer and regret over time steps; None where no run has two stages."""
    seeded = comparison.is_seeded
    rows = [
        (
            row.arm,
            f"{row.models} minus {row.against}" if row.against else row.models,
            *([str(len(row.by_seed))] if seeded else []),
            *(row.text(name) for name in MEANS),
        )
        for row in comparison.transfers
    ]
    numbers = (*(["seeds"] if seeded else []), *(MEAN_NAMES[name] for name in MEANS))
    columns = ("run", "models", *numbers)
    return Table(columns, rows, frozenset(numbers)) if rows else None


def tasks(comparison: Comparison) -> Table | None:
    """Return the scores of bases and of each last model by task; None where no task was scored."""
    names = [*comparison.scored]
    rows = [
        (task, *(scores.get(name, "-") for name in names))
        for task, scores in comparison.tasks.items()
    ]
    return Table(("task", *names), rows, frozenset(names)) if rows else None


def bill(run: ComparedRun) -> Table:
    """Return the cost of every arrival to a run, beside retraining; the last row is the sum."""
    rows = [
        (
            a.stage,
            f"{a.tokens:,}",
            f"{a.retrained_tokens:,}",
            f"{1 - a.tokens / a.retrained_tokens:.0%}",
        )
        for a in run.bill.arrivals
    ]
    total = (
        "in all",
        f"{run.bill.tokens:,}",
        f"{run.bill.retrained_tokens:,}",
        f"{run.bill.saved:.0%}",
    )
    columns = ("arrival", "trained", "retraining on all so far", "saved")
    return Table(columns, [*rows, total], frozenset(columns[1:]))


def costs(comparison: Comparison) -> Table:
    """Return what each run cost."""
    rows = [
        (
            run.name,
            f"{run.bill.tokens:,}",
            f"{run.bill.tokens * run.flops_per_token:.3g}",
            f"{run.bill.retrained_tokens * run.flops_per_token:.3g}",
        )
        for run in comparison.runs
    ]
    columns = ("run", "tokens", "FLOPs", "FLOPs of retraining at each arrival")
    return Table(columns, rows, frozenset(columns[1:]))


def change_text(change: Change) -> str:
    """Return a gap with its standard error, as text."""
    error = "" if change.stderr is None else f" ± {change.stderr:.3f}"
    return f"{change.nats_per_token:+.3f}{error}"
