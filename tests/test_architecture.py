"""What the sources may contain where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import natgrad

ROOT = Path(natgrad.__file__).parent
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for path in sorted(ROOT.rglob("*.py"))
    if "lab" not in path.relative_to(ROOT).parts
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
ANY_MODULE = {"Module", "Parameter"}


def dotted(node: ast.AST) -> str:
    """``torch.nn.Linear`` of an attribute chain, empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and dotted(node.value):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def files_with(found) -> set[str]:
    """Names of the files whose tree holds a node for which ``found`` is true."""
    return {name for name, tree in TREES.items() if any(found(n) for n in ast.walk(tree))}


def uses(prefix: str):
    """Whether a node imports or names ``prefix`` or something in it."""

    def inside(name: str) -> bool:
        return name == prefix or name.startswith(f"{prefix}.")

    def found(node: ast.AST) -> bool:
        if isinstance(node, ast.Import):
            return any(inside(alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            return inside(module) or any(inside(f"{module}.{a.name}") for a in node.names)
        return isinstance(node, ast.Attribute) and inside(dotted(node))

    return found


def registers_hook(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else ""
    return name.startswith("register_") and "hook" in name


def asks_for_a_layer_class(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and dotted(node.func) in ("isinstance", "issubclass")):
        return False
    names = [dotted(part) for part in ast.walk(node.args[1])]
    return any(
        name.startswith(("nn.", "torch.nn.")) and name.split(".")[-1] not in ANY_MODULE
        for name in names
    )


def test_the_sources_are_found():
    assert {"tap.py", "linalg.py", "layers/linear.py", "blocks/kfac.py"} <= FILES.keys()


def test_hooks_are_registered_only_where_backward_passes_are_listened_to():
    whiten = {"whiten/statistics.py", "whiten/whitener.py"}  # a gradient; the optimizer's steps
    listening = {"tap.py", "backward.py", "fused.py", "retained.py", "replay.py"}
    assert files_with(registers_hook) <= listening | whiten
    assert "tap.py" in files_with(registers_hook)


def test_kinds_of_layers_are_told_apart_only_in_layers():
    found = files_with(asks_for_a_layer_class)
    assert any(name.startswith("layers/") for name in found)
    assert {name for name in found if not name.startswith("layers/")} == set()


@pytest.mark.parametrize(
    ("package", "home"),
    [("torch.linalg", {"linalg.py"}), ("torch.distributed", {"distributed.py"})],
)
def test_a_package_of_torch_is_used_in_one_file_alone(package, home):
    assert files_with(uses(package)) == home


def public(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and methods with their names, and the module itself."""
    yield "module", tree
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        yield node.name, node
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                yield f"{node.name}.{inner.name}", inner


def is_overload(node: ast.AST) -> bool:
    return any(dotted(d).endswith("overload") for d in getattr(node, "decorator_list", ()))


@pytest.mark.parametrize("name", FILES)
def test_everything_public_has_a_docstring(name):
    bare = [
        thing
        for thing, node in public(TREES[name])
        if not ast.get_docstring(node) and not is_overload(node)
    ]
    assert bare == []


def test_no_file_is_longer_than_400_lines():
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_to_import_the_library_only_torch_is_needed():
    allowed = {"torch", "natgrad", "__future__"}
    imported = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for tree in TREES.values()
        for node in tree.body  # what a function imports when called is its own affair
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported - allowed - {"matplotlib"} <= set(sys.stdlib_module_names)
    assert files_with(uses("matplotlib")) == {"plots.py"}  # when a figure is asked for


def test_importing_the_library_does_not_import_torchs_compiler():
    code = "import natgrad, sys; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
