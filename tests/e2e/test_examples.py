"""The example that trains from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_train_from_python_trains_two_stages_and_releases(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples/train_from_python.py", tmp_path / "example"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [line.split()[:2] for line in done.stdout.splitlines()[:5]]
    (release,) = (tmp_path / "example/store/releases").iterdir()
    assert events == [
        ["started", "00-first"],
        ["evaluated", "00-first"],
        ["started", "01-second"],
        ["evaluated", "01-second"],
        ["released", str(release)],
    ]
    models = [line.split()[0] for line in done.stdout.splitlines()[-3:]]
    assert models == ["00-first", "01-second", release.name]
    assert (release / "model.safetensors").exists()
