"""The package of plug-ins in `plugin_package`, installed beside the project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.cli import SOURCE

_PACKAGE = Path(__file__).parent / "plugin_package"


def install_plugins(folder: Path) -> dict[str, str]:
    """Build the package and install it into `folder`, without a network.

    Returns:
        The environment variables with which a process finds it.
    """
    source, target = folder / "source", folder / "installed"
    # A build writes beside the sources.
    shutil.copytree(_PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)],
        check=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    paths = [str(SOURCE), str(target), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}
