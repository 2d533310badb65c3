"""Verify from the store alone that a run is what its ledger says (invariants I4, I5, I6).

First every ledger event and manifest is read and checked against the others, then every file that
a manifest names is streamed once: its digest, and what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from perennial import corpora
from perennial.audit import checkpoint_checks, checks
from perennial.audit.averages import check_averaged_files, check_averages, check_promotions
from perennial.audit.children import check_starts
from perennial.audit.counts import (
    check_contents,
    check_earlier,
    check_manifest,
    check_read,
    check_ready,
    check_shard,
)
from perennial.audit.erasures import check_erasures, list_digests, with_erasures
from perennial.audit.files import (
    FileListContents,
    FileRead,
    MetricsContents,
    Reader,
    ShardContents,
    read_documents,
    read_file,
    read_holdout,
    read_list,
    read_metrics,
    read_quarantine,
    read_shard,
)
from perennial.audit.finding import Finding, as_finding, field_of, unequal, unreadable
from perennial.audit.landed import check_inbox, check_inputs
from perennial.errors import Damaged, InputError
from perennial.runs.events import Ready
from perennial.runs.ledger import FOLDER, read_head
from perennial.store import Log
from perennial.store.stored_json import parse_json
from perennial.training.checkpoint.manifest import (
    MANIFEST,
    METRICS,
    CheckpointManifest,
    FileEntry,
    place_of,
)
from perennial.training.model.initial import read_initial
from perennial.training.model.tensor_chunks import is_weights
from perennial.training.spikes.skips import read_skips

if TYPE_CHECKING:
    from perennial.corpora import CorpusManifest
    from perennial.runs.state import RunState
    from perennial.store import Store

Progress = Callable[[str, int, int], None]
"""called with a file's key, the bytes that were read and all bytes"""

_FILES_AT_ONCE = 4
_FOLDERS = ("corpora", "checkpoints", "branches", "releases", "models")


@dataclass(frozen=True)
class ReadTask:
    """A file that a manifest names, and the reader of its contents.

    place: the store and the key to read, where they are not the run's store and `key`.
    """

    key: str
    size_bytes: int
    sha256: str
    reader: Reader | None = None
    place: tuple[Store, str] | None = None


@dataclass
class Verification:
    """The result of a verification; `findings` is empty when everything holds.

    lost: right digests of the objects that are missing or altered, by key; "" where nothing has it.
    """

    store: str
    story: checks.FoldedLedger
    findings: list[Finding]
    lost: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, CorpusManifest] = field(default_factory=dict)
    checkpoints: dict[str, CheckpointManifest] = field(default_factory=dict)
    skipped: dict[str, tuple[int, ...]] = field(default_factory=dict)
    releases: int = 0
    files: int = 0
    read_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {
            "store": self.store,
            "holds": not self.findings,
            "proved": self.proofs(),
            "files": self.files,
            "bytes": self.read_bytes,
            "findings": [vars(finding) for finding in self.findings],
        }

    def proofs(self) -> dict[str, str]:
        """Return what was checked, and of how much."""
        state = self.story.state
        counts = [manifest.counts for manifest in self.manifests.values()]
        documents = sum(count.documents for count in counts)
        tokens = sum(count.tokens for count in counts)
        rows = sum(manifest.rows for manifest in self.manifests.values())
        trunk = sum(key.startswith("checkpoints/") for key in self.checkpoints)
        trained = sum(stage.mix.steps for stage in state.stages if stage.name in state.ends)
        stages = f"{len(state.stages):,}"
        return {
            "the ledger has no gap, is chained and folds": f"{len(self.story.events):,} events",
            "one corpus, one stage (I4)": f"{stages} stages of {len(counts):,} corpora",
            "each stage's mix is its history's": f"{stages} mixes",
            "each step was taken once, on a whole batch (I4)": (
                f"{trained:,} steps of finished stages"
            ),
            "nothing was dropped silently (I5)": f"{documents:,} documents, {tokens:,} tokens",
            "shards have their rows": f"{rows:,} rows",
            "what is committed is whole (I6)": (
                f"{trunk:,} checkpoints, {len(self.checkpoints) - trunk:,} on branches, "
                f"{self.releases:,} released"
            ),
        }


def verify(store: Store, progress: Progress | None = None) -> Verification:
    """Check everything that is committed in a run's store; reads only, and needs no Ray.

    Raises InputError when the store cannot be read or holds no run.
    """
    # Listed before the ledger is read: whatever a running controller commits in between is then
    # in the ledger, and not a folder that the ledger does not know.
    committed = _committed(store)
    head = read_head(store)  # before the entries, of which a running controller writes more
    story = checks.fold(Log(store, FOLDER).entries(), head)
    if not story.events and not story.findings:
        raise InputError(
            "store",
            store.url,
            "there is no run in it",
            "use `perennial run`",
            code="no-run-in-store",
        )
    done = Verification(store.url, story, list(story.findings))
    tasks = [*_landed(store, done, committed), *_corpora(store, done, committed)]
    tasks += _origins(store, done, committed)
    rows = {name: m.part_rows or m.rows for name, m in done.manifests.items()}
    done.findings += checks.check_stages(story, rows)
    done.findings += checks.check_trials(story, rows)
    done.findings += checks.check_branches(story)
    done.findings += check_averages(story)
    done.findings += check_promotions(store, story)
    for its in check_erasures(store, story):
        if isinstance(its, Finding):
            done.findings.append(its)
        else:
            tasks.append(ReadTask(its.key, its.size_bytes, its.sha256))
    _skips(store, done)
    done.findings += checks.check_skips(story, done.skipped)
    tasks += _checkpoints(store, done, committed)
    tasks += _releases(store, done, committed)
    starts = check_starts(store, story.state)
    done.findings += starts.findings
    tasks += [ReadTask(key, file.size_bytes, file.sha256) for key, file in starts.files.items()]
    files = _read_all(store, done, tasks, progress or (lambda _key, _bytes, _all: None))
    done.findings += _check_contents(done, files)
    return done


def _committed(store: Store) -> set[str]:
    """Return the folders that have a manifest."""
    suffix = f"/{MANIFEST}"
    try:
        keys = [info.key for prefix in _FOLDERS for info in store.list(prefix)]
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise InputError(
            "store", store.url, problem, "name a store that can be read", code="store-unreadable"
        ) from error
    return {key.removesuffix(suffix) for key in keys if key.endswith(suffix)}


def _landed(store: Store, done: Verification, committed: set[str]) -> Iterator[ReadTask]:
    """Check the corpora that wait in the inbox; yield their files, and the lists of all corpora."""
    for corpus in done.story.state.corpora.values():
        if (listing := corpus.listing) is not None:
            yield ReadTask(listing.key, listing.size_bytes, listing.sha256, read_list)
    # Further events may have ingested what the ledger seems to wait for.
    waiting = [] if done.story.findings else _waiting(done.story.state, committed)
    for file in check_inbox(store, done.story.state, waiting):
        if isinstance(file, Finding):
            done.findings.append(file)
        else:
            yield ReadTask(file.key, file.size_bytes, file.sha256, place=(file.store, file.name))


def _waiting(state: RunState, committed: set[str]) -> list[str]:
    """Return the corpora that are to be ingested; files of others may have been removed."""
    return [
        name
        for name, corpus in state.corpora.items()
        if corpus.state not in ("refused", "erased") and f"corpora/{name}" not in committed
    ]


def _corpora(store: Store, done: Verification, committed: set[str]) -> Iterator[ReadTask]:
    """Check the manifests of all corpora in the store or the ledger, and yield their files."""
    from perennial.corpora.manifest import manifest_key
    from perennial.corpora.tokenizer import BASE

    ready = {event.corpus: event for event in done.story.events if isinstance(event, Ready)}
    names = {key.removeprefix("corpora/") for key in committed if key.startswith("corpora/")}
    names |= ready.keys()
    tokenizer = _tokenizer(store, done) if names else None
    for file in tokenizer.manifest.files if tokenizer else ():
        yield ReadTask(f"{BASE}/{file.file}", file.size_bytes, file.sha256)
    for name in sorted(names):
        try:
            manifest = corpora.read_manifest(store, name)
        except InputError as wrong:
            done.findings.append(as_finding(store, wrong))
            done.lost[manifest_key(name)] = ""
            continue
        done.manifests[name] = manifest
        if name in ready:
            event = done.story.key("ready", corpus=name)
            now = with_erasures(ready[name], done.story.events, manifest)
            done.findings += check_ready(now, event, manifest)
        if done.story.state.spec and tokenizer:
            its = _tokenizer_of(store, done, manifest, tokenizer)
            done.findings += check_manifest(
                manifest_key(name), manifest, done.story.state.spec, its
            )
        yield from _corpus_files(manifest)
    done.findings += check_earlier(done.manifests, list_digests(done.story.events))


def _tokenizer(store: Store, done: Verification) -> corpora.RunTokenizer | None:
    """Return the run's tokenizer, or None with a finding."""
    try:
        return corpora.load_tokenizer(store)
    except InputError as wrong:
        done.findings.append(as_finding(store, wrong))
    except ValueError as broken:
        done.findings.append(unreadable("tokenizer/manifest.json", broken))
    done.lost |= {f"tokenizer/{name}": "" for name in ("manifest.json", "tokenizer.json")}
    return None


def _tokenizer_of(
    store: Store,
    done: Verification,
    manifest: corpora.CorpusManifest,
    first: corpora.RunTokenizer,
) -> corpora.RunTokenizer:
    """Return the run's tokenizer that a corpus was tokenised with; the first one for none."""
    if first.is_named(manifest.tokenizer):
        return first
    brought = done.story.state.extensions.values()
    folders = [its.folder for its in brought if its.fingerprint == manifest.tokenizer]
    if not folders:
        return first  # which is not the one that the corpus names
    try:
        return corpora.load_tokenizer(store, folders[-1])
    except InputError as wrong:
        done.findings.append(as_finding(store, wrong))
        done.lost |= {f"{folders[-1]}/{file}": "" for file in ("manifest.json", "tokenizer.json")}
        return first


def _corpus_files(manifest: CorpusManifest) -> Iterator[ReadTask]:
    from perennial.corpora.manifest import (
        DocumentsFile,
        HoldoutFile,
        QuarantineFile,
        Shard,
        StoredFile,
    )

    readers: dict[type[StoredFile], Reader] = {
        Shard: read_shard,
        DocumentsFile: read_documents,
        HoldoutFile: read_holdout,
        QuarantineFile: read_quarantine,
    }
    for file in manifest.files:
        key = f"corpora/{manifest.name}/{file.file}"
        yield ReadTask(key, file.size_bytes, file.sha256, readers.get(type(file)))


def _origins(store: Store, done: Verification, committed: set[str]) -> Iterator[ReadTask]:
    """Check the manifests of the models that the trunk starts from, and yield their files."""
    imported = {origin.folder: origin.imported for origin in done.story.state.origins.values()}
    for folder in sorted({key for key in committed if key.startswith("models/")} | imported.keys()):
        where = f"{folder}/{MANIFEST}"
        try:
            manifest, sha256 = read_initial(store, folder)
        except (FileNotFoundError, Damaged) as broken:
            done.findings.append(unreadable(where, broken))
            done.lost[where] = imported[folder].manifest if folder in imported else ""
            continue
        if folder in imported:
            done.findings += unequal(where, {"sha256": (sha256, imported[folder].manifest)})
        for name, digest in manifest.files.items():
            key = f"{folder}/{name}"
            # Its manifest knows no sizes; a file of another size has another digest.
            size = store.info(key).size_bytes if store.exists(key) else 0
            yield ReadTask(key, size, digest)


def _skips(store: Store, done: Verification) -> None:
    """Read the skipped batches of every stage, release and trial."""
    state = done.story.state
    branches = [f"branches/{name}" for name in (*state.branches, *state.searches.trials)]
    for folder in (*(stage.folder for stage in state.started_stages), *branches):
        try:
            done.skipped[folder] = tuple(skip.step for skip in read_skips(store, folder))
        except Damaged as broken:
            done.findings.append(Finding(broken.key, broken.problem, "restore it"))
            done.lost[broken.key] = ""


def _checkpoints(store: Store, done: Verification, committed: set[str]) -> Iterator[ReadTask]:
    """Check the manifests of all checkpoints in the store or the ledger, and yield their files."""
    plans = _planned_folders(done)
    folders = {key for key in committed if key.startswith(("checkpoints/", "branches/"))}
    folders |= set(done.story.state.ends.values())
    folders |= set(checks.list_awaited(done.story.state, folders))
    for key in sorted(folders):
        if done.story.state.store.is_absent(key):
            continue
        try:
            manifest = CheckpointManifest.model_validate_json(store.read(f"{key}/{MANIFEST}"))
        except (FileNotFoundError, ValueError) as broken:
            done.findings.append(unreadable(f"{key}/{MANIFEST}", broken))
            done.lost[f"{key}/{MANIFEST}"] = ""
            continue
        done.checkpoints[key] = manifest
        for finding in checkpoint_checks.check_ledger_position(key, manifest, done.story):
            # All checkpoints of a job began behind one entry.
            if finding.key not in {other.key for other in done.findings}:
                done.findings.append(finding)
        plan = plans.get(key.rpartition("/")[0])
        if plan is not None:
            done.findings += checkpoint_checks.check_checkpoint(key, manifest, plan)
        elif key.startswith("checkpoints/") and not done.story.findings:
            started = ", ".join(s.name for s in done.story.state.started_stages) or "none"
            done.findings.append(
                Finding(key, "belongs to no stage of the ledger", f"its stages are {started}")
            )
        yield from _files(place_of(key, manifest.attempt), manifest.files)


def _planned_folders(done: Verification) -> dict[str, checks.PlannedFolder]:
    spec = done.story.state.spec
    if spec is None:
        return {}
    length = field_of(spec, "corpora.sequence_length")
    assert isinstance(length, int), "the resolved run file was checked when it was written"
    return checks.plan_folders(done.story.state, length, done.skipped)


def _files(folder: str, files: Mapping[str, FileEntry]) -> Iterator[ReadTask]:
    for name, entry in files.items():
        reader = read_metrics if name == METRICS else None
        yield ReadTask(f"{folder}/{name}", entry.size_bytes, entry.sha256, reader)


def _releases(store: Store, done: Verification, committed: set[str]) -> Iterator[ReadTask]:
    """Check every release against the checkpoint that it was exported from, and yield its files."""
    folders = {key for key in committed if key.startswith("releases/")}
    folders |= {release.folder for release in done.story.state.releases}
    done.releases = len(folders)
    for folder in sorted(folders):
        where = f"{folder}/{MANIFEST}"
        try:
            manifest = parse_json(store.read(where))
            files = {n: FileEntry.model_validate(e) for n, e in manifest["files"].items()}
            source = str(manifest["checkpoint"])
            manifest["tokens_seen"] = dict(manifest["tokens_seen"])
        except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError) as broken:
            done.findings.append(unreadable(where, broken))
            done.lost[where] = ""
            continue
        checkpoint = done.checkpoints.get(source)
        branch = done.story.state.branches.get(folder.removeprefix("releases/"))
        averaged = branch is not None and branch.average is not None
        if branch is not None and averaged:
            plan = _planned_folders(done).get(done.story.state.stage(branch.stage).folder)
            done.findings += check_averaged_files(
                store, where, branch, manifest, files, done.checkpoints, plan
            )
        if checkpoint is None:
            is_gone = averaged or done.story.state.store.is_absent(source)
            if not is_gone:  # an average outlives the checkpoints that it is of
                right = "it is exported from a checkpoint that is committed"
                done.findings.append(Finding(where, f"its checkpoint {source} is missing", right))
        else:
            for name in (name for name in files if name in checkpoint.files):
                if averaged and is_weights(name):
                    continue
                digests = (files[name].sha256, checkpoint.files[name].sha256)
                place = checkpoint.key_of(source, name)
                if not _says_as_much(store, f"{folder}/{name}", place):
                    done.findings += unequal(where, {f"sha256 of {name}": digests})
            done.findings += checkpoint_checks.check_released_tokens(where, manifest, checkpoint)
        yield from _files(folder, files)


def _says_as_much(store: Store, released: str, trained: str) -> bool:
    """Return whether a release's configuration has all that its checkpoint's says.

    A release adds the spellings of other programs, and turns the cache on.
    """
    if not released.endswith("config.json"):
        return False
    try:
        its, source = (parse_json(store.read(key)) for key in (released, trained))
        return all(its[name] == source[name] for name in source if name != "use_cache")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _read_all(
    store: Store, done: Verification, tasks: list[ReadTask], progress: Progress
) -> dict[str, FileRead]:
    """Read every file, and return its size, digest and contents by key."""
    # Before the threads: of two first imports at once, one may find half a module.
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    total = sum(task.size_bytes for task in tasks)
    results: dict[str, FileRead] = {}
    read = partial(_read, store)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for task, result in zip(tasks, pool.map(read, tasks), strict=True):
            done.files += 1
            done.read_bytes += result.size_bytes or 0
            faults = list(check_read(task.key, task.size_bytes, task.sha256, result))
            done.findings += faults
            if faults:
                done.lost[task.key] = task.sha256
            results[task.key] = result
            progress(task.key, done.read_bytes, total)
    return results


def _read(store: Store, task: ReadTask) -> FileRead:
    place, key = task.place or (store, task.key)
    result = read_file(place, key, task.reader)
    if (result.size_bytes, result.sha256) == (task.size_bytes, task.sha256):
        return result
    # Once more: a proxy or a torn read can spoil one transfer of a sound object.
    return read_file(place, key, task.reader)


def _check_contents(done: Verification, files: Mapping[str, FileRead]) -> Iterator[Finding]:
    """Check the contents of the files against their manifests, unreadable files aside."""
    contents = {key: file.contents for key, file in files.items() if file.contents is not None}
    for name, manifest in done.manifests.items():
        folder = f"corpora/{name}"
        for shard in manifest.shards:
            rows = contents.get(f"{folder}/{shard.file}")
            if isinstance(rows, ShardContents):
                yield from check_shard(f"{folder}/{shard.file}", shard, manifest, rows)
        landed = done.story.state.corpora.get(name)
        if landed is not None and landed.listing is not None:
            files_of = contents.get(landed.listing.key)
            if isinstance(files_of, FileListContents):
                yield from check_inputs(f"{folder}/{MANIFEST}", manifest, files_of)
        records = (*manifest.documents, *manifest.holdout, *manifest.quarantine)
        held = [contents[key] for f in records if (key := f"{folder}/{f.file}") in contents]
        if len(held) == len(records) and not manifest.erased:
            yield from check_contents(f"{folder}/{MANIFEST}", manifest, held)
    plans = _planned_folders(done)
    for key, checkpoint in sorted(done.checkpoints.items()):
        folder = key.rpartition("/")[0]
        where = checkpoint.key_of(key, METRICS)
        metrics = contents.get(where)
        if folder in plans and isinstance(metrics, MetricsContents):
            yield from checkpoint_checks.check_metrics(where, checkpoint, plans[folder], metrics)
