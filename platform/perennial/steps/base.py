"""The base of every step: what becomes of a document between its file and its tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple, NoReturn, Self

from pydantic import ConfigDict

from perennial.errors import InputError
from perennial.fields import ByKind, Section
from perennial.registry import Registry

DOCUMENT_FIELDS = "document_fields"
"""the key of a described step that names the fields of a document that it looks at"""


class RawDocument(NamedTuple):
    """A document as a step gets it.

    domain: the value of `corpora.domain_field`; "" for none.
    fields: values of the `document_fields` of all steps of the corpus; "" for none.
    """

    text: str
    domain: str = ""
    fields: Mapping[str, str] = MappingProxyType({})


class Dropped(NamedTuple):
    """A document that a step drops.

    reason: in kebab-case, such as `too-few-words`; the quarantine has it behind the step's kind.
    detail: what was found, for who reads the quarantine; at most 200 characters are kept.
    """

    reason: str
    detail: str = ""


RAISED = "raised"
"""reason of a document on which a step failed: it is dropped, but not on purpose"""

Apply = Callable[[RawDocument], "str | Dropped"]
"""Returns the text that goes on, changed or not, or why the document is dropped."""


class StepConfig(Section, ABC):
    """Base of a step's section in the run file; this docstring is the recipe for another one.

    Subclass it with `kind: Literal["its-name"]`, its keys with a documentation string below each
    one, and `build`. A built-in step registers itself with `@STEPS.register(kind)`; another package
    names its class in an entry point, and the package must be installed on every node that ingests:

        [project.entry-points."perennial.steps"]
        strip-menus = "my_package.menus:StripMenusConfig"

    A step is a pure function of a document: tasks in many processes apply it, and apply it again
    after a failure. A document on which it raises an error is dropped and counts as bad. For a
    function without a class of its own there is the kind `call`.
    """

    version: ClassVar[int] = 1
    """counted up with every change of what the step does to any document"""

    kind: str

    @property
    def document_fields(self) -> tuple[str, ...]:
        """Return the fields of a document that the step looks at besides its text and domain.

        They are named as `corpora.text_field` is. Files are read without them where no step asks.
        """
        return ()

    @abstractmethod
    def build(self) -> Apply:
        """Return the step as a function; called once in each process that applies it.

        Raises:
            InputError: what it needs is not installed, or is not what the section names.
        """

    def fingerprint(self) -> str:
        """Return what identifies the step's code beside its section.

        It is kept in a corpus's manifest; a corpus that was begun or ingested under another one is
        refused.
        """
        return f"{type(self).__module__}:{type(self).__qualname__} {self.version}"

    @classmethod
    def read_stored(cls, record: Mapping[str, Any]) -> Self:
        """Return the section that a run stored, of this version or an earlier one."""
        return cls.model_validate(record)

    def describe(self) -> dict[str, Any]:
        """Return the section and its fingerprint, JSON-ready; equal steps have equal ones."""
        described = {**self.model_dump(mode="json"), "code": self.fingerprint()}
        if self.document_fields:
            described[DOCUMENT_FIELDS] = list(self.document_fields)
        return described


class AbsentStepConfig(StepConfig):
    """The stand-in of a section that a run stored and whose plug-in is not installed."""

    model_config = ConfigDict(extra="allow")

    def build(self) -> NoReturn:
        """Raise InputError that names the kind that is missing."""
        raise InputError(
            "the store",
            "corpora.steps",
            f"the run has a step {self.kind!r}, which no installed package brings",
            "install the package that brings it",
            code="plugin-missing",
        )


STEPS: Registry[type[StepConfig]] = Registry("step", "perennial.steps")

StepSection = Annotated[StepConfig, ByKind(STEPS, "", AbsentStepConfig)]
"""A step of the run file, whose key `kind` chooses its class."""
