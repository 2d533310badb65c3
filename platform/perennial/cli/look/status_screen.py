"""A run on one terminal screen: the stages as a table, the rest a line each. Pure.

The screen marks what does not fit; `--all` prints all of it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 80, 24
"""Smallest terminal that is supported, in characters."""
ENDLESS = 1_000_000
"""height on which everything fits"""
_LABEL = 10
_FEWEST_ROWS = 3
_CELL = 7
_WIDEST_CORPUS = 11


@dataclass(frozen=True)
class Row:
    """A model of the run: a stage's end, or a release or stored model, with no state or tokens.

    replay: its share, from 0 to 1. losses: nats per token by corpus. forgetting: their mean rise.
    """

    name: str
    losses: Mapping[str, float]
    own: float | None = None
    forgetting: float | None = None
    state: str = ""
    tokens: int = 0
    replay: float = 0.0


@dataclass(frozen=True)
class StatusScreen:
    """Contents of the status screen, most important first.

    head: the run, and where its trunk stands.
    earlier: number of stages before those that it has.
    others: models of other runs, below those of this one.
    rates: the learning rate over the trunk's life, evenly spaced; `rate` describes the last one.
    reasons, notes, places: pairs of a label and a text. Reasons say why something waits, and come
    first; they and places (files, commands) are never cut.
    """

    head: str
    corpora: Sequence[str] = ()
    stages: Sequence[Row] = ()
    releases: Sequence[Row] = ()
    rates: Sequence[float] = ()
    rate: str = ""
    notes: Sequence[tuple[str, str]] = field(default_factory=tuple)
    places: Sequence[tuple[str, str]] = field(default_factory=tuple)
    origins: Sequence[Row] = ()
    earlier: int = 0
    reasons: Sequence[tuple[str, str]] = field(default_factory=tuple)
    others: Sequence[Row] = ()


def render_lines(screen: StatusScreen, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Return the screen in at most `height` lines of at most `width` characters.

    Only a reason or a place that is longer than a line takes more than one: it is there to be read
    or copied whole.
    """
    top = [_cut(screen.head, width), *_whole_reasons(screen.reasons, height // 2, width)]
    if screen.rates:
        top.append(
            _cut(f"{'rate':{_LABEL}}{_spark(screen.rates, width - 26)}  {screen.rate}", width)
        )
    places = [line for place in screen.places for line in _folded(*place, width)]
    room = height - 1 - len(top) - len(places)  # the prompt comes after
    notes = _fitting(screen.notes, max(1, room - _least(screen)), width)
    table = _table(screen, width, max(0, room - len(notes)))
    return [*top, *table, *notes, *places]


def _whole_reasons(reasons: Sequence[tuple[str, str]], room: int, width: int) -> list[str]:
    """Return as many reasons as there is room for, each of them whole, at least the first."""
    lines: list[str] = []
    for number, (word, text) in enumerate(reasons):
        folded = _folded(word[: _LABEL - 2], text, width)
        if number and len(lines) + len(folded) >= room:
            return [*lines, f"{'':{_LABEL}}and {len(reasons) - number} more: --all shows them"]
        lines += folded
    return lines


def _least(screen: StatusScreen) -> int:
    """Return the number of lines that the table gets before the notes do."""
    rows = sum(map(len, (screen.origins, screen.stages, screen.releases, screen.others)))
    return 1 + min(rows, _FEWEST_ROWS) if rows else 0


def _fitting(notes: Sequence[tuple[str, str]], room: int, width: int) -> list[str]:
    if room >= ENDLESS // 2:
        return [line for note in notes for line in _folded(*note, width)]
    lines = [_cut(f"{word[: _LABEL - 2]:{_LABEL}}{text}", width) for word, text in notes]
    if len(lines) <= room:
        return lines
    more = len(lines) - room + 1
    return [*lines[: room - 1], f"{'':{_LABEL}}and {more} more lines: --all shows them"]


def _table(screen: StatusScreen, width: int, room: int) -> list[str]:
    released = [replace(row, name=f"release {row.name}") for row in screen.releases]
    rows = [*screen.origins, *screen.stages, *released, *screen.others]
    if not rows or room < 2:
        return []
    longest = max((len(row.name) for row in screen.stages), default=0)
    name = max(5, min(longest, 20))
    left = width - name - 26 - 9
    columns = {corpus: min(max(_CELL, len(corpus)), _WIDEST_CORPUS) for corpus in screen.corpora}
    whole = sum(size + 1 for size in columns.values()) <= left
    if not whole:
        columns = {"own": _CELL, "average": _CELL}
    heads = "".join(f" {_cut(column, size):>{size}}" for column, size in columns.items())
    title = f"{'stage':{name}} {'state':10} {'tokens':>6} {'replay':>6}{heads} {'forgot':>7}"
    is_whole = not screen.earlier and len(rows) <= room - 1
    shown = rows if is_whole else rows[max(0, len(rows) - room + 2) :]
    lines = [title]
    hidden = len(rows) - len(shown) + screen.earlier
    if hidden:
        lines.append(f"... and {hidden} before: --all shows them")
    return lines + [_row(row, name, columns, whole, screen.corpora) for row in shown]


def _row(
    row: Row, name: int, columns: Mapping[str, int], whole: bool, corpora: Sequence[str]
) -> str:
    if row.state:
        start = f"{_cut(row.name, name):{name}} {_cut(row.state, 10):10} {_short(row.tokens):>6}"
        start += f" {row.replay:>6.0%}"
    else:
        start = _cut(row.name, name + 25).ljust(name + 25)
    measured = [row.losses[corpus] for corpus in corpora if corpus in row.losses]
    average = sum(measured) / len(measured) if len(measured) == len(corpora) != 0 else None
    values = row.losses if whole else {"own": row.own, "average": average}
    cells = (_number(values.get(column)).rjust(size) for column, size in columns.items())
    forgot = "" if row.forgetting is None else f"{row.forgetting:+.3f}"
    return f"{start} {' '.join(cells)} {forgot:>7}".rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(count: int) -> str:
    """Return a count in at most five characters: 516k, 4.1M, 300G."""
    for unit, scale in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= scale:
            value = count / scale
            return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}{unit}"
    return str(count)


def _spark(values: Sequence[float], width: int) -> str:
    """Return the values as one line of block characters, the highest one full."""
    top = max(values) or 1.0
    places = min(width, len(values))
    chosen = [max(_part(values, i, places)) for i in range(places)]
    return "".join(" ▁▂▃▄▅▆▇█"[round(value / top * 8)] for value in chosen)


def _part(values: Sequence[float], i: int, parts: int) -> Sequence[float]:
    return values[i * len(values) // parts : max((i + 1) * len(values) // parts, 1)]


def _folded(word: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=f"{word:{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= width else f"{text[: width - 1]}…"
