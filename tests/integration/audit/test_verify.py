"""`verify` proves a run from its store, and finds what was planted in it (I4, I5, I6, I8)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perennial.audit.verify import verify
from perennial.corpora import read_landed, read_manifest, record_list
from perennial.corpora.file_list import ListedFile, encode_list
from perennial.corpora.manifest import CorpusManifest, QuarantineFile
from perennial.errors import InputError
from perennial.runs.event_codec import encode
from perennial.runs.events import Landed
from perennial.runs.ledger import HEAD
from perennial.store import Log, Store, open_store
from perennial.training.checkpoint.manifest import MANIFEST
from tests.integration.audit.conftest import filled
from tests.support.cli import perennial, perennial_json, start
from tests.support.ledger_files import rechain
from tests.support.synthetic_run import ATTEMPT
from tests.support.tiny_run import tiny_run, write_run

STAGES = ("checkpoints/00-help", "checkpoints/01-code")
END = "checkpoints/01-code/00000024"
END_FILES = f"{END}/{ATTEMPT}"
RELEASE = "releases/01-code-24-anneal4"


def drop_line(store: Store, key: str) -> None:
    """Forget the first line of a file."""
    store.write(key, store.read(key).partition(b"\n")[2])


def flip(store: Store, key: str, at: float = 0.5) -> None:
    """Alter one bit of a file."""
    data = bytearray(store.read(key))
    data[int(len(data) * at)] ^= 1
    store.write(key, bytes(data))


def edit(store: Store, key: str, change: Callable[[Any], None]) -> None:
    """Change a JSON object."""
    content = json.loads(store.read(key))
    change(content)
    store.write(key, json.dumps(content).encode())
    if key.startswith("ledger/"):
        rechain(store)


def edit_mix(store: Store, change: Callable[[Any], None]) -> None:
    """Change the mix of the second stage everywhere it is told."""
    edit(store, event_key(store, "started", "code"), lambda event: change(event["mix"]))
    for info in store.list(STAGES[1]):
        if info.key.endswith("manifest.json"):
            edit(store, info.key, lambda manifest: change(manifest["mix"]))


def event_key(store: Store, kind: str, corpus: str) -> str:
    """The ledger object of a corpus's event."""
    log = Log(store, "ledger")
    events = {key: json.loads(data) for key, data in log.entries().items()}
    return next(k for k, e in events.items() if (e["kind"], e.get("corpus")) == (kind, corpus))


def append(store: Store, event: dict[str, Any]) -> None:
    """Write an event that no ledger would let through."""
    number = max(Log(store, "ledger").numbers()) + 1
    store.write(f"ledger/{number:012d}.json", json.dumps(event).encode())
    rechain(store)


def copy(store: Store, source: str, target: str) -> None:
    objects = {i.key.replace(source, target): store.read(i.key) for i in store.list(source)}
    filled(store, objects)


def reseal(store: Store, name: str, **changes: object) -> None:
    """Change a corpus's manifest as somebody would who covers it up: digests and ledger too."""
    old = read_manifest(store, name)
    new = CorpusManifest.model_validate(old.model_dump() | changes).sealed()
    store.write(f"corpora/{name}/manifest.json", new.model_dump_json().encode())
    key = event_key(store, "ready", name)
    edit(store, key, lambda event: event.update(digest=new.digest))


def drop_quarantine_line(store: Store, cover_up: bool) -> None:
    file = read_manifest(store, "help").quarantine[0]
    lines = store.read(f"corpora/help/{file.file}").splitlines(keepends=True)
    data = b"".join(lines[:-1])
    store.write(f"corpora/help/{file.file}", data)
    if cover_up:
        digest = hashlib.sha256(data).hexdigest()
        changed = QuarantineFile(
            file=file.file, size_bytes=len(data), sha256=digest, records=file.records
        )
        rest = read_manifest(store, "help").quarantine[1:]
        reseal(store, "help", quarantine=(changed, *rest))


def in_the_first_schema(store: Store) -> None:
    """Rewrite the ledger and the checkpoints as a version wrote them that knew no merged stages."""

    def older(content: Any) -> None:
        if "schema" in content:
            content["schema"] = 1
            content.pop("before", None)
        if content.get("mix"):
            (content["mix"]["corpus"],) = content["mix"].pop("corpora")

    for info in store.list():
        if info.key == HEAD:
            store.remove(HEAD)
            continue
        folder, name = info.key.split("/")[0], info.key.split("/")[-1]
        if folder == "ledger" or (folder in ("checkpoints", "branches") and name == MANIFEST):
            edit(store, info.key, older)


def listing_of(store: Store, corpus: str) -> dict[str, Any]:
    """What the ledger holds of the list with which a corpus landed."""
    event: dict[str, Any] = json.loads(store.read(event_key(store, "landed", corpus)))
    listing: dict[str, Any] = event["listing"]
    return listing


def land_another(store: Store, change: Callable[[Store], object]) -> None:
    """Let a corpus land that is not ingested yet, and change it in the inbox."""
    inbox = store.sub("inbox")
    files = {"a.jsonl": b'{"text": "one"}\n', "b.jsonl": b'{"text": "two"}\n'}
    listed = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    filled(inbox, {f"later/{name}": data for name, data in files.items()})
    inbox.write("later/_SUCCESS", json.dumps({"files": listed}).encode())
    record = record_list(store, inbox, read_landed(inbox, "later"))
    assert record is not None
    event = Landed(at="2026-01-01T00:00:00+00:00", corpus="later", size_bytes=32, listing=record)
    append(store, json.loads(encode(event)))
    change(inbox)


def overwrite_letters(inbox: Store) -> None:
    inbox.write("later/b.jsonl", b'{"text": "owt"}\n')


def land_other_files(store: Store) -> None:
    """Let the ledger say that a corpus landed with a file that was not ingested."""
    key = event_key(store, "landed", "code")
    data = encode_list([ListedFile("other.jsonl", 3, "0" * 64)])
    digest = hashlib.sha256(data).hexdigest()
    store.write(f"landed/{digest}.json", data)
    listing = {"sha256": digest, "size_bytes": len(data), "files": 1, "promised": True}
    edit(store, key, lambda event: event.update(listing=listing))


def repeat_stage(store: Store) -> None:
    append(store, json.loads(store.read(event_key(store, "started", "help"))))


def shift_replay(mix: Any) -> None:
    mix["sources"][1]["start"] += 1


def swap_shares(mix: Any) -> None:
    mix["sources"][0]["sequences"] -= 8
    mix["sources"][1]["sequences"] += 8
    mix["sources"][1]["extent"] += 8


def lose_documents(store: Store) -> None:
    counts = read_manifest(store, "code").counts.model_dump()
    reseal(store, "code", counts=counts | {"trained_documents": counts["trained_documents"] - 1})


def set_tokens(manifest: Any) -> None:
    manifest["tokens_seen"]["help"] += 32


@dataclass(frozen=True)
class Fault:
    """A fault, and what verify must say: the keys of its findings, and words in them."""

    plant: Callable[[Store], object]
    keys: tuple[str, ...]
    says: str


SHARD = "corpora/code/shard-00000.parquet"
FAULTS = {
    "an altered list of what landed": Fault(
        lambda s: s.write(f"landed/{listing_of(s, 'code')['sha256']}.json", b"[]"),
        ("landed/", "corpora/code/manifest.json"),
        "has 2 bytes, sha256",
    ),
    "a missing list of what landed": Fault(
        lambda s: s.remove(f"landed/{listing_of(s, 'code')['sha256']}.json"),
        ("landed/",),
        "is missing; its manifest has",
    ),
    "a corpus of other files than landed": Fault(
        land_other_files, ("corpora/code/manifest.json",) * 2, "inputs: other.jsonl: vanished"
    ),
    "letters of a file that waits in the inbox": Fault(
        lambda s: land_another(s, overwrite_letters),
        ("inbox/later/b.jsonl",),
        r"has 16 bytes, sha256 \w+; its manifest has 16 bytes",
    ),
    "a lost file that waits in the inbox": Fault(
        lambda s: land_another(s, lambda inbox: inbox.remove("later/a.jsonl")),
        ("inbox/later/a.jsonl",),
        "vanished: its marker's list has 16 bytes, sha256",
    ),
    "a missing shard": Fault(lambda s: s.remove(SHARD), (SHARD,), "is missing; .* bytes, sha256"),
    "an altered row": Fault(
        lambda s: flip(s, SHARD), (SHARD,), r"has (\d+) bytes, sha256 \w+; its manifest has \1 byt"
    ),
    "a cut shard": Fault(
        lambda s: s.write(SHARD, s.read(SHARD)[:-100]), (SHARD, SHARD), "bytes, sha256"
    ),
    "a dropped quarantine line": Fault(
        lambda s: drop_quarantine_line(s, cover_up=False),
        (r"corpora/help/quarantine-\d+.jsonl", "corpora/help/manifest.json", "corpora/help/manif"),
        "bytes, sha256",
    ),
    "a dropped quarantine line, covered up": Fault(
        lambda s: drop_quarantine_line(s, cover_up=True),
        ("corpora/code/manifest.json", "corpora/help/manifest.json", "corpora/help/manifest.json"),
        "quarantine records: the files hold 1; the counts say 2",
    ),
    "documents that nobody accounts for": Fault(
        lose_documents,
        ("corpora/code/manifest.json",) * 3,
        "documents and .* are accounted for",
    ),
    "an altered corpus manifest": Fault(
        lambda s: edit(s, "corpora/code/manifest.json", lambda m: m.update(vocabulary=1)),
        ("corpora/code/manifest.json",),
        "digest: the content was altered",
    ),
    "lost digests of a corpus's texts": Fault(
        lambda s: s.remove("corpora/help/" + read_manifest(s, "help").digests[0].file),
        ("corpora/help/",),
        "is missing",
    ),
    "an earlier corpus that was ingested anew": Fault(
        lambda s: reseal(s, "help", engine="tokenizers"),
        ("corpora/code/manifest.json",),
        "help's digest: it has",
    ),
    "a corpus without its manifest": Fault(
        lambda s: s.remove("corpora/code/manifest.json"),
        # Not tokenised, it has to be in the inbox, which was cleared.
        ("inbox/code", "corpora/code/manifest.json"),
        "was not ingested",
    ),
    "another tokenizer": Fault(
        lambda s: edit(s, "tokenizer/tokenizer.json", lambda t: t.update(version="2")),
        ("tokenizer/tokenizer.json",),
        "not the tokenizer",
    ),
    "a repeated stage": Fault(
        repeat_stage, ("ledger/0000000000",), "help is passed and cannot be 'started'"
    ),
    "a stage that nobody started": Fault(
        lambda s: copy(s, STAGES[0], "checkpoints/02-help"),
        ("checkpoints/02-help/",) * 5,
        "belongs to no stage of the ledger; its stages are 00-help, 01-code",
    ),
    "a replay from another place": Fault(
        lambda s: edit_mix(s, shift_replay),
        ("ledger/", "ledger/"),
        "01-code takes .* of help from 1 of 96 .*; its history gives .* of help from 0 of 96",
    ),
    "a share that the stage does not replay": Fault(
        lambda s: edit_mix(s, lambda mix: mix["replay"].update(share=0.5)),
        ("ledger/", "ledger/"),
        r"24 sequences of help .*share 0.5\); its history gives .* 48 sequences of help",
    ),
    "a mix that the stage did not train": Fault(
        lambda s: edit(s, f"{END}/manifest.json", lambda m: swap_shares(m["mix"])),
        (f"{END}/manifest.json",),
        "mix: it has .*; it should be",
    ),
    "a mix that is not full": Fault(
        lambda s: edit(s, event_key(s, "started", "code"), lambda e: e["mix"].update(steps=11)),
        ("ledger/",),
        "cannot be read .sources give 96 sequences, the stage has 11 x 8",
    ),
    "a damaged checkpoint": Fault(
        lambda s: flip(s, f"{END_FILES}/model.safetensors"),
        (f"{END_FILES}/model.safetensors",),
        "sha256",
    ),
    "a checkpoint without a worker's moments": Fault(
        lambda s: s.remove(f"{END_FILES}/optimizer-01-of-02.safetensors"),
        (f"{END_FILES}/optimizer-01-of-02.safetensors",),
        "is missing",
    ),
    "a checkpoint that names too few files": Fault(
        lambda s: edit(
            s, f"{END}/manifest.json", lambda m: m["files"].pop("optimizer-01-of-02.safetensors")
        ),
        (f"{END}/manifest.json",),
        "names no optimizer-01-of-02",
    ),
    "tokens that the plan does not give": Fault(
        lambda s: edit(s, f"{END}/manifest.json", set_tokens),
        (f"{END}/manifest.json",),
        r'tokens_seen: it has {"help": \d+}; it should be {"help": \d+}',
    ),
    "a stage without its end": Fault(
        lambda s: s.remove(f"{END}/manifest.json"), (f"{END}/manifest.json",), "is missing"
    ),
    "metrics without some steps": Fault(
        lambda s: drop_line(s, f"{END_FILES}/metrics.jsonl"),
        (f"{END_FILES}/metrics.jsonl",) * 2,
        "it has steps 14 to 24; each of 13 to 24 once",
    ),
    "a stage that ends early": Fault(
        lambda s: edit(
            s,
            event_key(s, "trained", "code"),
            lambda e: e.update(checkpoint=f"{STAGES[1]}/00000022", step=22),
        ),
        ("ledger/",),
        "01-code ends at .*22, step 22; its last step is 24",
    ),
    "a ledger gap": Fault(
        lambda s: s.remove("ledger/000000000004.json"),
        ("ledger/000000000004.json",),
        "is missing; there are entries up to",
    ),
    "half an event": Fault(
        lambda s: s.write("ledger/000000000004.json", b'{"kind": "sta'),
        ("ledger/000000000004.json",),
        "cannot be read",
    ),
    "a damaged release": Fault(
        lambda s: flip(s, f"{RELEASE}/README.md"), (f"{RELEASE}/README.md",), "sha256"
    ),
    "a release without its manifest": Fault(
        lambda s: s.remove(f"{RELEASE}/manifest.json"), (f"{RELEASE}/manifest.json",), "is missing"
    ),
    "a release of other weights": Fault(
        lambda s: edit(s, f"{RELEASE}/manifest.json", lambda m: m.update(checkpoint=END)),
        (f"{RELEASE}/manifest.json",) * 2,
        "sha256 of model.safetensors",
    ),
}


def test_I4_I5_I6_I8_a_finished_run_holds(store: Store, finished: dict[str, bytes]) -> None:
    before = store.list()
    seen: list[tuple[str, int, int]] = []
    done = verify(store, lambda *told: seen.append(told))
    assert done.findings == []
    assert [stage.name for stage in done.story.state.stages] == ["00-help", "01-code"]
    assert len(done.checkpoints) > 6
    # All that a manifest names was read, to the last byte.
    named = [k for k in finished if not re.search(r"manifest.json|^ledger|^leases|^tokenizer", k)]
    assert sorted(key for key, _, _ in seen) == sorted(named)
    size = sum(len(finished[key]) for key in named)
    assert (done.files, done.read_bytes, seen[-1][1:]) == (len(named), size, (size, size))
    assert store.list() == before


@pytest.mark.parametrize("name", FAULTS)
def test_I4_I5_I6_I8_a_planted_fault_is_found(store: Store, name: str) -> None:
    fault = FAULTS[name]
    fault.plant(store)
    lines = [str(finding) for finding in verify(store).findings]
    assert len(lines) == len(fault.keys), "\n".join(lines)
    for line, key in zip(lines, fault.keys, strict=True):
        assert re.match(key, line), line
        assert "\n" not in line
    assert re.search(fault.says, "\n".join(lines)), "\n".join(lines)


def test_a_corpus_that_waits_in_the_inbox_holds(store: Store) -> None:
    land_another(store, lambda inbox: inbox.write("later/_ignored", b"x"))
    done = verify(store)
    assert done.findings == []


def test_a_run_of_the_first_schema_holds(local: Store) -> None:
    in_the_first_schema(local)
    assert b'"schema": 1' in local.read(event_key(local, "started", "code"))
    assert verify(local).findings == []


def test_an_unfinished_run_holds(local: Store) -> None:
    """Killed in the second stage: what is not committed is nobody's fault."""
    events = [info.key for info in local.list("ledger")]
    for key in events[events.index(event_key(local, "trained", "code")) :]:
        local.remove(key)
    rechain(local)
    for key in ("releases", "branches", f"{END}/manifest.json"):
        local.remove(key)
    local.write("corpora/later/staging-0/pieces/000000.json", b"{}")
    assert verify(local).findings == []


def test_a_store_without_a_run_is_wrong_input(store_url: str) -> None:
    with pytest.raises(InputError, match="there is no run in it"):
        verify(open_store(store_url))


def test_the_command_proves_and_finds(local: Store, tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path, local.url))
    told = perennial("verify", run_file)
    assert "one corpus, one stage (I4)" in told
    assert re.search(r"read \d+ files, .* MB in .* s: no fault", told)
    document = perennial_json("verify", run_file)
    assert (document["holds"], document["findings"]) == (True, [])


def test_the_command_says_each_fault_in_one_line(local: Store, tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path, local.url))
    local.remove(SHARD)
    repeat_stage(local)
    for options in ((), ("--json",)):
        process = start("verify", run_file, *options)
        told, err = process.communicate()
        assert (process.returncode, err) == (1, "")
        if options:
            findings = json.loads(told)["findings"]
            assert [set(f) for f in findings] == [{"key", "problem", "right"}] * 2
            assert findings[1]["key"] == SHARD
        else:
            lines = told.splitlines()
            assert len(lines) == 3
            assert lines[0].startswith("ledger/")
            assert lines[1].startswith(f"{SHARD}: is missing; its manifest has ")
            assert lines[2].endswith("2 faults")


def test_the_command_refuses_a_store_without_a_run(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    line = perennial("verify", run_file, code=2)
    assert line.count("\n") == 1
    assert "there is no run in it; use `perennial run`" in line
