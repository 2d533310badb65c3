"""What goes where: answers to stdout, all else to stderr."""

from __future__ import annotations

import json

import pytest

from perennial.cli.console import out, print_json, stdout_for_answers


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
