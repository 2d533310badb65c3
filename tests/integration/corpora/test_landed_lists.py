"""Corpora are their lists, in an inbox of each kind (I8): what is absent or different is named."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from perennial.corpora import (
    IngestSettings,
    LandedCorpus,
    ListRecord,
    check_landed,
    land,
    list_landed,
    read_landed,
    record_list,
    train_tokenizer,
)
from perennial.errors import Altered
from perennial.store import Store, open_store
from tests.support.refusal import refused
from tests.support.s3_server import S3Server

TEXTS = {"a.jsonl": b'{"text": "one"}\n', "b.jsonl": b'{"text": "two"}\n'}
SETTINGS = IngestSettings(sequence_length=8, seed=0)


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store in a folder, and in a bucket of a real server."""
    if request.param == "local":
        return open_store(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3_server")
    server.use(monkeypatch)
    return open_store(f"s3://{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}")


@pytest.fixture
def inbox(store: Store) -> Store:
    return store.sub("inbox")


def marker(names: dict[str, bytes]) -> bytes:
    """A list as `land` writes it."""
    files = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in names.items()
    ]
    return json.dumps({"files": files}).encode()


def put(inbox: Store, success: bytes | None = b"", manifest: bytes | None = None) -> None:
    """The two files, and markers."""
    if manifest is not None:
        inbox.write("en/manifest.json", manifest)
    for name, data in TEXTS.items():
        inbox.write(f"en/{name}", data)
    if success is not None:
        inbox.write("en/_SUCCESS", success)


def kept(store: Store, inbox: Store) -> ListRecord:
    (seen,) = list_landed(inbox)
    record = record_list(store, inbox, seen)
    assert record is not None
    return record


def names_of(corpus: LandedCorpus) -> list[str]:
    return [file.name for file in corpus.files]


def test_I10_a_corpus_is_its_list_and_other_files_are_named(store: Store, inbox: Store) -> None:
    put(inbox, marker(TEXTS))
    inbox.write("en/late.jsonl", b"{}\n")
    inbox.write("en/_metadata", b"x")
    corpus = read_landed(inbox, "en")
    assert names_of(corpus) == list(TEXTS)
    assert corpus.ignored == ("late.jsonl",)
    assert [file.sha256 for file in corpus.files] == [
        hashlib.sha256(data).hexdigest() for data in TEXTS.values()
    ]
    record = kept(store, inbox)
    assert (record.files, record.promised) == (2, True)
    assert check_landed(store, inbox, "en", record) == corpus


Change = Callable[[Store], object]
CHANGES: dict[str, tuple[Change, str, str]] = {
    "removed": (lambda inbox: inbox.remove("en/b.jsonl"), "file-vanished", "no such file"),
    "grown": (
        lambda inbox: inbox.write("en/b.jsonl", TEXTS["b.jsonl"] * 2),
        "file-changed",
        "found 32 bytes",
    ),
    "replaced by another list": (
        lambda inbox: inbox.write("en/_SUCCESS", marker(TEXTS | {"b.jsonl": b'{"text": "owt"}\n'})),
        "file-changed",
        "found 16 bytes, sha256",
    ),
    "replaced by a longer list": (
        lambda inbox: (
            inbox.write("en/c.jsonl", b"{}\n"),
            inbox.write("en/_SUCCESS", marker(TEXTS | {"c.jsonl": b"{}\n"})),
        ),
        "file-changed",
        "found a list that has c.jsonl too",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_I10_a_listed_corpus_that_changed_since_it_landed_is_named(
    store: Store, inbox: Store, change: str
) -> None:
    put(inbox, marker(TEXTS))
    record = kept(store, inbox)
    make, code, says = CHANGES[change]
    make(inbox)
    with refused(code) as caught:
        check_landed(store, inbox, "en", record)
    assert says in caught.value.problem
    assert caught.value.where == f"{inbox.url}/en"


def test_I10_a_list_that_was_emptied_since_still_holds(store: Store, inbox: Store) -> None:
    put(inbox, marker(TEXTS))
    record, promised = kept(store, inbox), read_landed(inbox, "en").files
    inbox.write("en/_SUCCESS", b"")
    assert check_landed(store, inbox, "en", record).files == promised


@pytest.mark.parametrize("manifest", [None, b"{}"])
def test_without_a_list_what_was_listed_is_the_corpus(
    store: Store, inbox: Store, manifest: bytes | None
) -> None:
    put(inbox, b"", manifest)
    record = kept(store, inbox)
    assert (record.files, record.promised) == (2, False)
    inbox.write("en/late.jsonl", b'{"text": "late"}\n')
    corpus = check_landed(store, inbox, "en", record)
    assert (names_of(corpus), corpus.ignored) == (list(TEXTS), ("late.jsonl",))
    inbox.write("en/b.jsonl", b'{"text": "owt"}\n')  # as long as before
    with refused("file-changed", "b.jsonl") as caught:
        check_landed(store, inbox, "en", record)
    assert "take the inbox as it is by `perennial retry RUN_FILE en`" in caught.value.remedy
    inbox.remove("en/b.jsonl")
    with refused("file-vanished", "b.jsonl"):
        check_landed(store, inbox, "en", record)
    assert names_of(check_landed(store, inbox, "en", None)) == ["a.jsonl", "late.jsonl"]


def test_a_manifest_that_comes_first_completes_nothing(store: Store, inbox: Store) -> None:
    """With a list it waits for all of it; without one it is no marker, whatever else it says."""
    inbox.write("whole/manifest.json", marker(TEXTS))
    inbox.write("other/manifest.json", b'{"rows": 12}')
    inbox.write("odd/manifest.json", b'{"files": ["s3://bucket/a.jsonl"]}')
    inbox.write("bare/manifest.json", b"")
    for name in ("whole", "other", "odd", "bare"):
        inbox.write(f"{name}/a.jsonl", TEXTS["a.jsonl"])
    inbox.write("whole/b.jsonl", TEXTS["b.jsonl"][:7])  # a copy under way
    assert [corpus.name for corpus in list_landed(inbox)] == ["bare"]
    for name in ("whole", "other", "odd"):
        with refused("corpus-unfinished") as caught:
            read_landed(inbox, name)
        assert "manifest.json lists no files, or some that are not there" in caught.value.problem
        assert "write an empty _SUCCESS last" in caught.value.remedy
    inbox.write("whole/b.jsonl", TEXTS["b.jsonl"])
    whole = next(corpus for corpus in list_landed(inbox) if corpus.name == "whole")
    assert whole.landed_at >= inbox.info("whole/b.jsonl").modified
    assert [file.sha256 for file in read_landed(inbox, "whole").files] == [
        hashlib.sha256(data).hexdigest() for data in TEXTS.values()
    ]
    inbox.write("other/_SUCCESS", b"")
    assert names_of(read_landed(inbox, "other")) == ["a.jsonl"]


def test_the_marker_is_believed_before_the_manifest(store: Store, inbox: Store) -> None:
    put(inbox, b"", marker(TEXTS))
    assert read_landed(inbox, "en").is_listed
    put(inbox, marker({"a.jsonl": TEXTS["a.jsonl"]}), marker(TEXTS))
    assert names_of(read_landed(inbox, "en")) == ["a.jsonl"]
    put(inbox, b"", b'{"files": ["/elsewhere/a.jsonl"]}')
    assert not read_landed(inbox, "en").is_listed


def test_a_marker_whose_list_is_broken_is_wrong_input(store: Store, inbox: Store) -> None:
    put(inbox, marker(TEXTS)[:-9])
    with refused("marker-unreadable", "_SUCCESS"):
        read_landed(inbox, "en")
    (seen,) = list_landed(inbox)
    assert record_list(store, inbox, seen) is None


def test_a_kept_list_that_is_damaged_is_named(store: Store, inbox: Store) -> None:
    put(inbox, marker(TEXTS))
    record = kept(store, inbox)
    store.write(record.key, b"[]")
    with pytest.raises(Altered, match=record.key):
        check_landed(store, inbox, "en", record)


def test_landing_again_restores_what_is_gone_or_damaged(
    store: Store, inbox: Store, tmp_path: Path
) -> None:
    for name, data in TEXTS.items():
        (tmp_path / name).write_bytes(data)
    files = [tmp_path / name for name in TEXTS]
    land(inbox, "en", files)
    inbox.remove("en/a.jsonl")
    inbox.write("en/b.jsonl", b'{"text": "owt"}\n')
    land(inbox, "en", files)
    assert {name: inbox.read(f"en/{name}") for name in TEXTS} == TEXTS


def test_I10_a_tokenizer_is_not_trained_on_what_was_not_promised(
    store: Store, inbox: Store
) -> None:
    put(inbox, marker(TEXTS))
    inbox.write("en/b.jsonl", b'{"text": "owt"}\n')
    with refused("file-changed", "b.jsonl"):
        train_tokenizer(store, inbox, "en", 300, SETTINGS)
    assert not store.exists("tokenizer/manifest.json")
