"""Each object of a finished run deleted, cut, swapped and repeated: every verb ends in a line.

An object of a store can vanish by a lifecycle rule, be cut by a copy that was stopped, be another
one's by a restore of the wrong version, or be there twice. Verbs that read say so or do not need
it; nothing that is there is overwritten, and `verify` names the object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from perennial.audit.verify import verify
from perennial.cli.app import app
from perennial.errors import InputError
from perennial.store import Store, open_store
from tests.integration.audit.conftest import filled
from tests.support.tiny_run import tiny_run, write_run

READERS = [
    ("status",),
    ("status", "--json"),
    ("verify",),
    ("plan",),
    ("run", "--dry-run"),
    ("ingest", "--dry-run"),
    ("release", "--dry-run"),
    ("evaluate", "--dry-run"),
    ("repair", "--dry-run"),
    ("hold", "help", "--dry-run"),
]
PRESENTERS = [
    ("report",),
    ("report", "--output", "report.html"),
    ("compare", "other.yaml"),
    ("compare", "other.yaml", "--output", "comparison.html"),
    ("track",),
]
"""what writes pages and tracking, and nothing else"""

PRESENTED = re.compile(r"^(report|mlflow)/")
SAMPLE = re.compile(
    r"ledger/0+(00|04|16).json|leases/head.json|corpora/help/manifest.json|tokenizer/manifest.json"
    r"|01-code/00000024/(manifest.json|crafted/(model|metrics).*)|releases/.*/manifest.json"
)
UNPROVED = re.compile(r"^(inbox/|leases/|.*/staging)")
"""what `verify` does not read, or does not need"""

UNCOMMITTED = re.compile(r"checkpoints/(?!00-help/0+12|01-code/0+24).*/manifest.json")
"""Without its manifest a checkpoint between two ends is one that was not committed, or that is
being removed: nothing rests on it."""


def remove(store: Store, key: str, other: str) -> None:
    store.remove(key)


def cut(store: Store, key: str, other: str) -> None:
    data = store.read(key)
    store.write(key, data[: len(data) // 2])


def empty(store: Store, key: str, other: str) -> None:
    store.write(key, b"")


def swap(store: Store, key: str, other: str) -> None:
    store.write(key, store.read(other))


def fill_with_noise(store: Store, key: str, other: str) -> None:
    store.write(key, b"\x00\xff{" * 40)


ATTACKS: dict[str, Callable[[Store, str, str], None]] = {
    attack.__name__: attack for attack in (remove, cut, empty, swap, fill_with_noise)
}


def _other(objects: dict[str, bytes], key: str) -> str:
    """Another object of the same kind, as a restore may bring in its place; else any other."""
    kind = re.sub(r"\d+", "#", key.rpartition("/")[2])
    same = [k for k in objects if re.sub(r"\d+", "#", k.rpartition("/")[2]) == kind]
    other = [k for k in same if objects[k] != objects[key]]
    return (other or [k for k in objects if objects[k] != objects[key]])[0]


def _contents(store: Store) -> dict[str, bytes]:
    return {info.key: store.read(info.key) for info in store.list()}


def _ends_in_a_line(run_file: Path, verbs: list[tuple[str, ...]]) -> Iterator[str]:
    for verb, *words in verbs:
        result = CliRunner().invoke(app, [verb, str(run_file), *words])
        name = " ".join((verb, *words))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            yield f"{name}: {type(result.exception).__name__}: {result.exception}"
        elif result.exit_code not in (0, 1, 2):
            yield f"{name}: exit code {result.exit_code}"
        elif "Traceback" in result.output or result.stderr.count("\n") > 3:
            yield f"{name}: {result.output}"


def _check(objects: dict[str, bytes], store: Store, run_file: Path, key: str, attack: str) -> None:
    ATTACKS[attack](store, key, _other(objects, key))
    before = _contents(store)
    wrong = list(_ends_in_a_line(run_file, READERS))
    assert not wrong, f"{attack} {key}: " + "\n".join(wrong)
    assert _contents(store) == before, f"{attack} {key}: a reader wrote"
    if not UNPROVED.match(key) and not (attack == "remove" and UNCOMMITTED.match(key)):
        try:
            lines = [str(finding) for finding in verify(store).findings]
        except InputError as refusal:
            lines = [str(refusal)]
        # A release names the checkpoint that it lost, and the entry behind an altered one that
        # it no longer fits.
        name = "ledger/" if key.startswith("ledger/") else key.removesuffix("/manifest.json")
        assert name in "\n".join(lines), f"verify does not name {key} after {attack}: {lines}"
    store.remove(key)
    store.write(key, objects[key])


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_sample_of_objects(
    landed_and_finished: dict[str, bytes], tmp_path: Path, attack: str
) -> None:
    store = filled(open_store(tmp_path / "store"), landed_and_finished)
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    keys = [key for key in landed_and_finished if SAMPLE.search(key)]
    assert len(keys) >= 8
    for key in keys[:: 4 if attack == "remove" else 6]:
        _check(landed_and_finished, store, run_file, key, attack)


@pytest.mark.long
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_object(landed_and_finished: dict[str, bytes], tmp_path: Path, attack: str) -> None:
    store = filled(open_store(tmp_path / "store"), landed_and_finished)
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    wrong = []
    for key in landed_and_finished:
        try:
            _check(landed_and_finished, store, run_file, key, attack)
        except AssertionError as failed:
            wrong.append(str(failed).partition("\n")[0])
            filled(store, landed_and_finished)
    assert not wrong, "\n".join(wrong)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("attack", ATTACKS)
def test_pages_and_tracking(
    landed_and_finished: dict[str, bytes],
    tmp_path: Path,
    attack: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages and tracking of a store that lost an object: made, or refused in a line."""
    store = filled(open_store(tmp_path / "store"), landed_and_finished)
    filled(open_store(tmp_path / "other"), landed_and_finished)
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    other = tiny_run(tmp_path, store=str(tmp_path / "other"))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    monkeypatch.chdir(tmp_path)
    assert not list(_ends_in_a_line(run_file, PRESENTERS)), "before any attack"
    wrong = []
    for key in filter(SAMPLE.search, landed_and_finished):
        ATTACKS[attack](store, key, _other(landed_and_finished, key))
        before = _not_presented(store)
        wrong += [f"{attack} {key}: {line}" for line in _ends_in_a_line(run_file, PRESENTERS)]
        if _not_presented(store) != before:
            wrong.append(f"{attack} {key}: written outside of pages and tracking")
        store.remove(key)
        store.write(key, landed_and_finished[key])
    assert not wrong, "\n".join(wrong)


def _not_presented(store: Store) -> dict[str, bytes]:
    return {key: data for key, data in _contents(store).items() if not PRESENTED.match(key)}
