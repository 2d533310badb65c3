"""Code of the user's own, by its import path: a function, or a block of datatrove."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from abc import abstractmethod
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from perennial.errors import InputError
from perennial.steps.base import RAISED, STEPS, Apply, Dropped, RawDocument, StepConfig

DocumentFields = Annotated[tuple[str, ...], Field(exclude_if=lambda fields: not fields)]
ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class _CodeConfig(StepConfig):
    """A step that is code of another package: found by a path, known by the text of its module."""

    @abstractmethod
    def _path(self) -> str:
        """Return the import path of the code."""

    def fingerprint(self) -> str:
        """Return the path, the version of the package, and the digest of the module's source."""
        path = self._path()
        module = inspect.getmodule(_import(path))
        file = inspect.getsourcefile(module) if module else None
        if file is None:
            raise _unusable(path, "it has no Python source, so a change could not be noticed")
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return " ".join(filter(None, [path, _find_version(path), f"sha256 {digest}"]))


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
    parameters: dict[str, Any] = Field(default_factory=dict)
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
        if not callable(function):
            raise _unusable(self.function, f"it is a {type(function).__name__} and no function")

        def call(document: RawDocument) -> str | Dropped:
            try:
                text = function(document.text, **self.parameters, **self._more(document))
            except Exception as error:
                return _drop_raised(error)
            if text is None:
                return Dropped(self.function.rpartition(":")[2].replace("_", "-"))
            if not isinstance(text, str):
                raise _unusable(self.function, f"it returned {type(text).__name__} and no text")
            return text

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
    parameters: dict[str, Any] = Field(default_factory=dict)
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
        except Exception as error:
            # Of any class: it is not ours, and asks for what it needs in its own way.
            raise _unusable(self.block, f"{type(error).__name__}: {error}") from error
        if not (hasattr(block, "filter") or hasattr(block, "format")):
            raise _unusable(self.block, "it is neither a filter nor a formatter of documents")

        def apply(document: RawDocument) -> str | Dropped:
            metadata = {"domain": document.domain, **document.fields}
            given = BlockDocument(text=document.text, id="", metadata=metadata)
            try:
                if not hasattr(block, "filter"):
                    return str(block.format(document.text))
                verdict = block.filter(given)
            except Exception as error:
                return _drop_raised(error)
            keeps, reason = verdict if isinstance(verdict, tuple) else (verdict, "dropped")
            return given.text if keeps else Dropped(_to_kebab(str(reason)))

        return apply


def _drop_raised(error: Exception) -> Dropped:
    # One document must not cost the corpus, and the code of others may raise anything.
    return Dropped(RAISED, f"{type(error).__name__}: {error}")


def _import(path: str) -> Any:
    """Return what an import path names."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        # Any class: the module is the user's, and runs while it is imported.
        raise _unusable(path, f"{type(error).__name__}: {error}") from error


def _find_version(path: str) -> str:
    """Return the version of the package that a path is in; "" for a module of no package."""
    top = path.partition(":")[0].partition(".")[0]
    owners = metadata.packages_distributions().get(top, [])
    return " ".join(f"{owner} {metadata.version(owner)}" for owner in sorted(set(owners)))


def _to_kebab(reason: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", reason.lower()).strip("-") or "dropped"


def _unusable(path: str, problem: str) -> InputError:
    return InputError(
        "run file",
        "corpora.steps",
        f"{path}: {problem}",
        "name a function that every node that ingests can import, as `package.module:name`",
        code="step-unusable",
    )
