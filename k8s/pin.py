"""Pin every package of the image: python k8s/pin.py [cpu] [cuda]

Resolves pyproject.toml's dependencies and its `cluster` extra with pip, downloads no wheel, and
writes k8s/constraints-TARGET.txt. The CPU build of torch comes from PyTorch's own index
(--extra-index-url), the CUDA build from PyPI; both have one version here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def requirements() -> list[str]:
    """Return the requirements of the image without the project itself."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["cluster"]]


def pin(target: str) -> list[str]:
    """Return NAME==VERSION of everything that pip would install, sorted."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["--quiet", "--report", str(report), *requirements()]
        environment = dict(os.environ)
        if target == "cpu" and "PIP_FIND_LINKS" not in environment:
            command += ["--extra-index-url", CPU_INDEX]
        if target == "cuda":
            environment.pop("PIP_FIND_LINKS", None)
            command.insert(3, "--isolated")
        subprocess.run(command, env=environment, check=True)
        installs = json.loads(report.read_text("utf-8"))["install"]
    packages = [package["metadata"] for package in installs]
    return sorted(
        f"{re.sub('[-_.]+', '-', p['name']).lower()}=={p['version'].partition('+')[0]}"
        for p in packages
    )


def main() -> None:
    for target in sys.argv[1:] or ["cpu", "cuda"]:
        header = f"# Everything in the {target} image, by k8s/pin.py; Linux on x86-64, Python 3.11."
        text = "\n".join([header, *pin(target)]) + "\n"
        (HERE / f"constraints-{target}.txt").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
