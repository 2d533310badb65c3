"""Code of the user's own, by its import path: found, checked, and known by its source."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import to_jsonable_python


class UnusableCode(Exception):
    """Code that cannot be imported, identified, or called as it would be."""


def _check_plain(parameters: dict[str, Any]) -> dict[str, Any]:
    """Refuse parameters that a manifest or the ledger would not give back."""
    try:
        json.dumps(to_jsonable_python(parameters, inf_nan_mode="constants"), allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{error}; give texts, finite numbers, lists and mappings") from error
    return parameters


ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Parameters = Annotated[dict[str, Any], AfterValidator(_check_plain), Field(default_factory=dict)]


def describe_error(error: BaseException) -> str:
    """Return the class of an error and what it says, if it can say that."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its own code makes the text
        return type(error).__name__


def import_code(path: str) -> Any:
    """Return what an import path names, such as `my_package.cleaning:strip_menus`.

    Raises:
        UnusableCode: it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        # Any class: the module is the user's, and runs while it is imported.
        raise UnusableCode(describe_error(error)) from error


def identify_code(path: str) -> str:
    """Return the path, the version of its package, and the digest of its module's source.

    Raises:
        UnusableCode: it cannot be imported, or has no source.
    """
    module = inspect.getmodule(import_code(path))
    try:
        file = inspect.getsourcefile(module) if module else None
    except TypeError:  # a module that is part of Python itself
        file = None
    if file is None:
        raise UnusableCode("it has no Python source, so a change could not be noticed")
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return " ".join(filter(None, [path, _find_version(path), f"sha256 {digest}"]))


@cache
def _find_version(path: str) -> str:
    """Return the version of the package that a path is in; "" for a module of no package."""
    top = path.partition(":")[0].partition(".")[0]
    owners = metadata.packages_distributions().get(top, [])
    return " ".join(f"{owner} {metadata.version(owner)}" for owner in sorted(set(owners)))


def check_call(function: Any, first: str, keywords: Iterable[str]) -> None:
    """Refuse a function that does not take what it would be called with.

    Args:
        function: what an import path names.
        first: what its one positional argument is, such as "a text".
        keywords: the names of its keyword arguments.

    Raises:
        UnusableCode: it is no function, or has other arguments.
    """
    if not callable(function):
        raise UnusableCode(f"it is a {type(function).__name__} and no function")
    names = tuple(keywords)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some classes and compiled functions
        return
    try:
        signature.bind("", **dict.fromkeys(names))
    except TypeError as error:
        arguments = ", ".join([first, *(f"{name}=" for name in names)])
        raise UnusableCode(f"it cannot be called with {arguments}: {error}") from error
