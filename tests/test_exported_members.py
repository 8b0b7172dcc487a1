"""`ner_cl.__all__` is the table of contents: sorted, complete, and nothing in it is missing."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ner_cl
from ner_cl import errors


def test_all_is_sorted_and_has_no_name_twice() -> None:
    assert ner_cl.__all__ == sorted(set(ner_cl.__all__))


@pytest.mark.parametrize("name", ner_cl.__all__)
def test_every_name_can_be_imported(name: str) -> None:
    value = getattr(ner_cl, name)
    assert value.__module__.startswith("ner_cl.")
    assert inspect.getdoc(value)


def test_all_is_what_the_package_offers() -> None:
    offered = {
        name
        for name in dir(ner_cl)
        if not name.startswith("_")
        and not inspect.ismodule(getattr(ner_cl, name))
        and getattr(getattr(ner_cl, name), "__module__", "").startswith("ner_cl")
    }
    assert offered == set(ner_cl.__all__)


def test_what_a_type_checker_sees_is_what_is_there(repository: Path) -> None:
    """Some names are imported at first use; the checker reads where from in a block of its own."""
    tree = ast.parse((repository / "ner_cl" / "__init__.py").read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(seen) <= set(ner_cl.__all__)
    for name, (module, attribute) in seen.items():
        assert getattr(ner_cl, name) is getattr(sys.modules[str(module)], attribute)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ner_cl' has no attribute 'predict'"):
        _ = ner_cl.predict  # type: ignore[attr-defined]


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, ner_cl; print({'torch', 'transformers', 'spacy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_error_of_the_tree_is_offered() -> None:
    classes = [name for name in errors.__all__ if isinstance(getattr(errors, name), type)]
    assert set(classes) <= set(ner_cl.__all__)
    for name in classes:
        assert issubclass(getattr(ner_cl, name), ner_cl.NerClError)


def test_the_version_is_that_of_the_project(repository: Path) -> None:
    text = (repository / "pyproject.toml").read_text("utf-8")
    assert ner_cl.__version__ in (re.findall(r'^version = "(.*)"$', text, re.MULTILINE)[0], "0+unknown")


def test_types_are_shipped(repository: Path) -> None:
    assert (repository / "ner_cl" / "py.typed").is_file()
