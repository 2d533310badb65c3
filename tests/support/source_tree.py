"""Facts about a package's source, read with `ast`: imports, sizes, names and circles.

The layout tests hold the project to them, and `benchmarks/house.py` prints them.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A Python file of the package.

    Attributes:
        name: dotted name below the package; "" for the package's own `__init__`.
        path: the file.
    """

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def room(self) -> str:
        return self.name.split(".")[0]

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    def functions(self) -> Iterator[Function]:
        """Yield every function and method, nested ones too."""
        for node in ast.walk(self.tree):
            if isinstance(node, Function):
                yield node

    def classes(self) -> Iterator[ast.ClassDef]:
        """Yield the classes defined at top level."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef):
                yield node


class SourceTree:
    """All modules of one package and the imports between them."""

    def __init__(self, package: Path) -> None:
        """Read the package in the folder `package`, whose name is the package's."""
        self.package = package
        self.modules: dict[str, Module] = {}
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, path)

    def imported_names(self, module: Module) -> Iterator[str]:
        """Yield every dotted name that a module imports, at any depth and for types only too."""
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Map each module to the modules of the package that it imports.

        `from perennial.a import b` is an import of `a.b` where that is a module, and otherwise of
        `a`. The packages on the way to a module (`a` of `a.b`) are not counted: Python runs them,
        but the importing module does not depend on what they define.
        """
        prefix = self.package.name + "."
        graph: dict[str, set[str]] = {}
        for module in self.modules.values():
            targets = set()
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names = [
                        f"{node.module}.{alias.name}"
                        if f"{node.module}.{alias.name}".removeprefix(prefix) in self.modules
                        else node.module
                        for alias in node.names
                    ]
                else:
                    continue
                targets |= {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
            graph[module.name] = (targets & set(self.modules)) - {module.name}
        return graph

    @cached_property
    def importers(self) -> dict[str, set[str]]:
        """Map each module to the modules that import it."""
        users: dict[str, set[str]] = {name: set() for name in self.modules}
        for name, targets in self.imports.items():
            for target in targets:
                users[target].add(name)
        return users

    def circles(self) -> list[list[str]]:
        """Return the groups of modules that import each other, by Tarjan's algorithm."""
        order: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        groups: list[list[str]] = []

        def visit(name: str) -> None:
            order[name] = low[name] = len(order)
            stack.append(name)
            for target in sorted(self.imports[name]):
                if target not in order:
                    visit(target)
                    low[name] = min(low[name], low[target])
                elif target in stack:
                    low[name] = min(low[name], order[target])
            if low[name] == order[name]:
                group = []
                while True:
                    member = stack.pop()
                    group.append(member)
                    if member == name:
                        break
                if len(group) > 1:
                    groups.append(sorted(group))

        for name in sorted(self.imports):
            if name not in order:
                visit(name)
        return groups

    def duplicate_classes(self) -> dict[str, list[str]]:
        """Return the class names defined at top level in several modules, with those modules."""
        places: dict[str, list[str]] = defaultdict(list)
        for module in self.modules.values():
            for node in module.classes():
                places[node.name].append(module.name)
        return {name: found for name, found in sorted(places.items()) if len(found) > 1}

    def single_importer_modules(self) -> dict[str, str]:
        """Return the modules with one importer, and that importer; package faces are left out."""
        return {
            name: next(iter(users))
            for name, users in sorted(self.importers.items())
            if len(users) == 1 and not self.modules[name].is_package
        }

    def files_by_folder(self) -> dict[str, int]:
        """Return the number of Python files in each folder, by the folder's dotted name."""
        counts: dict[str, int] = defaultdict(int)
        for module in self.modules.values():
            counts[".".join(module.path.parent.relative_to(self.package).parts)] += 1
        return dict(counts)
