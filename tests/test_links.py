"""Links between the project's pages lead somewhere: the file is there, and so is the heading."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "data").rglob("*.md")]
)


def without_code(text: str) -> str:
    """The text without fenced blocks, in which `#` begins a comment."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """What headings are called in links, by GitHub's rule; a heading that occurs again gets a number."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        found.add(next(one for one in (name, *(f"{name}-{number}" for number in range(1, 99))) if one not in found))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# What a strategy costs\n## `O`, and 1 % more: a_b\n", {"what-a-strategy-costs", "o-and-1--more-a_b"}),
        ("# A\n```\n# a comment\n```\n## [A](b.md)\n", {"a", "a-1"}),
    ],
)
def test_headings_are_named_as_on_github(text: str, expected: set[str]) -> None:
    assert anchors(text) == expected


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code((ROOT / page).read_text("utf-8"))):
        if re.match(r"\w+:", link):
            continue  # a web page
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (heading and heading not in anchors(target.read_text("utf-8"))):
            lost.append(link)
    assert lost == []
