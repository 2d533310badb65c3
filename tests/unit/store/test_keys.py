"""Which keys and urls a store takes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.errors import InputError
from perennial.store import open_store
from perennial.store.base import markers_first
from perennial.store.keys import pending_name, valid_key, valid_prefix

GOOD_KEYS = [
    "a",
    "ledger/000000000000.json",
    "checkpoints/01-french/00000500/optimizer-00-of-02.safetensors",
    "inbox/été/part 1.jsonl.gz",
    ".hidden",
    "..two-dots",
    "a[0]*?.txt",
]
BAD_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../a",
    "a/../b",
    "a/..",
    ".",
    "a/./b",
    "a//b",
    "a/",
    "a\\b",
    "a\nb",
    "a\0b",
    "a?versionId=1",
    pytest.param(pending_name(), id="pending"),
    pytest.param(f"a/{pending_name()}/b", id="below-pending"),
]


@pytest.mark.parametrize("key", GOOD_KEYS)
def test_a_relative_path_of_plain_parts_is_a_key(key: str) -> None:
    assert valid_key(key) == key


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_could_leave_the_store_or_differ_between_stores_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        valid_key(key)


@given(st.text(alphabet=st.sampled_from("ab./\\?\n é-"), max_size=12))
def test_every_accepted_key_names_one_file_inside_the_folder(key: str) -> None:
    try:
        valid_key(key)
    except ValueError:
        return
    path = Path("/store", key)
    assert path.resolve().relative_to("/store").as_posix() == key


def test_a_prefix_may_end_in_a_slash_or_be_empty() -> None:
    assert (valid_prefix(""), valid_prefix("a/"), valid_prefix("a/b")) == ("", "a", "a/b")


@pytest.mark.parametrize("prefix", ["/", "a//", "../", "/a"])
def test_a_malformed_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="key"):
        valid_prefix(prefix)


@pytest.mark.parametrize("url", ["folder", "s3://bucket/prefix"])
@pytest.mark.parametrize("key", ["../a", "/a", "a//b", ""])
def test_every_operation_refuses_a_malformed_key_before_it_touches_anything(
    url: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(url)
    operations: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.write(key, b""),
        lambda: store.create(key, b""),
        lambda: store.exists(key),
        lambda: store.info(key),
        lambda: store.open(key),
        lambda: store.open(key, "wb"),
        lambda: store.upload(Path(__file__), key),
        lambda: store.download(key, tmp_path / "copy"),
        lambda: store.remove(key),
    ]
    for operation in operations:
        with pytest.raises(ValueError, match="key"):
            operation()
    assert list(tmp_path.iterdir()) == []


def test_manifests_and_markers_sort_before_what_they_commit() -> None:
    keys = ["c/a.bin", "c/manifest.json", "c/_SUCCESS", "c/z/manifest.json", "c/manifest.json.txt"]
    assert sorted(keys, key=markers_first) == [
        "c/_SUCCESS",
        "c/manifest.json",
        "c/z/manifest.json",
        "c/a.bin",
        "c/manifest.json.txt",
    ]


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("/a/b/", "/a/b"),
        ("file:///a/b", "/a/b"),
    ],
)
def test_urls_have_one_form(given: str, url: str) -> None:
    assert open_store(given).url == url


def test_a_relative_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("runs/one")
    monkeypatch.chdir("/")
    assert store.url == str(tmp_path / "runs" / "one")


@pytest.mark.parametrize("url", ["/a/b", "s3://bucket", "s3://bucket/a"])
def test_a_sub_store_is_the_folder_below(url: str) -> None:
    store = open_store(url)
    assert store.sub("x/y").url == f"{url}/x/y"
    assert store.sub("x").sub("y") == store.sub("x/y")
    assert store.sub("") == store
    assert type(store.sub("x")) is type(store)
    with pytest.raises(ValueError, match="key"):
        store.sub("../x")


@pytest.mark.parametrize("url", ["/a/b", "s3://bucket/a"])
def test_a_store_pickles_as_its_url_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    pickled = pickle.dumps(open_store(url))
    assert pickle.loads(pickled) == open_store(url)
    assert b"the-secret" not in pickled


def test_unpickling_an_s3_store_sets_the_defaults_its_process_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pickled = pickle.dumps(open_store("s3://bucket"))
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    pickle.loads(pickled)
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    assert os.environ["AWS_MAX_ATTEMPTS"] == "9"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://bucket/a",
        "file://s3://bucket",
        "http://host/a",
        "s3://",
        "s3://B",
        "s3://ab",
        "s3://bucket/../a",
        "s3://bucket//a",
        "s3://bucket/a?endpoint=http://x",
        "s3://key:hush@bucket/a",
        "ftp://key:hush@bucket/a",
    ],
)
def test_a_url_of_another_form_is_an_input_error_without_its_secret(url: str) -> None:
    with pytest.raises(InputError) as caught:
        open_store(url)
    assert caught.value.where == "store"
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


def test_importing_the_room_loads_no_client_library() -> None:
    heavy = "{'s3fs', 'fsspec', 'botocore', 'pyarrow', 'aiohttp'}"
    program = f"import sys, perennial.store; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": "platform"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "[]"
