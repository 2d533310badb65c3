"""Turn the shift between a trunk's own text and a new one into a share of replay. Pure.

The shift is by how much more bits a byte of the new text costs the trunk than one of its own: bits
per byte are nats per token times tokens per byte, so that it holds both what the model does not
know and what its tokenizer does not. A shift up to the weak end takes the share that arXiv
2403.08763 takes for a weak shift, one from the strong end on that of a strong one, and between the
two the share grows in proportion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from perennial.evaluation.shift import Ratio, TextCost

CostUnit = Literal["bits per byte", "nats per token"]


@dataclass(frozen=True)
class ShareRule:
    """The ends of the rule: two shifts, and the share of replay that each takes.

    The shares are those of arXiv 2403.08763. So is the weak shift: Pile to SlimPajama cost 24%
    (405M) and 28% (10B parameters) more before it was trained, table 3 and 4, with one tokenizer.
    It has no such number for its strong one; English to French and to Spanish costs a trunk of this
    platform 68 to 120% more.
    """

    weak_shift: float = 0.25
    strong_shift: float = 1.0
    weak_share: float = 0.05
    strong_share: float = 0.25

    def share_of(self, shift: float) -> float:
        """Return the share that a shift takes, in whole percent."""
        place = (shift - self.weak_shift) / (self.strong_shift - self.weak_shift)
        part = min(1.0, max(0.0, place))
        return round(self.weak_share + part * (self.strong_share - self.weak_share), 2)


@dataclass(frozen=True)
class ShareDecision:
    """Why a stage has its share of replay.

    model: key of the folder of the model that was measured, from which the stage starts.
    own: its cost of a text mixed as the trunk has seen the corpora that it replays.
    new: its cost of the stage's new corpora.
    unit: in which both are compared; nats per token where bytes are not known.
    shift: the new cost over the own, minus 1; None where a loss is not a number.
    stderr: standard error of the shift; None where it has none.
    rule: what made the share of it.
    """

    model: str
    own: TextCost
    new: TextCost
    unit: CostUnit
    shift: float | None
    stderr: float | None
    rule: ShareRule
    share: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the shares of the shift minus and plus two standard errors."""
        if self.shift is None or self.stderr is None:
            return None
        ends = (self.shift - 2 * self.stderr, self.shift + 2 * self.stderr)
        return self.rule.share_of(ends[0]), self.rule.share_of(ends[1])

    def describe(self) -> str:
        """Return the share with its reasons, in one line."""
        rule = self.rule
        ends = (
            f"{rule.weak_share:.0%} up to {rule.weak_shift:+.0%}, "
            f"{rule.strong_share:.0%} from {rule.strong_shift:+.0%} on"
        )
        if self.shift is None:
            return f"{self.share:.0%}: a loss is not a number, so as for a strong shift ({ends})"
        error = "" if self.stderr is None else f" ± {self.stderr:.1%}"
        between = ""
        if self.interval is not None and self.interval[0] != self.interval[1]:
            between = f" ({self.interval[0]:.0%} to {self.interval[1]:.0%} within two errors)"
        new, own = _cost_text(self.new, self.unit), _cost_text(self.own, self.unit)
        return (
            f"{self.share:.0%}{between} for a shift of {self.shift:+.1%}{error}: the new text "
            f"costs {new} {self.unit}, the trunk's own {own} ({ends})"
            f"{_tokens_text(self.new, self.own)}"
        )


def _cost_text(cost: TextCost, unit: CostUnit) -> str:
    ratio = _in_unit(cost, unit)
    return "nothing" if ratio is None else _with_error(ratio)


def _with_error(ratio: Ratio) -> str:
    error = "" if ratio.stderr is None else f" ± {ratio.stderr:.3f}"
    return f"{ratio.value:.3f}{error}"


def _tokens_text(new: TextCost, own: TextCost) -> str:
    if new.tokens_per_byte is None or own.tokens_per_byte is None:
        return ""
    parts = (_with_error(new.tokens_per_byte), _with_error(own.tokens_per_byte))
    return f"; tokens a byte: {parts[0]} and {parts[1]}"


def decide_share(
    model: str, own: TextCost, new: TextCost, rule: ShareRule | None = None
) -> ShareDecision:
    """Return the share of replay of a stage, with its reasons.

    Args:
        model: key of the folder of the model that was measured.
        own: its cost of what the trunk knows.
        new: its cost of what the stage trains.
        rule: the rule; default the one of this version.
    """
    rule = rule or ShareRule()
    known = own.tokens_per_byte is not None and new.tokens_per_byte is not None
    unit: CostUnit = "bits per byte" if known else "nats per token"
    before, after = _in_unit(own, unit), _in_unit(new, unit)
    if before is None or after is None or not before.value > 0:
        return ShareDecision(model, own, new, unit, None, None, rule, rule.strong_share)
    ratio = after.value / before.value
    stderr = None
    if before.stderr is not None and after.stderr is not None:
        stderr = math.hypot(after.stderr, ratio * before.stderr) / before.value
    share = rule.share_of(ratio - 1)
    return ShareDecision(model, own, new, unit, ratio - 1, stderr, rule, share)


def _in_unit(cost: TextCost, unit: CostUnit) -> Ratio | None:
    return cost.bits_per_byte if unit == "bits per byte" else cost.nats_per_token
