"""The report of a run: what the ledger says, put on one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perennial.evaluation.kept_samples import read_samples
from perennial.report import about, tables
from perennial.report.compare import baseline_gap
from perennial.report.compare_tables import change_text
from perennial.report.compared_run import read_run
from perennial.report.figures.run import pictures
from perennial.report.headline import headline
from perennial.report.html import Continuation, Page, PageSection, Quote, Table
from perennial.report.search_section import search_sections
from perennial.runs import summary
from perennial.runs.history import goodput, read_history
from perennial.runs.ledger import moment
from perennial.training.metrics import METRICS
from perennial.version import __version__

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.controller.context import Workspace
    from perennial.evaluation import LossMatrix
    from perennial.evaluation.compare import Gap
    from perennial.evaluation.kept_samples import Held
    from perennial.evaluation.samples import Sample
    from perennial.report.figures.style import Picture
    from perennial.runs.history import History
    from perennial.runs.state import RunState
    from perennial.store import Store

KEY = "report/report.html"
_MOST_QUOTES = 24
"""Prompts that are shown, at most: the last ones."""


def page(work: Workspace, at: str) -> Page:
    """Return the contents of the page; reads only."""
    spec, state = work.spec, work.state
    history = read_history(work.store, state, spec.corpora.sequence_length)
    matrix = summary.matrix(state, summary.SHOWN_STAGES)
    gap = baseline_gap(spec, work.store, state)
    costs = None if gap is None else read_run(spec, work.store, state)
    return Page(
        title=f"{spec.name}: report",
        lead=headline(matrix, gap, costs.bill if costs else None),
        subtitle=f"As the ledger stood at {moment(at)}. Perennial {__version__}.",
        facts=dict(_facts(spec, state, matrix, history, gap)),
        sections=tuple(
            about.without_folders(_fitted(section))
            for section in _sections(work, matrix, history, gap)
        ),
        quotes=tuple(quotes(work.store, state))[-_MOST_QUOTES:],
    )


def _facts(
    spec: RunSpec, state: RunState, matrix: LossMatrix, history: History, gap: Gap | None
) -> Iterator[tuple[str, str]]:
    yield "corpora", str(len(state.corpora))
    if not state.stages:
        return
    trained = [stage for stage in state.stages if stage.name in state.ends]
    steps = trained[-1].last_step if trained else 0
    length = spec.corpora.sequence_length
    tokens = summary.tokens_until(state, trained[-1], steps, length) if trained else 0
    yield "trunk stands at", f"{state.stages[-1].name}, step {steps:,}"
    yield "tokens trained", f"{tokens:,}"
    yield "releases", str(len(state.releases))
    if matrix.stages:
        last = len(matrix.stages) - 1
        yield "average loss", tables.number(matrix.average_loss(last))
        yield "average forgetting", tables.forgotten_on_average(matrix, last)
    if gap is not None and gap.average is not None:
        yield "gap to retraining", change_text(gap.average)
    if (share := goodput(history.times)) is not None:
        yield "goodput", f"{share:.0%}"


def _sections(
    work: Workspace, matrix: LossMatrix, history: History, gap: Gap | None
) -> Iterator[PageSection]:
    """Yield what came out, then how to have it, then how it came about."""
    spec, state = work.spec, work.state
    drawn = pictures(state, spec.corpora.sequence_length, history)
    if "transfer" in drawn:
        untrained = summary.untrained_nats(work.store)
        shown = [tables.transfer(matrix), tables.transfer_means(matrix, untrained)]
        yield _pictured("Learned and forgotten", "transfer", drawn, shown)
    if drawn:
        losses = [tables.bits(matrix), *tables.domains(matrix)]
        yield _pictured("Every stage on every corpus", "matrix", drawn, losses)
    if spec.evaluation.baseline is not None:
        yield _retraining(spec.evaluation.baseline, gap)
    yield about.load_it(work.store, state)
    states = summary.describe_states(work.store, spec, state)
    yield PageSection("Lineage", _LEADS["lineage"], tables=tables.lineage(spec, state, states))
    if earlier := tables.earlier(spec, state):
        yield PageSection("Earlier stages", _LEADS["earlier"], tables=earlier)
    if drawn:
        yield from _curves(work, history, drawn)
    if any(state.verdicts[name] for name in summary.recent_names(state.verdicts)):
        yield PageSection("Gates", _LEADS["gates"], tables=[tables.gates(state)])
    if scored := list(tables.scores(state)):
        yield PageSection("Tasks", _LEADS["tasks"], tables=scored)
    yield about.settings(spec)
    manifests = about.newest_manifests(work.store, state)
    yield about.provenance(spec, state, work.ledger.head, manifests)


def _curves(work: Workspace, history: History, drawn: dict[str, Picture]) -> Iterator[PageSection]:
    """Yield how the run went over its steps and tokens."""
    spec, state = work.spec, work.state
    yield _pictured("Learning rate", "learning-rate", drawn)
    yield _pictured("Losses", "losses", drawn)
    if "train-loss" in drawn:
        yield _pictured("Training loss", "train-loss", drawn)
    for name in history.curves:
        metric = METRICS[name]
        curve = drawn[f"metric-{name}"]
        yield PageSection(metric.title, metric.meaning, curve, f"Picture: {metric.meaning}")
    yield from search_sections(work.store)
    shown = [
        *tables.replay_shares(state.stages[-summary.SHOWN_STAGES :]),
        *tables.parts(
            summary.tokens_by_source(state, spec.corpora.sequence_length, summary.SHOWN_STAGES)
        ),
    ]
    yield _pictured("Tokens by source", "tokens", drawn, shown)
    if "time" in drawn:
        yield _pictured("Goodput and restarts", "time", drawn, [tables.times(history)])


def _fitted(section: PageSection) -> PageSection:
    """Return a section that a page of any number of stages has room for."""
    if section.title == about.SETTINGS:
        return section
    whole = _WHOLE.get(section.title, "`perennial status RUN_FILE --all --json` has them")
    return replace(section, tables=[its.last(about.MOST_ROWS, whole) for its in section.tables])


def _retraining(baseline: str, gap: Gap | None) -> PageSection:
    """Return the section on the gap to a run that was retrained from scratch."""
    title = "Against retraining"
    if gap is None:
        return PageSection(
            title,
            f"The run file's baseline is {baseline}. Nothing was measured there yet that compares "
            "with this run: the same corpora, cut by the same tokenizer.",
        )
    ours, theirs = gap.ours, gap.theirs
    lead = (
        f"{ours.name} (tokens: {ours.tokens:,}) minus {theirs.name} of {theirs.run} (tokens: "
        f"{theirs.tokens:,}), over documents paired with themselves: below 0 this run is better, "
        "above 0 it is worse. ± is one standard error."
    )
    rows = [
        (
            corpus,
            tables.number(ours.losses[corpus].nats_per_token),
            tables.number(theirs.losses[corpus].nats_per_token),
            change_text(change),
        )
        for corpus, change in gap.corpora.items()
    ]
    if gap.average is not None:
        rows.append(("average", "", "", change_text(gap.average)))
    columns = ("corpus", "this run", "retrained", "gap, nats per token")
    return PageSection(title, lead, tables=[Table(columns, rows, frozenset(columns[1:]))])


def quotes(store: Store, state: RunState) -> Iterator[Quote]:
    """Yield each prompt, and how every model went on from it."""
    by_prompt: dict[tuple[str, str], list[tuple[str, Sample]]] = {}
    wrote: list[tuple[str, Held]] = [
        (origin.name, origin.samples) for origin in state.origins.values()
    ]
    wrote += [
        (stage.name, state.stage_samples.get(stage.name, []))
        for stage in state.stages[-about.MOST_ROWS :]
    ]
    wrote += [
        (f"release {release.name}", release.samples)
        for release in state.releases[-about.MOST_ROWS :]
    ]
    for name, samples in wrote:
        for sample in read_samples(store, samples):
            by_prompt.setdefault((sample.prompt, sample.corpus), []).append((name, sample))
    for (prompt, corpus), continuations in by_prompt.items():
        made = [sample.rendering for _, sample in continuations if sample.rendering]
        drawn_by = dict.fromkeys(its.by for its in made if not its.problem)
        if drawn_by:
            prompt = f"The first {len(prompt.split())} ids of a document"
        yield Quote(prompt, corpus, [_continuation(*its) for its in continuations], [*drawn_by])


def _continuation(model: str, sample: Sample) -> Continuation:
    """Return what a model made of a prompt, as the user's function drew it."""
    its = sample.rendering
    if its is None:
        return Continuation(model, sample.text)
    if its.problem:
        return Continuation(model, sample.text, note=f"(not drawn: {its.by}: {its.problem})")
    return Continuation(model, sample.text, its.png, its.text)


_LEADS = {
    "lineage": "One corpus, one stage, in the order of the trunk. A release is a branch; the trunk "
    "itself never decays.",
    "earlier": "The stages before those that this page shows one by one, folded by time, and all "
    "stages by group, where the run file groups its replay. `perennial status RUN_FILE --all "
    "--json` has them all.",
    "learning-rate": "Warmup and cooldown happen once; the dashed lines leave the trunk at a "
    "release.",
    "losses": "Held-out loss at the end of every stage, lower is better, with two standard errors "
    "over documents.",
    "matrix": "A row is a model, a column is held-out text that it never saw. Below a loss, and in "
    "colour, is its change since the corpus's own stage; before that stage, since the base, where "
    "the trunk starts from one. Stages are the trunk, not annealed; a release is annealed. A "
    "corpus that a budget left out after a stage is not drawn, or a dot.",
    "train-loss": "Loss on what each step trained, replay included; the band is the lowest and the "
    "highest step of each stretch.",
    "time": "Goodput is the share of a stage's time, from the decision to begin to its last "
    "checkpoint, that was spent in steps that count. The rest is starting workers, steps that were "
    "trained twice, and waiting for a machine or for a user.",
    "transfer": "What a stage learned is how far it lowered the loss on its own corpus. Forgetting "
    "is the loss on another corpus now minus its loss right after its own stage, on the same "
    "documents; for a corpus without a stage so far, minus the loss of the base. The panels have "
    "scales of their own.",
    "tokens": "What each stage trained on: the hatched part is replay of earlier corpora, which "
    "displaces new tokens and adds none.",
    "gates": "What each stage was held against before the trunk went on from it. What could not be "
    "measured does not hold.",
    "tasks": "lm-eval on releases, and on the ends of stages where the run file asks for it: the "
    "change is that from the checkpoint that the stage started from, ± one standard error over "
    "items paired with themselves. A task that could not be run has its reason instead.",
}

_LAST = f"those of the last {summary.SHOWN_STAGES} stages"
_WHOLE = {
    "Learned and forgotten": f"report/matrix.csv in the store has {_LAST}",
    "Every stage on every corpus": f"report/matrix.csv in the store has {_LAST}",
    "Tokens by source": f"report/tokens.json in the store has {_LAST}",
    "Goodput and restarts": f"report/times.json in the store has {_LAST}",
}
"""Where all rows are of a table that is cut, by the section's title."""


def _pictured(
    title: str, name: str, drawn: dict[str, Picture], tables: Sequence[Table] = ()
) -> PageSection:
    return PageSection(title, _LEADS[name], drawn[name], f"Picture: {_LEADS[name]}", tables)
