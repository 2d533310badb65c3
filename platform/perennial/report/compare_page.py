"""Render a comparison of runs as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perennial.evaluation.seeds import SeededModel
from perennial.report import compare_tables as tables
from perennial.report.compare import Comparison
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
    return Page(
        title=f"{comparison.arms[0].name}, and what else could have been done",
        lead=_lead(comparison),
        subtitle=f"As the ledgers of {len(comparison.runs)} runs stood at {moment(at)}. "
        f"Perennial {__version__}.",
        facts=dict(_facts(comparison)),
        sections=tuple(_sections(comparison)),
    )


def _lead(comparison: Comparison) -> str:
    """Return the gap that matters and what the first run cost, in one sentence."""
    name, bill, gap = comparison.arms[0].name, comparison.runs[0].bill, _headline(comparison)
    cost = f"{name} cost {1 - bill.saved:.0%} of the compute of retraining at every arrival"
    parts = [cost] if len(bill.arrivals) > 1 else []
    if gap is not None:
        seeds = "paired by seed" if comparison.is_seeded else "paired by document"
        parts.insert(
            0,
            f"At equal tokens {name} is {gap[1]} {comparison.unit} from {gap[0]} on average, "
            f"{seeds} (above 0 it is worse)",
        )
    return f"{'; '.join(parts) or f'{name} stands beside nothing that cost the same'}."


def _facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    first = comparison.runs[0]
    yield "runs", str(len(comparison.runs))
    yield "tokens of the first", f"{first.bill.tokens:,}"
    yield "saved against retraining", f"{first.bill.saved:.0%}"
    if (gap := _headline(comparison)) is not None:
        yield f"gap to {gap[0]}", gap[1]


def _headline(comparison: Comparison) -> tuple[str, str] | None:
    """Return the last gap to the run that the first names as its baseline, else to the last run."""
    named = comparison.runs[0].spec.evaluation.baseline
    wanted = open_store(named).url if named else None
    names = {
        name
        for arm in comparison.arms
        for run in arm.runs.values()
        if run.store.url == wanted
        for name in (arm.name, run.name)
    }
    gaps = [
        (gap.theirs.run, tables.change_text(gap.average))
        for gap in comparison.gaps
        if gap.average is not None
    ]
    gaps += [
        (gap.theirs.arm, gap.difference.average.text(signed=True)) for gap in comparison.seed_gaps
    ]
    chosen = [gap for gap in gaps if gap[0] in names]
    return next(reversed(chosen or gaps), None)


def _group(comparison: Comparison, group: Sequence[SeededModel]) -> Table:
    """Return the losses of models of equal cost, which is in the heading, with their names."""
    table = tables.losses(comparison, group)
    columns = (f"at {group[0].first.tokens:,} tokens", "model", *table.columns[3:])
    rows = [
        (row[0], f"{name} (annealed)" if row[1] == "annealed" else name, *row[3:])
        for row, name in zip(table.rows, [model.first.name for model in group], strict=True)
    ]
    return Table(columns, rows, frozenset(columns[2:]))


def _sections(comparison: Comparison) -> Iterator[PageSection]:
    first = comparison.runs[0]
    seeded = comparison.is_seeded
    if comparison.corpora:
        errors = (
            "the mean over seeds with its 95% interval"
            if seeded
            else "with two standard errors over documents"
        )
        yield PageSection(
            "Losses",
            f"The last model of each run on held-out text that none of them saw, {errors}. Models "
            "of one heading cost the same tokens and may be compared.",
            draw.losses_by_corpus(
                [arm.last for arm in comparison.arms], comparison.corpora, comparison.in_nats
            ),
            "Picture: loss of each run's last model on every corpus.",
            [_group(comparison, group) for group in comparison.groups],
        )
    gaps = tables.gaps(comparison)
    if gaps is not None:
        how = (
            "paired by seed: below 0 it is better, above 0 it is worse. ± is the 95% interval "
            "over seeds; one seed has none."
            if seeded
            else "over documents paired with themselves: below 0 it is better, above 0 it is "
            "worse. ± is one standard error."
        )
        yield PageSection(
            f"How far {comparison.arms[0].name} is from the others",
            f"Its loss minus theirs at equal tokens, {how}",
            tables=[gaps],
        )
    if (transfer := tables.transfer(comparison)) is not None:
        yield PageSection("Transfer over time steps", _TRANSFER, tables=[transfer])
    if (tasks := tables.tasks(comparison)) is not None:
        over = "the 95% interval over seeds" if seeded else "one standard error over items"
        yield PageSection("Tasks", f"Scores of each run's last model, ± {over}.", tables=[tasks])
    yield PageSection(
        "Compute",
        f"What {first.name} spent on each arrival, beside retraining from scratch on everything "
        "so far, which is the alternative without a trunk to continue from.",
        draw.compute_bars(first.bill),
        "Picture: tokens of each arrival beside those of retraining.",
        [tables.bill(first), tables.costs(comparison)],
    )
    if comparison.corpora:
        yield PageSection(
            "On the way",
            "Average loss over all corpora, those that a run has not trained yet included.",
            draw.average_over_tokens(
                [(arm.name, [run.models for run in arm.runs.values()]) for arm in comparison.arms],
                comparison.corpora,
                comparison.in_nats,
            ),
            "Picture: average loss over tokens.",
        )


_TRANSFER = (
    "As TiC-LM (arXiv 2504.02107) states it: mean loss, in nats per token, on what earlier steps "
    "brought (backward), on what is new in the step (in-distribution) and on what is to come "
    "(forward). Regret is the same of the loss minus that of a model that was retrained from "
    "scratch. Where a cell was not measured there is no mean."
)
