"""The ingest: two passes of Ray Data tasks, an external shuffle between them, the manifest last.

Only counts travel through Ray; documents go from the inbox to staged runs to shards. The result is
a pure function of (inputs, tokenizer, settings): not of piece size, parallelism, restarts or kills.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from perennial.corpora.engines import EngineName, choose_engine
from perennial.corpora.gather import GatherJob, gather, written
from perennial.corpora.landing import inspect
from perennial.corpora.manifest import (
    FORMAT,
    CorpusManifest,
    IngestSettings,
    InputFile,
    ShardResult,
    digest_of,
    manifest_key,
    read_manifest,
    total,
)
from perennial.corpora.names import check_name
from perennial.corpora.pieces import plan_pieces, shard_count
from perennial.corpora.sample import sample_texts
from perennial.corpora.scatter import PieceResult, ScatterJob, scatter
from perennial.corpora.tokenizer import RunTokenizer, load_tokenizer
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.store import Store

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""called with the pass ("read" or "write"), the tasks done and all tasks"""

_ENGINE_SAMPLE_BYTES = 1 << 20
_TASKS_AT_ONCE = 256  # Ray Data makes an object for every task before the first one runs


def ingest(
    store: Store,
    inbox: Store,
    name: str,
    settings: IngestSettings,
    *,
    cpus_per_task: float = 1.0,
    progress: Progress | None = None,
) -> CorpusManifest:
    """Tokenises a landed corpus into `corpora/<name>/` and returns its manifest.

    Ray must be initialised. Safe to repeat and to kill: finished pieces and shards are not redone,
    and an ingested corpus is returned as it is. Raises InputError when the corpus is missing,
    when too much of it is bad (nothing is committed then), when it has no text to train on, or
    when it was ingested with another tokenizer or other settings.
    """
    check_name(name)
    tokenizer = load_tokenizer(store)
    if store.exists(manifest_key(name)):
        return _existing(store, name, tokenizer, settings)
    inputs = tuple(
        InputFile(name=f.name, size_bytes=f.size_bytes, etag=f.etag)
        for f in inspect(inbox, name).files
    )
    report = progress or (lambda _pass, _done, _all: None)
    try:
        return _ingest(store, inbox, name, inputs, tokenizer, settings, cpus_per_task, report)
    except Exception:
        # Another ingest that finished first took the staged files away from this one.
        if store.exists(manifest_key(name)):
            return _existing(store, name, tokenizer, settings)
        raise


def _ingest(
    store: Store,
    inbox: Store,
    name: str,
    inputs: tuple[InputFile, ...],
    tokenizer: RunTokenizer,
    settings: IngestSettings,
    cpus: float,
    report: Progress,
) -> CorpusManifest:
    target = store.sub(f"corpora/{name}")
    staging = f"staging-{_plan_digest(inputs, tokenizer, settings)[:16]}"
    shards = shard_count(inputs, settings.shard_tokens)
    scattering = ScatterJob(inbox.sub(name), target.sub(staging), inputs, settings, shards)
    pieces = _scatter_all(scattering, cpus, report)
    try:
        _check_quality(inbox, name, inputs, settings, pieces)
    except InputError:
        target.remove(staging)
        raise
    sample = list(sample_texts(inbox, name, settings, _ENGINE_SAMPLE_BYTES))
    engine = choose_engine(tokenizer, sample)
    if engine == "tokenizers":
        log.info("%s: tiktoken cannot replace this tokenizer; encoding with tokenizers", name)
    runs = tuple(piece.runs for piece in pieces)
    gathering = GatherJob(target, target.sub(staging), runs, inputs, settings, tokenizer, engine)
    results = _gather_all(gathering, shards, cpus, report)
    manifest = _manifest(name, inputs, tokenizer, engine, settings, results)
    if manifest.counts.documents != sum(piece.documents for piece in pieces):
        raise RuntimeError(f"{name}: documents were lost between the passes")
    return _commit(store, target, manifest, results)


def _scatter_all(job: ScatterJob, cpus: float, report: Progress) -> list[PieceResult]:
    pieces = plan_pieces(job.inputs, job.settings.piece_bytes)

    def task(row: dict[str, Any]) -> dict[str, Any]:
        index = int(row["item"])
        result = scatter(job, index, pieces[index])
        return {"index": index, "result": result.model_dump_json()}

    results = _run(task, len(pieces), cpus, lambda done: report("read", done, len(pieces)))
    return [PieceResult.model_validate_json(result) for result in results]


def _gather_all(job: GatherJob, shards: int, cpus: float, report: Progress) -> list[ShardResult]:
    def task(row: dict[str, Any]) -> dict[str, Any]:
        index = int(row["item"])
        return {"index": index, "result": gather(job, index).model_dump_json()}

    results = _run(task, shards, cpus, lambda done: report("write", done, shards))
    return [ShardResult.model_validate_json(result) for result in results]


def _run(
    task: Callable[[dict[str, Any]], dict[str, Any]],
    tasks: int,
    cpus: float,
    done: Callable[[int], None],
) -> list[str]:
    """Runs the task once for each index, as one block each; the results in order of index."""
    results = [""] * tasks
    finished = 0
    for start in range(0, tasks, _TASKS_AT_ONCE):
        for row in _rows(task, range(start, min(start + _TASKS_AT_ONCE, tasks)), cpus):
            results[row["index"]] = row["result"]
            finished += 1
            done(finished)
    return results


def _rows(
    task: Callable[[dict[str, Any]], dict[str, Any]], indices: Sequence[int], cpus: float
) -> Iterator[dict[str, Any]]:
    import ray.data
    from ray.exceptions import RayTaskError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = ray.data.from_items(list(indices), override_num_blocks=len(indices))
    try:
        yield from items.map(task, num_cpus=cpus).iter_rows()
    except RayTaskError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise cause or error from None


def _check_quality(
    inbox: Store,
    name: str,
    inputs: Sequence[InputFile],
    settings: IngestSettings,
    pieces: Sequence[PieceResult],
) -> None:
    documents = sum(piece.documents for piece in pieces)
    bad = sum(piece.bad for piece in pieces)
    lost = sum(piece.lost_bytes for piece in pieces)
    stored = sum(file.size_bytes for file in inputs)
    where = f"{inbox.url}/{name}"
    if bad > settings.max_bad_share * documents or lost > settings.max_bad_share * stored:
        reasons: dict[str, int] = {}
        for piece in pieces:
            for reason, count in piece.quarantined.items():
                reasons[reason] = reasons.get(reason, 0) + count
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise InputError(
            where,
            "max_bad_share",
            f"{bad} of {documents} documents and {lost} of {stored} bytes are bad ({listed})",
            f"repair them, or allow more than {settings.max_bad_share:g}",
        )
    if documents == sum(sum(piece.quarantined.values()) for piece in pieces):
        raise InputError(where, settings.text_field, "it holds no text", "land documents with text")


def _plan_digest(
    inputs: Sequence[InputFile], tokenizer: RunTokenizer, settings: IngestSettings
) -> str:
    content = {
        "format": FORMAT,
        "inputs": [file.model_dump() for file in inputs],
        "tokenizer": tokenizer.fingerprint,
        "end_of_document": tokenizer.end_of_document,
        "settings": settings.model_dump(),
    }
    return digest_of(content)


def _manifest(
    name: str,
    inputs: tuple[InputFile, ...],
    tokenizer: RunTokenizer,
    engine: EngineName,
    settings: IngestSettings,
    results: Sequence[ShardResult],
) -> CorpusManifest:
    counts = total(result.counts for result in results).check()
    documents = counts.trained_documents + counts.held_out_documents
    text_bytes = counts.trained_bytes + counts.held_out_bytes
    manifest = CorpusManifest(
        name=name,
        tokenizer=tokenizer.fingerprint,
        engine=engine,
        vocabulary=tokenizer.vocabulary,
        end_of_document=tokenizer.end_of_document,
        settings=settings,
        inputs=inputs,
        shards=tuple(r.shard for r in results if r.shard is not None),
        holdout=tuple(r.holdout for r in results if r.holdout is not None),
        quarantine=tuple(r.quarantine for r in results if r.quarantine is not None),
        counts=counts,
        tokens_per_byte=(counts.tokens - documents) / text_bytes,
    )
    return manifest.sealed()


def _commit(
    store: Store, target: Store, manifest: CorpusManifest, results: Sequence[ShardResult]
) -> CorpusManifest:
    """Writes the manifest, then removes what only the way to it needed."""
    if not all(written(target, result) for result in results):
        raise RuntimeError(f"{target.url}: its files changed while it was ingested")
    kept = {file.file for result in results for file in result.files}
    data = manifest.model_dump_json(indent=1).encode()
    if not store.create(manifest_key(manifest.name), data):
        # Another ingest of the same corpus was faster; its staging is its own to remove.
        return read_manifest(store, manifest.name)
    for info in target.list(""):
        if info.key not in kept and info.key != "manifest.json":
            target.remove(info.key)
    return manifest


def _existing(
    store: Store, name: str, tokenizer: RunTokenizer, settings: IngestSettings
) -> CorpusManifest:
    manifest = read_manifest(store, name)
    then = manifest.settings.model_dump() | {"tokenizer": manifest.tokenizer}
    now = settings.model_dump() | {"tokenizer": tokenizer.fingerprint}
    for field, value in now.items():
        if field != "piece_bytes" and then[field] != value:
            raise InputError(
                f"{store.url}/{manifest_key(name)}",
                field,
                f"the corpus was ingested with {then[field]}, not {value}",
                "keep the run's value, or land the corpus under another name",
            )
    return manifest
