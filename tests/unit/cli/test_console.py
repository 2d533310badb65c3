"""What goes where: answers to stdout, all else to stderr."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from perennial.cli.console import ProgressScreen, out, print_json, stdout_for_answers
from perennial.controller.observer import ObservedRun
from perennial.mixture import ReplayRule, stage_mix
from perennial.training.job import Job
from perennial.training.ray.progress_actor import Progress


def test_stdout_holds_the_answer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with stdout_for_answers():
        print("(raylet) The node with node id 64 died")  # as Ray does
        print_json({"trials": 2})
    told = capsys.readouterr()
    assert json.loads(told.out) == {"trials": 2}
    assert told.err == "(raylet) The node with node id 64 died\n"


def test_stdout_is_as_it_was_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), stdout_for_answers():
        raise ValueError("no")
    out.print("next")
    assert capsys.readouterr().out == "next\n"


def _rows(first: int, last: int, seconds: float) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "phase": "anneal",
            "loss": 2.0,
            "batch_tokens": 1000,
            "seconds": {"forward": seconds / 2, "backward": seconds / 2},
        }
        for step in range(first, last + 1)
    ]


@pytest.mark.parametrize(
    ("batches", "line"),
    [
        # The news of the start and the first steps arrive together: no time passed in between.
        ([_rows(1, 1, 0.5)], "anneal   step 1/8  loss 2.000"),
        ([_rows(1, 4, 0.5)], "anneal   step 4/8  loss 2.000  2,000 tokens/s  0:02 left"),
        ([_rows(1, 1, 3.0), _rows(2, 4, 1.0)], "step 4/8  loss 2.000  667 tokens/s  0:06 left"),
    ],
)
def test_a_speed_is_that_of_measured_steps(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    batches: list[list[dict[str, Any]]],
    line: str,
) -> None:
    monkeypatch.setattr("perennial.cli.console.PLAIN_LINE_SECONDS", -1.0)
    mix = stage_mix([], {"a": 80}, 8, 8, ReplayRule())
    job = cast(Job, SimpleNamespace(name="00-a", first_step=0, last_step=8, mix=mix))
    work = cast(ObservedRun, None)
    screen = ProgressScreen()
    screen.job_progressed(work, job, Progress(started=[(0, 1)], rows=batches[0]))
    for rows in batches[1:]:
        screen.job_progressed(work, job, Progress(rows=rows))
    assert capsys.readouterr().err.splitlines()[-1].endswith(line)


def test_brackets_in_a_path_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with stdout_for_answers():
        out.print("next      perennial verify /data/[old]/run.yaml")
    assert "/data/[old]/run.yaml" in capsys.readouterr().out
