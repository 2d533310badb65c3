"""What damaged parts of files held, estimated from what was read; whether that is too much. Pure.

The estimates are to be no less than the truth, and no more than twice that. A lost part is taken to
be as dense in documents as what was read of its file, or else of files of its kind. A file that
ends early and does not say how long it was is taken to be as long as the whole ones of its kind.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from perennial.corpora.formats.base import MARGIN, UNKNOWN_FORMAT, estimate_documents
from perennial.corpora.formats.open import find_kind
from perennial.corpora.manifest import InputFile

_ENOUGH_BYTES = 1 << 20
"""of a damaged file, to know how dense its documents are"""


class FileLoss(BaseModel):
    """A part of a file that could not be read; see `Record`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: int
    offset: int
    reason: str
    lost_bytes: int
    lost_documents: int | None = None
    is_cut: bool = False


class LossAccount:
    """Account of everything that could not be read of a corpus, complete with estimates.

    Args:
        inputs: the files of the corpus.
        losses: what could not be read, as the formats reported it.
        documents: records that were read, by file.
    """

    def __init__(
        self, inputs: Sequence[InputFile], losses: Sequence[FileLoss], documents: Mapping[int, int]
    ) -> None:
        self._inputs = inputs
        self._documents = documents
        self._unread: Counter[int] = Counter()
        for loss in losses:
            self._unread[loss.file] += loss.lost_bytes
        self._cut = {loss.file for loss in losses if loss.is_cut}
        self._broken = {loss.file for loss in losses}
        self.losses = tuple(map(self._complete, losses))

    @property
    def files(self) -> int:
        """Return the files of the corpus."""
        return len(self._inputs)

    @property
    def lost_bytes(self) -> int:
        """Return the stored bytes that were lost, roughly."""
        return sum(loss.lost_bytes for loss in self.losses)

    @property
    def stored_bytes(self) -> int:
        """Return the stored bytes of the corpus with those that are missing, roughly."""
        lost: Counter[int] = Counter()
        for loss in self.losses:
            lost[loss.file] += loss.lost_bytes
        return sum(max(file.size_bytes, lost[i]) for i, file in enumerate(self._inputs))

    @property
    def uncounted(self) -> int:
        """Return the lost documents beyond one for each part, which is counted as a document."""
        return sum(max(0, (loss.lost_documents or 0) - 1) for loss in self.losses)

    @property
    def damaged(self) -> set[int]:
        """Return the files that lost documents."""
        return {
            loss.file
            for loss in self.losses
            if loss.lost_documents and loss.reason != UNKNOWN_FORMAT
        }

    def has_too_many_damaged(self, share: float) -> bool:
        """Return whether more than a share of the files lost documents.

        One file of which the loss is known is judged by its documents and bytes alone.
        """
        damaged = self.damaged
        if len(damaged) == 1 and not damaged & self._cut:
            return False
        return len(damaged) > share * len(self._inputs)

    def _complete(self, loss: FileLoss) -> FileLoss:
        if loss.lost_documents is not None:
            return loss
        size = self._inputs[loss.file].size_bytes
        lost = loss.lost_bytes
        if loss.is_cut:
            lost += max(0, self._usual_size(loss.file) - size)
        most = math.inf if loss.is_cut else size
        documents, read = self._find_density(loss.file)
        return loss.model_copy(
            update={
                "lost_bytes": int(min(math.ceil(MARGIN * lost), most)),
                "lost_documents": estimate_documents(documents, read, lost) or 1,
            }
        )

    def _usual_size(self, file: int) -> int:
        """Return how long a file that was cut off was, by the others of its kind."""
        kind = self._kinds[file]
        sizes = [i.size_bytes for n, i in enumerate(self._inputs) if self._kinds[n] == kind]
        whole = [
            i.size_bytes
            for n, i in enumerate(self._inputs)
            if self._kinds[n] == kind and n not in self._cut
        ]
        return round(fmean(whole)) if whole else max(sizes)

    def _find_density(self, file: int) -> tuple[int, int]:
        """Return documents, and the stored bytes that held them, of the file or of others.

        The beginning of a compressed file holds fewer of them than the rest, so that a file of
        which little could be read is compared with sound ones first.
        """
        own = self._documents.get(file, 0), self._inputs[file].size_bytes - self._unread[file]
        kind = self._kinds[file]
        sound = self._densities[kind, True]
        order = (own, sound) if own[1] > _ENOUGH_BYTES else (sound, own)
        rest = self._densities[kind, False], self._densities["", False]
        return next((pair for pair in (*order, *rest) if estimate_documents(*pair, 1)), (0, 0))

    @cached_property
    def _kinds(self) -> list[str]:
        kinds = [find_kind(file.name) for file in self._inputs]
        return [f"{type(kind.format).__name__}{kind.compression}" if kind else "" for kind in kinds]

    @cached_property
    def _densities(self) -> dict[tuple[str, bool], tuple[int, int]]:
        """Return documents and the stored bytes that held them, by kind, of sound or all files.

        Those of kind "" are of all kinds.
        """
        sums: dict[tuple[str, bool], tuple[int, int]] = defaultdict(lambda: (0, 0))
        for number, file in enumerate(self._inputs):
            mine = self._documents.get(number, 0), file.size_bytes - self._unread[number]
            sound = [True] if number not in self._broken else []
            for kind in (self._kinds[number], ""):
                for only_sound in (False, *sound):
                    documents, read = sums[kind, only_sound]
                    sums[kind, only_sound] = documents + mine[0], read + max(0, mine[1])
        return sums
