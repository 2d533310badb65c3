"""The half of `benchmarks/gpu.sh` that needs no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def test_its_cpu_half_runs_to_its_end() -> None:
    # Where there is no environment in the checkout, the script takes the first Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "benchmarks/gpu.sh", "--cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "platform")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = done.stdout
    assert len(re.findall("^## ", page, re.MULTILINE)) == 7
    assert "Error" not in page
    assert "bitwise equal" in page
    assert "| the snapshot is of its step | yes |" in page
    differences = [float(d) for d in re.findall(r"\| (?:sdpa|eager) \| fp32 \| ([\d.]+) \|", page)]
    assert len(differences) == 2
    assert max(differences) < 1e-3
    losses: dict[str, list[float]] = {}
    for precision, loss in re.findall(r"^\| \d \| (\w+) \| \w+ \| no \| ([\d.]+) ", page, re.M):
        losses.setdefault(precision, []).append(float(loss))
    spread = {precision: max(values) - min(values) for precision, values in losses.items()}
    # A CPU without instructions for bf16 rounds in other places than one that has them.
    assert spread["fp32"] < 1e-4 and spread["bf16"] < 0.02, losses
