"""Folders, globs and splits: which files of a place land, under which names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.corpora import land_files, read_landed
from perennial.sources.places import find_files, is_place, split_of
from perennial.store import open_store
from tests.support.refusal import refused
from tests.support.tiny_run import tiny_run, write_run


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"text": "{name}"}}\n')


def names_of(*places: object, splits: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    found = find_files([str(place) for place in places], splits)
    return sorted(f.name for f in found.files), {f.name: f.reason for f in found.left_out}


def test_a_folder_lands_whole_under_its_relative_names(tmp_path: Path) -> None:
    write(tmp_path / "crawl", "a.jsonl", "lang=en/part-0.jsonl", "lang=fr/part-0.jsonl.gz")
    write(tmp_path / "crawl", "README.md", "_temporary/0/a.jsonl", ".cache/a.jsonl", "x/_logs")
    kept, left_out = names_of(tmp_path / "crawl")
    assert kept == ["a.jsonl", "lang=en/part-0.jsonl", "lang=fr/part-0.jsonl.gz"]
    assert left_out.keys() == {"README.md", "_temporary/0/a.jsonl", ".cache/a.jsonl", "x/_logs"}
    assert left_out["README.md"] == "no format that is read"
    inbox = open_store(tmp_path / "inbox")
    files = find_files([str(tmp_path / "crawl")]).files
    land_files(inbox, "en", files)
    assert [file.name for file in read_landed(inbox, "en").files] == kept
    before = inbox.list("")
    land_files(inbox, "en", files)
    assert inbox.list("") == before


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "outside", "b.jsonl")
    write(tmp_path / "data", "a.jsonl")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "broken.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "data" / "pipe.jsonl")
    no_files = {"broken.jsonl": "a link that leads nowhere", "pipe.jsonl": "no file"}
    assert names_of(tmp_path / "data") == (["a.jsonl", "linked/b.jsonl"], no_files)
    assert names_of(tmp_path / "data" / "*.jsonl") == (["a.jsonl"], no_files)
    with refused("no-files") as caught:
        names_of(tmp_path / "data" / "broken.jsonl")
    assert "broken.jsonl is left out (a link that leads nowhere)" in str(caught.value)


@pytest.mark.parametrize("address", ["https://example.org/a.jsonl", "ftp://example.org/a.jsonl"])
def test_an_address_that_is_not_read_is_no_missing_file(address: str) -> None:
    with refused("place-unreadable") as caught:
        names_of(address)
    assert "addresses of that kind are not read" in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_refused_by_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NetworkError(Exception):
        """Of the library that sends requests: none of Python's own, nor of the Hub's client."""

    def fail(*_: object, **__: object) -> None:
        raise NetworkError("no route to the host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
    with refused("place-unreadable", "hf://datasets/a/b") as caught:
        names_of("hf://datasets/a/b")
    assert "no route to the host; make the server reachable" in str(caught.value)


def test_a_glob_keeps_the_names_below_its_plain_part(tmp_path: Path) -> None:
    write(tmp_path / "data", "en/a.jsonl", "fr/a.jsonl", "fr/b.txt", "notes.md", "deep/er/a.jsonl")
    assert names_of(tmp_path / "data/*/a.jsonl")[0] == ["en/a.jsonl", "fr/a.jsonl"]
    assert names_of(tmp_path / "data/**/a.jsonl")[0] == [
        "deep/er/a.jsonl",
        "en/a.jsonl",
        "fr/a.jsonl",
    ]
    kept, left_out = names_of(tmp_path / "data/*")
    assert kept == ["deep/er/a.jsonl", "en/a.jsonl", "fr/a.jsonl", "fr/b.txt"]
    assert left_out == {"notes.md": "no format that is read"}
    with refused("file-missing"):
        names_of(tmp_path / "data/*.parquet")


def test_a_name_that_no_store_takes_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "data", "a.jsonl", "new\nline.jsonl", "back\\slash.jsonl")
    (tmp_path / "data/a.jsonl").rename(tmp_path / os.fsdecode(b"data/caf\xe9.jsonl"))
    write(tmp_path / "data", "b.jsonl")
    kept, left_out = names_of(tmp_path / "data")
    assert kept == ["b.jsonl"]
    assert set(left_out.values()) == {"its name cannot be a key; rename it"}
    assert len(left_out) == 3


SPLITS = ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", "dev/a.jsonl")


def test_splits_beside_train_are_no_training_text_unless_asked(tmp_path: Path) -> None:
    write(tmp_path / "set", *SPLITS, "extra.jsonl")
    kept, left_out = names_of(tmp_path / "set")
    assert kept == ["data/train-00000-of-00001.jsonl", "extra.jsonl"]
    assert left_out == {
        "data/test-00000-of-00001.jsonl": "split test; `--split test` takes it",
        "dev/a.jsonl": "split validation; `--split validation` takes it",
    }
    both = names_of(tmp_path / "set", splits=("train", "validation"))
    assert both[0] == ["data/train-00000-of-00001.jsonl", "dev/a.jsonl", "extra.jsonl"]
    assert names_of(tmp_path / "set", splits=("all",)) == (sorted([*SPLITS, "extra.jsonl"]), {})
    # A file that is named itself is meant.
    assert names_of(tmp_path / "set" / SPLITS[1])[0] == ["test-00000-of-00001.jsonl"]
    with refused("split-unknown"):
        names_of(tmp_path / "set", splits=("tset",))


def test_names_like_splits_are_data_where_there_is_no_split(tmp_path: Path) -> None:
    write(tmp_path / "set", "val-de-marne.jsonl", "dev.to.jsonl")
    assert names_of(tmp_path / "set") == (["dev.to.jsonl", "val-de-marne.jsonl"], {})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("en/validation/0000.parquet", "validation"),
        ("my_dev.jsonl", "validation"),
        ("TEST.csv", "test"),
        ("data/eval.jsonl", "test"),
        ("test1.jsonl", "test"),
        ("latest.jsonl", ""),
        ("contest/evaluate.jsonl", ""),
        ("trains.jsonl", ""),
    ],
)
def test_a_split_is_a_word_of_the_name(name: str, split: str) -> None:
    assert split_of(name) == split


def test_a_saved_dataset_lands_without_what_lies_beside(tmp_path: Path) -> None:
    write(tmp_path / "saved", "dataset_dict.json", "train/state.json", "train/data-0.arrow")
    write(tmp_path / "saved", "train/dataset_info.json", "test/data-0.arrow", "test/state.json")
    kept, left_out = names_of(tmp_path / "saved")
    assert kept == ["train/data-0.arrow"]
    assert len(left_out) == 5


def test_a_place_of_nothing_is_refused_with_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "docs", "a.md", "b.md")
    with refused("no-files") as nothing:
        names_of(tmp_path / "docs")
    assert "a.md is left out (no format that is read) and 1 more" in nothing.value.problem
    with refused("hub-address-invalid"):
        names_of("hf://models/a/b")
    with refused("file-missing"):
        names_of(tmp_path / "nowhere")


def test_the_command_line_says_what_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "set", *SPLITS, *(f"notes-{i}.md" for i in range(20)))
    (tmp_path / "set" / SPLITS[0]).write_text('{"text": "of the training split"}\n' * 100)
    run_file = str(write_run(tmp_path, tiny_run(tmp_path)))
    words = ["land", run_file, "en", str(tmp_path / "set"), "--split", "train", "--split", "test"]
    planned = CliRunner().invoke(app, [*words, "--dry-run"])
    assert "leave out dev/a.jsonl: split validation" in planned.output
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "landed en: 2 files" in done.output
    assert "left out dev/a.jsonl: split validation; `--split validation` takes it" in done.output
    assert "left out 11 more files: --json names them" in done.output


def test_a_word_of_the_command_line_is_a_place_or_an_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "lang=en/a.jsonl")
    monkeypatch.chdir(tmp_path)
    for place in ("lang=en", "lang=*/a.jsonl", "s3://bucket/lang=en", "hf://datasets/a/b"):
        assert is_place(place)
    for override in ("store=s3://bucket/run", "corpora.read.a.text_field=x"):
        assert not is_place(override)


def test_of_a_folder_lands_what_holds_the_documents_that_the_corpus_has(tmp_path: Path) -> None:
    write(tmp_path / "data", "a.bin", "a.idx", "b.npy", "c.jsonl", "d.txt")
    text = find_files([str(tmp_path / "data")])
    assert sorted(file.name for file in text.files) == ["c.jsonl", "d.txt"]
    assert {left.name: left.reason for left in text.left_out} == dict.fromkeys(
        ["a.bin", "a.idx", "b.npy"], "it holds token ids; declare them: corpora.read.NAME.tokens"
    )
    ids = find_files([str(tmp_path / "data")], are_ids=True)
    assert sorted(file.name for file in ids.files) == ["a.bin", "a.idx", "b.npy", "c.jsonl"]
