"""The package's face: light to import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLATFORM = Path(__file__).parents[3] / "platform"


def test_importing_corpora_loads_no_heavy_library() -> None:
    code = (
        "import sys, perennial.corpora\n"
        "heavy = {'pyarrow', 'ray', 'tokenizers', 'tiktoken', 'torch', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PLATFORM)},
    )
    assert done.returncode == 0, done.stderr
