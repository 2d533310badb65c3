"""The steps of a corpus in their order, and the CPU that each takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

from perennial.errors import InputError
from perennial.steps.base import (
    DOCUMENT_FIELDS,
    RAISED,
    AbsentStepConfig,
    Apply,
    Dropped,
    RawDocument,
    StepConfig,
    StepSection,
)
from perennial.user_code import describe_error

_MOST_DETAIL = 200
_SECTION: TypeAdapter[StepConfig] = TypeAdapter(StepSection)


class StepPipeline:
    """Applies the steps of a corpus to one document after the other, in one process.

    Args:
        described: what `StepConfig.describe` gave of each step, in their order.

    Raises:
        InputError: a step cannot be built here, or its code is another than was described.

    Attributes:
        cpu_seconds: CPU time by step, its number and kind such as `1 gopher-quality`.
        changed: documents whose text a step changed, by step; without those that changed none.
    """

    def __init__(self, described: Sequence[Mapping[str, Any]]) -> None:
        self._steps: list[tuple[str, str, Apply]] = []
        for number, step in enumerate(described, start=1):
            config = _read_step(step)
            self._steps.append((f"{number} {config.kind}", config.kind, config.build()))
        self._nanoseconds = {name: 0 for name, _, _ in self._steps}
        self.changed: Counter[str] = Counter()

    @property
    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of this thread by step."""
        return {name: spent / 1e9 for name, spent in self._nanoseconds.items()}

    def apply(
        self, text: str, domain: str = "", fields: Mapping[str, str] = MappingProxyType({})
    ) -> str | Dropped:
        """Return the text that is left of a document, or why it is dropped.

        Args:
            text: the document's.
            domain: the document's; "" for none.
            fields: the document's values of what the steps look at besides.

        Returns:
            A dropped document's reason begins with the step's kind: `gopher-quality/symbols`.
        """
        began = time.thread_time_ns()
        for name, kind, step in self._steps:
            try:
                result = step(RawDocument(text, domain, fields))
            except InputError:
                raise
            except (Exception, SystemExit) as error:
                # One document must not cost the corpus, and the code of others may raise anything.
                result = Dropped(RAISED, describe_error(error))
            ended = time.thread_time_ns()
            self._nanoseconds[name] += ended - began
            began = ended
            if isinstance(result, Dropped):
                return Dropped(f"{kind}/{result.reason}", result.detail[:_MOST_DETAIL])
            if result is not text and result != text:
                self.changed[name] += 1
            text = result
        return text


def _read_step(described: Mapping[str, Any]) -> StepConfig:
    """Return a step's section; refuse one whose code is another in this process."""
    ours = {"code", DOCUMENT_FIELDS}
    section = {key: value for key, value in described.items() if key not in ours}
    config: StepConfig = _SECTION.validate_python(section, context={"stored": True})
    if isinstance(config, AbsentStepConfig):
        config.build()
    code = config.fingerprint()
    if code != described["code"]:
        raise InputError(
            "this node",
            f"corpora.steps: {config.kind}",
            f"its code is {code}, and the corpus's ingest began with {described['code']}",
            "install the same version on every node, or land the corpus under another name",
            code="step-changed",
        )
    return config
