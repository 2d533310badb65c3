"""The report's page: everything escaped, nothing loaded from elsewhere, four looks a picture."""

from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.evaluation.samples import Rendering, Sample
from perennial.report.build import quotes
from perennial.report.figures.run import loss_heat_map
from perennial.report.html import Continuation, Page, PageSection, Quote, Table, render
from perennial.report.tables import bits
from perennial.runs.events import Measured
from perennial.runs.state import RunState
from perennial.store import open_store
from tests.support.event_factory import AT, imported

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
    quotes=(Quote("Once", "english", (Continuation("00-english", f"upon {HOSTILE}"),)),),
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


def test_samples_that_were_drawn_are_pictures_with_the_code_that_drew_them(
    tmp_path: Path,
) -> None:
    state = RunState()
    state.apply(imported())
    drawn = Rendering("digits:draw sha256 12", png="UE5H")
    samples = [
        Sample("digits", "0 1 2", "3", drawn),
        Sample("chess", "4", "5", Rendering("chess:write", text="e4 e5")),
        Sample("music", "6", "7", Rendering("gone:draw", problem="not there")),
        Sample("english", "Once", "upon"),
    ]
    state.apply(Measured(at=AT, stage="base", losses={"digits": LOSS}, samples=[*samples]))
    shown = list(quotes(open_store(tmp_path), state))
    assert [(quote.prompt, *quote.texts, *quote.drawn_by) for quote in shown] == [
        (
            "The first 3 ids of a document",
            Continuation("base", "3", "UE5H"),
            "digits:draw sha256 12",
        ),
        ("The first 1 ids of a document", Continuation("base", "5", drawn="e4 e5"), "chess:write"),
        ("6", Continuation("base", "7", note="(not drawn: gone:draw: not there)")),
        ("Once", Continuation("base", "upon")),
    ]
    reader = Reader()
    html = render(replace(PAGE, quotes=shown))
    reader.feed(html)
    assert "data:image/png;base64,UE5H" in reader.links
    assert "drawn by digits:draw sha256 12" in html
    assert "<pre>e4 e5</pre>" in html
    assert "(not drawn: gone:draw: not there)" in html


def test_what_is_no_text_has_bits_per_token() -> None:
    ids = HeldoutLoss("digits", math.log(2) * 3, None, 10, 100, 0, 0.1)
    matrix = LossMatrix((("00-english", {"english": LOSS, "digits": ids}),))
    assert list(bits(matrix).rows) == [("00-english", "1.200", "3.000 per token")]


def test_the_same_run_gives_the_same_page() -> None:
    assert render(PAGE) == render(PAGE)
