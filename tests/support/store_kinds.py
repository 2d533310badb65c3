"""An empty store of each kind, for tests of what holds for all of them (I8)."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["local", "s3", "gs"])
def any_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The url of an empty store of each kind that the project brings."""
    return _new_store_url(request, tmp_path)


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The url of an empty store in a folder and in a bucket of a real server."""
    return _new_store_url(request, tmp_path)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.long)])
def audited_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same, for the many tests of one kind whose bucket is a longer proof."""
    return _new_store_url(request, tmp_path)


def _new_store_url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "local":
        return str(folder / "store")
    return str(request.getfixturevalue(f"{request.param}_url"))
