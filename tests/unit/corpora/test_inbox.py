"""The inbox: names, landing files, and seeing what landed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from perennial.corpora import (
    check_landed,
    check_name,
    land,
    list_landed,
    read_landed,
    record_list,
)
from perennial.corpora.inbox import LandedFile
from perennial.store import Store, open_store
from tests.support.refusal import refused


@pytest.fixture
def inbox(tmp_path: Path) -> Store:
    return open_store(tmp_path / "inbox")


def made(folder: Path, name: str, content: str = '{"text": "a"}\n') -> Path:
    path = folder / name
    path.write_text(content)
    return path


@pytest.mark.parametrize("name", ["a", "french", "fr-2024.1", "a_b", "0", "x" * 64])
def test_good_names_pass(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a..b", "a/b", "../a", "A", "é", "-a", "a.", "_a", "a b", "a\n", "x" * 65],
)
def test_names_that_could_be_paths_are_refused(name: str) -> None:
    with refused("corpus-name-invalid", "name"):
        check_name(name)


def test_landing_uploads_the_files_and_then_the_marker(tmp_path: Path, inbox: Store) -> None:
    files = [made(tmp_path, "b.jsonl"), made(tmp_path, "a.txt", "x")]
    assert land(inbox, "en", files) == ["en/a.txt", "en/b.jsonl"]
    assert inbox.read("en/a.txt") == b"x"
    marker = json.loads(inbox.read("en/_SUCCESS"))
    assert [(f["name"], f["bytes"]) for f in marker["files"]] == [("a.txt", 1), ("b.jsonl", 14)]
    assert {len(f["sha256"]) for f in marker["files"]} == {64}


def test_landing_the_same_again_changes_nothing(tmp_path: Path, inbox: Store) -> None:
    files = [made(tmp_path, "a.txt", "x"), made(tmp_path, "b.txt", "y")]
    keys = land(inbox, "en", files)
    before = inbox.list("")
    assert land(inbox, "en", files[::-1]) == keys
    assert inbox.list("") == before


def test_landing_other_content_under_a_complete_name_is_refused(
    tmp_path: Path, inbox: Store
) -> None:
    land(inbox, "en", [made(tmp_path, "a.txt", "x")])
    before = inbox.list("")
    with refused("corpus-differs"):
        land(inbox, "en", [made(tmp_path, "a.txt", "z")])
    assert inbox.list("") == before


def test_landing_after_a_kill_completes_without_leftovers(tmp_path: Path, inbox: Store) -> None:
    inbox.write("en/leftover.txt", b"from a landing that was killed")
    land(inbox, "en", [made(tmp_path, "a.txt", "x")])
    assert [info.key for info in inbox.list("en/")] == ["en/_SUCCESS", "en/a.txt"]


@pytest.mark.parametrize("suffix", [".html", ".pdf", ".parquet.gz", ".zip", ""])
def test_unknown_suffixes_are_refused_before_anything_is_written(
    tmp_path: Path, inbox: Store, suffix: str
) -> None:
    with refused("format-unknown"):
        land(inbox, "en", [made(tmp_path, "a.txt"), made(tmp_path, f"b{suffix}")])
    assert inbox.list("") == []


@pytest.mark.parametrize(
    ("names", "code"), [([], "no-files"), (["a.txt", "none.txt"], "file-missing")]
)
def test_no_file_or_a_missing_one_is_refused(
    tmp_path: Path, inbox: Store, names: list[str], code: str
) -> None:
    made(tmp_path, "a.txt")
    with refused(code):
        land(inbox, "en", [tmp_path / name for name in names])
    assert inbox.list("") == []


def test_two_files_of_one_name_are_refused(tmp_path: Path, inbox: Store) -> None:
    (tmp_path / "sub").mkdir()
    with refused("file-name-twice"):
        land(inbox, "en", [made(tmp_path, "a.txt"), made(tmp_path / "sub", "a.txt")])


def test_corpora_are_listed_once_complete_in_the_order_of_landing(
    tmp_path: Path, inbox: Store
) -> None:
    inbox.write("unfinished/a.txt", b"x")
    for name in ("zulu", "alpha"):
        land(inbox, name, [made(tmp_path, "a.txt", name)])
    times = {c.name: c.landed_at for c in list_landed(inbox)}
    assert times["zulu"] <= times["alpha"]
    expected = ["zulu", "alpha"] if times["zulu"] < times["alpha"] else ["alpha", "zulu"]
    assert [c.name for c in list_landed(inbox)] == expected


def test_a_corpus_of_another_producer_is_complete_by_its_manifest(inbox: Store) -> None:
    for key in ("en/2024/part-0.jsonl", "en/_metadata", "en/2024/.part-0.crc"):
        inbox.write(key, b"{}")
    inbox.write("en/manifest.json", b'{"files": ["2024/part-0.jsonl"]}')
    (corpus,) = list_landed(inbox)
    assert [file.name for file in corpus.files] == ["2024/part-0.jsonl"]
    assert corpus.total_bytes == 2


def test_inspection_finds_missing_unfinished_and_empty_corpora(
    tmp_path: Path, inbox: Store
) -> None:
    inbox.write("unfinished/a.txt", b"x")
    inbox.write("bare/_SUCCESS", b"")
    inbox.write("hollow/a.txt", b"")
    inbox.write("hollow/_SUCCESS", b"")
    for name, code in {
        "none": "corpus-missing",
        "unfinished": "corpus-unfinished",
        "bare": "corpus-without-files",
        "hollow": "corpus-empty",
    }.items():
        with refused(code):
            read_landed(inbox, name)
    land(inbox, "en", [made(tmp_path, "a.txt", "abc")])
    assert read_landed(inbox, "en").total_bytes == 3


HIDDEN = [
    "_temporary/0/task_1/part-1.jsonl",
    ".ipynb_checkpoints/a-checkpoint.jsonl",
    "data/_delta_log/00000.parquet",
    ".cache/huggingface/download/a.jsonl",
    "__MACOSX/._a.jsonl",
    "x/.part-0.jsonl",
]


def test_what_programs_write_beside_data_is_no_data_wherever_it_is(inbox: Store) -> None:
    for name in ("a.jsonl", "lang=en/part-0.jsonl", "b_c/d.e/f.jsonl", *HIDDEN, "_SUCCESS"):
        inbox.write(f"en/{name}", b"" if name == "_SUCCESS" else b"x")
    names = ["a.jsonl", "b_c/d.e/f.jsonl", "lang=en/part-0.jsonl"]
    assert [file.name for file in read_landed(inbox, "en").files] == names
    (listed,) = list_landed(inbox)
    assert [file.name for file in listed.files] == names
    # Who lists a file says that it is data.
    inbox.write("en/_SUCCESS", json.dumps({"files": ["a.jsonl", HIDDEN[0]]}).encode())
    assert [file.name for file in read_landed(inbox, "en").files] == sorted(["a.jsonl", HIDDEN[0]])


def test_a_landing_that_was_recorded_with_hidden_files_is_what_it_was_without_them(
    tmp_path: Path, inbox: Store
) -> None:
    """As earlier versions recorded it, which looked at the last part of a path alone."""
    store = open_store(tmp_path / "store")
    for name in ("a.jsonl", HIDDEN[0], "_SUCCESS"):
        inbox.write(f"en/{name}", b"" if name == "_SUCCESS" else b"x")
    corpus = read_landed(inbox, "en")
    info = inbox.info(f"en/{HIDDEN[0]}")
    old = replace(corpus, files=(*corpus.files, LandedFile(HIDDEN[0], 1, info.etag)))
    record = record_list(store, inbox, old)
    assert [f.name for f in check_landed(store, inbox, "en", record).files] == ["a.jsonl"]


def test_links_to_folders_are_named_and_not_followed(tmp_path: Path, inbox: Store) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made(elsewhere, "b.jsonl")
    folder = Path(inbox.url, "en")
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "linked").symlink_to(elsewhere)
    (folder / ".hidden").symlink_to(elsewhere)
    (folder / "_SUCCESS").touch()
    with refused("corpus-without-files") as caught:
        read_landed(inbox, "en")
    assert "not what is behind sub/linked/ (a link to a folder)" in caught.value.problem
    made(folder, "a.jsonl")
    corpus = read_landed(inbox, "en")
    assert [file.name for file in corpus.files] == ["a.jsonl"]
    assert corpus.ignored == ("sub/linked/ (a link to a folder)",)
