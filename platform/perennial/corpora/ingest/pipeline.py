"""Ingest of a corpus: passes of Ray Data tasks with an external shuffle, the manifest last.

1. Read: pieces of the input are staged by destination.
2. Compare: equal texts are found by their digests; fuzzy duplicates and repeated lines besides,
   where the run file asks for them.
3. Hold out: the held-out files are written, and the index of their near duplicates.
4. Write: every shard is gathered, tokenised and written.

Only counts travel through Ray; documents go from the inbox to staged run files to shards. The
result is a pure function of (inputs, tokenizer, settings, earlier corpora): not of piece size,
parallelism, restarts or kills.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.corpora.compatibility import check_same_run, check_same_settings
from perennial.corpora.counts import DUPLICATE, Counts, sum_counts
from perennial.corpora.encoders import choose_encoder
from perennial.corpora.inbox import check_name, read_landed
from perennial.corpora.ingest.decontaminate import (
    RUN_WORDS,
    read_evaluation_texts,
    write_evaluation_texts,
)
from perennial.corpora.ingest.exact_dedup import CompareResult, compare_digests
from perennial.corpora.ingest.fuzzy_dedup import ClusterResult, cluster_documents, match_bands
from perennial.corpora.ingest.jobs import IngestPlan
from perennial.corpora.ingest.partition import choose_piece_bytes, plan_pieces
from perennial.corpora.ingest.quality import (
    account_losses,
    check_quality,
    keep_evidence,
    refused_folder,
)
from perennial.corpora.ingest.read import PieceResult, scatter_piece
from perennial.corpora.ingest.repeated_lines import find_repeated_lines
from perennial.corpora.ingest.sample import list_inputs, sample_texts
from perennial.corpora.ingest.task_failures import TRIED_AGAIN, carried, raise_carried
from perennial.corpora.ingest.write import gather_shard, has_files, write_holdout
from perennial.corpora.manifest import (
    CorpusManifest,
    IngestSettings,
    ShardResult,
    manifest_key,
    read_manifest,
)
from perennial.corpora.reuse import borrow_corpus
from perennial.corpora.tokenizer import load_tokenizer
from perennial.errors import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from perennial.corpora.encoders import EncoderName
    from perennial.corpora.inbox import LandedCorpus
    from perennial.corpora.ingest.decontaminate import EvaluationTexts
    from perennial.corpora.ingest.losses import LossAccount
    from perennial.corpora.tokenizer import RunTokenizer
    from perennial.store import Store

log = logging.getLogger(__name__)

Accept = Callable[[CorpusManifest], object]
"""called before a corpus is committed; raises InputError to refuse it"""

IngestProgress = Callable[[str, int, int], None]
"""called with the pass ("read", "compare", "match", "cluster", "find lines", "hold out" or
"write"), the tasks done and all tasks"""

RunPass = Callable[[str, int, Callable[[int], "BaseModel"]], list[str]]
"""runs a task for every index below a number, in a pass of that name; returns the results"""

_ENGINE_SAMPLE_BYTES = 1 << 18
_TASKS_AT_ONCE = 256  # Ray Data makes an object for every task before the first one runs


def ingest_corpus(
    store: Store,
    inbox: Store,
    name: str,
    settings: IngestSettings,
    *,
    earlier: Sequence[str] = (),
    decontaminate: Sequence[Path] = (),
    evaluation_settings: IngestSettings | None = None,
    lender: Store | None = None,
    landed: LandedCorpus | None = None,
    accept: Accept = lambda manifest: None,
    tokenizer: RunTokenizer | None = None,
    cpus_per_task: float = 1.0,
    progress: IngestProgress = lambda _pass, _done, _all: None,
) -> CorpusManifest:
    """Tokenise a landed corpus into `corpora/<name>/`, and return its manifest; Ray is initialised.

    Safe to repeat and to kill: neither finished pieces and shards nor an ingested corpus is redone.

    Args:
        store: the run's store, which has a tokenizer.
        inbox: the store that the corpus landed in.
        name: the corpus's name.
        settings: how documents become sequences.
        earlier: names of the run's corpora that it is compared with, in their order.
        decontaminate: local files of evaluation texts; their digest becomes part of the settings.
        evaluation_settings: how texts are found in them; default `settings`.
        lender: the store of another run; what it tokenised of the same files is copied.
        landed: the corpus as `check_landed` returned it; default: as it is now.
        accept: called with the manifest before it is committed; raises InputError to refuse.
        tokenizer: the one to use; default the run's first.
        cpus_per_task: CPUs that Ray reserves for a task.
        progress: called after every task.

    Raises:
        InputError: the corpus is missing, not what was promised, bad, without text or news, or was
            ingested with other settings. Nothing is committed then.
    """
    check_name(name)
    tokenizer = tokenizer or load_tokenizer(store)
    evaluation = read_evaluation_texts(decontaminate, evaluation_settings or settings)
    settings = settings.model_copy(update={"decontaminate": evaluation.digest})
    if store.exists(manifest_key(name)):
        return check_same_settings(store, name, tokenizer, settings)
    landed = landed or read_landed(inbox, name)
    if lender is not None:
        borrowed = borrow_corpus(store, lender, landed, tokenizer, settings, accept)
        if borrowed is not None:
            return borrowed
    plan = _make_plan(store, inbox, landed, tokenizer, settings, earlier, evaluation)
    try:
        return _ingest(plan, cpus_per_task, progress, accept)
    except Exception as failure:
        # Another ingest finished first, and removed the staged files that this one was reading.
        if store.exists(manifest_key(name)):
            return check_same_settings(store, name, tokenizer, settings)
        _clear(plan, failure)
        raise


def _clear(plan: IngestPlan, failure: Exception) -> None:
    """Leave nothing of a refused corpus; the repaired one has other files anyway."""
    if isinstance(failure, InputError):
        plan.store.remove(f"corpora/{plan.name}")


def _make_plan(
    store: Store,
    inbox: Store,
    landed: LandedCorpus,
    tokenizer: RunTokenizer,
    settings: IngestSettings,
    earlier: Sequence[str],
    evaluation: EvaluationTexts,
) -> IngestPlan:
    before = tuple(read_manifest(store, corpus) for corpus in earlier)
    for manifest in before:
        check_same_run(store, manifest, tokenizer, settings)
    inputs = list_inputs(landed)
    # The piece size is settled before the plan is made, since staged pieces depend on it.
    size = choose_piece_bytes(inputs, settings.piece_bytes)
    settings = settings.model_copy(update={"piece_bytes": size})
    return IngestPlan(store, inbox, landed, inputs, tokenizer, settings, before, evaluation)


def _ingest(
    plan: IngestPlan, cpus: float, report: IngestProgress, accept: Accept
) -> CorpusManifest:
    """Run all passes of an ingest and commit its manifest, unless `accept` refuses."""
    name, settings = plan.name, plan.settings

    def run(pass_name: str, parts: int, do: Callable[[int], BaseModel]) -> list[str]:
        def task(row: dict[str, Any]) -> dict[str, Any]:
            index = int(row["item"])
            failure, result = carried(lambda: do(index).model_dump_json())
            return {"index": index, "result": result, "failure": failure}

        return _run(task, parts, cpus, lambda done: report(pass_name, done, parts))

    if plan.evaluation.too_short:
        log.warning(
            "%s: %d of %d evaluation texts have fewer than %d words and are not looked for",
            *(name, plan.evaluation.too_short, len(plan.evaluation.texts), RUN_WORDS),
        )
    pieces = plan_pieces(plan.inputs, settings.piece_bytes)
    scatter = plan.scatter_job()
    texts = run("read", len(pieces), lambda index: scatter_piece(scatter, index, pieces[index]))
    staged = [PieceResult.model_validate_json(text) for text in texts]
    account = _account(plan, staged)
    compare = plan.compare_job(staged)
    texts = run("compare", plan.layout.digest_parts, lambda part: compare_digests(compare, part))
    compared = [CompareResult.model_validate_json(text) for text in texts]
    _check_fresh(plan, staged, compared)
    repeats = _find_repeats(plan, run, staged)
    encoder = _choose_encoder(plan)
    if encoder == "tokenizers":
        log.info("%s: tiktoken cannot replace this tokenizer; encoding with tokenizers", name)
    write_evaluation_texts(plan.staging, plan.evaluation)
    gather = plan.gather_job(staged, compared, encoder, account.losses)
    # Held-out documents first: the shards leave out near duplicates of them.
    texts = run("hold out", plan.layout.held_parts, lambda part: write_holdout(gather, part))
    texts += run("write", len(gather.shards), lambda shard: gather_shard(gather, shard))
    results = [ShardResult.model_validate_json(text) for text in texts]
    _check_news(plan, results)
    manifest = plan.build_manifest(encoder, staged, compared, results, repeats)
    if manifest.counts.documents != sum(piece.documents for piece in staged):
        raise RuntimeError(f"{name}: documents were lost between the passes")
    if manifest.counts.partly_compared_documents:
        log.warning(
            "%s: %d documents share text with more held-out documents than they were compared "
            "with; near duplicates of the others are trained",
            *(name, manifest.counts.partly_compared_documents),
        )
    for part in manifest.parts:
        if not part.rows:
            log.warning(
                "%s: %d documents of the part %r are not trained: their %d tokens fill no row",
                *(name, part.documents, part.name, part.remainder_tokens),
            )
    accept(manifest)
    return _commit(plan.store, plan.target, manifest, results)


def _find_repeats(plan: IngestPlan, run: RunPass, staged: Sequence[PieceResult]) -> Counts:
    """List the fuzzy duplicates and the repeated lines where the run file asks for them."""
    parts, settings, partly = plan.layout.digest_parts, plan.settings, 0
    if settings.fuzzy_duplicates is not None:
        fuzzy = plan.fuzzy_job(staged)
        run("match", plan.layout.shards, lambda part: match_bands(fuzzy, part))
        (text,) = run("cluster", 1, lambda _: cluster_documents(fuzzy))
        partly = ClusterResult.model_validate_json(text).partly_compared
    if partly:
        log.warning(
            "%s: %d documents share text with more documents than they were compared with; fuzzy "
            "duplicates of the others are trained",
            *(plan.name, partly),
        )
    if settings.repeated_lines is not None:
        lines = plan.lines_job(staged)
        run("find lines", parts, lambda part: find_repeated_lines(lines, part))
    return Counts(fuzzy_partly_compared=partly)


def _choose_encoder(plan: IngestPlan) -> EncoderName:
    """Return what encodes the documents of a corpus, by a sample of them."""
    if plan.settings.tokens is not None:
        return "ids"
    sample = list(sample_texts(plan.inbox, plan.landed, plan.settings, _ENGINE_SAMPLE_BYTES))
    return choose_encoder(plan.tokenizer, sample)


def _account(plan: IngestPlan, staged: Sequence[PieceResult]) -> LossAccount:
    """Return the account of what could not be read.

    Raises InputError for a corpus of which too much is bad; its bad records are kept then.
    """
    account = account_losses(plan.inputs, staged)
    where = f"{plan.inbox.url}/{plan.name}"
    kept = f"{plan.store.url}/{refused_folder(plan.name)}"
    try:
        check_quality(where, kept, plan.inputs, plan.settings, staged, account)
    except InputError:
        keep_evidence(plan.store, plan.staging, plan.name, len(staged))
        raise
    return account


def _run(
    task: Callable[[dict[str, Any]], dict[str, Any]],
    tasks: int,
    cpus: float,
    done: Callable[[int], None],
) -> list[str]:
    """Run a task for every index, a block per index. Returns the results in order of index."""
    results = [""] * tasks
    finished = 0
    for start in range(0, tasks, _TASKS_AT_ONCE):
        for row in _iterate_rows(task, range(start, min(start + _TASKS_AT_ONCE, tasks)), cpus):
            raise_carried(row["failure"])
            results[row["index"]] = row["result"]
            finished += 1
            done(finished)
    return results


def _iterate_rows(
    task: Callable[[dict[str, Any]], dict[str, Any]], indices: Sequence[int], cpus: float
) -> Iterator[dict[str, Any]]:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # pyarrow retries most failures of S3 itself, but not an answer that breaks off in its body.
    context.retried_map_errors, context.max_map_retries = [TRIED_AGAIN], 5
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = ray.data.from_items(list(indices), override_num_blocks=len(indices))
    yield from items.map(task, num_cpus=cpus).iter_rows()


def _check_news(plan: IngestPlan, results: Sequence[ShardResult]) -> None:
    """Raise InputError for a corpus that holds nothing to train."""
    counts = sum_counts(result.counts for result in results)
    if counts.trained_documents == 0:
        removed = counts.removed | {"held out": counts.held_out_documents}
        raise _nothing_new(plan, counts.documents, removed)


def _check_fresh(
    plan: IngestPlan, staged: Sequence[PieceResult], compared: Sequence[CompareResult]
) -> None:
    """Raise InputError, before anything is tokenised, where the digests say that nothing is new."""
    fresh = [result.fresh for result in compared]
    if any(count is None or count for count in fresh):
        return
    removed = Counter({DUPLICATE: sum(result.dropped for result in compared)})
    for piece in staged:
        removed.update(piece.quarantined)
    documents = sum(piece.documents for piece in staged)
    removed["held out"] = documents - removed.total()
    raise _nothing_new(plan, documents, removed)


def _nothing_new(plan: IngestPlan, documents: int, removed: Mapping[str, int]) -> InputError:
    listed = ", ".join(f"{count} {reason}" for reason, count in removed.items() if count)
    return InputError(
        f"{plan.inbox.url}/{plan.name}",
        "",
        f"none of its {documents} documents is new to train ({listed})",
        "there is nothing to do; what is new lands as another corpus",
        code="nothing-new",
    )


def _commit(
    store: Store, target: Store, manifest: CorpusManifest, results: Sequence[ShardResult]
) -> CorpusManifest:
    """Write the manifest, then remove staged files and those of an ingest that was given up."""
    if not all(has_files(target, result) for result in results):
        raise RuntimeError(f"{target.url}: its files changed while it was ingested")
    kept = {file.file for result in results for file in result.files}
    kept |= {file.file for file in manifest.digests}
    data = manifest.model_dump_json(indent=1).encode()
    if not store.create(manifest_key(manifest.name), data):
        # Another ingest of the same corpus was faster; its staging is its own to remove.
        return read_manifest(store, manifest.name)
    store.remove(refused_folder(manifest.name))  # of an earlier try
    for info in target.list(""):
        if info.key not in kept and info.key != "manifest.json":
            target.remove(info.key)
    return manifest
