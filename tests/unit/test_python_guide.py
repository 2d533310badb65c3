"""The guide to Python and the example notebook: their programs print what they show."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from tests.support.guide import commands
from tests.support.programs import cells, lines_of, run_program, working_folder
from tests.support.quickstart_store import unpack_quickstart
from tests.support.tiny_run import tiny_run, write_run, write_texts

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guide/python.md"
NOTEBOOK = ROOT / "examples/explore_run.ipynb"
_TRAINS = "run.advance()"


def test_the_programs_that_read_print_what_the_guide_shows(tmp_path: Path) -> None:
    unpack_quickstart(tmp_path)
    names: dict[str, Any] = {}
    programs = [command for command in commands(GUIDE) if _TRAINS not in command.text]
    assert len(programs) == 4
    with working_folder(tmp_path):
        for program in programs:
            printed, _ = run_program(program.text, names)
            assert lines_of(printed) == lines_of("\n".join(program.shown))
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_program_that_trains_prints_what_the_guide_shows(
    tmp_path: Path, ray_local: None
) -> None:
    write_run(tmp_path, tiny_run(tmp_path))
    write_texts(tmp_path)["help"].rename(tmp_path / "news.jsonl")
    (program,) = [command for command in commands(GUIDE) if _TRAINS in command.text]
    with working_folder(tmp_path):
        printed, _ = run_program(program.text, {})
    assert lines_of(printed) == program.shown


def test_the_notebook_shows_what_its_programs_return(tmp_path: Path) -> None:
    unpack_quickstart(tmp_path)
    (tmp_path / "examples").mkdir()
    names: dict[str, Any] = {}
    with working_folder(tmp_path / "examples"):
        for cell in cells(NOTEBOOK):
            source = "".join(cell["source"])
            printed, value = run_program(source, names)
            shown = {kind for output in cell["outputs"] for kind in output.get("data", {})}
            texts = ["".join(o["data"]["text/plain"]) for o in cell["outputs"] if "data" in o]
            assert not printed
            assert ("image/png" in shown) == bool(pyplot.get_fignums()), source
            if value is not None:
                # A notebook breaks a list's lines elsewhere.
                assert texts[0].split() == repr(value).split(), source
            pyplot.close("all")


def test_the_notebook_names_no_place_of_a_machine_and_shows_all_of_its_outputs() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.findall(r"/(?:home|root|tmp|work|usr)/[^\"\\ ]*", text)
    assert sys.prefix not in text
    assert all(cell["outputs"] for cell in cells(NOTEBOOK)[:3])
    assert len(text) < 300_000
