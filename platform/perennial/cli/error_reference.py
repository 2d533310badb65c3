"""The reference page of error codes, read from the source that raises them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from perennial import errors
from perennial.errors import InputError, PerennialError, Terminated

_NOTE = "<!-- Written by `make docs` from the source in platform/perennial. Do not edit. -->"
_INTRODUCTION = """\
`--json` prints a failure as `{"error": {"code": ..., ...}}`; from Python, `PerennialError.code` is
the same. Codes are stable, the sentences may be reworded.
"""
_PROBLEM = 2
"""position of InputError's argument `problem`"""
_CODE = 4


def error_page(package: Path) -> str:
    """Return the page for the source of `package`."""
    lines = ["# Errors", "", _NOTE, "", _INTRODUCTION, "## Wrong input: exit code 2", ""]
    lines += ["Raised as `InputError`; the example is the problem that one place reports.", ""]
    lines += ["| code | example | raised in |", "| --- | --- | --- |"]
    for code, places in input_codes(package).items():
        # The text that is known best before it is raised.
        example = min((text for text, _ in places), key=lambda text: (text.count("..."), text))
        rooms = ", ".join(sorted({room for _, room in places}))
        lines.append(f"| `{code}` | {_cell(example)} | {rooms} |")
    lines += ["", "## Everything else", "", "| code | class | exit code | meaning |"]
    lines += ["| --- | --- | --- | --- |"]
    for kind in _classes():
        meaning = _cell(inspect.getdoc(kind) or "").split(". ")[0].rstrip(".")
        lines.append(f"| `{kind.code}` | `{kind.__name__}` | {kind.exit_code} | {meaning} |")
    lines.append("| `interrupted` | `KeyboardInterrupt` | 1 | Ctrl-C ended the command |")
    return "\n".join(lines) + "\n"


def input_codes(package: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the places that raise an InputError, by code: an example and the room.

    Args:
        package: folder of the package's source.
    """
    places: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for call in raise_sites(path):
            for code in _codes(call):
                places.setdefault(code, []).append((_problem(call), room))
    return dict(sorted(places.items()))


def raise_sites(path: Path) -> Iterator[ast.Call]:
    """Yield the calls that make an InputError in a source file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id == "InputError":
            assert isinstance(node, ast.Call)
            yield node


def _codes(call: ast.Call) -> list[str]:
    given = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
    given += call.args[_CODE : _CODE + 1]
    literals = [node for value in given for node in ast.walk(value)]
    codes = [node.value for node in literals if isinstance(node, ast.Constant)]
    return [code for code in codes if isinstance(code, str)] or [InputError.code]


def _problem(call: ast.Call) -> str:
    named = [keyword.value for keyword in call.keywords if keyword.arg == "problem"]
    node = named[0] if named else call.args[_PROBLEM] if len(call.args) > _PROBLEM else None
    return "" if node is None else _text(node)


def _text(node: ast.expr) -> str:
    """Return a string expression with `...` for what is only known when it is raised."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) for part in parts)
        case ast.BinOp(left=left, right=right):
            return _text(left) + _text(right)
        case _:
            return "..."


def _classes() -> list[type[PerennialError] | type[Terminated]]:
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    own = [kind for kind in kinds if issubclass(kind, PerennialError) and kind is not InputError]
    return [*own, Terminated]


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|").replace("<", "&lt;")
