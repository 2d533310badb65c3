"""Extension points: named implementations, built in or brought by other packages.

Each extension point is one `Registry`. A built-in implementation registers itself where it is
defined; another package names its own in an entry point of the registry's group and needs no fork:

    [project.entry-points."perennial.schedules"]
    sawtooth = "my_package.sawtooth:SawtoothConfig"

Entry points are loaded when a run file is, by `load_plugins`, never at import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Generic, TypeVar, cast

from perennial.errors import InputError

T = TypeVar("T")

GROUPS: dict[str, Registry[object]] = {}
"""Every registry of the process by its entry-point group."""


class Registry(Generic[T]):
    """Implementations of one extension point by name.

    Args:
        kind: what one implementation is called in messages, such as "learning-rate schedule".
        group: the entry-point group that other packages use, such as `perennial.schedules`.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._known: dict[str, T] = {}
        self._providers: dict[str, str] = {}
        GROUPS[group] = self  # type: ignore[assignment]

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a built-in implementation under `name`."""

        def add(implementation: T) -> T:
            self._add(name, implementation, "perennial")
            return implementation

        return add

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __getitem__(self, name: str) -> T:
        """Return an implementation. Raises KeyError whose text lists the known names."""
        if name not in self._known:
            known = ", ".join(self._known)
            raise KeyError(f"there is no {self.kind} {name!r}; known: {known}")
        return self._known[name]

    def provider(self, name: str) -> str:
        """Return the distribution that brought an implementation; "perennial" for built-ins."""
        return self._providers[name]

    def load_plugins(self) -> None:
        """Load the group's entry points that are not loaded yet.

        Raises InputError when one cannot be imported, or takes a name that is in use.
        """
        for point in _installed(tuple(sys.path)).select(group=self.group):
            owner = point.dist.name if point.dist is not None else point.value
            if self._providers.get(point.name) != owner:
                self._add(point.name, self._import(point, owner), owner)

    def _import(self, point: EntryPoint, owner: str) -> T:
        try:
            implementation: T = point.load()
        except Exception as failed:
            raise InputError(
                f"package {owner}",
                f"{self.group}: {point.name}",
                f"cannot be loaded ({type(failed).__name__}: {failed})",
                f"correct or uninstall {owner}",
                code="plugin-broken",
            ) from failed
        return implementation

    def _add(self, name: str, implementation: T, owner: str) -> None:
        if name in self._known:
            raise InputError(
                f"package {owner}",
                f"{self.group}: {name}",
                f"the {self.kind} {name!r} exists already, from {self._providers[name]}",
                "give it another name",
                code="plugin-name-taken",
            )
        self._known[name] = implementation
        self._providers[name] = owner


@lru_cache(maxsize=1)
def _installed(_path: tuple[str, ...]) -> EntryPoints:
    # Read once for a search path: it is a file of every installed package, most of the time that
    # loading a run file would take. Python 3.11 returns them by group, with the same `select`.
    return cast("EntryPoints", entry_points())


def load_plugins() -> None:
    """Load the plug-ins of every registry that this process has imported."""
    for registry in list(GROUPS.values()):
        registry.load_plugins()
