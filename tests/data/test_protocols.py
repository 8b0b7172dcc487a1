"""The three protocols: worked example, properties, and independence from the process."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.data.draws import generator
from ner_cl.data.protocols import ProtocolName, allocate, check_steps
from ner_cl.errors import ConfigError
from ner_cl.types import Sentence, Span

STEPS = (("A",), ("B", "C"), ("D",))
ALL_TYPES = frozenset("ABCDX")  # X belongs to no step
Protocol = Callable[..., list[list[Sentence]]]


def parts_of(
    protocol: ProtocolName, sentences: Sequence[Sentence], steps: Sequence[Sequence[str]], *, seed: int = 0
) -> list[list[Sentence]]:
    """What each step is given, restricted to its types."""
    allocation = allocate(sentences, steps, protocol=protocol, seed=seed)
    return [
        [sentences[index].restrict(types) for index in indices]
        for types, indices in zip(steps, allocation, strict=True)
    ]


disjoint, greedy, overlap = (partial(parts_of, name) for name in ("disjoint", "greedy", "overlap"))
PROTOCOLS = {"disjoint": disjoint, "greedy": greedy, "overlap": overlap}


def sentence(number: int, types: Sequence[str]) -> Sentence:
    """A sentence whose first word says which one it is, with one mention of each of `types` after it."""
    words = (str(number), *(f"w{type_}" for type_ in types))
    spans = tuple(Span(place, place + 1, type_) for place, type_ in enumerate(types, start=1))
    return Sentence(words, spans, ALL_TYPES, source=f"corpus:{number}")


def corpus(*types: str) -> list[Sentence]:
    return [sentence(number, present) for number, present in enumerate(types)]


def numbers(sentences: Sequence[Sentence]) -> list[int]:
    return [int(each.words[0]) for each in sentences]


# Rows, not sentences: run-time type checks draw random numbers, which a strategy must not do.
corpora = st.lists(st.text("ABCDX", max_size=4), max_size=40)
seeds = st.integers(min_value=0, max_value=2**32)


def greedy_by_the_book(sentences: list[Sentence], room: list[int], draws: np.random.Generator) -> list[list[int]]:
    """The published pseudo-code, line by line, as an independent oracle."""
    step_of = {type_: step for step, types in enumerate(STEPS) for type_ in types}
    slices: list[list[int]] = [[] for _ in STEPS]
    for number, each in enumerate(sentences):
        present = list({span.type for span in each.spans if span.type in step_of})
        present.sort(key=lambda type_: (sum(span.type == type_ for other in sentences for span in other.spans), type_))
        placed = False
        for type_ in present:
            if room[step_of[type_]] > 0:
                slices[step_of[type_]].append(number)
                room[step_of[type_]] -= 1
                placed = True
                break
        if not placed and any(room):
            step = [step for step in range(len(room)) if room[step] > 0]
            chosen = step[draws.integers(len(step))]
            slices[chosen].append(number)
            room[chosen] -= 1
    return slices


def test_greedy_worked_example() -> None:
    """The example of the specification: capacities 2 and 2, the rarer type decides, the empty one fills the gap."""
    parts = greedy(corpus("B", "AB", "B", ""), [["A"], ["B"]], seed=13)
    assert [numbers(part) for part in parts] == [[1, 3], [0, 2]]
    assert [[span.type for span in each.spans] for each in parts[0]] == [["A"], []]
    assert [[span.type for span in each.spans] for each in parts[1]] == [["B"], ["B"]]


def test_greedy_equal_counts_are_decided_by_name() -> None:
    assert allocate(corpus("BA", ""), [["A"], ["B"]], protocol="greedy", seed=1) == [[0], [1]]


def test_greedy_drops_what_rounding_leaves_over() -> None:
    assert [len(part) for part in greedy(corpus("A", "B", "", "A", "B"), [["A"], ["B"]], seed=13)] == [2, 2]


def test_greedy_gives_room_by_number_of_types() -> None:
    parts = greedy(corpus(*["ABCD"] * 40), STEPS, seed=13)
    assert [len(part) for part in parts] == [10, 20, 10]


def test_greedy_draws_uniformly_where_no_type_decides() -> None:
    first = Counter(
        next(
            step
            for step, part in enumerate(
                allocate(corpus(*[""] * 6), [["A"], ["B"], ["C"]], protocol="greedy", seed=seed)
            )
            if 0 in part
        )
        for seed in range(600)
    )
    assert all(150 < first[step] < 250 for step in range(3))  # 200 expected, standard deviation 11.5


def test_disjoint_sizes_and_remainder() -> None:
    assert [len(part) for part in disjoint(corpus(*["A"] * 11), STEPS, seed=13)] == [3, 3, 5]


def test_disjoint_shuffles() -> None:
    order = [number for part in disjoint(corpus(*["A"] * 60), STEPS, seed=13) for number in numbers(part)]
    assert order != sorted(order)


def test_overlap_takes_every_mention_and_nothing_else() -> None:
    parts = overlap(corpus("A", "AB", "BC", "", "X", "DD"), STEPS)
    assert [numbers(part) for part in parts] == [[0, 1], [1, 2], [5]]


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@given(rows=corpora, seed=seeds)
def test_a_step_sees_its_own_types_only(protocol: Protocol, rows: list[str], seed: int) -> None:
    sentences = corpus(*rows)
    for types, part in zip(STEPS, protocol(sentences, STEPS, seed=seed), strict=True):
        for each in part:
            original = sentences[int(each.words[0])]
            assert each.annotated_types == set(types)
            assert each.words == original.words
            assert each.spans == tuple(span for span in original.spans if span.type in types)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@given(rows=corpora, seed=seeds)
def test_equal_seeds_give_equal_slices(protocol: Protocol, rows: list[str], seed: int) -> None:
    sentences = corpus(*rows)
    assert protocol(sentences, STEPS, seed=seed) == protocol(sentences, STEPS, seed=seed)


@given(rows=corpora, seed=seeds)
def test_disjoint_is_a_partition(rows: list[str], seed: int) -> None:
    sentences = corpus(*rows)
    placed = [number for part in disjoint(sentences, STEPS, seed=seed) for number in numbers(part)]
    assert sorted(placed) == list(range(len(sentences)))


@given(rows=corpora, seed=seeds)
def test_greedy_is_disjoint_and_loses_at_most_one_a_step(rows: list[str], seed: int) -> None:
    sentences = corpus(*rows)
    parts = greedy(sentences, STEPS, seed=seed)
    placed = [number for part in parts for number in numbers(part)]
    assert len(placed) == len(set(placed)) >= len(sentences) - len(STEPS)
    assert all(numbers(part) == sorted(numbers(part)) for part in parts)
    assert all(len(part) <= len(sentences) * len(types) // 4 for types, part in zip(STEPS, parts, strict=True))


@given(rows=corpora, seed=seeds)
def test_greedy_is_the_published_pseudo_code(rows: list[str], seed: int) -> None:
    sentences = corpus(*rows)
    room = [len(sentences) * len(types) // 4 for types in STEPS]
    expected = greedy_by_the_book(sentences, room, generator(seed, "greedy protocol"))
    assert allocate(sentences, STEPS, protocol="greedy", seed=seed) == expected


@given(rows=corpora, seed=seeds)
def test_overlap_ignores_the_seed(rows: list[str], seed: int) -> None:
    sentences = corpus(*rows)
    assert overlap(sentences, STEPS, seed=seed) == overlap(sentences, STEPS)


@pytest.mark.parametrize("protocol", [disjoint, greedy])
def test_another_seed_gives_other_slices(protocol: Protocol) -> None:
    sentences = corpus(*["A", "", "BD"] * 20)
    results = [[numbers(part) for part in protocol(sentences, STEPS, seed=seed)] for seed in range(5)]
    assert all(one != other for place, one in enumerate(results) for other in results[:place])


def test_partial_annotation_is_not_made_up() -> None:
    """A sentence that was never annotated for a step's type is not said to be."""
    partial = Sentence(("Ada",), (Span(0, 1, "A"),), frozenset("A"))
    parts = disjoint([partial] * 4, [["A"], ["B"]], seed=13)
    assert [each.annotated_types for each in parts[1]] == [frozenset()] * 2


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "stream.steps is empty"),
        ([["A"], []], r"stream.steps\[1\] is empty"),
        ([["A"], ["B", "A"]], r"stream.steps\[1\]: type A is already in step 1"),
        ([["A", "A"]], "type A is already in step 1"),
        (["PER", "LOC"], "write a list"),
    ],
)
def test_wrong_steps_are_refused(steps: Sequence[Sequence[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_steps(steps)
    with pytest.raises(ConfigError, match=message):
        greedy([], steps, seed=13)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed is -1"):
        disjoint(corpus("A"), STEPS, seed=-1)


def test_generator_separates_purposes() -> None:
    assert generator(13, "one").random() == generator(13, "one").random()
    assert generator(13, "one").random() != generator(13, "other").random()


def test_no_protocol_touches_or_reads_the_global_generator() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    first = [protocol(corpus(*["A", "", "BD"] * 9), STEPS, seed=13) for protocol in PROTOCOLS.values()]
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(1)
    assert first == [protocol(corpus(*["A", "", "BD"] * 9), STEPS, seed=13) for protocol in PROTOCOLS.values()]


def test_slices_do_not_depend_on_the_hash_seed(repository: Path) -> None:
    program = (
        "from tests.data.test_protocols import *\n"
        "rows = corpus(*['ABCD', 'DCB', 'XA', '', 'BD', 'CA'] * 7)\n"
        "print([allocate(rows, STEPS, protocol=name, seed=13) for name in PROTOCOLS])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=repository,
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "2")
    }
    assert len(outputs) == 1
