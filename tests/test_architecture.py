"""Imports point down the layers, without cycles, and heavy packages stay in theirs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1] / "tokenfold"

LAYERS: dict[str, set[str]] = {
    "bundle": set(),
    "scenes": {"bundle"},
    "runtime": {"bundle"},
    "inference": {"runtime", "bundle"},
    "models": {"bundle", "scenes"},
    "export": {"models", "runtime", "bundle"},
    "service": {"inference", "runtime", "bundle", "scenes"},
    "client": {"bundle"},
    "bench": {"export", "models", "inference", "runtime", "bundle", "scenes", "client"},
}
"""Packages of the project that each package may import, besides itself."""

PACKAGING = {"__init__", "__main__", "cli"}
"""Modules of `tokenfold` itself, which may import any package."""

FORBIDDEN: dict[str, set[str]] = {
    "bundle": {"torch", "onnx", "onnxruntime", "fastapi", "starlette", "uvicorn"},
    "runtime": {"torch", "fastapi", "starlette", "uvicorn"},
    "inference": {"torch", "fastapi", "starlette", "uvicorn"},
    "service": {"torch"},
    "client": {"torch", "onnxruntime"},
}
"""Third-party packages that a package may not import, not even inside functions."""

TOP_LEVEL = {"service", "export", "models"}
"""Folders that `tokenfold/` links to; a module imported by two names would exist twice."""


class Import(NamedTuple):
    """An import statement.

    Attributes:
        target: name of the imported module, absolute.
        line: number of its line.
        deferred: whether it is inside a function or only for type checkers, and so not executed
            when the module is imported.
    """

    target: str
    line: int
    deferred: bool


@cache
def modules() -> dict[str, Path]:
    """Return the files of all modules, by name."""
    files = {}
    # Links are followed here, because `rglob` follows them in some versions of Python only.
    for folder in (ROOT, *(ROOT / name for name in LAYERS if (ROOT / name).is_symlink())):
        for path in folder.resolve().rglob("*.py"):
            parts = path.relative_to(folder.resolve()).with_suffix("").parts
            prefix = folder.relative_to(ROOT.parent).parts
            name = ".".join((*prefix, *parts)).removesuffix(".__init__")
            files[name] = path
    return files


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Return the imports of a module."""
    return tuple(_imports(ast.parse(modules()[module].read_text()), deferred=False))


def _imports(node: ast.AST, *, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, deferred)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"a relative import in line {child.lineno}"
            base = child.module or ""
            for alias in child.names:
                name = f"{base}.{alias.name}"
                yield Import(name if name in modules() else base, child.lineno, deferred)
        else:
            yield from _imports(child, deferred=deferred or _is_deferred(child))


def _is_deferred(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return True
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def package(module: str) -> str:
    """Return the package of a module of the project, such as `runtime`."""
    return module.split(".")[1] if "." in module else "__init__"


def in_package(name: str) -> list[str]:
    return [module for module in modules() if package(module) == name]


def test_every_package_has_its_rule() -> None:
    packages = {package(module) for module in modules()} - PACKAGING
    assert packages <= set(LAYERS)
    assert len(modules()) > 200


@pytest.mark.parametrize("name", LAYERS)
def test_imports_point_down(name: str) -> None:
    allowed = LAYERS[name] | {name}
    wrong = [
        f"{module}:{line} imports {target}"
        for module in in_package(name)
        for target, line, _ in imports(module)
        if target.startswith("tokenfold.") and package(target) not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("name", FORBIDDEN)
def test_heavy_packages_stay_in_their_layers(name: str) -> None:
    wrong = [
        f"{module}:{line} imports {target}"
        for module in in_package(name)
        for target, line, _ in imports(module)
        if target.split(".")[0] in FORBIDDEN[name]
    ]
    assert wrong == []


def test_linked_folders_are_imported_by_one_name() -> None:
    wrong = [
        f"{module}:{line} imports {target}"
        for module in modules()
        for target, line, _ in imports(module)
        if target.split(".")[0] in TOP_LEVEL
    ]
    assert wrong == []


def test_modules_have_no_import_cycles() -> None:
    graph = {
        module: {
            target
            for target, _, deferred in imports(module)
            if not deferred and target in modules() and target != module
        }
        for module in modules()
    }
    # A module without imports, or that no module imports, is in no cycle; remove such modules.
    while leaves := [module for module, targets in graph.items() if not targets & graph.keys()]:
        for module in leaves:
            del graph[module]
    while roots := graph.keys() - {target for targets in graph.values() for target in targets}:
        for module in roots:
            del graph[module]
    assert {module: sorted(targets & graph.keys()) for module, targets in graph.items()} == {}


def test_the_checks_see_violations() -> None:
    source = "import torch\nfrom tokenfold.export import cli\ndef f():\n    import models.vit\n"
    assert list(_imports(ast.parse(source), deferred=False)) == [
        Import("torch", 1, False),
        Import("tokenfold.export.cli", 2, False),
        Import("models.vit", 4, True),
    ]
