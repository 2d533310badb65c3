"""The report: one HTML page that needs no network, for a screen, a phone and paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from perennial.report.figures.style import Picture


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading.

    numbers: columns that are aligned to the right.
    stacked: whether a phone shows each row as a list of its cells, in place of a wide table.
    earlier: number of rows before these that are left out, and `whole` is where all of them are.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[str] = frozenset()
    stacked: bool = False
    earlier: int = 0
    whole: str = ""

    def last(self, count: int, whole: str) -> Table:
        """Return the table with its last rows alone, and a note where all of them are.

        Args:
            count: number of rows that are kept, at most.
            whole: says where all rows are.
        """
        first = max(0, len(self.rows) - count)
        return replace(self, rows=self.rows[first:], earlier=self.earlier + first, whole=whole)


@dataclass(frozen=True)
class PageSection:
    """A heading, a sentence that says how to read what follows, then a picture and tables.

    code: lines that a reader may run.
    """

    title: str
    lead: str = ""
    picture: Picture | None = None
    #: what the picture shows, for readers who cannot see it
    alt: str = ""
    tables: Sequence[Table] = ()
    code: Sequence[str] = ()


class Continuation(NamedTuple):
    """A model's continuation of a prompt.

    png, drawn: a picture in base64, or a text in lines, in place of the text.
    note: why there is neither; "" for nothing to note.
    """

    model: str
    text: str
    png: str = ""
    drawn: str = ""
    note: str = ""


@dataclass(frozen=True)
class Quote:
    """A prompt, its corpus, and the continuation of each model.

    drawn_by: the functions of the user's that drew them, if any did.
    """

    prompt: str
    manner: str
    texts: Sequence[Continuation]
    drawn_by: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """The whole report.

    title: names what the page is of.
    lead: the first sentence, which says what came out.
    facts: a few words and a number each.
    """

    title: str
    lead: str
    subtitle: str
    facts: Mapping[str, str]
    sections: Sequence[PageSection]
    quotes: Sequence[Quote] = field(default_factory=tuple)


def render(page: Page) -> str:
    """The page as HTML; every word of the run is escaped, and nothing is loaded from elsewhere."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["looks"] = _looks
    environment.globals["zip"] = zip
    template = resources.files("perennial.report").joinpath("page.html").read_text("utf-8")
    return environment.from_string(template).render(page=page)


def _looks(picture: Picture, number: int) -> dict[str, str]:
    """Return the picture's drawings as elements of the page, by their class."""
    return {
        "wide": picture.svg(f"w{number}"),
        "narrow": picture.svg(f"n{number}", narrow=True),
    }
