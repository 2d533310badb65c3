"""The report's page: everything escaped, nothing loaded from elsewhere, four looks a picture."""

from __future__ import annotations

from html.parser import HTMLParser

from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.report.figures.run import loss_heat_map
from perennial.report.html import Page, PageSection, Quote, Table, render

HOSTILE = "<script>alert(1)</script>"
LOSS = HeldoutLoss("english", 2.5, 1.2, 10, 100, 400, 0.1)
PAGE = Page(
    lead="00-a learned 1.00 nats of <a>.",
    title=f"run {HOSTILE}",
    subtitle="as it stood",
    facts={"corpora": "1"},
    sections=(
        PageSection(
            "Matrix",
            "Read down a column.",
            loss_heat_map(LossMatrix((("00-english", {"english": LOSS}),))),
            "a heat map",
            (Table(("stage", "loss"), ((HOSTILE, "2.500"),), frozenset({"loss"})),),
        ),
    ),
    quotes=(Quote("Once", "english", (("00-english", f"upon {HOSTILE}"),)),),
)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    html = render(PAGE)
    reader = Reader()
    reader.feed(html)
    assert "script" not in reader.tags
    assert html.count("&lt;script&gt;") == 4  # title twice, table cell, sample
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in reader.links)


def test_a_picture_comes_in_light_and_dark_wide_and_narrow() -> None:
    reader = Reader()
    reader.feed(render(PAGE))
    pictures = {link for link in reader.links if link.startswith("data:")}
    assert len(pictures) == 4
    assert reader.tags.count("source") == 4


def test_the_same_run_gives_the_same_page() -> None:
    assert render(PAGE) == render(PAGE)
