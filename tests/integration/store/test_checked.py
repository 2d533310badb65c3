"""Reading of what was promised, from every kind of store and over a road that spoils answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perennial.errors import Altered
from perennial.store import (
    LocalStore,
    Store,
    check_object,
    copy_checked,
    download_checked,
    open_checked,
    open_store,
    read_checked,
)
from tests.support.faulty_proxy import Road
from tests.support.s3_server import S3Server

KEY = "corpora/en/shard-00000.parquet"
DATA = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(DATA).hexdigest()


def _read_open(store: Store, folder: Path) -> bytes:
    with open_checked(store, KEY, SHA256) as stream:
        return stream.read()


def _read_download(store: Store, folder: Path) -> bytes:
    download_checked(store, KEY, folder / "file", SHA256)
    return (folder / "file").read_bytes()


def _read_copy(store: Store, folder: Path) -> bytes:
    target = LocalStore(str(folder / "target"))
    target.write("copied", b"before")
    try:
        copy_checked(store, KEY, target, "copied", SHA256)
    except Altered:
        assert target.read("copied") == b"before"
        raise
    return target.read("copied")


def _read_check(store: Store, folder: Path) -> bytes:
    check_object(store, KEY, SHA256)
    return store.read(KEY)


WAYS: dict[str, Callable[[Store, Path], bytes]] = {
    "check": _read_check,
    "read": lambda store, _folder: read_checked(store, KEY, SHA256),
    "download": _read_download,
    "copy": _read_copy,
    "open": _read_open,
}


def flipped(data: bytes) -> bytes:
    return data[:-300] + bytes([data[-300] ^ 1]) + data[-299:]


@pytest.mark.parametrize("way", WAYS)
def test_I8_I10_an_object_is_compared_with_its_promise(
    store_url: str, tmp_path: Path, way: str
) -> None:
    store = open_store(store_url)
    with pytest.raises(Altered) as missing:
        WAYS[way](store, tmp_path)
    assert (missing.value.key, missing.value.actual) == (KEY, "")
    assert str(missing.value).startswith(f"{KEY} is missing (its manifest has sha256 {SHA256})")
    store.write(KEY, DATA)
    assert WAYS[way](store, tmp_path) == DATA
    for other in (flipped(DATA), DATA[:-1], b""):
        store.write(KEY, other)
        with pytest.raises(Altered) as damaged:
            WAYS[way](store, tmp_path)
        assert damaged.value.actual == hashlib.sha256(other).hexdigest()
        for words in (KEY, SHA256, damaged.value.actual, "restore the file from a copy"):
            assert words in str(damaged.value)


@pytest.fixture
def road(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Road]:
    s3_server.use(monkeypatch)
    with Road(s3_server.port).open() as road:
        monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
        yield road


def test_I10_an_answer_that_was_spoilt_once_is_fetched_again(
    s3_server: S3Server, road: Road, tmp_path: Path
) -> None:
    store = open_store(f"s3://{s3_server.new_bucket()}/run")
    answers: list[bytes] = []
    to_spoil = 0

    def spoil(head: bytes, answer: bytes) -> bytes:
        if not head.startswith(b"GET") or KEY.encode() not in head.partition(b"\r\n")[0]:
            return answer
        answers.append(head)
        return flipped(answer) if len(answers) <= to_spoil else answer

    road.spoil = spoil
    for read in WAYS.values():
        store.write(KEY, DATA)
        answers, to_spoil = [], 2
        with pytest.raises(Altered, match="two reads gave"):
            read(store, tmp_path)
        answers, to_spoil = [], 1
        assert read(store, tmp_path) == DATA
        assert len(answers) > 1


def test_a_version_that_was_sound_is_not_read_again(store_url: str) -> None:
    store = open_store(store_url)
    store.write(KEY, DATA)
    check_object(store, KEY, SHA256)
    reads: list[str] = []

    class Counted(type(store)):  # type: ignore[misc]
        """Counts what is read of the same store."""

        def open(self, key: str, mode: str = "rb") -> object:
            reads.append(key)
            return super().open(key, mode)

    counted = Counted(store.url)
    check_object(counted, KEY, SHA256)
    check_object(counted, KEY, SHA256)
    assert reads == [KEY]
    store.write(KEY, DATA)  # the same bytes as another version
    check_object(counted, KEY, SHA256)
    assert len(reads) in ((2,) if store.is_local else (1, 2))  # an S3 ETag may be of the bytes
    with pytest.raises(Altered):
        check_object(counted, KEY, "0" * 64)
