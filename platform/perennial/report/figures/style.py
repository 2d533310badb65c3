"""The look of pictures: one style, as PNG or SVG, on light or dark paper, wide or for a phone.

Colours are Okabe and Ito's, which people with any colour vision tell apart; what a colour says, a
marker, a hatch or a label says too.
"""

from __future__ import annotations

import io
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
WIDE_INCHES, NARROW_INCHES, DPI = 7.5, 4.3, 120
LIGHT = {"paper": "#FFFFFF", "ink": "#1A1A1A", "grey": "#595959", "grid": "#E3E3E3"}
DARK = {"paper": "#15181C", "ink": "#ECECEC", "grey": "#A6A6A6", "grid": "#33383F"}

P = ParamSpec("P")


@dataclass(frozen=True)
class Picture:
    """A drawing that can be made in several looks; the same look gives the same bytes."""

    draw: Callable[[], Figure]

    def png(self) -> bytes:
        """About 900 pixels wide, on white."""
        with _style(LIGHT, WIDE_INCHES):
            return _saved(self.draw(), "png", {"Software": None})

    def svg(self, *, dark: bool = False, narrow: bool = False) -> bytes:
        """For a page, whose headings are its titles: light or dark, wide or for a phone."""
        with _style(DARK if dark else LIGHT, NARROW_INCHES if narrow else WIDE_INCHES):
            figure = self.draw()
            for axes in figure.axes:
                axes.set_title("")
            return _saved(figure, "svg", {"Date": None})

    def figure(self) -> Figure:
        """Return the drawing itself, wide, on white, for a program that goes on with it."""
        with _style(LIGHT, WIDE_INCHES):
            return self.draw()


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
    with matplotlib.rc_context():
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
                "svg.hashsalt": "perennial",
                "text.color": theme["ink"],
                "xtick.color": theme["ink"],
                "ytick.color": theme["ink"],
            }
        )
        yield


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
    return "#B34700" if paper() == LIGHT["paper"] else "#FF9A57"


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


def name_spans(axes: Axes, names: Sequence[str], starts: Sequence[float], end: float) -> None:
    """Mark where stages join, with their names along the top, upright where they are crowded."""
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
