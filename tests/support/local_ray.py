"""A real Ray on this machine, one for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.s3_server import S3Server

_SOURCE = str(Path(__file__).parents[2] / "platform")


@pytest.fixture(scope="session")
def ray_local(s3_server: S3Server) -> Iterator[None]:
    """Ray with 2 CPUs; its workers import this checkout and see the session's S3 server."""
    import ray

    # Workers inherit the environment of the moment at which Ray starts, not the test's.
    paths = [_SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {**s3_server.environment(), "PYTHONPATH": os.pathsep.join(paths)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in inherited.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
