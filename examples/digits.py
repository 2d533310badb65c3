"""Write scikit-learn's images of digits as ids, and draw what a model makes of half an image.

Usage: python examples/digits.py FILE.jsonl
An image has 8 x 8 pixels of 17 levels: a document of 64 ids, row by row from the top.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SIDE, LEVELS = 8, 17
_GIVEN, _WRITTEN, _MISSING = (40, 40, 40), (0, 114, 178), (213, 94, 0)
_PAPER, _GAP = (255, 255, 255), 4
"""colours of a full pixel, and of none; pixels between two images"""


def main(file: Path) -> None:
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(int)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"input_ids": image.ravel().tolist()}) + "\n" for image in images)
    file.write_text("".join(lines))
    print(f"{file}: {len(images):,} images of {SIDE * SIDE} ids below {LEVELS}")


def draw(ids: Sequence[int], given: int, document: Sequence[int], scale: int = 12) -> bytes:
    """Return a PNG: left the image itself, right the model's, which wrote what is blue.

    Args:
        ids: levels of the model's image, of which it was given the first `given`.
        given: their number.
        document: levels of the image itself.
        scale: width of a pixel in the picture.
    """
    from PIL import Image

    width = 2 * SIDE * scale + _GAP
    picture = Image.new("RGB", (width, SIDE * scale), _PAPER)
    for left, levels, written in ((0, document, SIDE * SIDE), (width // 2 + _GAP // 2, ids, given)):
        small = Image.new("RGB", (SIDE, SIDE), _MISSING)
        small.putdata([*_colours(levels, written)] + [_MISSING] * (SIDE * SIDE - len(levels)))
        large = small.resize((SIDE * scale, SIDE * scale), Image.Resampling.NEAREST)
        picture.paste(large, (left, 0))
    stored = io.BytesIO()
    picture.save(stored, "PNG", optimize=True)
    return stored.getvalue()


def _colours(levels: Sequence[int], given: int) -> Iterator[Any]:
    """Yield a colour for each level: none is paper, all is ink."""
    for place, level in enumerate(levels):
        ink, share = (_GIVEN if place < given else _WRITTEN), level / (LEVELS - 1)
        yield tuple(round(p + (i - p) * share) for p, i in zip(_PAPER, ink, strict=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
