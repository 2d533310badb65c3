"""Fixtures shared by all tests."""

from __future__ import annotations

pytest_plugins = ("tests.s3server", "tests.raylocal", "tests.lineage", "tests.postgres")
