"""Extension points: names, built-in and from other packages, and what is refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from perennial import registry
from perennial.errors import InputError
from perennial.registry import GROUPS, Registry

GROUP = "perennial.test_extensions"


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    """A registry of its own with one built-in implementation."""
    monkeypatch.setattr(registry, "GROUPS", dict(GROUPS))
    made = Registry[object]("curve", GROUP)
    made.register("flat")("the built-in one")
    return made


def _install(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Install entry points into the registry's group, as a package without metadata would."""
    points = [EntryPoint(name, value, GROUP) for name, value in values.items()]
    monkeypatch.setattr(registry, "_installed", lambda _path: EntryPoints(points))


def test_a_built_in_implementation_is_found_by_its_name(curves: Registry[object]) -> None:
    assert "flat" in curves
    assert list(curves) == ["flat"]
    assert curves["flat"] == "the built-in one"
    assert curves.provider("flat") == "perennial"


def test_an_unknown_name_lists_the_known_ones(curves: Registry[object]) -> None:
    curves.register("steep")("another")
    with pytest.raises(KeyError) as unknown:
        curves["slope"]
    assert "there is no curve 'slope'; known: flat, steep" in str(unknown.value)


def test_an_entry_point_is_loaded_once(
    curves: Registry[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, root="math:sqrt")
    assert "root" not in curves, "nothing is loaded before it is asked for"
    for _ in range(2):
        registry.load_plugins()
    assert list(curves) == ["flat", "root"]
    assert curves["root"].__name__ == "sqrt"  # type: ignore[attr-defined]
    assert curves.provider("root") == "math:sqrt"


def test_a_name_that_is_taken_is_refused(
    curves: Registry[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, flat="math:sqrt")
    with pytest.raises(InputError) as refused:
        curves.load_plugins()
    assert refused.value.code == "plugin-name-taken"
    assert refused.value.field == f"{GROUP}: flat"
    assert "from perennial" in refused.value.problem
    assert curves["flat"] == "the built-in one"
    with pytest.raises(InputError):
        curves.register("flat")("a second built-in one")


@pytest.mark.parametrize("value", ["no_such_module:thing", "math:no_such_function"])
def test_an_entry_point_that_cannot_be_loaded_is_refused(
    curves: Registry[object], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    _install(monkeypatch, broken=value)
    with pytest.raises(InputError) as refused:
        curves.load_plugins()
    assert refused.value.code == "plugin-broken"
    assert value in refused.value.where
    assert "broken" not in curves


def test_every_extension_point_has_its_group() -> None:
    import perennial.corpora.formats.base
    import perennial.mixture
    import perennial.schedules  # noqa: F401

    assert {"perennial.schedules", "perennial.formats", "perennial.replay_policies"} <= set(GROUPS)
