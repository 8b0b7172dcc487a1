"""The import rule: a module imports only from its own layer and from those to the left of it."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from ner_cl.registry import strategies

# errors, types, files → registry → config → data → model → evaluate → strategies → train → report → integrations, cli
LAYERS = [
    "errors",
    "types",
    "files",
    "registry",
    "config",
    "data",
    "model",
    "evaluate",
    "strategies",
    "train",
    "report",
]
LAST = ["integrations", "cli", "__main__"]  # neither of the first two is on the other's left
ROOT = Path(__file__).parents[1] / "ner_cl"
MODULES = {
    ".".join(("ner_cl", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def layer_of(module: str) -> str:
    """`data` for `ner_cl.data.readers.conll`; "" for the package itself, which shows what all layers offer."""
    return [*module.split("."), ""][1]


def may_import(layer: str, other: str) -> bool:
    if layer in ("", other):
        return True
    if layer in LAST:
        return other in LAYERS or other == "" or (layer, other) in (("cli", "integrations"), ("__main__", "cli"))
    return other in LAYERS[: LAYERS.index(layer)]


def imports_of(module: str, *, top_level: bool = False) -> Iterator[tuple[str, int]]:
    """Every module of the package that a module imports, with the line; also inside functions unless `top_level`."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # `from a import b` imports a.b where that is a module, else a.
            names = [
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            ]
        elif isinstance(node, ast.ImportFrom):
            names = [f"relative import in {module}"]
        else:
            continue
        yield from ((name, node.lineno) for name in names)


def test_every_module_has_a_layer() -> None:
    assert {layer_of(module) for module in MODULES} - {""} <= {*LAYERS, *LAST}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_left(module: str) -> None:
    wrong = [
        f"{MODULES[module].name}:{line} imports {name}"
        for name, line in imports_of(module)
        if name.split(".")[0] == "ner_cl" and not may_import(layer_of(module), layer_of(name))
    ]
    assert wrong == []


def test_the_service_stands_beside_the_command_line() -> None:
    """It imports from the layers as `cli` does; of the command line only the verb that starts it knows of it."""
    service = ROOT.parent / "serve" / "ner_cl_serve"
    imported = {
        node.module
        for path in service.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module is not None
    }
    layers = {layer_of(module) for module in imported if module.split(".")[0] == "ner_cl"}
    assert layers - {*LAYERS} == set()
    knows = {module for module in MODULES for name, _ in imports_of(module) if name.startswith("ner_cl_serve")}
    assert knows == {"ner_cl.cli.serve"}


def test_no_import_is_relative() -> None:
    assert [name for module in MODULES for name, _ in imports_of(module) if name.startswith("relative")] == []


def test_imports_make_no_circle() -> None:
    graph = {
        module: {name for name, _ in imports_of(module, top_level=True) if name in MODULES} - {module}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_strategies_know_no_other_strategy() -> None:
    registered = {strategies[name].__module__ for name in strategies}
    for module in registered:
        assert registered.isdisjoint(name for name, _ in imports_of(module)), module


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("fastapi", set()),
        ("uvicorn", set()),
        ("spacy.language", {"ner_cl.integrations.spacy_component", "ner_cl.integrations.spacy_options"}),
        ("typer", {"ner_cl.cli"}),
        ("rich", {"ner_cl.cli"}),
        ("matplotlib", {"ner_cl.report.drawing"}),
        ("jinja2", {"ner_cl.report.page"}),
    ],
)
def test_a_library_is_used_only_where_it_belongs(library: str, allowed: set[str]) -> None:
    users = {
        module
        for module in MODULES
        for name, _ in imports_of(module)
        if name == library or name.startswith(f"{library}.")
    }
    assert {module for module in users if not any(f"{module}.".startswith(f"{place}.") for place in allowed)} == set()


def test_the_rule_itself() -> None:
    assert may_import("train", "strategies")
    assert may_import("data", "data")
    assert may_import("cli", "integrations")
    assert not may_import("model", "strategies")
    assert not may_import("data", "model")
    assert not may_import("evaluate", "train")
    assert not may_import("integrations", "cli")
    assert not may_import("train", "cli")
    assert not may_import("train", "report")
    assert not may_import("train", "")  # only the last layers may use the package as its users do
