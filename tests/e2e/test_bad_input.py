"""Bad input ends in one line and exit code 2, before compute, and leaves the store as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.config.load import load_run
from perennial.runs.events import Ingesting, Landed, Opened, Refused
from perennial.runs.ledger import Ledger
from perennial.store import open_store
from tests.support.event_factory import AT
from tests.support.tiny_run import tiny_run, write_run, write_texts


def _refused(*words: object) -> str:
    """The one line of a refused command."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.output
    return lines[0]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _landed(folder: Path) -> Path:
    """A run file with one landed corpus."""
    run_file = write_run(folder, tiny_run(folder))
    texts = write_texts(folder)
    done = CliRunner().invoke(app, ["land", str(run_file), "help", str(texts["help"])])
    assert done.exit_code == 0, done.output
    return run_file


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("replay.shares=0.1", "replay.shares: there is no such key; did you mean share?"),
        ("training.workers=two", "training.workers: 'two' is refused"),
        ("replay.share=1.5", "replay.share: 1.5 is refused"),
        ("schedule.eta_min=0", "schedule.eta_min: 0 is refused"),
        ("schedule.warmup=60%", "overlap"),
        ("training.workers=64", "use a global_batch of at least 64, or fewer workers"),
        ("training.cpus_per_worker=1000", "this machine has"),
        ("schedule.cooldown=400 steps", "do not fit into a first stage of 12 steps"),
        ("stages.budget=10 tokens", "less than one step"),
        ("model.architecture=no_such_model", "is not a causal language model"),
        ("model.config.no_such_field=3", "has no such field"),
        ("tokenizer={path: /no/such/tokenizer.json}", "there is no such file"),
        ("evaluation.tasks=[no/such/folder]", "there is no such folder"),
    ],
)
def test_a_wrong_run_file_is_refused_and_the_store_is_as_it_was(
    tmp_path: Path, override: str, told: str
) -> None:
    run_file = _landed(tmp_path)
    before = _files(tmp_path)
    assert told in _refused("run", run_file, override)
    assert _files(tmp_path) == before


def test_a_run_without_any_corpus_says_how_to_land_one(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    assert "perennial land" in _refused("run", run_file)
    assert not _files(tmp_path / "store")


@pytest.mark.parametrize("name", ["../up", "a/b", "/abs", "", "UPPER", "a b", "."])
def test_a_corpus_name_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    _refused("land", run_file, name, write_texts(tmp_path)["help"])
    assert not (tmp_path / "store").exists()


def test_files_that_cannot_become_a_corpus_are_refused(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    empty, small = tmp_path / "empty.jsonl", tmp_path / "small.txt"
    empty.write_text("")
    small.write_text("few words")
    assert "there is no such file" in _refused("land", run_file, "a", tmp_path / "missing.jsonl")
    assert "less than one global batch" in _refused("land", run_file, "a", empty)
    assert "less than one global batch" in _refused("land", run_file, "a", small)
    assert "suffix" in _refused("land", run_file, "a", run_file)
    assert not (tmp_path / "store").exists()


def test_an_empty_corpus_in_the_inbox_is_refused_with_its_reason_and_can_be_retried(
    tmp_path: Path,
) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    folder = tmp_path / "store" / "inbox" / "empty"
    folder.mkdir(parents=True)
    (folder / "part.jsonl").write_text("")
    (folder / "_SUCCESS").write_text("")
    for _ in range(2):
        done = CliRunner().invoke(app, ["run", str(run_file)])
        assert done.exit_code == 2
        assert "every corpus was refused, this one because" in done.stderr
        assert "every file is empty" in done.stderr
    state = Ledger(open_store(tmp_path / "store")).read()
    assert state.corpora["empty"].event_kinds == ["landed", "refused"]
    assert state.corpora["empty"].code == "corpus-empty"
    again = CliRunner().invoke(app, ["retry", str(run_file), "empty", "--json"])
    assert json.loads(again.stdout)["state"] == "landed"


def test_a_run_whose_corpora_hold_nothing_new_ends_well(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    ledger = Ledger(open_store(tmp_path / "store"))
    ledger.append(Opened(at=AT, spec=load_run(run_file).model_dump(mode="json")))
    for name in ("monday", "tuesday"):
        ledger.append(Landed(at=AT, corpus=name, size_bytes=9))
        ledger.append(Ingesting(at=AT, corpus=name))
        ledger.append(Refused(at=AT, corpus=name, reason="all of it is known", code="nothing-new"))
    done = CliRunner().invoke(app, ["run", str(run_file)])
    assert done.exit_code == 0, done.output
    assert "nothing to do: every corpus that landed is trained, or holds nothing new" in done.stdout
    done = CliRunner().invoke(app, ["run", str(run_file), "--json"])
    assert json.loads(done.stdout)["nothing_new"] == ["monday", "tuesday"]
    done = CliRunner().invoke(app, ["ingest", str(run_file), "--json"])
    assert json.loads(done.stdout)["corpora"] == {"monday": "nothing new", "tuesday": "nothing new"}
    ledger.append(Landed(at=AT, corpus="bad", size_bytes=9))
    ledger.append(Refused(at=AT, corpus="bad", reason="it is bad", code="no-text"))
    done = CliRunner().invoke(app, ["run", str(run_file)])
    assert done.exit_code == 2
    assert "this one because: it is bad" in done.stderr


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    run_file = write_run(tmp_path, tiny_run(tmp_path, store=str(tmp_path / "file" / "store")))
    before = _files(tmp_path)
    _refused("run", run_file)
    assert _files(tmp_path) == before


def test_landing_other_content_under_a_landed_name_is_refused(tmp_path: Path) -> None:
    run_file = _landed(tmp_path)
    before = _files(tmp_path / "store")
    other = write_texts(tmp_path)["code"]
    assert "has other content" in _refused("land", run_file, "help", other)
    assert _files(tmp_path / "store") == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("release",), "no finished stage"),
        (("evaluate",), "no stage was trained yet"),
        (("release", "--tokens", "many"), "no finished stage"),
    ],
)
def test_verbs_that_need_a_trunk_say_so(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    run_file = _landed(tmp_path)
    assert told in _refused(words[0], run_file, *words[1:])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"budget": "6"}, "budget: '6' is not an amount"),
        ({"eta_const": []}, "eta_const"),
        ({"replay": [2]}, "replay"),
        ({"run": "no/such/run.yaml"}, "there is no such file"),
    ],
)
def test_a_wrong_tuning_file_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    import yaml

    document = {
        "name": "t",
        "run": str(_landed(tmp_path)),
        "budget": "6 steps",
        "eta_const": [1e-3],
        "replay": [0.5],
    }
    path = tmp_path / "tuning.yaml"
    path.write_text(yaml.safe_dump(document | change))
    assert told in _refused("tune", path)
