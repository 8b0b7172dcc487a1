"""The same stream in other orders."""

from pathlib import Path

import pytest

from ner_cl.config import Config, parse_config, validate
from ner_cl.errors import ConfigError
from ner_cl.train.orders import stream_steps, with_orders
from tests.train.toy_runs import run_values, write_corpus

STEPS = (("PER",), ("LOC", "ORG"), ("MISC",))


def config(folder: Path, **stream: object) -> object:
    values = run_values(folder)
    values["stream"] |= {"steps": [list(step) for step in STEPS], **stream}
    return parse_config(values)


def orders_of(folder: Path, count: int, **stream: object) -> list[object]:
    return [one.stream.steps for one in with_orders(config(folder, **stream), count)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("orders")


def test_orders_are_permutations_of_the_steps_the_own_one_first(home: Path) -> None:
    orders = orders_of(home, 6)
    assert orders[0] == STEPS
    assert len(set(orders)) == 6
    assert all(sorted(order) == sorted(STEPS) for order in orders)  # type: ignore[call-overload]


def test_fewer_orders_are_the_first_of_more_and_another_seed_draws_others(home: Path) -> None:
    assert orders_of(home, 3) == orders_of(home, 5)[:3]
    assert {tuple(orders_of(home, 3, seed=seed)) for seed in range(5)} != {tuple(orders_of(home, 3))}


def test_published_orders_come_before_drawn_ones(home: Path) -> None:
    published = (("MISC",), ("PER",), ("LOC", "ORG"))
    assert orders_of(home, 3, orders=[list(map(list, published)), list(map(list, STEPS))])[:2] == [STEPS, published]


def test_nothing_but_the_order_changes(home: Path) -> None:
    first, second = with_orders(config(home), 2)  # type: ignore[arg-type]
    assert second.model_copy(update={"stream": first.stream}) == first
    assert second.stream.model_copy(update={"steps": first.stream.steps}) == first.stream


def test_more_orders_than_there_are_are_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="--orders 7: 3 steps have 6 orders"):
        orders_of(home, 7)


def test_listed_orders_count_once(home: Path) -> None:
    """Also if the configured one is among them, or they group the types in another way."""
    steps = [["PER"], ["LOC"]]
    turned, together = [["LOC"], ["PER"]], [["LOC", "PER"]]
    assert len(orders_of(home, 2, steps=steps, orders=[steps, turned])) == 2
    with pytest.raises(ConfigError, match="--orders 3: 2 steps have 2 orders"):
        orders_of(home, 3, steps=steps, orders=[steps, turned])
    assert orders_of(home, 3, steps=steps, orders=[together]) == [
        (("PER",), ("LOC",)),
        (("LOC", "PER"),),
        (("LOC",), ("PER",)),
    ]


def test_steps_that_are_not_listed_are_read_off_the_corpus(home: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, types=("PER", "LOC", "ORG"))
    drawn = config(home, steps=None, corpus=corpus, increment=1, first=2)
    assert stream_steps(drawn) == (("LOC", "ORG"), ("PER",))  # type: ignore[arg-type]
    assert [one.stream.steps for one in with_orders(drawn, 2)] == [  # type: ignore[arg-type]
        (("LOC", "ORG"), ("PER",)),
        (("PER",), ("LOC", "ORG")),
    ]


def test_what_is_written_of_an_order_can_be_read_again(home: Path) -> None:
    derived = config(home, steps=None, order="frequency", increment=1)
    for one in with_orders(derived, 2):
        assert validate(Config, one.model_dump(mode="json"), "config.resolved.yaml") == one


def test_files_of_steps_go_with_them(home: Path) -> None:
    own = config(home)
    assert isinstance(own, Config)
    values = own.model_dump(mode="json")
    values["stream"] |= {"protocol": "files", "orders": [[["MISC"], ["PER"], ["LOC", "ORG"]]]}
    values["stream"]["corpus"] |= {"train": ["per", "loc", "misc"], "dev": ["per.dev", "loc.dev", "misc.dev"]}
    files = {STEPS[0]: "per", STEPS[1]: "loc", STEPS[2]: "misc"}
    orders = with_orders(validate(Config, values, "config"), 6)
    assert orders[1].stream.corpus.train == ("misc", "per", "loc")
    for order in orders:
        assert order.stream.corpus.train == tuple(files[types] for types in order.stream.steps or ())
        assert order.stream.corpus.dev == tuple(f"{files[types]}.dev" for types in order.stream.steps or ())
    values["stream"]["orders"] = [[["MISC", "PER"], ["LOC", "ORG"]]]
    with pytest.raises(ConfigError, match=r"there is no file in corpus.train for the step \['MISC', 'PER'\]"):
        with_orders(validate(Config, values, "config"), 2)
