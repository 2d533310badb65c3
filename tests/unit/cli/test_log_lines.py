"""The log as lines with time and level, for programs and for people."""

from __future__ import annotations

import json
import logging
import math
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.cli.console import ProgressScreen
from perennial.cli.log_lines import LogFormat, for_screen, format_line, split_level, using_format

AT = "2026-01-01T00:00:00.000+00:00"


@pytest.mark.parametrize(
    ("text", "level", "rest"),
    [
        ("training 01-french", "info", "training 01-french"),
        ("notice: it waits", "notice", "it waits"),
        ("warning: a: b", "warning", "a: b"),
        ("01-french: 2 workers go on", "info", "01-french: 2 workers go on"),
        ("warning", "info", "warning"),
    ],
)
def test_a_line_begins_with_its_level(text: str, level: str, rest: str) -> None:
    assert split_level(text) == (level, rest)


def test_a_message_is_one_line_in_both_forms() -> None:
    text = format_line(LogFormat.TEXT, AT, "info", "a\nb  c", {"step": 5})
    assert text == f"{AT} info    a b c"
    line = format_line(LogFormat.JSON, AT, "info", 'a\n"b"', {"step": 5})
    assert json.loads(line) == {"at": AT, "level": "info", "message": 'a "b"', "step": 5}


def test_lines_of_a_run_and_of_libraries_have_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    with using_format(LogFormat.JSON):
        ProgressScreen().message("warning: the tokenizer fits badly")
        logging.getLogger("perennial.tracking").warning("MLflow does not answer")
    assert for_screen()
    logging.getLogger("perennial.tracking").info("not shown")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("warning", "the tokenizer fits badly"), ("warning", "MLflow does not answer"),
    ]  # fmt: skip
    assert lines[1]["logger"] == "perennial.tracking"
    assert all(datetime.fromisoformat(line["at"]).tzinfo for line in lines)


def test_a_number_that_is_not_finite_is_null() -> None:
    fields = {"loss": math.nan, "parts": {"a": math.inf, "b": 1.0}}
    line = format_line(LogFormat.JSON, AT, "info", "a step", fields)
    assert json.loads(line, parse_constant=pytest.fail)["parts"] == {"a": None, "b": 1.0}


def test_what_a_library_logs_with_an_error_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with using_format(LogFormat.JSON):
        try:
            raise ValueError("two\nlines")
        except ValueError:
            logging.getLogger("perennial.api").exception("a callback failed")
    first = json.loads(capsys.readouterr().err.splitlines()[0])
    assert first["message"] == "a callback failed (ValueError: two lines)"


@pytest.mark.parametrize("by", ["option", "environment"])
def test_every_verb_writes_its_failure_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    words = ["status", str(tmp_path / "none.yaml")]
    if by == "environment":
        monkeypatch.setenv("PERENNIAL_LOG_FORMAT", "json")
    else:
        words += ["--log-format", "json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    line = json.loads(done.stderr)
    assert (line["level"], line["code"]) == ("error", "file-missing")
    text = CliRunner().invoke(app, [*words[:2], "--log-format", "text"]).stderr
    assert text.split()[1] == "error"
    wrong = CliRunner().invoke(app, [*words[:2], "--log-format", "xml"])
    assert wrong.exit_code == 2
