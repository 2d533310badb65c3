"""Programs of a guide or a notebook, run one after the other in one namespace."""

from __future__ import annotations

import ast
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pandas
from matplotlib import pyplot

_NOTEBOOK_WIDTH = {"display.max_columns": 20, "display.width": 80}
"""what pandas takes where there is no terminal"""


@contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """Run in a folder, without a screen, with tables as wide as in a notebook."""
    before, backend = Path.cwd(), pyplot.get_backend()
    options = [word for pair in _NOTEBOOK_WIDTH.items() for word in pair]
    os.chdir(folder)
    pyplot.switch_backend("agg")
    try:
        with pandas.option_context(*options):
            yield
    finally:
        pyplot.close("all")
        pyplot.switch_backend(backend)
        os.chdir(before)


def run_program(source: str, names: dict[str, Any]) -> tuple[str, object]:
    """Run a program; return what it printed, and the value of its last line unless `;` ends it."""
    tree = ast.parse(source)
    last = tree.body[-1]
    shown = isinstance(last, ast.Expr) and not source.rstrip().endswith(";")
    printed = io.StringIO()
    with redirect_stdout(printed):
        if shown and isinstance(last, ast.Expr):
            tree.body.pop()
            exec(compile(tree, "program", "exec"), names)
            value = eval(compile(ast.Expression(last.value), "program", "eval"), names)
        else:
            exec(compile(tree, "program", "exec"), names)
            value = None
    return printed.getvalue(), value


def lines_of(text: str) -> list[str]:
    """Return a text's lines without what a page does not show: blanks at their ends."""
    return [line.rstrip() for line in text.splitlines()]


def cells(notebook: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook that hold a program."""
    document = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in document["cells"] if cell["cell_type"] == "code"]
