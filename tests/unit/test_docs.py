"""The documentation: links resolve, commands exist, lines have one width."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

ROOT = Path(__file__).parents[2]
WIDTH = 100
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"))
)
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def _prose(page: Path) -> str:
    """Return a page's text with the fenced blocks blanked, so that line numbers stay."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), (ROOT / page).read_text())


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_resolve(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page.parent / path).resolve() if path else ROOT / page
        if not target.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in _anchors(target.relative_to(ROOT)):
            wrong.append(f"{link}: no such heading")
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_prose_has_one_width(page: Path) -> None:
    """Tables, headings, pictures and fenced blocks may be wider: they cannot be wrapped."""
    wide = []
    for number, line in enumerate(_prose(page).splitlines(), start=1):
        text = line.strip()
        is_synopsis = text.startswith("`") and text.endswith("`")
        if len(line) > WIDTH and not is_synopsis and not text.startswith(("|", "#", "!", "<!--")):
            wide.append(f"{page}:{number}: {len(line)} characters")
    assert not wide


@cache
def _command_line() -> TyperGroup:
    from perennial.cli.app import app

    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def shown_in_blocks(page: Path) -> Iterator[list[str]]:
    """Yield the words of every `perennial ...` command in the fenced blocks of a page."""
    for _, block in _FENCE.findall((ROOT / page).read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"^\s*(?:\$ )?perennial ([a-z].*)$", line)
            if match and "perennial: " not in line:
                yield shlex.split(match[1], comments=True)


def _shown_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every `perennial ...` command that a page shows."""
    yield from shown_in_blocks(page)
    for match in re.finditer(r"`perennial ([a-z][^`]*)`", _prose(page)):
        yield shlex.split(match[1].replace("[", " ").replace("]", " "), comments=True)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_shown_commands_exist(page: Path) -> None:
    commands = _command_line().commands
    wrong = []
    for words in _shown_commands(page):
        verb = words[0]
        if verb not in commands:
            wrong.append(f"perennial {verb}: no such verb")
            continue
        options = {name for parameter in commands[verb].params for name in parameter.opts}
        options |= {
            name for parameter in commands[verb].params for name in parameter.secondary_opts
        }
        used = {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}
        unknown = sorted(used - options - {"--help"})
        wrong += [f"perennial {verb} has no option {option}" for option in unknown]
    assert not wrong
