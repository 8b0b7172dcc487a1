"""`VERIFIED.md` keeps its word: a row for every method, and every test and number that it names is there."""

import re
from pathlib import Path

import pytest

from ner_cl.registry import heads, strategies

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "VERIFIED.md").read_text("utf-8")
ROWS = {
    cells[0].strip(" `"): [cell.strip() for cell in cells]
    for line in TEXT.splitlines()
    if line.startswith("| `") and len(cells := line.strip("|").split("|")) == 5
}
RESULTS = "".join(page.read_text("utf-8") for page in (ROOT / "docs" / "results").glob("*.md"))


def named_tests(text: str) -> dict[str, list[str]]:
    """The tests named in a text by the file that is named before them."""
    found: dict[str, list[str]] = {}
    path = ""
    for name in re.findall(r"`(tests/[\w/]+\.py|test_\w+)`", text):
        if name.endswith(".py"):
            path = name
            found.setdefault(path, [])
        else:
            found[path].append(name)
    return found


def built_in(registry: object) -> set[str]:
    """What this package registers; third parties verify their own."""
    return {name for name in registry if registry[name].__module__.startswith("ner_cl.")}  # type: ignore[attr-defined, index]


def test_every_strategy_and_head_has_a_row_and_nothing_else_has() -> None:
    assert set(ROWS) == built_in(strategies) | built_in(heads)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_filled_and_names_tests(name: str) -> None:
    _, source, checked, ours, published = ROWS[name]
    assert source
    assert sum(map(len, named_tests(checked).values())) >= 2
    assert any(word in checked for word in ("Vector", "Oracle", "Invariant"))
    assert re.match(r"not run|[\d.]+( ± [\d.]+)? / [\d.]+", ours)
    assert published.startswith("no") or re.match(r"[\d.]+", published)


@pytest.mark.parametrize("path", named_tests(TEXT))
def test_every_named_test_exists(path: str) -> None:
    defined = set(re.findall(r"^def (test_\w+)", (ROOT / path).read_text("utf-8"), re.MULTILINE))
    assert set(named_tests(TEXT)[path]) - defined == set()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row[3] != "not run"])
def test_our_number_is_that_of_the_results(name: str) -> None:
    ours = re.match(r"(?P<micro>[\d.]+(?: ± [\d.]+)?) / (?P<macro>[\d.]+(?: ± [\d.]+)?)", ROWS[name][3])
    assert ours is not None
    assert f"| {ours['micro']} | {ours['macro']} |" in RESULTS
