"""Code of the user's own, by its import path: a function, or a block of datatrove."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Field

from perennial.errors import InputError
from perennial.steps.base import (
    RAISED,
    STEPS,
    Apply,
    Dropped,
    RawDocument,
    StepConfig,
)
from perennial.user_code import (
    ImportPath,
    Parameters,
    UnusableCode,
    check_call,
    describe_error,
    identify_code,
    import_code,
)

_REMEDY = "name a function that every node that ingests can import, as `package.module:name`"


DocumentFields = Annotated[tuple[str, ...], Field(exclude_if=lambda fields: not fields)]


class _CodeConfig(StepConfig):
    """A step that is code of another package: found by a path, known by the text of its module."""

    @abstractmethod
    def _path(self) -> str:
        """Return the import path of the code."""

    def fingerprint(self) -> str:
        """Return the path, the version of the package, and the digest of the module's source."""
        path = self._path()
        try:
            return identify_code(path)
        except UnusableCode as wrong:
            raise _unusable(path, str(wrong)) from wrong


@STEPS.register("call")
class CallConfig(_CodeConfig):
    """Call `function(text, **parameters)`: it returns the text that goes on, or None to drop it.

    The module must be importable on every node that ingests, and the function must depend on its
    arguments alone. The digest of the module's source is kept in the corpus's manifest.
    """

    kind: Literal["call"] = "call"
    """name of the step"""
    function: ImportPath
    """import path, such as `my_package.cleaning:strip_menus`"""
    parameters: Parameters
    """its keyword arguments"""
    fields: DocumentFields = ()
    """fields of a document that it gets as a mapping, in the keyword argument `fields`"""

    @property
    def document_fields(self) -> tuple[str, ...]:
        """Return the fields that the function gets."""
        return self.fields

    def _path(self) -> str:
        return self.function

    def build(self) -> Apply:
        """Return the step as a function."""
        function = _import(self.function)
        try:
            check_call(function, "a text", [*self.parameters, *self._more(RawDocument(""))])
        except UnusableCode as wrong:
            has = "give the parameters that the function has" if callable(function) else _REMEDY
            raise _unusable(self.function, str(wrong), has) from wrong

        def call(document: RawDocument) -> str | Dropped:
            text = function(document.text, **self.parameters, **self._more(document))
            if text is None:
                return Dropped(self.function.rpartition(":")[2].replace("_", "-"))
            return _check_text(self.function, text)

        return call

    def _more(self, document: RawDocument) -> dict[str, Any]:
        if not self.fields:
            return {}
        return {"fields": {name: document.fields.get(name, "") for name in self.fields}}


@STEPS.register("datatrove")
class DatatroveConfig(_CodeConfig):
    """Apply a filter or a formatter of datatrove to each document.

    Needs `pip install perennial[datatrove]` on every node that ingests, and what the block itself
    asks for. A block that downloads something while it runs does so in every process.
    """

    kind: Literal["datatrove"] = "datatrove"
    """name of the step"""
    block: ImportPath
    """import path of the class, such as `datatrove.pipeline.filters:RegexFilter`"""
    parameters: Parameters
    """arguments of the class"""
    fields: DocumentFields = ()
    """fields of a document that the block finds in its `metadata`, such as `url`"""

    @property
    def document_fields(self) -> tuple[str, ...]:
        """Return the fields that the block gets."""
        return self.fields

    def _path(self) -> str:
        return self.block

    def build(self) -> Apply:
        """Return the step as a function."""
        try:
            from datatrove.data import Document as BlockDocument
        except ImportError:
            raise _unusable(self.block, "datatrove is not installed") from None
        try:
            block = _import(self.block)(**self.parameters)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            # Of any class: it is not ours, and asks for what it needs in its own way.
            raise _unusable(self.block, describe_error(error)) from error
        if not (hasattr(block, "filter") or hasattr(block, "format")):
            raise _unusable(self.block, "it is neither a filter nor a formatter of documents")

        def apply(document: RawDocument) -> str | Dropped:
            metadata = {"domain": document.domain, **document.fields}
            given = BlockDocument(text=document.text, id="", metadata=metadata)
            if not hasattr(block, "filter"):
                return _check_text(self.block, block.format(document.text))
            verdict = block.filter(given)
            keeps, reason = verdict if isinstance(verdict, tuple) else (verdict, "dropped")
            return _check_text(self.block, given.text) if keeps else Dropped(_to_kebab(str(reason)))

        return apply


def _check_text(path: str, text: object) -> str | Dropped:
    """Return a text that goes on, or the drop of one that no file can hold.

    Raises:
        InputError: the code gives something else than text.
    """
    if not isinstance(text, str):
        raise _unusable(
            path,
            f"it returned {type(text).__name__} and no text",
            "return the text, changed or not, or None to drop the document",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Dropped(RAISED, f"it returned half a character: {error}")
    return text


def _import(path: str) -> Any:
    """Return what an import path names; InputError where it cannot be imported."""
    try:
        return import_code(path)
    except UnusableCode as wrong:
        raise _unusable(path, str(wrong)) from wrong


def _to_kebab(reason: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", reason.lower()).strip("-") or "dropped"


def _unusable(path: str, problem: str, remedy: str = _REMEDY) -> InputError:
    return InputError(
        "run file",
        "corpora.steps",
        f"{path}: {problem}",
        remedy,
        code="step-unusable",
    )
