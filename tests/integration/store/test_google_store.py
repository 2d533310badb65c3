"""What is peculiar to gs://: conditional creates over lost answers, and refusals in one line."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import util

import pytest

from perennial.errors import InputError
from perennial.store import Store, open_store
from tests.support.google_server import GoogleServer


@pytest.fixture
def store(gs_url: str, google_server: GoogleServer) -> Iterator[Store]:
    yield open_store(gs_url)
    google_server.fail_uploads = 0
    google_server.ignores_conditions = False
    google_server.refusal = None


def refusal(store: Store) -> InputError:
    """Return the error with which `check` refuses the store."""
    with pytest.raises(InputError) as caught:
        store.check()
    assert (caught.value.where, caught.value.field) == ("store", store.url)
    assert "\n" not in str(caught.value)
    return caught.value


def test_I4_I8_a_create_whose_answer_was_lost_has_won(
    store: Store, google_server: GoogleServer
) -> None:
    google_server.fail_uploads = 1
    assert store.create("ledger/0", b"first")
    assert google_server.fail_uploads == 0
    assert not store.create("ledger/0", b"first")
    assert store.read("ledger/0") == b"first"


def test_I8_a_usable_bucket_passes_and_keeps_no_trace_of_it(store: Store) -> None:
    store.check()
    assert store.list() == []


def test_list_follows_every_page(
    store: Store, google_server: GoogleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.google_server._PAGE", 2)
    names = [f"ledger/{number}" for number in range(5)]
    for name in names:
        store.write(name, b"")
    assert [info.key for info in store.list("ledger")] == names


def test_I4_a_server_that_ignores_the_condition_is_refused(
    store: Store, google_server: GoogleServer
) -> None:
    google_server.ignores_conditions = True
    error = refusal(store)
    assert error.code == "store-without-exclusive-create"
    assert "ifGenerationMatch" in str(error)
    assert store.list() == []


def test_a_missing_bucket_is_refused(gs_url: str) -> None:
    assert refusal(open_store("gs://no-such-bucket/run")).code == "bucket-missing"


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_reported_in_the_words_of_the_server(
    store: Store, google_server: GoogleServer, status: int
) -> None:
    google_server.refusal = (status, "run@project lacks storage.objects.list")
    error = refusal(store)
    assert error.code == "store-credentials"
    assert "run@project lacks storage.objects.list" in str(error)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(error)


def test_another_refusal_is_reported_in_the_words_of_the_server(
    store: Store, google_server: GoogleServer
) -> None:
    google_server.refusal = (400, "the billing account is closed")
    error = refusal(store)
    assert error.code == "store-unreachable"
    assert "the billing account is closed" in str(error)


def test_without_gcsfs_the_package_to_install_is_named(
    gs_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perennial.store.gs.find_spec", lambda name: None)
    assert util.find_spec("gcsfs") is not None
    with pytest.raises(InputError) as caught:
        open_store(gs_url)
    assert caught.value.code == "store-package-missing"
    assert "perennial[gs]" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("gs://user:secret@bucket/run", "secret-in-url"),
        ("gs://Bucket/run", "store-url-invalid"),
        ("gs://bucket/../run", "store-url-invalid"),
    ],
)
def test_a_url_of_another_form_is_refused(url: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        open_store(url)
    assert caught.value.code == code
    assert "secret@" not in str(caught.value)
