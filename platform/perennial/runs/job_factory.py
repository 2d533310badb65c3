"""Build training jobs from planned stages and releases. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from perennial.config.changes import check_held
from perennial.corpora.tokenizer import FIRST_TOKENIZER
from perennial.errors import RUN_FILE
from perennial.mixture import StageMix
from perennial.mixture.row_reader import CorpusLayout
from perennial.runs.entities import names_in
from perennial.runs.events import Extended, Releasing
from perennial.runs.state import RunState, Stage
from perennial.schedules import Schedule, from_dict
from perennial.training.checkpoint.ownership import Fence
from perennial.training.job import Job

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.corpora import CorpusManifest


def stage_job(
    spec: RunSpec,
    state: RunState,
    stage: Stage,
    manifests: Mapping[str, CorpusManifest],
    fence: Fence | None = None,
) -> Job:
    """Build the training job of a started stage; it differs between calls in `fence` alone.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        stage: the stage.
        manifests: of the corpora in its mix, by name.
        fence: keeps workers from committing once another controller is in charge.

    Raises:
        InputError: the stage was begun under settings that the run file no longer has.
    """
    check_held(stage.name, stage.settings, spec, RUN_FILE)
    before = state.seen(stage, stage.first_step)
    job = _job(
        spec,
        manifests,
        before,
        name=stage.name,
        folder=stage.folder,
        mix=stage.mix,
        schedule=from_dict(stage.schedule),
        first_step=stage.first_step,
        start=stage.start,
    )
    job = _with_growth(spec, state, stage, job)
    replayed = {source.corpus: 0 for source in stage.mix.replayed}
    seen = replayed | {name: sequences for name, sequences in before.items() if sequences}
    left_out = {*stage.corpora, *names_in(state.corpora.values(), "erased")}
    old = sorted((name for name in seen if name not in left_out), key=seen.__getitem__)
    return replace(
        job,
        tracking_run=stage.tracking_run,
        fence=fence,
        optimizer=stage.optimizer,
        old=tuple(reversed(old)),
    )


def release_job(
    spec: RunSpec,
    state: RunState,
    decided: Releasing,
    manifests: Mapping[str, CorpusManifest],
    tracking_run: str,
    fence: Fence | None = None,
) -> Job:
    """Build the job that anneals a release; the trunk is not changed (invariant I7).

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        decided: the release, with a mix and a schedule.
        manifests: of the corpora in its mix, by name.
        tracking_run: id of the release's run in the tracker, or "".
        fence: keeps workers from committing once another process claims the release.

    Raises:
        InputError: the release was begun under settings that the run file no longer has.
    """
    check_held(f"release {decided.name}", decided.settings, spec, RUN_FILE)
    assert decided.mix is not None and decided.schedule is not None
    stage = state.stage(decided.stage)
    job = branch_job(
        spec,
        state.seen(stage, decided.step),
        manifests,
        name=decided.name,
        mix=decided.mix,
        schedule=from_dict(decided.schedule),
        first_step=decided.step,
        start=decided.source,
    )
    return replace(
        job,
        optimizer="keep",
        tracking_run=tracking_run,
        fence=fence,
        tokenizer=tokenizer_folder(state.extension_of(stage)),
    )


def tokenizer_folder(extension: Extended | None) -> str:
    """Return the key of the folder of the tokenizer after a growth; the first one's for none."""
    return FIRST_TOKENIZER if extension is None else extension.folder


def _with_growth(spec: RunSpec, state: RunState, stage: Stage, job: Job) -> Job:
    """Return a stage's job with its tokenizer, and the rows that its start does not have."""
    now, before = state.extension_of(stage), state.extension_before(stage)
    job = replace(job, tokenizer=tokenizer_folder(now))
    starts_random = stage.start is None and spec.model.path is None
    if now is None or starts_random or (before and before.fingerprint == now.fingerprint):
        return job
    return replace(job, grown_from=now.first)


def branch_job(
    spec: RunSpec,
    seen: Mapping[str, int],
    manifests: Mapping[str, CorpusManifest],
    *,
    name: str,
    mix: StageMix,
    schedule: Schedule,
    first_step: int,
    start: str,
) -> Job:
    """Build a job that branches off the trunk.

    Args:
        spec: the run file.
        seen: sequences that the trunk has trained until the branch, by corpus.
        manifests: of the corpora in the mix, by name.
        name: of the branch.
        mix: what the branch trains on.
        schedule: of the branch.
        first_step: trunk step at which it branches off.
        start: key of the checkpoint of that step.
    """
    return _job(
        spec,
        manifests,
        seen,
        name=name,
        folder=f"branches/{name}",
        mix=mix,
        schedule=schedule,
        first_step=first_step,
        start=start,
    )


def _job(
    spec: RunSpec,
    manifests: Mapping[str, CorpusManifest],
    seen: Mapping[str, int],
    *,
    name: str,
    folder: str,
    mix: StageMix,
    schedule: Schedule,
    first_step: int,
    start: str | None,
) -> Job:
    length = spec.corpora.sequence_length
    own = manifests[mix.corpora[0]]
    mixed = {source.corpus for source in mix.sources}
    return Job(
        store_url=spec.store,
        name=name,
        folder=folder,
        mix=mix,
        layouts={s.corpus: layout(manifests[s.corpus]) for s in mix.sources},
        first_step=first_step,
        start=start,
        schedule=schedule.installed(),
        model=spec.model,
        training=spec.training,
        sequence_length=length,
        vocabulary=own.vocabulary,
        end_of_document=own.end_of_document,
        begin_of_document=own.begin_of_document,
        padded=any(manifests[s.corpus].has_padding for s in mix.sources),
        dtype=f"<u{max(manifests[source.corpus].token_bytes for source in mix.sources)}",
        seed=spec.seed,
        tokens_seen={name: count * length for name, count in seen.items() if name in mixed},
        tokens_elsewhere=length * sum(n for name, n in seen.items() if name not in mixed),
    )


def layout(manifest: CorpusManifest) -> CorpusLayout:
    """Return the files of a corpus's rows in the store."""
    if manifest.erased:
        end = manifest.end_of_document.to_bytes(manifest.token_bytes, "little").hex()
        row_bytes = manifest.sequence_length * manifest.token_bytes
        return CorpusLayout(
            (f"corpora/{manifest.name}",), (manifest.rows,), row_bytes=row_bytes, erased=end
        )
    return CorpusLayout(
        tuple(f"corpora/{manifest.name}/{shard.file}" for shard in manifest.shards),
        tuple(sum(shard.row_groups) for shard in manifest.shards),
        tuple(shard.sha256 for shard in manifest.shards),
        manifest.sequence_length * manifest.token_bytes,
    )
