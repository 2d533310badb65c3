"""The commands of the Kubernetes guide, from the first to the last, by real kubectl.

The API is a stand-in (`tests/support/kubernetes_api.py`), and helm, docker and `perennial`, which
would reach other machines, are programs that say how they were called.
"""

from __future__ import annotations

import re
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.support.kubernetes_api import kubernetes_api
from tests.support.kubernetes_manifests import GUIDE

ELSEWHERE = ("helm", "docker", "perennial")


def commands() -> list[str]:
    """The guide's blocks of commands in order."""
    blocks = re.findall(r"^ *```sh\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks]


@pytest.mark.long
def test_the_guide_is_followed_from_the_first_command_to_the_last(
    guides: Path, tmp_path: Path
) -> None:
    with kubernetes_api(tmp_path / "api") as api:
        environment = api.environment()
        for name in ELSEWHERE:
            program = tmp_path / "api" / "bin" / name
            program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/elsewhere\n')
            program.chmod(0o755)
        for block in commands():
            done = subprocess.run(
                ["bash", "-e", "-c", block],
                cwd=guides.parents[2],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"

        # The service was applied, its mode left for the schedule, and a tick started at once.
        asked = [what for what, _ in api.changes]
        assert asked.index("create RayCluster perennial") > asked.index(
            "create Secret perennial-store"
        )
        assert asked.index("delete RayCluster perennial") < asked.index(
            "create CronJob perennial-run"
        )
        assert "create Job train-now" in asked
        assert api.names("RayCluster") == []
        assert not [what for what in asked if what.startswith("patch ")]
        secrets = {what.split()[-1] for what in asked if what.startswith("create Secret")}
        assert secrets == {"perennial-store", "perennial-mlflow"}
    told = (tmp_path / "elsewhere").read_text().splitlines()
    assert {line.split()[0] for line in told} == set(ELSEWHERE)


@pytest.mark.parametrize("name", ["perennial-watch", "one-cluster"])
def test_the_guide_names_nothing_that_is_gone(name: str) -> None:
    text = GUIDE.read_text("utf-8")
    assert f"rayjob {name}" not in text
    assert f"components/{name}" not in text
