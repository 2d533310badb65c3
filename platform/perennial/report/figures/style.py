"""The look of pictures: one style, as PNG on white or as SVG in a page, wide or for a phone.

Colours are Okabe and Ito's, which people with any colour vision tell apart; what a colour says, a
marker, a hatch or a label says too.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8A00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one fewer than colours, so that pairs repeat late
CROWD = 16
"""Stages, or corpora, from which on a picture draws no name and no bar for each of them."""
_NAMED = 10
"""Of a crowd, the most that are named along an axis."""
WIDE_INCHES, NARROW_INCHES, DPI = 7.5, 4.3, 120
PRINTED = {
    "paper": "#FFFFFF",
    "ink": "#1A1A1A",
    "grey": "#595959",
    "grid": "#E3E3E3",
    "accent": "#B34700",
}
_THEMED = {
    "paper": "#fffffe",
    "ink": "#1a1a1b",
    "grey": "#59595a",
    "grid": "#e3e3e2",
    "accent": "#b34701",
}
"""Colours that nothing else has: in a page each becomes its variable of the same name."""

_DRAWING = threading.RLock()

P = ParamSpec("P")


@dataclass(frozen=True)
class Picture:
    """A drawing that can be made in several looks; the same look gives the same bytes."""

    draw: Callable[[], Figure]

    def png(self) -> bytes:
        """Draw it about 900 pixels wide, on white."""
        with _style(PRINTED, WIDE_INCHES):
            return _saved(self.draw(), "png", {"Software": None})

    def figure(self) -> Figure:
        """Return the drawing itself, wide, on white, for a program that goes on with it."""
        with _style(PRINTED, WIDE_INCHES):
            return self.draw()

    def svg(self, prefix: str, *, narrow: bool = False) -> str:
        """Draw it for a page, whose headings are its titles and whose style has its colours.

        Args:
            prefix: of its ids, so that several pictures may stand in one page.
            narrow: for a phone.
        """
        with _style(_THEMED, NARROW_INCHES if narrow else WIDE_INCHES):
            figure = self.draw()
            if len(figure.axes) == 1:  # of several panels each keeps its own title
                figure.axes[0].set_title("")
            return _inline(_saved(figure, "svg", {"Date": None}).decode(), prefix)


def _inline(svg: str, prefix: str) -> str:
    """Return a drawing of matplotlib's as an element of a page."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", svg, flags=re.S)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'url\(#|href="#', lambda match: f"{match[0]}{prefix}-", svg)
    # Places to a hundredth of a point; numbers that are text stay as they are.
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda match: _rounded(match[0]), svg)
    svg = re.sub(r'font-family: [^;"]*;? ?| transform="rotate\(-0 [^"]*"', "", svg)
    for name, tint in _THEMED.items():
        svg = svg.replace(tint, f"var(--{name})")
    return svg.strip()


def _rounded(places: str) -> str:
    return re.sub(r"(\d\.\d\d)\d+", r"\1", places)


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=DPI, metadata=metadata)
    return out.getvalue()


def picture(draw: Callable[P, Figure]) -> Callable[P, Picture]:
    """Make a drawing function return the picture that it would draw."""

    @wraps(draw)
    def later(*args: P.args, **kwargs: P.kwargs) -> Picture:
        return Picture(lambda: draw(*args, **kwargs))

    return later


@contextmanager
def _style(theme: dict[str, str], width_inches: float) -> Iterator[None]:
    # The settings are the process's: of two threads that draw, one waits.
    with _DRAWING, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": 10,
                "axes.titlesize": 12 if width_inches == WIDE_INCHES else 10,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.titlepad": 12,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.edgecolor": theme["grey"],
                "axes.facecolor": theme["paper"],
                "axes.labelcolor": theme["ink"],
                "axes.titlecolor": theme["ink"],
                "axes.grid": True,
                "axes.axisbelow": True,
                "figure.facecolor": theme["paper"],
                "figure.figsize": (width_inches, 4.0),
                "figure.constrained_layout.use": True,
                "grid.color": theme["grid"],
                "legend.frameon": False,
                "savefig.facecolor": theme["paper"],
                "svg.fonttype": "none",
                "svg.hashsalt": "perennial",
                "text.color": theme["ink"],
                "xtick.color": theme["ink"],
                "ytick.color": theme["ink"],
            }
        )
        yield


def panels(heights_inches: Sequence[float]) -> tuple[Figure, Sequence[Axes]]:
    """A figure with panels side by side, or one below the other for a phone.

    Args:
        heights_inches: of each panel; side by side all are as high as the highest.
    """
    width = matplotlib.rcParams["figure.figsize"][0]
    if narrow():
        figure = Figure(figsize=(width, sum(heights_inches)))
        grid = figure.subplots(
            len(heights_inches), squeeze=False, height_ratios=list(heights_inches)
        )
        return figure, [row[0] for row in grid]
    figure = Figure(figsize=(width, max(heights_inches)))
    return figure, list(figure.subplots(1, len(heights_inches), squeeze=False)[0])


def axes_of(height_inches: float) -> tuple[Figure, Axes]:
    """A figure as wide as the look asks for, with one pair of axes."""
    width = matplotlib.rcParams["figure.figsize"][0]
    figure = Figure(figsize=(width, height_inches))
    return figure, figure.add_subplot()


def paper() -> str:
    """The colour of the paper."""
    return str(matplotlib.rcParams["figure.facecolor"])


def grey() -> str:
    """The colour of what is said by the way."""
    return str(matplotlib.rcParams["axes.edgecolor"])


def accent() -> str:
    """The colour of releases and of what is beaten, readable as text on the paper."""
    theme = _THEMED if paper() == _THEMED["paper"] else PRINTED
    return theme["accent"]


def narrow() -> bool:
    """Return whether the picture is for a phone."""
    return bool(matplotlib.rcParams["figure.figsize"][0] == NARROW_INCHES)


def legend_below(axes: Axes, columns: int, **kwargs: object) -> None:
    """A legend under the horizontal axis, where it takes no width."""
    per_row = min(columns, 2) if narrow() else columns
    axes.figure.legend(loc="outside lower center", ncols=per_row, **kwargs)


def colour(i: int) -> str:
    """The i-th colour; they repeat."""
    return COLOURS[i % len(COLOURS)]


def broken(name: str) -> str:
    """A long name on two lines where there is little room."""
    if not narrow() or len(name) < 16:
        return name
    middle = name.find("-", len(name) // 2) + 1 or len(name) // 2
    return f"{name[:middle]}\n{name[middle:]}"


def named_places(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the places along an axis that have a name, and those names; of a crowd only some."""
    stride = 1 if len(names) <= CROWD else -(-len(names) // _NAMED)
    places = list(range(0, len(names), stride))
    return places, [names[place] for place in places]


def name_spans(axes: Axes, names: Sequence[str], starts: Sequence[float], end: float) -> None:
    """Mark where stages join, with their names along the top, upright where they are crowded.

    Of a crowd only some have their name and their mark.
    """
    places, names = named_places(names)
    starts = [starts[place] for place in places]
    ends = [*starts[1:], end]
    letter = (0.027 if narrow() else 0.015) * (end - starts[0])
    crowded = any(
        stop - start < letter * len(name)
        for name, start, stop in zip(names, starts, ends, strict=True)
    )
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, bottom + (top - bottom) * (1.5 if crowded else 1.15))
    for name, start in zip(names, starts, strict=True):
        if start != starts[0]:
            axes.axvline(start, color=grey(), linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            name,
            (start, axes.get_ylim()[1]),
            (4, -4),
            textcoords="offset points",
            va="top",
            rotation=90 if crowded else 0,
        )
