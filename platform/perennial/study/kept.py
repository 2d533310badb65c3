"""Keep what runs of a study came to in one file, so that another machine need not run them again.

The stores of a study are gigabytes, and stay where they were made. The file has the numbers that
the page is made of, run by run, each with the settings, corpora and versions that it is of. A run
whose number is in the file and whose store is not on this machine is done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.errors import InputError
from perennial.evaluation.compare import Model
from perennial.evaluation.loss import HeldoutLoss
from perennial.store import open_store
from perennial.store.stored_json import parse_json
from perennial.study.record import StudyRecord

if TYPE_CHECKING:
    from perennial.store import Store

FORMAT = 1


@dataclass(frozen=True)
class Contender:
    """A model of one run, as it is compared: the end of its trunk, or a release.

    own: loss on each corpus behind the corpus's own stage, in nats per token.
    saved: share of the tokens of retraining at every arrival that was not trained.
    """

    model: Model
    own: Mapping[str, float]
    saved: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form, with what a study compares."""
        losses = {name: asdict(loss) for name, loss in self.model.losses.items()}
        for loss in losses.values():
            del loss["domains"]
        return {
            "name": self.model.name,
            "tokens": self.model.tokens,
            "decayed": self.model.decayed,
            "saved": self.saved,
            "losses": losses,
            "own": dict(self.own),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Contender:
        """Return the contender that `to_dict` described."""
        losses = {name: HeldoutLoss.from_dict(its) for name, its in document["losses"].items()}
        name = document["name"]
        model = Model(name, name, "", document["tokens"], document["decayed"], losses)
        return cls(model, document["own"], document["saved"])


@dataclass(frozen=True)
class KeptResult:
    """The results of a run that is done.

    identity: digest of what decides it: settings, releases and the corpora that had landed.
    record: who began it, with versions and machine.
    seconds: that processes worked on it.
    contenders: its models by their names in the study.
    """

    identity: str
    record: StudyRecord
    seconds: float
    contenders: Mapping[str, Contender]


def read_kept(path: str | None) -> dict[str, KeptResult]:
    """Return the results that a file has, by the names of runs; none where there is no file.

    Args:
        path: the study file's `results`.

    Raises:
        InputError: it is no such file.
    """
    if path is None:
        return {}
    try:
        document = parse_json(_place(path).read(Path(path).name))
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, and {FORMAT} is known")
        return {name: _from_dict(its) for name, its in document["runs"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError) as wrong:
        raise InputError(
            path,
            "",
            f"it holds no results of a study: {wrong!r}",
            "restore it, or name another file as `results`",
            code="study-results-damaged",
        ) from None


def write_kept(path: str, results: Mapping[str, KeptResult]) -> None:
    """Write results of runs to a file, beside those that it has of other runs.

    Args:
        path: the study file's `results`.
        results: by the names of runs.
    """
    together = {**read_kept(path), **results}
    document = {
        "format": FORMAT,
        "runs": {name: _to_dict(its) for name, its in sorted(together.items())},
    }
    _place(path).write(Path(path).name, (json.dumps(document, indent=1) + "\n").encode())


def _place(path: str) -> Store:
    return open_store(Path(path).absolute().parent)


def _to_dict(result: KeptResult) -> dict[str, Any]:
    return {
        "identity": result.identity,
        "record": asdict(result.record),
        "seconds": result.seconds,
        "models": {name: its.to_dict() for name, its in result.contenders.items()},
    }


def _from_dict(document: Mapping[str, Any]) -> KeptResult:
    models = {name: Contender.from_dict(its) for name, its in document["models"].items()}
    record = StudyRecord(**document["record"])
    return KeptResult(document["identity"], record, float(document["seconds"]), models)
