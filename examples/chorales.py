"""Write Bach's chorales as ids, and draw what a model makes of the beginning of one.

Usage: python examples/chorales.py MUSIC21.whl FILE.jsonl
The wheel of music21 holds them as MusicXML. A document is a chorale in four voices: for each eighth
note four ids, from soprano to bass; 0 is a rest, 1 a tone that goes on, from 2 on a tone begins.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from xml.etree import ElementTree

REST, HOLD, LOWEST, TONES = 0, 1, 36, 48
IDS = 2 + TONES
"""ids of the vocabulary: rest, hold, and the tones from MIDI's 36 (C2) to 83 (B5)"""
VOICES = 4
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_COLOURS = ((213, 94, 0), (230, 159, 0), (0, 158, 115), (0, 114, 178))
"""of the voices, from the soprano on"""


def main(wheel: Path, file: Path) -> None:
    documents = []
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in sorted(archive.namelist()) if n.startswith("music21/corpus/bach/bwv")]
        for name in names:
            if name.endswith(".mxl"):
                with zipfile.ZipFile(io.BytesIO(archive.read(name))) as score:
                    inner = next(n for n in score.namelist() if _is_score(n))
                    documents.append(encode(score.read(inner)))
    found = [ids for ids in documents if ids]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in found))
    total = sum(map(len, found))
    print(f"{file}: {len(found)} chorales of {len(documents)} scores, {total:,} ids below {IDS}")


def _is_score(name: str) -> bool:
    return name.endswith("xml") and not name.startswith("META-INF")


def encode(score: bytes) -> list[int]:
    """Return a score's ids; none where it has other than four voices, or tones beyond them."""
    parts = [*map(_voice, ElementTree.fromstring(score).iter("part"))]
    if len(parts) != VOICES or None in parts:
        return []
    eighths = zip_longest(*(part or () for part in parts), fillvalue=REST)
    return [number for chord in eighths for number in chord]


def _voice(part: ElementTree.Element) -> list[int] | None:
    """Return the ids of a voice, one for each eighth note; None for tones that have no id."""
    ids: list[int] = []
    at, divisions = Fraction(0), 1
    for item in part.iterfind("measure/*"):
        if item.tag == "attributes":
            divisions = int(item.findtext("divisions", str(divisions)))
        if item.tag in ("backup", "forward") or item.find("chord") is not None:
            return None  # a part of several voices
        if item.tag != "note" or item.find("grace") is not None:
            continue
        end = at + Fraction(item.findtext("duration", "0")) / divisions * 2
        tone = _tone(item)
        if tone >= IDS or (tone < HOLD and tone != REST):
            return None
        # What begins and ends between two eighths has no id.
        first = -(-at // 1)
        for number in range(first, -(-end // 1)):
            goes_on = tone != REST and (number > first or _is_tied(item))
            ids.append(HOLD if goes_on else tone)
        at = end
    return ids


def _tone(note: ElementTree.Element) -> int:
    """Return the id of a note's tone."""
    pitch = note.find("pitch")
    if pitch is None:
        return REST
    step, alter = _STEPS[pitch.findtext("step", "C")], int(float(pitch.findtext("alter", "0")))
    return 12 * (int(pitch.findtext("octave", "4")) + 1) + step + alter - LOWEST + 2


def _is_tied(note: ElementTree.Element) -> bool:
    return any(tie.get("type") == "stop" for tie in note.iterfind("tie"))


def draw(ids: Sequence[int], given: int, document: Sequence[int], scale: int = 4) -> bytes:
    """Return a PNG: above the chorale itself, below the model's, which wrote what is on grey.

    Args:
        ids: of the model's chorale, of which it was given the first `given`.
        given: their number.
        document: ids of the chorale itself.
        scale: width of an eighth note, and twice the height of a tone.
    """
    from PIL import Image, ImageDraw

    height, gap = TONES * scale // 2, 6
    width = -(-max(len(ids), len(document)) // VOICES) * scale
    picture = Image.new("RGB", (width, 2 * height + gap), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((given // VOICES * scale, height + gap, width, 2 * height + gap), "#ebebeb")
    for top, numbers in ((0, document), (height + gap, ids)):
        for voice, place, tone in _sounding(numbers):
            left, below = place * scale, top + height - tone * scale // 2
            box = (left, below - scale // 2, left + scale - 1, below - 1)
            pen.rectangle(box, _COLOURS[voice])
    stored = io.BytesIO()
    picture.save(stored, "PNG", optimize=True)
    return stored.getvalue()


def _sounding(ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield voice, eighth and tone of all that sounds."""
    last = [REST] * VOICES
    for number, own in enumerate(ids):
        place, voice = divmod(number, VOICES)
        last[voice] = last[voice] if own == HOLD else own
        if last[voice] > HOLD:
            yield voice, place, last[voice] - HOLD - 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
