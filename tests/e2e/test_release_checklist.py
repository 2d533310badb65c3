"""The checklist of a release, line by line, in a virtual environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import perennial
from tests.support.doc_blocks import command_blocks

ROOT = Path(__file__).parents[2]
INSTALL = "build/release/venv/bin/pip install"


def _lines() -> list[str]:
    """Return the commands of the checklist."""
    (block,) = [
        block for block in command_blocks(ROOT / "CONTRIBUTING.md") if "twine" in str(block.lines)
    ]
    return list(block.lines)


def _script(lines: list[str]) -> str:
    """Return the commands, installed without the dependencies, which are gigabytes.

    The environment reads those of the tests' own interpreter instead.
    """
    (install,) = [line for line in lines if line.startswith(INSTALL)]
    packages = sysconfig.get_path("purelib")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    lent = f"echo {packages} > build/release/venv/lib/python{version}/site-packages/lent.pth"
    offline = install.replace("pip install", "pip install --quiet --no-deps --no-index")
    return "\n".join(line if line != install else f"{lent}\n{offline}" for line in lines)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_checklist_is_walked() -> None:
    lines = _lines()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "-e", "-c", _script(lines)],
        cwd=ROOT,
        env={**kept, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2, "the wheel and the source distribution"
    assert f"\n{perennial.__version__}\n" in done.stdout
    assert "training.zero_stage" in done.stdout
    assert "write demo/quickstart.yaml" in done.stdout
    where = subprocess.run(
        [ROOT / "build/release/venv/bin/python", "-c", "import perennial; print(perennial)"],
        cwd=ROOT / "build" / "release",
        env=kept,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ROOT / "build/release/venv") in where.stdout, "it is the wheel that was asked"


def test_the_checklist_says_what_comes_before_and_after() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Release a version\n")[2].partition("\n## ")[0]
    for step in ("version.py", "CHANGELOG.md", "make test-long", "twine upload"):
        assert step in section
    assert [line for line in _lines() if line.startswith(INSTALL)]
