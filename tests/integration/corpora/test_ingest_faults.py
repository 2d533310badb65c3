"""Ingests while the S3 server, the way to it, or a rival misbehaves: nothing lost or doubled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from perennial.corpora import land, train_tokenizer
from perennial.store import Store, open_store
from tests.support.faulty_proxy import FAULTS, Road, bumpy, smooth
from tests.support.ingest_process import SETTINGS, Ingester, ingester
from tests.support.s3_server import CephServer, S3Server

_DEADLINE_SECONDS = 60


@pytest.fixture(scope="module")
def road(s3_server: S3Server) -> Iterator[Road]:
    """The way that every ingest of this module takes to the server."""
    with Road(s3_server.port).open() as road:
        yield road


@pytest.fixture(scope="module")
def ingesters(road: Road, s3_server: S3Server) -> Iterator[list[Ingester]]:
    """Two processes that share nothing but the store."""
    environment = s3_server.environment() | {
        "AWS_ENDPOINT_URL": road.endpoint,
        "AWS_MAX_ATTEMPTS": "10",
    }
    with ExitStack() as stack:
        yield [stack.enter_context(ingester(environment)) for _ in range(2)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 400 kB of text, with duplicates and broken lines in it."""
    file = tmp_path_factory.mktemp("corpus") / "help.jsonl"
    texts = [text[i : i + 1500] for text in topics.values() for i in range(0, len(text), 1500)]
    lines = [json.dumps({"text": text}) for text in [*texts, *texts[:20]]]
    lines[7:7] = ["half a li", "{}"]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def undisturbed(
    ingesters: list[Ingester], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Digest of every file, and the manifest's own, of an ingest that nothing happened to."""
    store = prepared(str(tmp_path_factory.mktemp("undisturbed")), corpus)
    ingesters[0].begin(store.url)
    return digests(store) | ingesters[0].end() | digests(store)


@pytest.fixture
def url(s3_url: str, corpus: Path) -> str:
    """A store with the landed corpus and a tokenizer."""
    return prepared(s3_url, corpus).url


def prepared(url: str, corpus: Path) -> Store:
    store = open_store(url)
    land(store.sub("inbox"), "en", [corpus])
    train_tokenizer(store, store.sub("inbox"), "en", 400, SETTINGS)
    return store


def digests(store: Store) -> dict[str, str]:
    """sha256 of all that an ingest left, except the manifest, which holds ETags."""
    folder = store.sub("corpora/en")
    keys = [info.key for info in folder.list() if info.key != "manifest.json"]
    return {key: hashlib.sha256(folder.read(key)).hexdigest() for key in keys}


def result(url: str, answer: dict[str, str]) -> dict[str, str]:
    """What `undisturbed` is compared to."""
    assert "failed" not in answer, answer["failed"]
    return digests(open_store(url)) | answer


@pytest.mark.long
def test_I5_I6_an_ingest_over_a_road_that_fails_5_percent_of_requests_is_exact(
    url: str, road: Road, ingesters: list[Ingester], undisturbed: dict[str, str]
) -> None:
    before = road.fates.copy()
    road.fate = bumpy(0.05, seed=1)
    try:
        ingesters[0].begin(url)
        answer = ingesters[0].end()
    finally:
        road.fate = smooth
    met = road.fates - before
    assert result(url, answer) == undisturbed
    assert met.total() > 200
    assert all(met[fault] for fault in FAULTS)


@pytest.mark.long
@pytest.mark.parametrize("pause_at", [("read", 3), ("write", 2)])
def test_I5_I6_an_ingest_waits_out_a_gateway_that_is_killed_and_restarted(
    url: str,
    road: Road,
    s3_server: S3Server,
    ingesters: list[Ingester],
    undisturbed: dict[str, str],
    pause_at: tuple[str, int],
) -> None:
    if not isinstance(s3_server, CephServer):
        pytest.skip("moto keeps its objects in the process that would be killed")
    ingesters[0].begin(url, pause_at)
    ingesters[0].wait_for_pause()
    s3_server.kill_gateway()
    road.outage.clear()
    try:
        ingesters[0].go_on()
        assert road.outage.wait(_DEADLINE_SECONDS)
    finally:
        s3_server.start_gateway()
    assert result(url, ingesters[0].end()) == undisturbed


@pytest.mark.long
def test_I5_I6_two_processes_that_ingest_one_corpus_at_once_lose_and_double_nothing(
    url: str, ingesters: list[Ingester], undisturbed: dict[str, str]
) -> None:
    for each in ingesters:
        each.begin(url)
    for answer in [each.end() for each in ingesters]:
        assert result(url, answer) == undisturbed


@pytest.mark.long
def test_I5_I6_a_rival_that_finished_first_is_believed(
    url: str, ingesters: list[Ingester], undisturbed: dict[str, str]
) -> None:
    ingesters[0].begin(url, ("write", 1))
    ingesters[0].wait_for_pause()
    ingesters[1].begin(url)
    assert result(url, ingesters[1].end()) == undisturbed
    ingesters[0].go_on()
    assert result(url, ingesters[0].end()) == undisturbed
