"""The command line as a person runs it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "platform"


def start(*words: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`perennial WORDS` in its own process group."""
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "perennial.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})},
    )


def perennial(*words: object, env: dict[str, str] | None = None, code: int = 0) -> str:
    """Run `perennial WORDS` to its end; its stdout. Fails the test on another exit code."""
    process = start(*words, env=env)
    out, err = process.communicate()
    assert process.returncode == code, f"exit {process.returncode}\n{out[-2000:]}\n{err[-6000:]}"
    return out if code == 0 else err


def perennial_json(*words: object, env: dict[str, str] | None = None) -> Any:
    """The JSON document that `perennial WORDS --json` prints."""
    return json.loads(perennial(*words, "--json", env=env))
