"""Fixtures shared by all tests."""

from __future__ import annotations

pytest_plugins = (
    "tests.support.s3_server",
    "tests.support.local_ray",
    "tests.support.trained_run",
    "tests.support.postgres_server",
)
