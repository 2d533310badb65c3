"""Prefixes of a real S3 server, and datasets of a stand-in for the Hub, as places to land from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from perennial.corpora import land_files, read_landed
from perennial.sources.places import find_files
from perennial.store import S3Store, open_store
from tests.support.cli import perennial_json
from tests.support.hub_server import hub_stand_in
from tests.support.refusal import refused
from tests.support.tiny_run import tiny_run, write_run

FILES = {"en/part-0.jsonl": b'{"text": "a"}\n', "fr/part-0.txt": b"b\n", "README.md": b"# card\n"}


def test_a_prefix_lands_on_its_server_without_passing_through_this_machine(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3_url)
    for name, data in FILES.items():
        store.write(f"crawl/{name}", data)
    found = find_files([f"{s3_url}/crawl/"])
    assert [file.name for file in found.left_out] == ["README.md"]
    inbox = store.sub("inbox")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the file passes through this machine")

    with monkeypatch.context() as patch:
        for method in ("open", "upload", "download", "write"):
            patch.setattr(S3Store, method, refuse)
        land_files(inbox, "en", found.files)
    landed = read_landed(inbox, "en")
    assert [file.name for file in landed.files] == ["en/part-0.jsonl", "fr/part-0.txt"]
    assert all(inbox.read(f"en/{f.name}") == FILES[f.name] for f in landed.files)
    before = inbox.list("")
    land_files(inbox, "en", found.files)
    assert inbox.list("") == before
    inbox.remove("en/fr/part-0.txt")
    land_files(inbox, "en", found.files)
    assert inbox.read("en/fr/part-0.txt") == FILES["fr/part-0.txt"]
    with refused("corpus-differs"):
        land_files(inbox, "en", found.files[:1])


def test_a_glob_of_a_bucket_takes_what_the_same_glob_of_a_folder_takes(
    s3_url: str, tmp_path: Path
) -> None:
    store, local = open_store(s3_url), open_store(tmp_path)
    names = ["a-1/x.jsonl", "a-2/x.jsonl", "a-2/deep/y.jsonl", "a-2/notes.md", "b/x.jsonl"]
    for name in names:
        for place in (store, local):
            place.write(f"crawl/{name}", b'{"text": "x"}')
    for pattern in (
        "a-*/x.jsonl",
        "a-?",
        "**/*.jsonl",
        "[ab]-2/**/y.jsonl",
        "a-2/*.jsonl",
        "*/x.*",
    ):
        there = find_files([f"{s3_url}/crawl/{pattern}"])
        here = find_files([f"{tmp_path}/crawl/{pattern}"])
        assert [f.name for f in there.files] == sorted(f.name for f in here.files), pattern
        assert there.left_out == here.left_out
    with refused("file-missing"):
        find_files([f"{s3_url}/crawl/c-*"])


def test_a_prefix_lands_in_another_store_with_its_digests(s3_url: str, tmp_path: Path) -> None:
    store = open_store(s3_url)
    for name, data in FILES.items():
        store.write(f"crawl/{name}", data)
    inbox = open_store(tmp_path / "inbox")
    land_files(inbox, "en", find_files([f"{s3_url}/crawl"]).files)
    for file in read_landed(inbox, "en").files:
        assert file.sha256 == hashlib.sha256(FILES[file.name]).hexdigest()
    (one,) = find_files([f"{s3_url}/crawl/en/part-0.jsonl"]).files
    assert one.name == "part-0.jsonl"


def test_a_file_that_is_replaced_while_it_is_copied_does_not_land(
    s3_url: str, tmp_path: Path
) -> None:
    store = open_store(s3_url)
    store.write("crawl/a.txt", b"old\n")
    found = find_files([f"{s3_url}/crawl"])
    store.write("crawl/a.txt", b"new\n")
    for inbox in (store.sub("inbox"), open_store(tmp_path / "inbox")):
        with pytest.raises(OSError, match="was replaced while it was copied"):
            land_files(inbox, "en", found.files)
        assert inbox.list("") == []


def test_a_prefix_that_cannot_be_read_is_refused(s3_url: str) -> None:
    with refused("file-missing"):
        find_files([f"{s3_url}/nothing/here"])
    with refused("file-missing"):
        find_files(["s3://no-such-bucket-at-all/crawl"])


def test_a_dataset_of_the_hub_lands_without_its_other_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a stand-in for the Hub, which nothing reaches from a test."""
    lines = {n: f'{{"text": "{n}"}}\n'.encode() * 400 for n in ("train", "test", "validation")}
    files = {f"en/{name}-00000-of-00001.jsonl": data for name, data in lines.items()}
    files |= {"README.md": b"# card\n", ".gitattributes": b"x", "en/train.parquet": b"PAR1" * 9}
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    with hub_stand_in("team/news", files) as endpoint:
        environment = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1",
        }
        place = "hf://datasets/team/news/en"
        landed = perennial_json("land", run_file, "news", place, env=environment)
        # What HF_ENDPOINT sets in a process of its own.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        with refused("place-unreadable", "hf://datasets/team/nothing") as missing:
            find_files(["hf://datasets/team/nothing"])
    assert landed["keys"] == ["news/train-00000-of-00001.jsonl", "news/train.parquet"]
    assert landed["left_out"] == {
        "test-00000-of-00001.jsonl": "split test; `--split test` takes it",
        "validation-00000-of-00001.jsonl": "split validation; `--split validation` takes it",
    }
    inbox = tmp_path / "store" / "inbox" / "news"
    listed = json.loads((inbox / "_SUCCESS").read_text())["files"]
    for entry in listed:
        data = files[f"en/{entry['name']}"]
        assert (inbox / entry["name"]).read_bytes() == data
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert "it cannot be read: 404" in missing.value.problem
