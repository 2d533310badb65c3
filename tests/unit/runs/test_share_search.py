"""The trials of a search after a broken gate close in on the shares that hold its bounds."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from perennial.runs.unattended.share_search import TriedShare, best_share, next_share

RATE = 1e-3
SHARES = st.integers(0, 100).map(lambda percent: percent / 100)


def _at(share: float, needed: float, most: float, rate: float = RATE) -> TriedShare:
    """A stage that forgets below one share and lags above another; half the rate, half of both."""
    scale = rate / RATE
    return TriedShare(share, rate, share < needed * scale, share > most * scale, 3 + share)


def _search(
    share: float, needed: float, most: float, *, shares: bool = True, rates: bool = False
) -> list[TriedShare]:
    tried = [_at(share, needed, most)]
    while (point := next_share(tried, shares=shares, rates=rates)) is not None:
        tried.append(_at(point[0], needed, most, point[1]))
        assert len(tried) < 40
    return tried


def test_more_replay_is_tried_until_it_holds_and_then_less_again() -> None:
    tried = _search(0.1, needed=0.25, most=1.0)
    assert [each.share for each in tried] == [0.1, 0.2, 0.4, 0.3, 0.25]
    assert best_share(tried) == tried[-1]


def test_a_stage_that_learned_too_little_is_tried_with_less() -> None:
    tried = _search(0.4, needed=0.05, most=0.15)
    assert [each.share for each in tried] == [0.4, 0.2, 0.1]


def test_bounds_that_no_share_holds_end_the_search_or_lower_the_peak() -> None:
    assert [each.share for each in _search(0.3, needed=0.9, most=1.0)] == [0.3, 0.5]
    lower = _search(0.3, needed=0.9, most=2.0, rates=True)
    assert [(each.share, each.rate) for each in lower] == [
        (0.3, RATE),
        (0.5, RATE),
        (0.5, RATE / 2),
    ]
    assert lower[-1].holds


def test_where_nothing_can_be_replayed_only_the_peak_is_lowered() -> None:
    tried = _search(0.1, needed=0.3, most=1.0, shares=False, rates=True)
    assert [(each.share, each.rate) for each in tried] == [
        (0.1, RATE), (0.1, RATE / 2), (0.1, RATE / 4),
    ]  # fmt: skip
    assert next_share([_at(0.1, 0.3, 1.0)], shares=False) is None


def test_a_loss_that_is_not_a_number_lowers_the_peak() -> None:
    lost = TriedShare(0.2, RATE, True, True, None)
    tried = [_at(0.1, 0.4, 1.0), lost]
    assert next_share(tried) is None
    assert next_share(tried, rates=True) == (0.2, RATE / 2)


@given(SHARES, SHARES, SHARES, st.booleans())
def test_a_search_ends_repeats_nothing_and_finds_what_is_there(
    share: float, needed: float, width: float, rates: bool
) -> None:
    first = _at(share, needed, needed + width)
    if first.holds:
        return
    tried, points = [first], {(first.share, first.rate)}
    for _ in range(12):
        point = next_share(tried, rates=rates)
        if point is None:
            break
        assert point not in points
        assert 0 < point[0] <= max(0.5, share)
        assert point[1] <= RATE
        points.add(point)
        tried.append(_at(point[0], needed, needed + width, point[1]))
    best = best_share(tried)
    reachable = width >= 0.02 and needed + 0.02 <= 0.5 and needed + width > 0.02
    if reachable and not rates:
        assert best is not None, tried
    if best is not None:
        assert best.holds
        assert all(best.loss <= each.loss for each in tried if each.holds)  # type: ignore[operator]


@given(st.lists(st.tuples(SHARES, st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_losses_that_follow_no_rule_end_a_search_too(
    answers: list[tuple[float, bool, bool]],
) -> None:
    tried = [TriedShare(answers[0][0], RATE, True, False, 3.0)]
    for number in count():
        point = next_share(tried)
        if point is None:
            break
        assert point not in {(each.share, each.rate) for each in tried}
        _, forgets, lags = answers[number % len(answers)]
        tried.append(TriedShare(point[0], point[1], forgets, lags, 3.0))
        assert number < 20
