"""A guide's commands as they stand there, run one after the other, and what they print."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.cli import SOURCE

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"[-+]?\d[\d,.:]*(?:e[-+]\d+)?")
_DRAWN = re.compile(r"[\s─━▁▂▃▄▅▆▇█]+")
LEFT_OUT = "..."


@dataclass(frozen=True)
class Command:
    """A command of a guide, or a Python program, and the lines that stand below it."""

    text: str
    shown: list[str]
    program: bool = False


def commands(page: Path) -> list[Command]:
    """Return the commands of a page in their order: lines after `$ `, and blocks of Python.

    What a program prints is the block behind it, which has no command of its own.
    """
    found: list[Command] = []
    for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            found.append(Command(block, [], program=True))
        elif not language and block.startswith("$ "):
            for part in block[2:].split("\n$ "):
                text, *shown = part.replace("\\\n", " ").splitlines()
                found.append(Command(text, shown))
        elif not language and found and found[-1].program:
            found[-1].shown.extend(block.splitlines())
    return found


def run_command(command: Command, folder: Path, code: int = 0) -> str:
    """Run a command in a folder; what it printed. Fails the test where it ends with another code.

    `perennial` and `python` are those of the tests, others the system's; there is no shell.
    """
    if command.program:
        words = [sys.executable, "-c", command.text]
    else:
        name, *rest = shlex.split(command.text, comments=True)
        modules = {"perennial": ["-m", "perennial.cli"], "python": []}
        ours = [sys.executable, *modules[name]] if name in modules else [name]
        words = [*ours, *rest]
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == code, f"{command.text}\n{done.stdout[-6000:]}"
    return done.stdout.replace(str(folder), "~/perennial")


def shape_of(line: str) -> str:
    """Return a line without its numbers and without the width of what is drawn."""
    return _DRAWN.sub(" ", _NUMBER.sub("#", line)).strip()


def unprinted(command: Command, printed: str) -> list[str]:
    """Return what a guide shows below a command, and the command did not print, numbers aside."""
    shapes = {shape_of(line) for line in printed.splitlines()}
    lines = [line for line in command.shown if line.strip() not in ("", LEFT_OUT)]
    return [line for line in lines if shape_of(line) not in shapes]


def table(text: str, title: str) -> dict[str, list[str]]:
    """Return the cells of a printed table by the first one of their row; "" has the heads."""
    lines = text.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith(title)) + 1
    rows: dict[str, list[str]] = {}
    for line in lines[first:]:
        if line[:1] not in "┃│┏┡├└":
            break
        if line[0] in "┃│":
            name, *cells = (cell.strip() for cell in re.split("[┃│]", line)[1:-1])
            rows[name if rows else ""] = cells
    return rows
