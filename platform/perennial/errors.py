"""Errors for the person who must act."""

from __future__ import annotations

MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a program raises that is wrong, or was given something wrong: trying again meets it again.
A machine, a network or a store that fails raises others, such as OSError and RuntimeError."""


class InputError(Exception):
    """The input is wrong; the command exits with code 2 and one line, before any compute.

    where: the file (or command) that holds the mistake.
    field: the dotted name of the field in it, or "" when the whole file is meant.
    problem: what is wrong, with the value that was found.
    remedy: what would be right.
    """

    def __init__(self, where: str, field: str, problem: str, remedy: str) -> None:
        super().__init__(where, field, problem, remedy)
        self.where = where
        self.field = field
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        place = f"{self.where}: {self.field}" if self.field else self.where
        return f"{place}: {self.problem}; {self.remedy}"
