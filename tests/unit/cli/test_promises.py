"""What README and the guides promise of options holds for every verb."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from typer.testing import CliRunner

from perennial.api import Run
from perennial.api.begin import begin_run, machine_of
from perennial.api.open import diagnose
from perennial.api.results import WatchedLook
from perennial.cli.app import app
from perennial.cli.run.run import look_document, read_interval
from perennial.config.explain import explain
from perennial.errors import Busy, InputError
from perennial.planning.first_run_file import Asked
from perennial.planning.fleet_forecast import FleetForecast
from perennial.planning.plan import Hardware
from perennial.planning.spot_fleet import Fleet
from tests.support.cli import SOURCE
from tests.support.tiny_run import tiny_run, write_run
from tests.unit.test_docs import PAGES, shown_in_blocks

ROOT = Path(__file__).parents[3]
READ_ONLY = {"explain", "doctor", "status", "compare", "plan", "simulate", "verify", "trace"}
"""verbs that change neither a store nor a file of their own; all others act"""
OF_THE_COMMAND_LINE = {"as_json", "dry_run", "log_format", "overrides", "run_file"}
WITHOUT_A_RUN: dict[str, tuple[Any, ...]] = {
    "init": (begin_run, machine_of, Asked),
    "explain": (explain,),
    "doctor": (diagnose,),
}
"""functions of the verbs that are on no run; `quickstart` calls other verbs, one by one"""
SEVERAL: dict[str, tuple[Any, ...]] = {
    "plan": (Run.plan, Run.draw_rates, Hardware),
    "simulate": (Run.simulate, FleetForecast.to_dict, Fleet),
    "watch": (Run.watch, Run.watch_once),
    "status": (Run.status, Run.measure_bytes),
    "release": (Run.release, Run.make_trunk_kit),
    "trace": (Run.trace, Run.trace_document, Run.trace_step, Run.trace_text, Run.trace_release),
}
"""methods of the verbs that are several, and what their arguments are made of"""
PARAMETERS = {
    "words": "path",
    "name": "corpus",
    "gpu_memory": "memory_bytes",
    "peak_tflops": "peak_flops",
    "tuning_file": "tuning",
    "study_file": "study",
    "preemptions": "preemptions_per_hour",
    "notice": "notice_seconds",
    "replacement": "replacement_seconds",
    "split": "splits",
    "interval": "interval_seconds",
    "once": "watch_once",
    "webhook": "webhook_port",
    "every": "last",
    "with_bytes": "measure_bytes",
    "trunk_kit": "make_trunk_kit",
    "run_files": "others",
    "place": "to",
    "checkpoint": "at",
    "new_run": "new",
    "kind": "kinds",
    "document": "trace_document",
    "text": "trace_text",
    "step": "trace_step",
}
_GROUP = typer.main.get_command(app)
assert isinstance(_GROUP, click.Group) or hasattr(_GROUP, "commands")
VERBS = dict(_GROUP.commands)


def test_every_verb_takes_json_and_those_that_act_take_dry_run() -> None:
    promise = "Every verb takes `--json`; those that act take `--dry-run`."
    assert promise in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    options = {
        verb: {name for parameter in command.params for name in parameter.opts}
        for verb, command in VERBS.items()
    }
    assert options.keys() >= READ_ONLY
    assert [verb for verb, names in options.items() if "--json" not in names] == []
    dry = {verb for verb, names in options.items() if "--dry-run" in names}
    assert options.keys() - dry == READ_ONLY


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"quickstart"}))
def test_every_verb_is_a_method_and_every_option_a_parameter(verb: str) -> None:
    """What the command line does, the Python interface does."""
    method = getattr(Run, {"run": "advance", "ui": "ui_command"}.get(verb, verb), None)
    functions = WITHOUT_A_RUN.get(verb) or SEVERAL.get(verb, (method,))
    assert all(inspect.getdoc(function) for function in functions)
    known = {name for function in functions for name in inspect.signature(function).parameters}
    known |= {function.__name__ for function in functions}
    named = {str(parameter.name) for parameter in VERBS[verb].params} - OF_THE_COMMAND_LINE
    assert not [name for name in named if not {name, PARAMETERS.get(name)} & known]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_command_line_can_read_the_commands_of_a_page(page: Path) -> None:
    """Types of values too: `--interval 10m` was once shown where only seconds were read."""
    wrong = []
    for words in shown_in_blocks(page):
        verb, *rest = words
        try:
            VERBS[verb].make_context(verb, rest)
        except Exception as unread:  # typer brings its own copy of click's errors
            wrong.append(f"perennial {' '.join(words)}: {unread}")
        if verb == "watch" and "--interval" in rest:
            read_interval(rest[rest.index("--interval") + 1])
    assert not wrong


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("90s", 90), ("6h", 21600), ("60", 60), ("0.5", 0.5)]
)
def test_an_interval_is_a_duration_or_seconds(text: str, seconds: float) -> None:
    assert read_interval(text) == seconds


@pytest.mark.parametrize("text", ["soon", "0", "0s", "10 minutes", "-5"])
def test_an_interval_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    done = CliRunner().invoke(app, ["watch", str(run_file), f"--interval={text}"])
    assert (done.exit_code, "command line: --interval" in done.stderr) == (2, True), done.output


def test_a_union_file_without_a_run_file_is_refused(tmp_path: Path) -> None:
    words = ["quickstart", str(tmp_path / "here"), "--union", "union.yaml", "--dry-run"]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, "command line: --union" in done.stderr) == (2, True), done.output


def test_a_look_of_a_watch_is_a_document() -> None:
    idle = look_document(WatchedLook(None, None, "s3://b/inbox"), 60.0)
    assert (idle["trained"], idle["failure"], idle["next_look_seconds"]) == (None, None, 60.0)
    wrong = InputError("run.yaml", "a.b", "is wrong", "correct it", code="invalid-value")
    for failure, code in ((Busy("held by another"), "busy"), (wrong, "invalid-value")):
        look = look_document(WatchedLook(None, failure, "inbox"), 60.0)
        assert json.loads(json.dumps(look))["failure"]["code"] == code
    bug = look_document(WatchedLook(None, ZeroDivisionError("by zero"), "inbox"), 60.0)
    assert "by zero" in bug["failure"]["message"]


@pytest.mark.long
def test_watch_prints_a_line_of_json_a_look(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, tiny_run(tmp_path))
    words = ["watch", str(run_file), "--json", "--interval", "0.1"]
    with subprocess.Popen(
        [sys.executable, "-m", "perennial.cli", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        rest = [json.loads(line) for line in process.stdout]
    assert all(look["inbox"] == str(tmp_path / "store" / "inbox") for look in looks)
    assert process.returncode == 143
    assert rest[-1]["error"]["code"] == "terminated"
