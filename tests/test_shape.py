"""The size budget: modules and functions that can be read in one go, with a sentence on every public name."""

import ast
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOTS = (Path(__file__).parents[1] / "ner_cl", Path(__file__).parents[1] / "serve")
MODULES = sorted(path for root in ROOTS for path in root.rglob("*.py"))
LONGEST_MODULE, MEDIAN_MODULE = 350, 130
LONGEST_FUNCTION, P90_FUNCTION, MEDIAN_FUNCTION = 50, 25, 8
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers", "tools"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOTS[0].parent).as_posix()


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def functions_of(path: Path) -> list[Function]:
    return [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines of code from `def` to the last one. The docstring is not counted, or nobody would write long ones."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short(path: Path) -> None:
    assert lines_of(path) <= LONGEST_MODULE


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_function_is_short(path: Path) -> None:
    long = [f"{f.name} has {length(f)} lines" for f in functions_of(path) if length(f) > LONGEST_FUNCTION]
    assert long == []


def test_modules_are_mostly_shorter_still() -> None:
    """Empty `__init__` files would flatter the median, so they do not count."""
    sizes = [lines_of(path) for path in MODULES if lines_of(path) > 5]
    assert median(sizes) <= MEDIAN_MODULE


def test_functions_are_mostly_shorter_still() -> None:
    sizes = [length(function) for path in MODULES for function in functions_of(path)]
    assert median(sizes) <= MEDIAN_FUNCTION
    assert quantiles(sizes, n=10)[-1] <= P90_FUNCTION


def test_names_say_what_a_module_is_about() -> None:
    parts = {part for path in MODULES for part in path.relative_to(ROOTS[0].parent).with_suffix("").parts}
    words = {word for part in parts for word in (part, *part.split("_"))}
    assert words & FORBIDDEN == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_public_name_has_a_sentence(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            missing += [] if ast.get_docstring(node) else [node.name]
            missing += [
                f"{node.name}.{f.name}"
                for f in node.body
                if isinstance(f, Function) and not f.name.startswith("_") and not _documented(f)
            ]
    missing += [
        f.name for f in tree.body if isinstance(f, Function) and not f.name.startswith("_") and not _documented(f)
    ]
    assert missing == []


def _documented(function: Function) -> bool:
    overload = any(isinstance(d, ast.Name) and d.id == "overload" for d in function.decorator_list)
    return overload or ast.get_docstring(function) is not None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_shapes_are_not_turned_into_strings(path: Path) -> None:
    """jaxtyping reads annotations as objects, which a deferred import turns into text."""
    text = path.read_text("utf-8")
    assert "jaxtyping" not in text or "from __future__ import annotations" not in text
