"""Render a comparison of runs as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perennial.evaluation.compare import Gap, Model, average, value_of
from perennial.evaluation.loss import Change
from perennial.report.compare import ComparedRun, Comparison
from perennial.report.figures import compare as draw
from perennial.report.html import Page, PageSection, Table, render
from perennial.runs.ledger import moment
from perennial.store import open_store
from perennial.version import __version__


def comparison_html(comparison: Comparison, at: str) -> str:
    """Return the page as HTML; `at` is the time that it shows as its own."""
    return render(page(comparison, at))


def page(comparison: Comparison, at: str) -> Page:
    """Return the contents of the page; reads nothing."""
    first = comparison.runs[0]
    return Page(
        title=f"{first.name}, and what else could have been done",
        subtitle=f"As the ledgers of {len(comparison.runs)} runs stood at {moment(at)}. "
        f"Perennial {__version__}.",
        facts=dict(_facts(comparison)),
        sections=tuple(_sections(comparison)),
    )


def _facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    first = comparison.runs[0]
    yield "runs", str(len(comparison.runs))
    yield "tokens of the first", f"{first.bill.tokens:,}"
    yield "saved against retraining", f"{first.bill.saved:.0%}"
    if (gap := _headline(comparison)) is not None and gap.average is not None:
        yield f"gap to {gap.theirs.run}", number(gap.average)


def _headline(comparison: Comparison) -> Gap | None:
    """Return the gap to the run that the first names as its baseline, else to the last run."""
    named = comparison.runs[0].spec.evaluation.baseline
    stores = {run.name: run.store.url for run in comparison.runs}
    wanted = open_store(named).url if named else None
    chosen = [gap for gap in comparison.gaps if stores[gap.theirs.run] == wanted]
    return next(reversed(chosen or comparison.gaps), None)


def _sections(comparison: Comparison) -> Iterator[PageSection]:
    first = comparison.runs[0]
    last = [run.final[-1] for run in comparison.runs]
    if comparison.corpora:
        yield PageSection(
            "Losses",
            "The last model of each run on held-out text that none of them saw, with two standard "
            "errors. Models of one heading cost the same tokens and may be compared.",
            draw.losses_by_corpus(last, comparison.corpora, comparison.in_nats),
            "Picture: loss of each run's last model on every corpus.",
            [_group(group, comparison) for group in comparison.groups],
        )
    if comparison.gaps:
        yield PageSection(
            f"How far {first.name} is from the others",
            "Its loss minus theirs at equal tokens, over documents paired with themselves: below 0 "
            "it is better, above 0 it is worse. ± is one standard error.",
            tables=[_gaps(comparison.gaps, comparison.corpora)],
        )
    if comparison.tasks:
        lead = "Scores of each run's last model, ± one standard error over items."
        yield PageSection("Tasks", lead, tables=[_tasks(comparison)])
    yield PageSection(
        "Compute",
        f"What {first.name} spent on each arrival, beside retraining from scratch on everything "
        "so far, which is the alternative without a trunk to continue from.",
        draw.compute_bars(first.bill),
        "Picture: tokens of each arrival beside those of retraining.",
        [_bill(first), _costs(comparison.runs)],
    )
    if comparison.corpora:
        yield PageSection(
            "On the way",
            "Average loss over all corpora, those that a run has not trained yet included.",
            draw.average_over_tokens(
                [run.models for run in comparison.runs], comparison.corpora, comparison.in_nats
            ),
            "Picture: average loss over tokens.",
        )


def _group(group: Sequence[Model], comparison: Comparison) -> Table:
    heading = f"at {group[0].tokens:,} tokens"
    rows = [
        (
            model.run,
            model.name if not model.decayed else f"{model.name} (annealed)",
            *(
                f"{value_of(model.losses[corpus], comparison.in_nats):.3f}"
                for corpus in comparison.corpora
            ),
            f"{average(model, comparison.corpora, comparison.in_nats):.3f}",
        )
        for model in group
    ]
    columns = (heading, "model", *comparison.corpora, "average")
    return Table(columns, rows, frozenset(columns[2:]))


def _gaps(gaps: Sequence[Gap], corpora: Sequence[str]) -> Table:
    rows = [
        (
            gap.theirs.run,
            f"{gap.ours.tokens:,}",
            *(number(gap.corpora[corpus]) for corpus in corpora),
            number(gap.average) if gap.average else "-",
        )
        for gap in gaps
    ]
    columns = ("against", "at tokens", *corpora, "average")
    return Table(columns, rows, frozenset(columns[1:]))


def _bill(run: ComparedRun) -> Table:
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
    columns = ("arrival", "tokens", "retraining", "saved")
    return Table(columns, [*rows, total], frozenset(columns[1:]))


def _costs(runs: Sequence[ComparedRun]) -> Table:
    rows = [
        (
            run.name,
            f"{run.bill.tokens:,}",
            f"{run.bill.tokens * run.flops_per_token:.3g}",
            f"{run.bill.retrained_tokens * run.flops_per_token:.3g}",
        )
        for run in runs
    ]
    columns = ("run", "tokens", "FLOPs", "FLOPs of retraining at each arrival")
    return Table(columns, rows, frozenset(columns[1:]))


def _tasks(comparison: Comparison) -> Table:
    names = [run.name for run in comparison.runs]
    rows = [
        (task, *(score_text(scores.get(name)) for name in names))
        for task, scores in comparison.tasks.items()
    ]
    return Table(("task", *names), rows, frozenset(names))


def score_text(score: Mapping[str, Any] | None) -> str:
    """Return a task's score with its standard error, or a dash where it was not run."""
    if score is None:
        return "-"
    error = "" if score["stderr"] is None else f" ± {score['stderr']:.3f}"
    return f"{score['value']:.3f}{error}"


def number(change: Change) -> str:
    """Return a gap with its standard error, as text."""
    error = "" if change.stderr is None else f" ± {change.stderr:.3f}"
    return f"{change.nats_per_token:+.3f}{error}"
