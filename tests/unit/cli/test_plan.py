"""The learning rate's curve of `perennial plan` in a terminal."""

from __future__ import annotations

from perennial.cli.look.plan import curve, tops


def test_a_column_has_the_highest_value_of_its_steps() -> None:
    assert tops([(0, 1.0), (1, 3.0), (2, 2.0), (3, 1.0)], 4, 2) == [3.0, 2.0]


def test_a_curve_of_fewer_steps_than_columns_has_no_gaps() -> None:
    assert tops([(0, 1.0), (1, 2.0)], 2, 5) == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert curve(tops([(0, 1.0), (1, 2.0)], 2, 5), 1) == ["▄▄███"]


def test_what_comes_before_the_first_point_is_empty() -> None:
    assert tops([(3, 2.0)], 4, 4) == [0.0, 0.0, 0.0, 2.0]
