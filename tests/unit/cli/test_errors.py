"""A failed verb: one line on stderr, an exit code, and with `--json` one document on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from perennial.cli.app import PANELS, app
from perennial.cli.command import as_command
from perennial.errors import PerennialError, StaleDecision, Superseded, Terminated, TrainingFailed

KEYS = {"code", "message", "where", "field", "problem", "remedy", "exit_code", "others"}


def test_wrong_input_is_a_document_with_its_parts(tmp_path: Path) -> None:
    missing = str(tmp_path / "run.yaml")
    done = CliRunner().invoke(app, ["run", missing, "--json"])
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    document = json.loads(done.stdout)
    assert document.keys() == {"error"}
    error = document["error"]
    assert error.keys() == KEYS
    assert (error["code"], error["where"], error["exit_code"]) == ("file-missing", missing, 2)
    assert error["message"] == f"{missing}: {error['problem']}; {error['remedy']}"


def test_without_json_stdout_stays_empty(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", str(tmp_path / "run.yaml")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("perennial: ")


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("report", "--output"), ("compare", "--output"), ("compare", "--csv"),
        ("compare", "--latex"), ("plan", "--picture"),
    ],
)  # fmt: skip
def test_a_file_is_refused_where_it_should_not_be_written(
    tmp_path: Path, verb: str, option: str
) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("name: mine\n")
    refused = {
        "output-unusable": (run_file, tmp_path),
        "folder-missing": (tmp_path / "none" / "file",),
    }
    for code, places in refused.items():
        for place in places:
            done = CliRunner().invoke(app, [verb, str(run_file), option, str(place), "--json"])
            error = json.loads(done.stdout)["error"]
            assert (done.exit_code, error["code"], error["field"]) == (2, code, option)
    assert run_file.read_text() == "name: mine\n"


def _failing(failure: BaseException) -> typer.Typer:
    single = typer.Typer(pretty_exceptions_enable=False)

    def fail(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        raise failure

    single.command()(as_command(fail))
    return single


@pytest.mark.parametrize(
    ("failure", "code", "exit_code"),
    [
        (TrainingFailed("the worker group gave up"), "training-failed", 1),
        (StaleDecision("a decision came first"), "stale-decision", 1),
        (Superseded("another controller took charge"), "superseded", 1),
        (PerennialError("failed"), "failed", 1),
        (Terminated("stopped on request"), "terminated", 143),
        (SystemExit(143), "terminated", 143),
        (SystemExit(15), "terminated", 143),
        (KeyboardInterrupt(), "interrupted", 1),
    ],
)
def test_every_kind_of_failure_has_its_exit_code_and_document(
    failure: BaseException, code: str, exit_code: int
) -> None:
    done = CliRunner().invoke(_failing(failure), ["--json"])
    assert done.exit_code == exit_code
    error = json.loads(done.stdout)["error"]
    assert error.keys() == KEYS
    assert (error["code"], error["exit_code"], error["where"]) == (code, exit_code, None)
    assert done.stderr == f"perennial: {error['message']}\n"


def test_a_bug_keeps_its_traceback() -> None:
    done = CliRunner().invoke(_failing(ZeroDivisionError()), ["--json"])
    assert isinstance(done.exception, ZeroDivisionError)
    assert done.stdout == ""


def test_help_lists_the_verbs_in_the_order_of_work() -> None:
    lines = CliRunner().invoke(app, ["--help"]).stdout.splitlines()
    words = [line.strip("│ ").split(" ")[0] for line in lines]
    verbs = [verb.__name__ for panel in PANELS.values() for verb in panel]
    assert "land run watch status" in " ".join(verbs)
    assert [word for word in words if word in verbs] == verbs


def test_a_store_is_named_by_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path would make one slash of two, and look for a folder."""
    done = CliRunner().invoke(app, ["status", "nowhere://store"])
    assert done.exit_code == 2
    assert "perennial: store: nowhere://store: not a store" in done.stderr


def test_an_error_of_the_storage_is_one_line_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    done = CliRunner().invoke(app, ["status", "s3://bucket/run", "--json"])
    assert done.exit_code == 1
    assert done.stderr.startswith("perennial: s3://bucket/run")
    assert "Unable to locate credentials" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "storage-error"


@pytest.mark.parametrize(
    "option", ["--tokens=4 steps", "--format=gguf", "--mixture=balanced", "--average=last:3"]
)
def test_a_trunk_kit_has_no_options_of_an_anneal(tmp_path: Path, option: str) -> None:
    words = ["release", str(tmp_path / "run.yaml"), "--trunk-kit", option, "--json"]
    error = json.loads(CliRunner().invoke(app, words).stdout)["error"]
    assert (error["code"], error["field"]) == ("options-conflict", option.partition("=")[0])
