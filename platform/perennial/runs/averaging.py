"""Averages of the trunk's checkpoints: what is asked for, and the weights. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Literal, NamedTuple, cast, get_args

from pydantic import BaseModel, ConfigDict

from perennial.errors import InputError

Weighting = Literal["uniform", "linear", "1-sqrt"]
"""uniform is the mean (PMA's SMA, arXiv 2505.12082), which stands for a linear decay of the rate
(WSM, arXiv 2507.17634); linear has weights 1, 2, ... for the later ones (PMA's WMA); 1-sqrt has
those that stand for a decay of that shape (WSM)"""

_PATTERN = re.compile(r"last:(\d{1,4})(?::([a-z0-9-]+))?")


class AveragedCheckpoint(BaseModel):
    """A checkpoint of the trunk in an average; weights are in proportion to each other."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    step: int
    source: str
    weight: float


class Average(BaseModel):
    """A weighted average of checkpoints of the trunk, the earliest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weighting: Weighting
    of: tuple[AveragedCheckpoint, ...]

    @property
    def sources(self) -> dict[str, float]:
        """Return the weights by key of the checkpoint, the earliest first."""
        return {member.source: member.weight for member in self.of}

    def __str__(self) -> str:
        stages: dict[str, list[str]] = {}
        for member in self.of:
            stages.setdefault(member.stage, []).append(f"{member.step:,}")
        places = " and ".join(f"{', '.join(steps)} of {name}" for name, steps in stages.items())
        weights = "" if self.weighting == "uniform" else f", with {self.weighting} weights"
        return f"average of the trunk at steps {places}{weights}"


class AskedAverage(NamedTuple):
    """The number of the trunk's last checkpoints, and how they are weighed."""

    checkpoints: int
    weighting: Weighting


def read_average(text: str) -> AskedAverage:
    """Read `last:5` or `last:5:1-sqrt`.

    Raises:
        InputError: it is neither.
    """
    match = _PATTERN.fullmatch(text)
    known = get_args(Weighting)
    is_unknown = match is not None and (match[2] or known[0]) not in known
    if match is None or int(match[1]) < 2 or is_unknown:
        why = f": there is no weighting {match[2]!r}" if match and is_unknown else ""
        raise InputError(
            "command line",
            "--average",
            f"{text!r} is no average of two checkpoints or more{why}",
            f"give last:5, or last:5: and one of {', '.join(known)}",
            code="average-invalid",
        )
    return AskedAverage(int(match[1]), cast("Weighting", match[2] or known[0]))


def weights_of(weighting: str, count: int) -> list[float]:
    """Return the weights of `count` checkpoints, the earliest first.

    Where the rate of the step after checkpoint j were multiplied by w(j), which falls from 1 to 0,
    training would end at the average with weights w(j - 1) - w(j): that of a linear fall is the
    mean.
    """
    shapes: dict[str, Callable[[int], float]] = {
        "uniform": lambda j: 1.0,
        "linear": lambda j: float(j + 1),
        "1-sqrt": lambda j: math.sqrt((j + 1) / count) - math.sqrt(j / count),
    }
    return [shapes[weighting](j) for j in range(count)]
