"""Workers keep off a machine on which they fail, and `status` says so."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.support.cli import SOURCE, perennial, start
from tests.support.ray_nodes import ray_nodes
from tests.support.tiny_run import tiny_run, write_run, write_texts

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

# Workers of this node die in a step, again and again, as on a machine with a broken part.
DYING_METRIC = '''
import os
import signal
from pathlib import Path

import ray

from perennial.training.metrics import StepMetric

BROKEN = Path({broken!r})


class Dying(StepMetric):
    """Kills the workers of the first node that trained."""

    name = "dying"
    combine = "max"
    in_progress = False
    figure = False

    def measure(self, facts):
        here = ray.get_runtime_context().get_node_id()
        if not BROKEN.exists():
            BROKEN.write_text(here)
        if facts.step > 2 and BROKEN.read_text() == here:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0


DYING = Dying()
'''


def test_a_broken_machine_is_left_out_and_the_run_ends_on_another(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    document["training"]["workers"] = 1
    document["training"]["max_machine_failures"] = 2
    document["stages"]["budget"] = "20 steps"
    run_file = write_run(tmp_path, document)
    place = tmp_path / "plugin"
    described = place / "dying-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: dying\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[perennial.metrics]\ndying = dying:DYING\n")
    (place / "dying.py").write_text(DYING_METRIC.format(broken=str(tmp_path / "broken")))
    paths = {"PYTHONPATH": f"{SOURCE}{os.pathsep}{place}"}
    with ray_nodes(count=2, environment=paths) as nodes:
        environment = {**nodes.environment, **paths}
        perennial("land", run_file, "help", write_texts(tmp_path)["help"], env=environment)
        process = start("run", run_file, env=environment)
        _, told = process.communicate()
    assert process.returncode == 0, told
    assert re.search(r"is left out for a day: workers failed on it 2 times within a day", told)
    assert told.count("go on from step") + told.count("goes on from step") == 2, told
    (broken,) = json.loads((tmp_path / "store" / "machines.json").read_text())["machines"].values()
    assert len(broken["failures"]) == 2
    told = perennial("status", run_file)
    assert "left out: workers failed on it 2 times within a day" in told
