"""The report's page: everything escaped, nothing loaded from elsewhere, each picture twice."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.evaluation.samples import Rendering, Sample
from perennial.report.build import quotes
from perennial.report.figures.heat_map import loss_heat_map
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
    assert all(link.startswith("#") for link in reader.links)


def test_the_first_line_says_what_came_out() -> None:
    html = render(PAGE)
    assert "<h1>00-a learned 1.00 nats of &lt;a&gt;.</h1>" in html
    assert html.index("<h1>") < html.index("<h2")


def test_a_picture_is_there_once_for_a_screen_and_once_for_a_phone() -> None:
    html = render(PAGE)
    assert html.count("<svg ") == 2
    assert html.count('<div class="wide" role="img" aria-label="a heat map">') == 1
    assert html.count('<div class="narrow" role="img" aria-label="a heat map">') == 1
    for name in ("paper", "ink", "grey", "grid", "accent"):
        assert html.count(f"--{name}: #") == 2, "a value on light and one on dark paper"
    twice = render(replace(PAGE, sections=(*PAGE.sections, *PAGE.sections)))
    ids = re.findall(r'\bid="([^"]+)"', twice)
    assert len(ids) == len({*ids}), "the ids of one picture are not those of another"


def test_a_phone_shows_the_rows_of_a_stacked_table_as_lists() -> None:
    table = Table(("stage", "steps"), (("00-a", "1 to 9"),), stacked=True)
    html = render(replace(PAGE, sections=(PageSection("Lineage", tables=[table]),)))
    assert '<table class="stacked">' in html
    assert '<td data-column="steps">1 to 9</td>' in html


def test_a_long_table_shows_its_last_rows_and_where_the_others_are() -> None:
    table = Table(("stage",), [(f"s{i}",) for i in range(1000)]).last(20, "matrix.csv has them")
    assert [row[0] for row in table.rows] == [f"s{i}" for i in range(980, 1000)]
    html = render(replace(PAGE, sections=(PageSection("Lineage", tables=[table]),)))
    assert "980 rows before these are left out: matrix.csv has them." in html
    assert table.last(20, "").rows == table.rows
    assert Table(("a",), [("1",)]).last(20, "x").earlier == 0


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
