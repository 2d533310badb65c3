"""Samples of a model as objects of the store, so that no text is in the ledger.

An entry of the ledger can never be changed, and a sample holds the beginning of a held-out
document. So an event names an object, the samples of one corpus from one model, which is removed
when the corpus is erased. Versions up to 0.2 wrote the samples into the events.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from perennial.evaluation.samples import Sample, describe_undrawn
from perennial.store import read_checked

if TYPE_CHECKING:
    from perennial.store import Store

FOLDER = "samples"
_PROMPTS = "_"
"""in place of a corpus, whose name cannot be this, for the prompts of the run file"""


@dataclass(frozen=True)
class SampleList:
    """The samples of one corpus from one model, as an event names them.

    sha256: of the object; size_bytes: its size; count: number of samples.
    undrawn: the user's function that did not draw them, and why; "" where it did, or there is none.
    """

    corpus: str
    sha256: str
    size_bytes: int
    count: int
    undrawn: str = ""

    @property
    def key(self) -> str:
        """Return the key of the object."""
        return f"{folder_of(self.corpus)}/{self.sha256}.json"


Held = Sequence[Sample | SampleList]
"""samples as events have them: those of older versions in the event itself"""
_SAMPLES: TypeAdapter[list[Sample]] = TypeAdapter(list[Sample])


def folder_of(corpus: str) -> str:
    """Return the folder of the samples of a corpus."""
    return f"{FOLDER}/{corpus or _PROMPTS}"


def keep_samples(store: Store, samples: Sequence[Sample]) -> list[Sample | SampleList]:
    """Store samples, those of each corpus as one object, and return what an event says of them."""
    undrawn = describe_undrawn(samples)
    lists: list[Sample | SampleList] = []
    for corpus in dict.fromkeys(sample.corpus for sample in samples):
        mine = [asdict(sample) for sample in samples if sample.corpus == corpus]
        data = json.dumps(mine, indent=1).encode()
        digest = hashlib.sha256(data).hexdigest()
        kept = SampleList(corpus, digest, len(data), len(mine), undrawn.get(corpus, ""))
        store.write(kept.key, data)
        lists.append(kept)
    return lists


def read_samples(store: Store, held: Held) -> list[Sample]:
    """Return the samples that an event names; none of what was erased.

    Raises:
        Altered: an object has another digest than the event says.
    """
    return [sample for its in held for sample in _read(store, its)]


def _read(store: Store, held: Sample | SampleList) -> Iterator[Sample]:
    if isinstance(held, Sample):
        yield held
    elif store.exists(held.key):
        yield from _SAMPLES.validate_json(read_checked(store, held.key, held.sha256))


def find_undrawn(held: Held) -> dict[str, str]:
    """Return the function that did not draw a corpus's samples, and why, by corpus; see there."""
    lists = {its.corpus: its.undrawn for its in held if isinstance(its, SampleList) and its.undrawn}
    return describe_undrawn([its for its in held if isinstance(its, Sample)]) | lists
