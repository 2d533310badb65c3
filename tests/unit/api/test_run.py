"""The programming interface: verbs as methods that return data, by run file and by store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import perennial
from perennial.api.training import read_tuning
from perennial.cli.app import app
from perennial.config import load
from perennial.config.study import StudySpec
from perennial.errors import InputError
from tests.support.old_store import OldStore, unpack_old_store
from tests.support.small_study import write_study
from tests.support.tiny_run import tiny_run, write_run, write_texts


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    return write_run(tmp_path, tiny_run(tmp_path))


@pytest.fixture
def old(tmp_path: Path) -> OldStore:
    return unpack_old_store(tmp_path)


def _code(error: pytest.ExceptionInfo[InputError]) -> str:
    return error.value.code


def test_open_returns_a_run_with_its_resolved_run_file(run_file: Path) -> None:
    run = perennial.open(run_file, ["replay.share=0.5"])
    assert isinstance(run, perennial.Run)
    assert (run.spec.name, run.spec.replay.share, run.where) == ("tiny", 0.5, str(run_file))


def test_land_returns_the_keys_and_its_plan_writes_nothing(run_file: Path, tmp_path: Path) -> None:
    run, text = perennial.open(run_file), write_texts(tmp_path)["help"]
    inbox = str(tmp_path / "store" / "inbox")
    assert run.plan_land("help", [text]) == [f"upload {text} to {inbox}/help"]
    assert not (tmp_path / "store").exists()
    landed = run.land("help", [text])
    assert (landed.corpus, landed.inbox) == ("help", inbox)
    assert [key for key in landed.keys if not (Path(inbox) / key).is_file()] == []
    assert run.read_status().next == ["take up help"]
    assert run.plan_advance() == ["take up help"]


def test_a_decision_returns_the_corpus_as_it_is_then(run_file: Path, tmp_path: Path) -> None:
    run = perennial.open(run_file)
    run.land("help", [write_texts(tmp_path)["help"]])
    assert run.plan_decision("hold", "help") == ["hold help"]
    assert run.read_status().corpora == {}
    assert run.hold("help", "wait for the licence").state == "held"
    status = run.read_status()
    assert (status.corpora, status.reasons) == ({"help": "held"}, {"help": "wait for the licence"})
    assert run.retry("help", replay=0.5).replay == 0.5
    assert run.refuse("help").state == "refused"
    with pytest.raises(InputError) as error:
        run.hold("help")
    assert _code(error) == "decision-not-possible"
    with pytest.raises(InputError) as error:
        run.accept("no-such-corpus")
    assert _code(error) == "corpus-missing"


def test_an_ingest_that_refuses_a_corpus_says_so_and_ends_with_code_1(
    run_file: Path, tmp_path: Path
) -> None:
    """Once: a corpus that was refused before is no news."""
    folder = tmp_path / "store" / "inbox" / "small"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "one"}\n')
    (folder / "_SUCCESS").touch()
    done = CliRunner().invoke(app, ["ingest", str(run_file), "--json"])
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert (document["refused"], document["corpora"]) == (["small"], {"small": "refused"})
    assert "less than one global batch" in done.stderr
    again = CliRunner().invoke(app, ["ingest", str(run_file)])
    assert again.exit_code == 0
    assert "corpus    small: refused" in again.stdout


def test_plan_returns_the_stages_to_come(run_file: Path, tmp_path: Path) -> None:
    run = perennial.open(run_file)
    run.land("help", [write_texts(tmp_path)["help"]])
    planned = run.plan()
    (stage,) = planned.plan.stages
    assert (stage.stage, stage.steps, stage.basis) == ("00-help", 12, "estimated")
    assert [point.step for point in planned.rates][-1] == 11
    run.draw_rates(planned, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_an_existing_store_is_opened_without_its_run_file(old: OldStore, tmp_path: Path) -> None:
    run = perennial.open(old.folder, ["replay.share=0.5"])
    assert (run.spec.store, run.spec.replay.share) == (str(old.folder), 0.5)
    status = run.read_status()
    by_file = perennial.open(old.run_file, [old.override]).read_status()
    assert status.to_dict() == by_file.to_dict()
    assert [(stage.name, stage.corpora) for stage in status.stages] == [
        ("00-help", ("help",)),
        ("01-code", ("code",)),
    ]
    assert status.stages[1].replay > 0
    assert not run.verify().findings
    assert run.retire("help").state == "retired"
    page = run.report(tmp_path / "page.html")
    assert Path(page.place).read_text(encoding="utf-8") == page.html


@pytest.mark.parametrize(
    "verb",
    [
        lambda run: run.advance(),
        lambda run: run.plan_advance(),
        lambda run: run.watch_once(),
        lambda run: run.watch(),
        lambda run: run.ingest(),
        lambda run: run.release(),
        lambda run: run.evaluate(),
        lambda run: run.land("b", []),
    ],
)
def test_a_store_alone_is_not_trained(
    old: OldStore, verb: Callable[[perennial.Run], object]
) -> None:
    run = perennial.open(old.folder)
    with pytest.raises(InputError) as error:
        verb(run)
    assert _code(error) == "run-file-needed"


def test_what_cannot_be_opened_is_refused_by_code(tmp_path: Path, old: OldStore) -> None:
    with pytest.raises(InputError) as error:
        perennial.open(tmp_path / "no-such.yaml")
    assert _code(error) == "file-missing"
    with pytest.raises(InputError) as error:
        perennial.open(tmp_path / "no-such-store")
    assert _code(error) == "no-run-in-store"
    with pytest.raises(InputError) as error:
        perennial.open(old.folder, ["replay.shares=0.5"])
    assert _code(error) == "unknown-key"


def test_verbs_refuse_what_is_not_there_yet(run_file: Path) -> None:
    run = perennial.open(run_file)
    refusals: list[tuple[Callable[[], object], str]] = [
        (run.evaluate, "nothing-trained"),
        (run.plan_evaluate, "nothing-trained"),
        (run.advance, "nothing-landed"),
        (run.report, "nothing-landed"),
        (lambda: run.ingest(due=True), "no-sources"),
        (lambda: run.draw_rates(run.plan(), "x.png"), "nothing-landed"),
    ]
    for verb, code in refusals:
        with pytest.raises(InputError) as error:
            verb()
        assert _code(error) == code


def test_methods_print_nothing(
    run_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = perennial.open(run_file)
    run.land("help", [write_texts(tmp_path)["help"]])
    run.plan()
    run.hold("help")
    run.read_status()
    assert capfd.readouterr() == ("", "")


def test_only_open_loads_the_rest_of_the_package() -> None:
    code = "import perennial, sys; assert 'perennial.api' not in sys.modules; perennial.Run.land"
    source = str(Path(perennial.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": source})


def test_a_tuning_file_names_the_run_that_is_tuned(run_file: Path, tmp_path: Path) -> None:
    tuning = tmp_path / "tuning.yaml"
    tuning.write_text("name: s\nrun: run.yaml\nbudget: 1k tokens\nreplay: [0.1, 0.2]\n")
    run = perennial.open(run_file)
    search, where = read_tuning(run.spec, tuning, "")
    assert (search.name, where) == ("s", str(tuning))
    assert read_tuning(run.spec, search, "given") == (search, "given")
    other = perennial.open(run_file, [f"store={tmp_path / 'other'}"])
    with pytest.raises(InputError) as error:
        other.plan_tune(tuning)
    assert _code(error) == "tuning-of-another-run"


def test_a_study_file_names_the_run_that_is_studied(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    run = perennial.open(tmp_path / "run.yaml")
    planned = run.plan_study(file, jobs=2, overrides=["seeds=[7]"])
    assert [its["run"] for its in planned["runs"]] == ["quarter/seed-7", "half/seed-7"]
    assert planned["jobs"] == 2
    spec = load(file, StudySpec)
    assert len(run.plan_study(spec, file)["runs"]) == 4
    done = CliRunner().invoke(app, ["study", str(file), "--dry-run", "--json", "--jobs", "2"])
    assert json.loads(done.stdout) == run.plan_study(file, jobs=2)
    other = perennial.open(tmp_path / "run.yaml", [f"store={tmp_path / 'other'}"])
    with pytest.raises(InputError) as error:
        other.study(file)
    assert _code(error) == "study-of-another-run"
