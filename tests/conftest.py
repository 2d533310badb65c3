"""Fixtures shared by all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Ray lowers the priority of its workers by 15: beside another session of tests they would starve.
os.environ.setdefault("RAY_worker_niceness", "0")

# A shared machine that is slow for a moment is no failed property.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

pytest_plugins = (
    "tests.support.s3_server",
    "tests.support.google_server",
    "tests.support.store_kinds",
    "tests.support.gloo",
    "tests.support.local_ray",
    "tests.support.ray_nodes",
    "tests.support.trained_run",
    "tests.support.postgres_server",
)
