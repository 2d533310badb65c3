"""The report of a run: what the ledger says, put on one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import perennial
from perennial.evaluation.curves import goodput
from perennial.evaluation.gates import change_of
from perennial.evaluation.page import Page, Quote, Section, Table, render
from perennial.stages import outcome
from perennial.stages.comparison import baseline_gap
from perennial.stages.comparison_page import number as change_text
from perennial.stages.ledger import moment
from perennial.stages.searches_page import search_sections
from perennial.stages.transitions import ON_THE_TRUNK

if TYPE_CHECKING:
    from perennial.evaluation import HeldoutLoss, LossMatrix
    from perennial.evaluation.comparison import Gap
    from perennial.evaluation.style import Picture
    from perennial.spec import RunSpec
    from perennial.stages.history import History
    from perennial.stages.machine import RunState, Stage
    from perennial.stages.workspace import Workspace

KEY = "report/report.html"


def report(work: Workspace, at: str) -> str:
    """Write the page to the store and to MLflow; its HTML.

    at: the time that the page says it was made.
    """
    html = render(page(work, at))
    work.store.write(KEY, html.encode())
    work.tracker.parent_run().artifact(html.encode(), "report.html")
    return html


def page(work: Workspace, at: str) -> Page:
    """What the page says; reads only."""
    spec, state = work.spec, work.state
    told, history = outcome.matrix(state), outcome.read_history(work)
    gap = baseline_gap(spec, work.store, state)
    return Page(
        title=f"{spec.name}: what was gained, what was lost",
        subtitle=f"As the ledger of {spec.store} stood at {moment(at)}. "
        f"Perennial {perennial.__version__}.",
        facts=dict(_facts(spec, state, told, history, gap)),
        sections=tuple(_sections(work, told, history, gap)),
        quotes=tuple(_quotes(state)),
    )


def _facts(
    spec: RunSpec, state: RunState, told: LossMatrix, history: History, gap: Gap | None
) -> Iterator[tuple[str, str]]:
    yield "corpora", str(len(state.corpora))
    if not state.stages:
        return
    trained = [stage for stage in state.stages if stage.name in state.ends]
    steps = trained[-1].last_step if trained else 0
    yield "trunk stands at", f"{state.stages[-1].name}, step {steps:,}"
    yield "tokens trained", f"{steps * spec.tokens_per_step:,}"
    yield "releases", str(len(state.releases))
    if told.stages:
        last = len(told.stages) - 1
        yield "average loss", _number(told.average_loss(last))
        yield "average forgetting", _number(told.average_forgetting(last), signed=True)
    if gap is not None and gap.average is not None:
        yield "gap to retraining", change_text(gap.average)
    if (share := goodput(history.times)) is not None:
        yield "goodput", f"{share:.0%}"


def _sections(
    work: Workspace, told: LossMatrix, history: History, gap: Gap | None
) -> Iterator[Section]:
    spec, state = work.spec, work.state
    drawn = outcome.pictures(state, spec.corpora.sequence_length, history)
    yield Section("Lineage", _LEADS["lineage"], tables=_lineage(spec, state))
    if not drawn:
        return
    yield _pictured("Learning rate", "learning-rate", drawn)
    yield _pictured("Losses", "losses", drawn)
    if "train-loss" in drawn:
        yield _pictured("Training loss", "train-loss", drawn)
    yield _pictured("Every stage on every corpus", "matrix", drawn, [_bits(told), *_domains(told)])
    if "transfer" in drawn:
        tables = [_transfer(told), _transfer_means(told, outcome.untrained_nats(work))]
        yield _pictured("Learned and forgotten", "transfer", drawn, tables)
    if spec.evaluation.baseline is not None:
        yield _retraining(spec.evaluation.baseline, gap)
    yield from search_sections(work.store)
    yield _pictured("Tokens by source", "tokens", drawn)
    if "time" in drawn:
        yield _pictured("Goodput and restarts", "time", drawn, [_times(history)])
    if any(state.verdicts.values()):
        yield Section("Gates", _LEADS["gates"], tables=[_gates(state)])
    if state.scores or any(state.stage_scores.values()):
        yield Section("Tasks", _LEADS["tasks"], tables=list(_scores(state)))


def _retraining(baseline: str, gap: Gap | None) -> Section:
    """How far the run is from one that was retrained from scratch."""
    title = "Against retraining"
    if gap is None:
        return Section(
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
            _number(ours.losses[corpus].nats_per_token),
            _number(theirs.losses[corpus].nats_per_token),
            change_text(change),
        )
        for corpus, change in gap.corpora.items()
    ]
    if gap.average is not None:
        rows.append(("average", "", "", change_text(gap.average)))
    columns = ("corpus", "this run", "retrained", "gap, nats per token")
    return Section(title, lead, tables=[Table(columns, rows, frozenset(columns[1:]))])


def _times(history: History) -> Table:
    rows = [
        (
            time.stage,
            "-" if time.whole is None else f"{time.whole:,.0f}",
            f"{time.steps:,.0f}",
            "-" if time.goodput is None else f"{time.goodput:.0%}",
            "-" if time.restarts is None else str(time.restarts),
        )
        for time in history.times
    ]
    columns = ("stage", "seconds", "in steps that count", "goodput", "restarts")
    return Table(columns, rows, frozenset(columns[1:]))


def _quotes(state: RunState) -> Iterator[Quote]:
    """Each prompt, and how every stage and release went on from it."""
    texts: dict[tuple[str, str], list[tuple[str, str]]] = {}
    wrote = [(stage.name, state.stage_samples.get(stage.name, [])) for stage in state.stages]
    wrote += [(f"release {release.name}", release.samples) for release in state.releases]
    for name, samples in wrote:
        for sample in samples:
            key = (sample["prompt"], sample["corpus"])
            texts.setdefault(key, []).append((name, sample["text"]))
    for (prompt, corpus), told in texts.items():
        yield Quote(prompt, corpus, told)


_LEADS = {
    "lineage": "One corpus, one stage, in the order of the trunk. A release is a branch; the trunk "
    "itself never decays.",
    "learning-rate": "Warmup and cooldown happen once; the dashed lines leave the trunk at a "
    "release.",
    "losses": "Held-out loss at the end of every stage, lower is better, with two standard errors "
    "over documents.",
    "matrix": "A row is a model, a column is held-out text that it never saw. Read down a column "
    "to see a corpus being learned, then kept or forgotten. Stages are the trunk, not annealed; a "
    "release is annealed.",
    "train-loss": "Loss on what each step trained, replay included; the band is the lowest and the "
    "highest step of each stretch.",
    "time": "Goodput is the share of a stage's time, from the decision to begin to its last "
    "checkpoint, that was spent in steps that count. The rest is starting workers, steps that were "
    "trained twice, and waiting for a machine or for a person.",
    "transfer": "Left is loss that fell, right is loss that rose. Forgetting is the loss on an "
    "earlier corpus now minus its loss right after its own stage, on the same documents.",
    "tokens": "What each stage trained on: the hatched part is replay of earlier corpora, which "
    "displaces new tokens and adds none.",
    "gates": "What each stage was held against before the trunk went on from it. What could not be "
    "measured does not hold.",
    "tasks": "lm-eval on releases, and on the ends of stages where the run file asks for it: the "
    "change is that from the checkpoint that the stage started from, ± one standard error over "
    "items paired with themselves. A task that could not be run has its reason instead.",
}


def _pictured(
    title: str, name: str, drawn: dict[str, Picture], tables: Sequence[Table] = ()
) -> Section:
    return Section(title, _LEADS[name], drawn[name], f"Picture: {_LEADS[name]}", tables)


def _lineage(spec: RunSpec, state: RunState) -> list[Table]:
    length = spec.tokens_per_step
    stages = [
        (
            stage.name,
            ", ".join(stage.corpora),
            f"{stage.first_step:,} to {stage.last_step:,}",
            f"{stage.mix.steps * length:,}",
            state.corpora[stage.corpora[0]].state,
            stage.start or "random weights",
        )
        for stage in state.stages
    ]
    releases = [(r.name, r.source, f"{r.steps:,}") for r in state.releases]
    waiting = [
        (corpus.name, corpus.state, corpus.reason)
        for corpus in state.corpora.values()
        if corpus.stands_at not in ON_THE_TRUNK
    ]
    columns = ("stage", "new corpora", "steps", "tokens", "state", "starts from")
    tables = [Table(columns, stages, frozenset({"steps", "tokens"}))] if stages else []
    if releases:
        named = ("release", "branches off", "anneal steps")
        tables.append(Table(named, releases, frozenset({"anneal steps"})))
    if waiting:
        tables.append(Table(("corpus without a stage", "state", "reason"), waiting))
    return tables


def _bits(told: LossMatrix) -> Table:
    """Bits per byte, which compare across tokenizers."""
    rows = [*told.stages, *((f"release {name}", losses) for name, losses in told.releases)]
    cells = [
        (name, *(_number(losses[c].bits_per_byte) if c in losses else "-" for c in told.corpora))
        for name, losses in rows
    ]
    return Table(("bits per byte after", *told.corpora), cells, frozenset(told.corpora))


def _domains(told: LossMatrix) -> list[Table]:
    """The last row of the matrix by domain, where documents name one."""
    name, losses = (*told.stages, *told.releases)[-1]
    rows = [row for corpus, loss in losses.items() for row in _domain_rows(corpus, loss)]
    columns = (f"domain, {name}", "corpus", "nats per token", "standard error", "documents")
    return [Table(columns, rows, frozenset(columns[2:]))] if rows else []


def _domain_rows(corpus: str, loss: HeldoutLoss) -> list[Sequence[str]]:
    if not loss.domains:
        return []
    rows = [
        (
            domain,
            corpus,
            _number(part.nats_per_token),
            _number(part.stderr_nats_per_token),
            f"{part.documents:,}",
        )
        for domain, part in loss.domains.items()
    ]
    mean = ("mean of domains", corpus, _number(loss.macro_nats_per_token), "-", "")
    return [*rows, mean]


def _transfer(told: LossMatrix) -> Table:
    rows = []
    for i, (name, _) in enumerate(told.stages):
        errors = told.forgetting_stderr(i)
        lost = ", ".join(
            f"{corpus} {_number(nats, signed=True)}{_error(errors[corpus])}"
            for corpus, nats in told.forgetting(i).items()
        )
        mean = _number(told.average_forgetting(i), signed=True)
        rows.append((name, _number(told.adaptation(i)), lost or "-", mean))
    columns = ("stage", "adaptation", "forgetting by corpus", "average forgetting")
    return Table(columns, rows, frozenset({"adaptation", "average forgetting"}))


def _transfer_means(told: LossMatrix, untrained_nats: float) -> Table:
    rows = [
        (
            "backward transfer",
            _number(told.backward_transfer(), signed=True),
            "how far later stages lowered the loss on earlier corpora; below 0 they raised it",
        ),
        (
            "forward transfer",
            _number(told.forward_transfer(untrained_nats), signed=True),
            "how far below a model that knows nothing a corpus stood before its own stage",
        ),
    ]
    return Table(("mean over corpora", "nats per token", ""), rows, frozenset({"nats per token"}))


def _gates(state: RunState) -> Table:
    rows = [
        (
            stage,
            verdict["gate"],
            verdict["subject"],
            _number(verdict["value"]),
            _number(verdict["stderr"]),
            _number(verdict["bound"]),
            "holds" if verdict["holds"] else f"broken {verdict['reason']}".strip(),
            state.accepted.get(stage, ""),
        )
        for stage, verdicts in state.verdicts.items()
        for verdict in verdicts
    ]
    numbers = ("measured", "standard error", "bound")
    columns = ("stage", "gate", "of", *numbers, "verdict", "accepted because")
    return Table(columns, rows, frozenset(numbers))


def _scores(state: RunState) -> Iterator[Table]:
    columns = ("task", "metric", "score", "standard error", "items")
    numbers = frozenset({"score", "standard error", "items", "change"})
    released = [_score(name, s) for name, scores in state.scores.items() for s in scores]
    if released:
        yield Table(("release", *columns), released, numbers)
    trained = [
        (*_score(stage.name, score), _change(state, stage, score))
        for stage in state.stages
        for score in state.stage_scores.get(stage.name, ())
    ]
    if trained:
        yield Table(("stage", *columns, "change"), trained, numbers)


def _change(state: RunState, stage: Stage, score: dict[str, Any]) -> str:
    if "reason" in score:
        return ""
    change = change_of(score, outcome.scores_before(state, stage))
    return "-" if change is None else f"{change.value:+.3f}{_error(change.stderr)}"


def _score(release: str, score: dict[str, Any]) -> Sequence[str]:
    if "reason" in score:
        return (release, score["task"], f"not run: {score['reason']}", "", "", "")
    value, error = _number(score["value"]), _number(score["stderr"])
    return (release, score["task"], score["metric"], value, error, f"{score['samples']:,}")


def _number(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _error(value: float | None) -> str:
    return "" if value is None else f" ± {value:.3f}"
