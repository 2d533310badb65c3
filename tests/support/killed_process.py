"""A process that is killed between two changes of a store in a folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perennial.store import LocalStore


class Killed(BaseException):
    """The process ends here: no handler of failures runs."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """End the process before its n-th change of a store; return how many there were.

    Heartbeats are left aside, since threads write them.
    """
    count = 0

    def counted(name: str) -> None:
        real = getattr(LocalStore, name)

        def change(self: LocalStore, key: str, *rest: Any) -> Any:
            nonlocal count
            if (name != "open" or rest == ("wb",)) and "leases/repairing" not in key:
                count += 1
                if count == number:
                    raise Killed
            return real(self, key, *rest)

        monkeypatch.setattr(LocalStore, name, change)

    for name in ("create", "remove", "open"):
        counted(name)
    return lambda: count
