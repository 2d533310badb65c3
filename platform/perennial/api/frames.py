"""A run as tables for analysis: pandas DataFrames, or Arrow tables where pandas is not installed.

A table is built as an Arrow table first, so that its columns have the same types either way, also
where it has no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from perennial.errors import InputError
from perennial.runs import summary
from perennial.training.checkpoint.manifest import kept_rows

if TYPE_CHECKING:
    import pandas

    from perennial.api.status import RunStatus
    from perennial.controller.context import Workspace
    from perennial.evaluation import HeldoutLoss, LossMatrix
    from perennial.evaluation.budget import MeanForgetting
    from perennial.evaluation.scores import Score
    from perennial.runs.state import RunState, Stage

    Frame: TypeAlias = "pandas.DataFrame | pa.Table"

Row = Mapping[str, object]

_STATUS = {
    "stage": "string",
    "corpora": "string",
    "state": "string",
    "reason": "string",
    "tokens": "int64",
    "replay": "double",
    "adaptation": "double",
    "forgetting": "double",
    "forgetting_stderr": "double",
    "forgetting_measured": "int64",
    "forgetting_of": "int64",
}
_LOSSES = {
    "kind": "string",
    "model": "string",
    "corpus": "string",
    "domain": "string",
    "nats_per_token": "double",
    "bits_per_byte": "double",
    "stderr_nats_per_token": "double",
    "stderr_of_change": "double",
    "documents": "int64",
    "tokens": "int64",
    "bytes": "int64",
}
_METRICS = {"stage": "string", "step": "int64", "tokens": "int64"}
_TOKENS = {
    "stage": "string",
    "corpus": "string",
    "part": "string",
    "kind": "string",
    "tokens": "int64",
}
_SCORES = {
    "kind": "string",
    "model": "string",
    "task": "string",
    "metric": "string",
    "value": "double",
    "stderr": "double",
    "samples": "int64",
    "reason": "string",
}
_LINEAGE = {
    "kind": "string",
    "name": "string",
    "parent": "string",
    "corpora": "string",
    "first_step": "int64",
    "last_step": "int64",
    "tokens": "int64",
    "state": "string",
    "on_trunk": "bool",
    "folder": "string",
    "aliases": "string",
}


def status_frame(status: RunStatus) -> Frame:
    """Return a row a stage, then a row for each corpus that has none; see `Run.status`."""
    stages = [
        {
            "stage": stage.name,
            "corpora": ", ".join(stage.corpora),
            "state": stage.state,
            "reason": status.reasons.get(stage.corpora[0]),
            "tokens": stage.tokens,
            "replay": stage.replay,
            "adaptation": stage.adaptation,
            **_forgetting_columns(stage.forgetting),
        }
        for stage in status.stages
    ]
    staged = {corpus for stage in status.stages for corpus in stage.corpora}
    waiting = [
        {"corpora": name, "state": status.corpora[name], "reason": status.reasons.get(name)}
        for name in status.pending
        if name not in staged
    ]
    return _to_frame(_table([*stages, *waiting], _STATUS))


def _forgetting_columns(mean: MeanForgetting | None) -> Row:
    if mean is None:
        return {}
    return {
        "forgetting": mean.nats_per_token,
        "forgetting_stderr": mean.stderr,
        "forgetting_measured": mean.measured,
        "forgetting_of": mean.of,
    }


def matrix_frame(matrix: LossMatrix) -> Frame:
    """Return a row a model and a column a corpus; see `Run.matrix`."""
    rows = [*matrix.origins, *matrix.stages, *matrix.releases]
    models = [name for name, _ in rows]
    cells = {
        corpus: pa.array([_nats(losses.get(corpus)) for _, losses in rows], pa.float64())
        for corpus in matrix.corpora
    }
    table = pa.table(cells)
    frame = _to_frame(table)
    if isinstance(frame, pa.Table):
        # Not set as an index, and not by name: a corpus may have any name.
        return frame.add_column(0, "model", pa.array(models, pa.string()))
    frame.index = models
    frame.index.name = "model"
    return frame


def losses_frame(matrix: LossMatrix) -> Frame:
    """Return a row a model, corpus and domain; see `Run.losses`."""
    kinds = {"origin": matrix.origins, "stage": matrix.stages, "release": matrix.releases}
    rows = [
        {"kind": kind, "model": model, "corpus": corpus, "domain": domain}
        | {name: getattr(loss, name) for name in list(_LOSSES)[4:]}
        for kind, models in kinds.items()
        for model, losses in models
        for corpus, whole in losses.items()
        for domain, loss in [(None, whole), *whole.domains.items()]
    ]
    return _to_frame(_table(rows, _LOSSES))


def metrics_frame(work: Workspace, name: str | None) -> Frame:
    """Return a row a step, of a stage, of a release's anneal or of the trunk.

    Args:
        work: the run.
        name: of the stage or release; None for all stages of the trunk.

    Raises:
        InputError: there is no stage or release of this name.
    """
    state = work.ledger.read()
    folders = {stage.name: stage.folder for stage in state.stages}
    if name is not None:
        folders = {name: _folder_of(work, state, name)}
    rows = [
        _metric_row(job, row, work.spec.tokens_per_step)
        for job, folder in folders.items()
        for row in kept_rows(work.store, folder)[1]
    ]
    others = dict.fromkeys(key for row in rows for key in row if key not in _METRICS)
    return _to_frame(_table(rows, _METRICS, others))


def _folder_of(work: Workspace, state: RunState, name: str) -> str:
    """Return the key of the checkpoints of a stage, one that left the trunk too, or a release."""
    folders = {stage.name: stage.folder for stage in reversed(state.started_stages)}
    folders |= {release: f"branches/{release}" for release in state.branches}
    if name not in folders:
        known = ", ".join([*(s.name for s in state.started_stages), *state.branches])
        raise InputError(
            work.where, "", f"the run has no stage or release {name!r}",
            f"name one of: {known}" if known else "train a stage first", code="stage-missing",
        )  # fmt: skip
    return folders[name]


def _metric_row(job: str, row: Mapping[str, Any], tokens_per_step: int) -> Row:
    """Return a step's metrics without nesting: `seconds` of `data` becomes `seconds_data`."""
    # Rows of versions before 0.2 do not count the tokens, and had no step left out.
    tokens = row.get("tokens_seen", row["step"] * tokens_per_step)
    flat: dict[str, object] = {"stage": job, "step": row["step"], "tokens": tokens}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}_{inner}": number for inner, number in value.items()}
        elif key != "tokens_seen":
            flat[key] = value
    return flat


def tokens_frame(state: RunState, sequence_length: int) -> Frame:
    """Return a row a stage, corpus and part; see `Run.tokens`."""
    rows = [
        {"stage": stage, "corpus": corpus, "part": part, "kind": kind, "tokens": count}
        for stage, tokens in summary.tokens_by_source(state, sequence_length).items()
        for kind, key in (("new", "new_by_corpus"), ("replayed", "replayed"))
        for corpus, whole in tokens[key].items()
        for part, count in tokens.get("parts", {}).get(corpus, {None: whole}).items()
    ]
    return _to_frame(_table(rows, _TOKENS))


def scores_frame(state: RunState) -> Frame:
    """Return a row a model, task and metric; see `Run.scores`."""
    scored = [
        *(("origin", origin.name, origin.scores) for origin in state.origins.values()),
        *(("stage", s.name, state.stage_scores.get(s.name, ())) for s in state.stages),
        *(("release", name, scores) for name, scores in state.scores.items()),
    ]
    rows = [_score_row(kind, model, score) for kind, model, its in scored for score in its]
    return _to_frame(_table(rows, _SCORES))


def _score_row(kind: str, model: str, score: Score) -> Row:
    return {"kind": kind, "model": model} | {key: score.get(key) for key in list(_SCORES)[2:]}


def lineage_frame(work: Workspace) -> Frame:
    """Return a row a stored model, stage and release; see `Run.lineage`."""
    state = work.ledger.read()
    origins = [
        {"kind": "origin", "name": origin.name, "folder": origin.folder, "on_trunk": True}
        for origin in state.origins.values()
    ]
    on_trunk = {stage.name for stage in state.stages}
    stages = [
        _stage_row(state, stage, work.spec.corpora.sequence_length, stage.name in on_trunk)
        for stage in state.started_stages
    ]
    rows = [*origins, *stages, *_release_rows(state, work.spec.corpora.sequence_length)]
    return _to_frame(_table(rows, _LINEAGE))


def _stage_row(state: RunState, stage: Stage, sequence_length: int, on_trunk: bool) -> Row:
    before = state.lineage(stage)
    base = state.base.name if state.base else None
    return {
        "kind": "stage",
        "name": stage.name,
        "parent": before[-1].name if before else base,
        "corpora": ", ".join(stage.corpora),
        "first_step": stage.first_step,
        "last_step": stage.last_step,
        "tokens": stage.steps * stage.mix.global_batch * sequence_length,
        "state": state.corpora[stage.corpora[0]].state if on_trunk else "left the trunk",
        "on_trunk": on_trunk,
        "folder": state.ends.get(stage.name),
    }


def _release_rows(state: RunState, sequence_length: int) -> Iterator[Row]:
    made = {release.name: release for release in state.releases}
    for name, branch in state.branches.items():
        release = made.get(name)
        steps = release.steps if release else 0
        batch = (branch.mix or state.stage(branch.stage).mix).global_batch
        yield {
            "kind": "release",
            "name": name,
            "parent": branch.stage,
            "first_step": branch.step,
            "last_step": branch.step + steps if release else None,
            "tokens": steps * batch * sequence_length if release else None,
            "state": state.release_state(name),
            "on_trunk": False,
            "folder": release.folder if release else None,
            "aliases": ", ".join(state.aliases_of(name)) or None,
        }


def _nats(loss: HeldoutLoss | None) -> float | None:
    return None if loss is None else loss.nats_per_token


def _table(rows: Sequence[Row], types: Mapping[str, str], others: Iterable[str] = ()) -> pa.Table:
    """Return rows as a table; a value that a row lacks is null.

    Args:
        rows: values by column.
        types: Arrow's names of the types of columns, in their order.
        others: further columns, whose types follow from their values.
    """
    columns = {
        name: pa.array([row.get(name) for row in rows], pa.type_for_alias(kind))
        for name, kind in types.items()
    }
    for name in others:
        values = [row.get(name) for row in rows]
        plain = all(value is None or isinstance(value, int | float) for value in values)
        if not plain:  # a note about a step, such as that of a spike
            values = [None if value is None else str(value) for value in values]
        columns[name] = pa.array(values, pa.float64() if _is_fraction(values) else None)
    return pa.table(columns)


def _is_fraction(values: Sequence[object]) -> bool:
    """Return whether a column has any value that is no whole number, so that all are floats."""
    return any(isinstance(value, float) for value in values)


def _to_frame(table: pa.Table) -> Frame:
    try:
        import pandas  # noqa: F401 - Arrow needs it, and says so less well
    except ImportError:
        return table
    return table.to_pandas()
