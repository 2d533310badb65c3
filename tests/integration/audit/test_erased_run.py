"""A finished run of which a corpus, or documents, are erased, in a folder and a bucket, killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perennial
from perennial.audit.verify import verify
from perennial.cli.app import app
from perennial.controller import release as releases
from perennial.controller.context import Workspace
from perennial.controller.erasing import erase as erasing
from perennial.controller.erasing.erase import Erasure, erase, plan_erase
from perennial.controller.source_poller import utc_now
from perennial.corpora import load_tokenizer, read_holdout, read_manifest
from perennial.corpora.document_spans import DocumentSpan, read_spans
from perennial.corpora.erasing.tombstone import key_of
from perennial.errors import Busy, InputError
from perennial.evaluation.kept_samples import keep_samples
from perennial.evaluation.samples import Sample
from perennial.runs.events import Evaluated
from perennial.runs.job_factory import stage_job
from perennial.runs.lease import announce, hold_alone
from perennial.runs.ledger import Ledger, now
from perennial.sources import DataSource
from perennial.store import Store, open_run_store, open_store
from tests.integration.audit.conftest import filled
from tests.integration.audit.test_verify import RELEASE
from tests.support.small_ledger import objects
from tests.support.tiny_run import tiny_run, write_run

HELP_END, CODE_END = "checkpoints/00-help/00000012", "checkpoints/01-code/00000024"
STEPS = ("write_manifest", "record", "sweep")


def _findings(store: Store) -> list[str]:
    return [str(finding) for finding in verify(store).findings]


def _work(store: Store) -> Workspace:
    work = Workspace(perennial.open(store.url).spec, store.url)
    work.check_run()
    return work


def _erase(store: Store, corpus: str, documents: Path | None = None) -> Erasure:
    work = _work(store)
    try:
        return erase(work, corpus, documents)
    finally:
        work.close()


def _spans(store: Store, corpus: str) -> list[DocumentSpan]:
    manifest = read_manifest(store, corpus)
    return list(read_spans(store, manifest, range(manifest.rows)))


def _beside_the_ledger(store: Store) -> set[str]:
    """Keys without the ledger, which also has who took charge."""
    return {key for key in objects(store) if not key.startswith("ledger/")}


def _named(folder: Path, *digests: str) -> Path:
    path = folder / "documents.txt"
    path.write_text("".join(f"{digest}\n" for digest in digests))
    return path


def _held_out_text(store: Store, corpus: str) -> str:
    decoder = load_tokenizer(store).build()
    document = next(iter(read_holdout(store, read_manifest(store, corpus))))
    return decoder.decode(document.tokens[:-1].tolist(), skip_special_tokens=False)


def _keep_around(store: Store, corpus: str) -> list[str]:
    """What else a run has of a corpus's text, as keys."""
    (held,) = keep_samples(store, [Sample(corpus, "a beginning", "of a held-out document")])
    keys = [
        f"evaluations/{HELP_END}/{corpus}.parquet",
        f"evaluations/{HELP_END}/tasks/continuation_{corpus}-acc-01234567.json",
        f"failures/{corpus}/000000000003-attempt-1.txt",
        f"refused/{corpus}/quarantine-00000.jsonl",
        f"aside/corpora/{corpus}/shard-00000.parquet-012345678901",
        f"inbox/{corpus}/{corpus}.jsonl",
        f"inbox/{corpus}/_SUCCESS",
        "report/report.html",
    ]
    for key in keys:
        store.write(key, b"text")
    return [*keys, getattr(held, "key", "")]


def test_a_corpus_is_erased_and_what_was_trained_on_it_is_listed(store: Store) -> None:
    around, rows = _keep_around(store, "help"), read_manifest(store, "help").rows
    before = objects(store)
    planned = plan_erase(_work(store), "help")
    assert objects(store) == before
    done = _erase(store, "help")
    after = objects(store)
    assert {*planned.removed} == {*done.removed} == before.keys() - after.keys()
    assert {*around} <= {*done.removed}
    assert [key for key in after if key.startswith("corpora/help/")] == [
        "corpora/help/manifest.json"
    ]
    assert _findings(store) == []
    assert (done.whole, done.stages) == (True, {"00-help": 1, "01-code": 13})
    assert {HELP_END, CODE_END} <= {*done.checkpoints}
    assert done.releases == (RELEASE.removeprefix("releases/"),)
    assert any("weights" in words for words in done.kept)
    assert read_manifest(store, "help").rows == rows
    state = Ledger(store).read()
    assert {name: corpus.state for name, corpus in state.corpora.items()} == {
        "help": "erased", "code": "passed",
    }  # fmt: skip
    assert state.retired == ("help",)
    assert _erase(store, "help").removed == ()
    assert _beside_the_ledger(store) == {key for key in after if not key.startswith("ledger/")}


def test_documents_are_erased_and_their_rows_keep_their_numbers(
    store: Store, tmp_path: Path
) -> None:
    manifest, spans = read_manifest(store, "code"), _spans(store, "code")
    around = _keep_around(store, "code")
    wanted = {span.digest for span in spans[::40]}
    file = _named(tmp_path, *wanted)
    before = objects(store)
    planned = plan_erase(_work(store), "code", file)
    assert objects(store) == before
    done = _erase(store, "code", file)
    assert (planned.documents, planned.removed) == (done.documents, done.removed)
    assert (done.whole, done.documents, done.held_out) == (False, len(wanted), 0)
    assert {*done.removed} == before.keys() - objects(store).keys()
    assert f"evaluations/{HELP_END}/code.parquet" not in done.removed, "no held-out one is gone"
    assert "inbox/code/code.jsonl" in done.removed
    assert around[-1] not in done.removed
    assert _findings(store) == []
    assert _spans(store, "code") == [span for span in spans if span.digest not in wanted]
    after = read_manifest(store, "code")
    assert (after.rows, after.counts.erased_documents) == (manifest.rows, len(wanted))
    assert done.stages.keys() == {"01-code"}
    again = _erase(store, "code", file)
    assert (again.documents, again.removed) == (len(wanted), ())
    assert read_manifest(store, "code").digest == after.digest


def test_what_was_killed_leaves_no_text_beside_the_corpus(local: Store, tmp_path: Path) -> None:
    """Of an ingest, of an erasure of other documents, and of a source's landing."""
    feed, folder = tmp_path / "feed", "sources/feed/pulled/000000-0badc0de"
    feed.mkdir()
    (feed / "a.jsonl").write_text('{"text": "a letter"}\n' * 9)
    sources = {"feed": {"prefix": str(feed), "schedule": "1d"}}
    run_file = write_run(tmp_path, tiny_run(tmp_path, local.url) | {"sources": sources})
    spec = perennial.open(run_file).spec
    DataSource("feed", spec.sources["feed"], local, local.sub("inbox"), 1).run_due(utc_now(), print)
    strays = [
        "corpora/help/staging-0123456789abcdef/piece",
        "corpora/help/shard-00001-erased-0000.parquet",
        "failures/help/000000000003-attempt-1.txt",
        "aside/inbox/help/help.jsonl-012345678901",
        f"{folder}/a.jsonl",
    ]
    for key in strays:
        local.write(key, b"text")
    document = _named(tmp_path, _spans(local, "help")[0].digest)
    planned = perennial.open(run_file).plan_erase("help", document)
    work = Workspace(spec, str(run_file))
    work.check_run()
    done = erase(work, "help", document)
    work.close()
    assert not [key for key in strays if local.exists(key) and key not in {*_files_of(local)}]
    assert {*strays[:1], *strays[2:4]} <= {*done.removed}
    assert {*planned.removed} >= {*done.removed}
    assert _findings(local) == []


def _files_of(store: Store) -> list[str]:
    return [f"corpora/help/{file.file}" for file in read_manifest(store, "help").files]


def test_a_held_out_document_takes_samples_and_losses_with_it(local: Store, tmp_path: Path) -> None:
    around = _keep_around(local, "help")
    file = tmp_path / "documents.jsonl"
    file.write_text(json.dumps({"text": _held_out_text(local, "help")}) + "\n")
    held = read_manifest(local, "help").counts.held_out_documents
    done = _erase(local, "help", file)
    assert (done.documents, done.held_out, done.stages) == (1, 1, {})
    assert {around[0], around[-1], "inbox/help/help.jsonl"} <= {*done.removed}
    assert read_manifest(local, "help").counts.held_out_documents == held - 1
    assert _findings(local) == []


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("whole", [True, False], ids=["corpus", "documents"])
def test_what_was_killed_is_completed_by_repeating_it(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, whole: bool
) -> None:
    file = None if whole else _named(tmp_path, *{span.digest for span in _spans(local, "code")[:9]})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    place: Any = Workspace if at == "record" else erasing
    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(place, at, killed)
        _erase(local, "code", file)
    assert any("repeat `perennial erase`" in line for line in _findings(local))
    documents = _erase(local, "code", file).documents
    assert _findings(local) == []
    other = filled(open_store(tmp_path / "other"), objects(local))
    assert _erase(other, "code", file).documents == documents
    assert Ledger(local).read().corpora["code"].erasures == 1


def test_a_stage_goes_on_over_the_rows_of_an_erased_corpus(local: Store) -> None:
    """Its plan is what it was (I2), and no loss is taken of what is erased."""
    perennial.open(local.url).rewind("01-code@17")
    done = _erase(local, "help")
    assert done.leaves == ""
    state = Ledger(local).read()
    stage = state.stage("01-code")
    work = _work(local)
    job = stage_job(work.spec, state, stage, work.manifests())
    assert (job.padded, job.mix, job.old) == (True, stage.mix, ())
    assert job.layouts["help"].erased
    work.close()


def test_an_unfinished_stage_leaves_the_trunk_with_its_corpus(local: Store) -> None:
    perennial.open(local.url).rewind("00-help")
    perennial.open(local.url).retry("code")
    work = _work(local)
    work.take_charge()
    from perennial.controller.loop import _Controller

    controller = _Controller(work, reschedule=False)
    action = controller.next()
    assert action is not None
    controller.perform(action)
    assert work.state.at_work is not None
    work.close()
    done = _erase(local, "code")
    assert done.leaves == "02-code"
    assert [stage.name for stage in Ledger(local).read().stages] == ["00-help"]
    assert _findings(local) == []


def test_a_controller_that_lives_is_not_overruled(local: Store) -> None:
    work = _work(local)
    work.take_charge()
    before = objects(local)
    with pytest.raises(Busy):
        _erase(local, "help")
    done = CliRunner().invoke(app, ["erase", local.url, "help", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["error"]["code"]) == (3, "busy")
    assert objects(local) == before
    work.close()


def test_who_releases_and_who_erases_exclude_each_other(local: Store) -> None:
    """What a release writes behind the sweep, such as samples, would stay."""
    beside = _work(local)
    with beside.beside():
        with pytest.raises(Busy, match="releases or measures this run"):
            _erase(local, "code")
        with pytest.raises(Busy), hold_alone(local, "gc", now()):
            pass
    assert Ledger(local).read().corpora["code"].state != "erased"
    with announce(local, "erase", now()):
        with pytest.raises(Busy):
            releases.release(beside, "00-help")
        with pytest.raises(Busy):
            releases.evaluate(beside)
    beside.close()
    _erase(local, "code")
    assert _findings(local) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["none"], "corpus-missing"),
        (["help", "--documents", "nowhere.txt"], "documents-unreadable"),
        (["help", "--documents", "."], "documents-unreadable"),
        (["help", "--documents", "missing.txt"], "document-missing"),
        (["help", "--documents", "wrong.txt"], "documents-unreadable"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_lost(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    known = _spans(local, "help")[0].digest
    Path("missing.txt").write_text(f"{known}\n{'0' * 16}\n")
    Path("wrong.txt").write_text(f"{known}\nsomebody\n")
    before = objects(local)
    for more in ([], ["--dry-run"]):
        done = CliRunner().invoke(app, ["erase", local.url, *words, *more, "--json"])
        assert (done.exit_code, json.loads(done.stdout)["error"]["code"]) == (2, code)
    assert objects(local) == before


def test_all_held_out_documents_are_not_erased_without_the_corpus(
    local: Store, tmp_path: Path
) -> None:
    decoder, file = load_tokenizer(local).build(), tmp_path / "all.jsonl"
    texts = [
        decoder.decode(document.tokens[:-1].tolist(), skip_special_tokens=False)
        for document in read_holdout(local, read_manifest(local, "help"))
    ]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = CliRunner().invoke(app, ["erase", local.url, "help", "--documents", str(file), "--json"])
    assert json.loads(done.stdout)["error"]["code"] == "nothing-left-held-out"


def test_verify_finds_what_came_back_and_a_tombstone_that_is_lost(local: Store) -> None:
    before = objects(local)
    _erase(local, "help")
    shard = next(key for key in before if key.startswith("corpora/help/shard-"))
    local.write(shard, before[shard])
    assert any(f"{shard}: is erased, and is there" in line for line in _findings(local))
    local.remove(shard)
    assert _findings(local) == []
    manifest = local.read("corpora/help/manifest.json")
    local.write("corpora/help/manifest.json", before["corpora/help/manifest.json"])
    assert any("its manifest has" in line for line in _findings(local))
    local.write("corpora/help/manifest.json", manifest)
    local.remove(key_of("help", 0))
    assert any("is missing or altered" in line for line in _findings(local))


def test_samples_of_the_ledger_are_checked_until_they_are_erased(local: Store) -> None:
    ledger = Ledger(local)
    ledger.read()
    held = keep_samples(local, [Sample("code", "def", " f(): pass")])
    event = Evaluated(at="2026-01-01T00:00:00+00:00", corpus="code", losses={}, samples=held)
    from perennial.audit.checks import FoldedLedger
    from perennial.audit.erasures import check_erasures

    story = FoldedLedger(events=[event])
    assert list(check_erasures(local, story)) == held


def test_a_document_is_traced_to_every_model_that_saw_it(local: Store, tmp_path: Path) -> None:
    run, span = perennial.open(local.url), _spans(local, "help")[0]
    (place,) = run.trace_document(span.digest).places
    assert (place.corpus, place.held_out, place.erased) == ("help", 0, False)
    assert {its.digest for its in place.spans} == {span.digest}
    assert "00-help" in place.stages
    assert HELP_END in place.checkpoints
    assert place.releases == (RELEASE.removeprefix("releases/"),)
    text = tmp_path / "text"
    text.write_text(_held_out_text(local, "help") + "\n")
    (held,) = run.trace_text(text).places
    assert (held.held_out, held.stages, held.checkpoints, held.releases) == (1, {}, (), ())
    _erase(local, "help", _named(tmp_path, span.digest))
    (gone,) = run.trace_document(span.digest).places
    assert (gone.erased, gone.spans) == (True, ())
    assert (gone.stages, gone.releases) == (place.stages, place.releases)
    done = CliRunner().invoke(app, ["trace", local.url, "--document", span.digest])
    assert "help: erased" in done.stdout
    assert f"in        {HELP_END}" in done.stdout


def test_a_step_is_traced_beside_what_is_erased(local: Store) -> None:
    run = perennial.open(local.url)
    before = run.trace_step(20).documents
    assert before["help"]
    _erase(local, "help")
    assert run.trace_step(20).documents == before | {"help": []}
    assert run.trace("help", [0]).documents == {"help": []}
    lines = CliRunner().invoke(app, ["trace", local.url, "--step", "20"]).stdout.splitlines()
    assert "help: erased" in lines


def test_a_release_is_traced_to_its_corpora_and_their_tokens(local: Store) -> None:
    name = RELEASE.removeprefix("releases/")
    manifest = json.loads(local.read(f"{RELEASE}/manifest.json"))
    traced = perennial.open(local.url).trace_release(name)
    assert (traced.stages, traced.erased) == (("00-help", "01-code"), ())
    assert traced.tokens == manifest["tokens_seen"]
    _erase(local, "help")
    assert perennial.open(local.url).trace_release(name).erased == ("help",)
    lines = CliRunner().invoke(app, ["trace", local.url, "--release", name]).stdout
    assert f"help: {traced.tokens['help']:,} tokens, erased since" in lines


def test_what_a_fork_borrows_is_erased_in_the_fork_first(store: Store, tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path, f"{store.url}-fork") | {"name": "other"})
    perennial.open(store.url).fork("01-code", perennial.open(run_file))
    before = objects(store)
    with pytest.raises(InputError, match=f"the run in {store.url}-fork borrows it") as refused:
        _erase(store, "help")
    assert refused.value.code == "corpus-lent"
    assert objects(store) == before

    documents = _named(tmp_path, _spans(store, "help")[0].digest)
    fork = open_run_store(f"{store.url}-fork")
    assert _erase(fork, "help", documents).documents == 1
    own = objects(open_store(fork.url))
    assert [key for key in own if key.startswith("corpora/help/")]
    assert not [key for key in own if key.startswith("corpora/code/")], "the rest stays borrowed"
    changed = {key for key, its in objects(store).items() if before.get(key) != its}
    assert changed == {info.key for info in store.list("pins")}
    assert _findings(open_run_store(fork.url)) == _findings(store) == []

    kept = _erase(store, "help").kept
    assert f"what the fork in {fork.url} has of it as its own: erase it there too" in kept
    assert not store.list("corpora/help/")[1:], "its manifest is all that is left"
    assert _findings(open_run_store(fork.url)) == _findings(store) == []
