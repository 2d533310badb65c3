"""Build the report's tables. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from perennial.evaluation.gates import change_of
from perennial.mixture import describe_tokens, group_of
from perennial.report.html import Table
from perennial.runs import summary
from perennial.runs.transitions import ON_THE_TRUNK

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.evaluation import HeldoutLoss, LossMatrix
    from perennial.evaluation.scores import Score
    from perennial.runs.events import Releasing
    from perennial.runs.history import History
    from perennial.runs.state import RunState, Stage

_MOST_COLUMNS = 12
"""Corpora that have a column, at most: the last ones."""
_MOST_NAMED = 5
_SPANS = 20
"""Spans of time into which earlier stages are folded, at most."""


def lineage(spec: RunSpec, state: RunState, states: Mapping[str, str]) -> list[Table]:
    """Return the tables of stored models, stages, releases, and corpora without a stage.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        states: a description of where each corpus stands.
    """
    length = spec.corpora.sequence_length
    recent = state.stages[-summary.SHOWN_STAGES :]
    stages = [
        (
            stage.name,
            ", ".join(stage.corpora),
            f"{stage.first_step:,} to {stage.last_step:,}",
            f"{stage.mix.steps * stage.mix.global_batch * length:,}",
            state.corpora[stage.corpora[0]].state,
            stage.start or spec.model.describe_start(),
        )
        for stage in recent
    ]
    origins = [
        (origin.name, origin.imported.path, f"{origin.imported.parameters:,}", origin.folder)
        for origin in state.origins.values()
    ]
    releases = [
        (r.name, r.source, f"{r.steps:,}", _made_of(spec, state.branches[r.name]))
        for r in state.releases
    ]
    waiting = [
        (corpus.name, states[corpus.name], corpus.reason)
        for corpus in state.corpora.values()
        if corpus.stands_at not in ON_THE_TRUNK
    ]
    columns = ("stage", "new corpora", "steps", "tokens", "state", "starts from")
    tables = []
    if origins:
        stored = ("stored model", "from", "parameters", "copy")
        tables.append(Table(stored, origins, frozenset({"parameters"}), stacked=True))
    if stages:
        numbers, earlier = frozenset({"steps", "tokens"}), len(state.stages) - len(recent)
        tables.append(Table(columns, stages, numbers, stacked=True, earlier=earlier))
    if releases:
        named = ("release", "branches off", "anneal steps", "made of")
        tables.append(Table(named, releases, frozenset({"anneal steps"}), stacked=True))
    if waiting:
        waits = ("corpus without a stage", "state", "reason")
        tables.append(Table(waits, waiting, stacked=True))
    return tables


def earlier(spec: RunSpec, state: RunState) -> list[Table]:
    """Return the stages before those that are shown one by one, folded by time and by group."""
    old = state.stages[: -summary.SHOWN_STAGES]
    if not old:
        return []
    span = -(-len(old) // _SPANS)
    spans = [old[first : first + span] for first in range(0, len(old), span)]
    by_time = [
        (
            f"{its[0].name} to {its[-1].name}",
            f"{len(its):,}",
            f"{its[-1].last_step - its[0].first_step:,}",
            number(_mean_own(state, its)),
        )
        for its in spans
    ]
    columns = ("earlier stages", "stages", "steps", "mean loss on own corpus")
    tables = [Table(columns, by_time, frozenset(columns[1:]))]
    groups: defaultdict[str, list[Stage]] = defaultdict(list)
    for stage in state.stages:
        name = group_of(spec.replay.groups or (), stage.corpora[0])
        if name is not None:
            groups[name].append(stage)
    by_group = [
        (name, f"{len(its):,}", number(_mean_own(state, its)), its[-1].name)
        for name, its in groups.items()
    ]
    if by_group:
        of_group = ("replay group", "stages", "mean loss on own corpus", "last stage")
        tables.append(Table(of_group, by_group, frozenset(of_group[1:3])))
    return tables


def _mean_own(state: RunState, stages: Sequence[Stage]) -> float | None:
    """Return the mean over stages of the loss on their own corpora; None where none has one."""
    losses = [
        loss.nats_per_token
        for stage in stages
        for loss in state.own_losses.get(stage.name, {}).values()
    ]
    return fmean(losses) if losses else None


def _made_of(spec: RunSpec, release: Releasing) -> str:
    if release.average is not None:
        return f"{release.average}"
    if release.mix is None:
        return "nothing"
    return describe_tokens(release.mix, spec.corpora.sequence_length)


def replay_shares(stages: Sequence[Stage]) -> list[Table]:
    """Return the table of the replay shares that were measured, with what they follow from."""
    decided = [(s.name, s.share_decision) for s in stages if s.share_decision is not None]
    rows = [
        (
            name,
            f"{decision.share:.0%}",
            "-" if decision.shift is None else f"{decision.shift:+.1%}{_percent(decision.stderr)}",
            decision.describe(),
        )
        for name, decision in decided
    ]
    columns = ("stage", "replay share", "shift", "because")
    return [Table(columns, rows, frozenset(columns[1:3]))] if rows else []


def _percent(error: float | None) -> str:
    return "" if error is None else f" ± {error:.1%}"


def parts(stages: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Return the table of tokens by part, of corpora that have parts.

    Args:
        stages: tokens by stage, from `summary.tokens_by_source`.
    """
    rows = [
        (
            stage,
            corpus,
            part or "no domain",
            f"{count:,}",
            f"{count / max(1, sum(its.values())):.1%}",
        )
        for stage, tokens in stages.items()
        for corpus, its in tokens.get("parts", {}).items()
        for part, count in its.items()
    ]
    columns = ("stage", "corpus", "part", "tokens", "share of the corpus")
    return [Table(columns, rows, frozenset(columns[3:]))] if rows else []


def bits(matrix: LossMatrix) -> Table:
    """Return the bits per byte, which compare across tokenizers; of what is no text per token."""
    corpora = matrix.corpora[-_MOST_COLUMNS:]
    cells = [
        (name, *(_bits(losses[c]) if c in losses else "-" for c in corpora))
        for name, losses in matrix.rows
    ]
    left_out = len(matrix.corpora) - len(corpora)
    note = f" ({left_out:,} earlier corpora are left out)" if left_out else ""
    return Table((f"bits per byte after{note}", *corpora), cells, frozenset(corpora))


def _bits(loss: HeldoutLoss) -> str:
    if loss.bits_per_byte is None:
        return f"{number(loss.nats_per_token / math.log(2))} per token"
    return number(loss.bits_per_byte)


def domains(matrix: LossMatrix) -> list[Table]:
    """Return the last row of the matrix by domain, where documents name one."""
    name, losses = (*matrix.stages, *matrix.releases)[-1]
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
            number(part.nats_per_token),
            number(part.stderr_nats_per_token),
            f"{part.documents:,}",
        )
        for domain, part in loss.domains.items()
    ]
    mean = ("mean of domains", corpus, number(loss.macro_nats_per_token), "-", "")
    return [*rows, mean]


def transfer(matrix: LossMatrix) -> Table:
    """Return adaptation and forgetting of each stage; from a base also each release's change."""
    rows = []
    for i in matrix.shown:
        name, losses = matrix.stages[i]
        errors = matrix.forgetting_stderr(i)
        lost = _worst_first(
            {
                f"{corpus} {number(nats, signed=True)}{_error(errors[corpus])}": nats
                for corpus, nats in matrix.forgetting(i).items()
            }
        )
        row = [name, number(matrix.adaptation(i)), lost or "-", forgotten_on_average(matrix, i)]
        if matrix.base:
            row.append(_changes(matrix.against_base(losses)))
        rows.append(row)
    if matrix.base:
        rows += [
            [f"release {name}", "", "", "", _changes(matrix.against_base(losses))]
            for name, losses in matrix.releases
        ]
    columns = ["stage", "adaptation", "forgetting by corpus", "average forgetting"]
    columns += ["against the base"] if matrix.base else []
    return Table(columns, rows, frozenset({"adaptation", "average forgetting"}))


def forgotten_on_average(matrix: LossMatrix, stage: int) -> str:
    """Return a stage's mean forgetting with its error, and over how many corpora it is."""
    mean = matrix.mean_forgetting(stage)
    return "-" if mean is None else mean.describe()


def _changes(changes: Mapping[str, float]) -> str:
    return _worst_first({f"{corpus} {n:+.3f}": n for corpus, n in changes.items()}) or "-"


def _worst_first(changes: Mapping[str, float | None]) -> str:
    """Return the texts of changes; of many those with the largest rise, and how many more."""
    texts = list(changes)
    if len(texts) <= _MOST_COLUMNS:
        return ", ".join(texts)
    texts.sort(key=lambda text: -(changes[text] or 0.0))
    more = len(texts) - _MOST_NAMED
    return f"{', '.join(texts[:_MOST_NAMED])} and {more:,} less"


def transfer_means(matrix: LossMatrix, untrained_nats: float) -> Table:
    """Return the mean effect of stages on corpora before and after their own.

    Args:
        matrix: the loss matrix.
        untrained_nats: loss of a model to which every token is as likely, nats per token.
    """
    rows = [
        (
            "backward transfer",
            number(matrix.backward_transfer(), signed=True),
            "how far later stages lowered the loss on earlier corpora; below 0 they raised it",
        ),
        (
            "forward transfer",
            number(matrix.forward_transfer(untrained_nats), signed=True),
            f"how far below {'the base' if matrix.origins else 'a model that knows nothing'} a "
            "corpus stood before its own stage",
        ),
    ]
    return Table(("mean over corpora", "nats per token", ""), rows, frozenset({"nats per token"}))


def times(history: History) -> Table:
    """Return the time of each stage, and the share of it in steps that count."""
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


def gates(state: RunState) -> Table:
    """Return every gate's bound with the verdict."""
    rows = [
        (
            stage,
            verdict.gate,
            verdict.subject,
            number(verdict.value),
            number(verdict.stderr),
            number(verdict.bound),
            "holds" if verdict.holds else f"broken {verdict.reason}".strip(),
            state.accepted.get(stage, ""),
        )
        for stage in summary.recent_names(state.verdicts)
        for verdict in state.verdicts[stage]
    ]
    numbers = ("measured", "standard error", "bound")
    columns = ("stage", "gate", "of", *numbers, "verdict", "accepted because")
    return Table(columns, rows, frozenset(numbers))


def scores(state: RunState) -> Iterator[Table]:
    """Yield the lm-eval scores of releases, and of stages with their change."""
    columns = ("task", "metric", "score", "standard error", "items")
    numbers = frozenset({"score", "standard error", "items", "change"})
    released = [_score(name, s) for name, scores in state.scores.items() for s in scores]
    if released:
        yield Table(("release", *columns), released, numbers)
    trained = [
        (*_score(stage.name, score), _change(state, stage, score))
        for stage in state.stages[-summary.SHOWN_STAGES :]
        for score in state.stage_scores.get(stage.name, ())
    ]
    if trained:
        yield Table(("stage", *columns, "change"), trained, numbers)


def _change(state: RunState, stage: Stage, score: Score) -> str:
    if "reason" in score:
        return ""
    change = change_of(score, summary.scores_before(state, stage))
    return "-" if change is None else f"{change.value:+.3f}{_error(change.stderr)}"


def _score(release: str, score: Score) -> Sequence[str]:
    if "reason" in score:
        return (release, score["task"], f"not run: {score['reason']}", "", "", "")
    value, error = number(score["value"]), number(score["stderr"])
    return (release, score["task"], score["metric"], value, error, f"{score['samples']:,}")


def number(value: float | None, signed: bool = False) -> str:
    """Return a number with three decimal places, or a dash for None."""
    if value is None:
        return "-"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _error(value: float | None) -> str:
    return "" if value is None else f" ± {value:.3f}"
