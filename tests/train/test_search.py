"""What a sweep may change, as people write it."""

import pytest

from ner_cl.errors import ConfigError
from ner_cl.train.search import Dimension, parse_search, read_search


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("lr=1e-5..1e-3:log", Dimension("lr", 1e-5, 1e-3, log=True)),
        ("lr=0.5..1", Dimension("lr", 0.5, 1)),
        ("epochs=2..8", Dimension("epochs", 2, 8)),
        ("a.b = [x, 1, null]", Dimension("a.b", choices=("x", 1, None))),
        ("d=-3..3", Dimension("d", -3, 3)),
    ],
)
def test_ranges_and_lists(text: str, dimension: Dimension) -> None:
    assert parse_search(read_search([text])) == [dimension]


def test_whole_numbers_stay_whole() -> None:
    assert parse_search({"epochs": "2..8"})[0].whole
    assert not parse_search({"lr": "2..8.5"})[0].whole


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({}, "names no key to search"),
        ({"lr": "1e-3..1e-5"}, "is empty"),
        ({"lr": "0..1:log"}, "above 0 for :log"),
        ({"lr": "0.1"}, "is no range"),
        ({"lr": "a..b"}, "'a' is no number"),
        ({"lr": []}, "a list holds single values"),
        ({"lr": [[1]]}, "a list holds single values"),
    ],
)
def test_what_cannot_be_searched_is_refused(search: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_search(search)


def test_an_item_without_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="--search lr: write it as key=low"):
        read_search(["lr"])
