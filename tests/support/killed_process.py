"""A process that is killed between two changes of a store, in a folder or a bucket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perennial.store import LocalStore
from perennial.store.bucket import BucketStore

_CHANGES: dict[type[object], tuple[str, ...]] = {
    LocalStore: ("create", "remove", "open"),
    BucketStore: ("create", "remove", "open", "write", "upload", "copy_on_server"),
}


class Killed(BaseException):
    """The process ends here: no handler of failures runs."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """End the process before its n-th change of a store; return how many there were.

    Heartbeats are left aside, since threads write them.
    """
    count = 0

    def counted(kind: type[object], name: str) -> None:
        real = getattr(kind, name)

        def change(self: Any, key: str, *rest: Any) -> Any:
            nonlocal count
            if (name != "open" or rest == ("wb",)) and "leases/repairing" not in str(key):
                count += 1
                if count == number:
                    raise Killed
            return real(self, key, *rest)

        monkeypatch.setattr(kind, name, change)

    for kind, names in _CHANGES.items():
        for name in names:
            counted(kind, name)
    return lambda: count
