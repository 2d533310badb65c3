"""`perennial status` on one screen, whatever the run."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.cli.look.status_screen import ENDLESS, HEIGHT, WIDTH, Row, StatusScreen, render_lines


def row(i: int, corpora: list[str], **changes: object) -> Row:
    losses = {corpus: 4.0 + i for corpus in corpora}
    told: dict[str, object] = {
        "name": f"{i:02d}-c{i}", "losses": losses, "own": 4.0 + i, "forgetting": 0.1,
        "state": "passed", "tokens": 516_096, "replay": 0.25,
    }  # fmt: skip
    return Row(**(told | changes))  # type: ignore[arg-type]


THREE = ["english", "french", "spanish"]
QUICKSTART = StatusScreen(
    head="quickstart   trunk: 02-spanish, step 252, constant phase",
    corpora=THREE,
    stages=[row(i, THREE) for i in range(3)],
    releases=[Row("02-spanish-252-anneal30", {corpus: 3.9 for corpus in THREE})],
    others=[Row("retrained: union", {corpus: 3.8 for corpus in THREE})],
    rates=[i / 100 for i in range(100)],
    rate="now 1.65e-03",
    notes=[("tasks", "continuation acc 0.25")],
    places=[("store", "build/quickstart/store"), ("next", "perennial land ...")],
)


def test_the_quickstarts_screen_is_whole() -> None:
    lines = render_lines(QUICKSTART)
    assert len(lines) == 11
    text = "\n".join(lines)
    for word in ("english", "spanish", "00-c0", "02-c2", "516k", "25%", "6.000", "+0.100", "▁"):
        assert word in text
    assert "release 02-spanish-252-annea" in text
    assert lines[7].split() == ["retrained:", "union", "3.800", "3.800", "3.800"]
    assert max(map(len, lines)) <= WIDTH
    assert "..." not in text.replace("perennial land ...", "")


def test_of_many_stages_the_last_are_shown_and_of_many_corpora_the_average() -> None:
    corpora = [f"corpus{i}" for i in range(30)]
    stages = [row(i, corpora) for i in range(40)]
    notes = [("corpus", f"corpus{i} waits") for i in range(30)]
    lines = render_lines(
        StatusScreen("big", corpora, stages, notes=notes, places=[("store", "s3://b/run")])
    )
    assert len(lines) <= HEIGHT - 1
    text = "\n".join(lines)
    assert "average" in lines[1] and "corpus3 " not in lines[1]
    assert "39-c39" in text and "00-c0 " not in text
    assert "before: --all shows them" in text
    assert "more lines: --all shows them" in text
    assert "store     s3://b/run" in text


def test_a_higher_terminal_shows_more() -> None:
    stages = [row(i, THREE) for i in range(40)]
    assert len(render_lines(StatusScreen("big", THREE, stages), 100, 60)) == 42


def test_with_all_every_stage_and_every_note_is_there_whole() -> None:
    corpora = [f"corpus{i}" for i in range(30)]
    notes = [("corpus", f"corpus{i} waits because {'it is long ' * 12}") for i in range(30)]
    stages = [row(i, corpora) for i in range(40)]
    screen = StatusScreen("big", corpora, stages, notes=notes)
    lines = render_lines(screen, WIDTH, ENDLESS)
    text = " ".join("\n".join(lines).split())
    assert all(f"{i:02d}-c{i} " in text for i in range(40))
    assert text.count("it is long") == 30 * 12
    assert "more" not in text and "before" not in text and "…" not in text
    assert max(map(len, lines)) <= WIDTH


def test_a_long_place_is_folded_and_never_cut() -> None:
    url = "s3://bucket/" + "x" * 120
    lines = render_lines(StatusScreen("run", places=[("store", url), ("next", "a " * 60)]))
    assert any(url in line for line in lines)
    assert sum(line.count("a") for line in lines[2:]) == 60


def test_reasons_come_first_and_whole() -> None:
    reason = "corpus-3 refused: " + "no field 'text' in any of its documents " * 6
    lines = render_lines(replace(QUICKSTART, reasons=[("corpus", reason)]))
    assert lines[1].startswith("corpus    corpus-3 refused: no field")
    assert " ".join(" ".join(lines[1:5]).split()).count("no field 'text'") == 6
    assert len(lines) < HEIGHT
    many = [("corpus", f"corpus-{n} refused: {'it is bad ' * 9}") for n in range(40)]
    lines = render_lines(replace(QUICKSTART, reasons=many))
    assert len(lines) < HEIGHT
    assert any("more: --all shows them" in line for line in lines)
    assert any("02-c2" in line for line in lines)


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=200)
rows = st.builds(
    Row,
    name=texts.filter(bool),
    losses=st.dictionaries(st.sampled_from(THREE), st.floats(0, 99)),
    own=st.none() | st.floats(0, 99),
    forgetting=st.none() | st.floats(-9, 9),
    state=st.sampled_from(["", "passed", "evaluating"]),
    tokens=st.integers(0, 10**13),
    replay=st.floats(0, 1),
)


@settings(max_examples=150, deadline=None)
@given(
    head=texts,
    stages=st.lists(rows, max_size=50),
    releases=st.lists(rows, max_size=9),
    notes=st.lists(st.tuples(texts, texts), max_size=40),
    rates=st.lists(st.floats(0, 1), max_size=300),
    words=st.lists(st.text("ab/", min_size=1, max_size=60), max_size=5),
    width=st.integers(80, 200),
    height=st.integers(24, 80),
)
def test_it_fits_the_screen(
    head: str,
    stages: list[Row],
    releases: list[Row],
    notes: list[tuple[str, str]],
    rates: list[float],
    words: list[str],
    width: int,
    height: int,
) -> None:
    screen = StatusScreen(
        head, THREE, stages, releases, rates, "now", notes, [("next", w) for w in words]
    )
    lines = render_lines(screen, width, height)
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    for word in words:
        assert any(word in line for line in lines)


def test_a_stored_model_is_a_row_before_the_stages() -> None:
    base = Row("base", {corpus: 3.25 for corpus in THREE})
    lines = render_lines(replace(QUICKSTART, origins=[base]))
    rows = [line.split() for line in lines]
    assert ["base", "3.250", "3.250", "3.250"] in rows
    assert rows.index(["base", "3.250", "3.250", "3.250"]) == 3, "after head, rate and title"
