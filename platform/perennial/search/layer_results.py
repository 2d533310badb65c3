"""The result of an Inheritune search, as `searches/<name>/result.json` in the store holds it.

Beside it lie its picture as `layers.png` and, where a child is at parity, `child.yaml`: the part of
a run file by which a run starts from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from perennial.search.results import result_key

KIND = "inheritune"


@dataclass(frozen=True)
class ChildResult:
    """One child, over all of its seeds.

    Attributes:
        init: `inherited`, `grown` or `random`.
        parameters: of the model.
        steps, tokens: how far each of its trials was trained.
        flops: of training one of them.
        loss: held-out, the mean over corpora and seeds; nats per token.
        above: what it is above the reference's.
        low, high: 95% interval of `above`, by a bootstrap over documents and seeds.
        folder: key of the trial's checkpoints (of its first seed).
        checkpoints: keys of what was measured, one a seed.
    """

    name: str
    layers: int
    init: str
    parameters: int
    steps: int
    tokens: int
    flops: int
    loss: float
    above: float
    low: float
    high: float
    folder: str
    checkpoints: tuple[str, ...]


@dataclass(frozen=True)
class ReferenceResult:
    """The model whose layers are inherited.

    Attributes:
        stage, source: the stage that trained it, and its checkpoint.
        flops: of its training.
        loss: held-out, the mean over its corpora; nats per token.
    """

    stage: str
    source: str
    corpora: tuple[str, ...]
    layers: int
    parameters: int
    steps: int
    tokens: int
    flops: int
    loss: float


@dataclass(frozen=True)
class LayerCost:
    """Training of a search: all trials, and the part of them that were random twins.

    Attributes:
        flops: of all trials; `share` is these over the reference's.
        random_flops: of the trials with random weights, which the search itself does not need.
    """

    trained_tokens: int
    flops: int
    share: float
    random_flops: int


@dataclass(frozen=True)
class LayerSearchResult:
    """Children of a reference, and the smallest of them that keeps its loss.

    Attributes:
        search: its name.
        margin: by which a child at parity may lie above the reference, nats per token.
        children: every child that was trained, in the order of the search.
        smallest: index of the smallest child at parity; None where none is.
        fragment: the part of a run file by which a run starts from that child; None without one.
        command: what to do next; "" in the store, which may be moved.
    """

    search: str
    reference: ReferenceResult
    margin: float
    children: tuple[ChildResult, ...]
    smallest: int | None
    cost: LayerCost
    fragment: Mapping[str, Any] | None = None
    command: str = ""

    @property
    def files(self) -> dict[str, str]:
        """Return the keys of the result's picture, and of its part of a run file if any."""
        names = ["layers.png", *(["child.yaml"] if self.fragment is not None else [])]
        return {name: result_key(self.search, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        document = asdict(self)
        children = [child | {"checkpoints": list(child["checkpoints"])} for child in
                    document["children"]]  # fmt: skip
        reference = document["reference"] | {"corpora": list(self.reference.corpora)}
        return {"kind": KIND, **document, "reference": reference, "children": children}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> LayerSearchResult:
        """Return the result of a document; the inverse of `to_dict`. Unknown keys are ignored."""
        reference, children = document["reference"], document["children"]
        its = reference | {"corpora": tuple(reference["corpora"])}
        trials = (child | {"checkpoints": tuple(child["checkpoints"])} for child in children)
        parts = {
            "reference": ReferenceResult(**_known(ReferenceResult, its)),
            "children": tuple(ChildResult(**_known(ChildResult, child)) for child in trials),
            "cost": LayerCost(**_known(LayerCost, document["cost"])),
        }
        return cls(**_known(cls, document) | parts)


def _known(kind: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in document.items() if name in names}
