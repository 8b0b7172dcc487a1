"""The exemplar memory: budgets, selections against their oracles, and what deletion leaves of it."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from scipy.stats import chisquare

from ner_cl.errors import DataError
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.memory import Memory, MemoryOptions, check_kept
from ner_cl.strategies.selection import balanced, enough_mentions, herding, in_turn, reservoir, type_features
from ner_cl.types import Sentence
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences

STEPS = (("PER",), ("LOC", "ORG"))
SELECTIONS = ("random", "reservoir", "balanced", "herding")
every_selection = pytest.mark.parametrize("selection", SELECTIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def model(folder: Path) -> NerModel:
    """Has just learned step 2."""
    return tiny_model(folder, steps=STEPS)


def shown(count: int, types: Sequence[str], *, seed: int) -> list[Sentence]:
    return [sentence.restrict(types) for sentence in toy_sentences(count, seed=seed)]


def end_of_step(
    model: NerModel, count: int = 60, *, earlier: int = 12, **options: object
) -> tuple[Memory, StepContext]:
    """A memory at the end of step 2, with sentences of step 1 in it that were trained on again."""
    memory = Memory(MemoryOptions.model_validate(options))
    memory.load(shown(earlier, ["PER"], seed=7))
    own = shown(count, STEPS[1], seed=8)
    context = toy_context(model, STEPS[1], train=[*own, *memory.sentences])
    return memory, context


def sizes(memory: Memory) -> list[int]:
    return [len(group) for group in memory.by_step(STEPS)]


# --- budgets


@pytest.mark.parametrize(
    ("options", "unit"),
    [({}, "step_fraction"), ({"budget": 0.5}, "step_fraction"), ({"budget": 1}, "step"), ({"budget": 200}, "step")],
)
def test_a_budget_below_one_is_a_fraction(options: dict[str, float], unit: str) -> None:
    assert MemoryOptions(**options).resolved_unit == unit


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0},
        {"budget": -1},
        {"budget": 2.5},
        {"budget": 2, "unit": "step_fraction"},
        {"unit": "total"},
        {"budget": 0.5, "unit": "type"},
        {"selection": "best"},
        {"budget": 1.0},
        {"budget": True},
        {"budget": True, "unit": "step"},
    ],
)
def test_a_budget_that_its_unit_cannot_mean_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"budget|selection"):
        MemoryOptions.model_validate(options)


@every_selection
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"budget": 7, "unit": "step"}, [7, 7]),
        ({"budget": 500}, [12, 60]),
        ({"budget": 10**30}, [12, 60]),
        ({"budget": 10**30, "unit": "total"}, [12, 60]),
        ({"budget": 1e300, "unit": "new_fraction"}, [12, 60]),
        ({"budget": 0.1}, [12, 6]),
        ({"budget": 0.001}, [12, 1]),
        ({"budget": 0.1, "unit": "new_fraction"}, [6, 6]),
        ({"budget": 10, "unit": "total"}, [5, 5]),
        ({"budget": 11, "unit": "total"}, [5, 6]),
        ({"budget": 30, "unit": "total"}, [12, 18]),  # a step with less than its share leaves the rest to the other
        ({"budget": 1, "unit": "total"}, [0, 1]),
    ],
)
def test_a_budget_is_kept(model: NerModel, selection: str, options: dict[str, object], expected: list[int]) -> None:
    memory, context = end_of_step(model, selection=selection, **options)
    memory.remember(context)
    assert sizes(memory) == expected


@every_selection
@pytest.mark.parametrize("least", [1, 5, 500])
def test_a_budget_of_mentions_holds_for_every_type(model: NerModel, selection: str, least: int) -> None:
    memory, context = end_of_step(model, budget=least, unit="type", selection=selection)
    memory.remember(context)
    assert context.encoded is not None
    for type_ in STEPS[1]:
        there = sum(span.type == type_ for sentence in context.encoded.sentences for span in sentence.spans)
        kept = sum(span.type == type_ for sentence in memory.by_step(STEPS)[1] for span in sentence.spans)
        assert kept >= min(least, there)
    assert sum(sizes(memory)) < 12 + 2 * least + 1


@every_selection
def test_a_fixed_total_gives_up_the_last_ones_of_each_step(folder: Path, model: NerModel, selection: str) -> None:
    """The prefix property: what is left of a step is what a smaller memory would have chosen."""
    large, context = end_of_step(model, budget=40, unit="total", selection=selection)
    large.remember(context)
    small, _ = end_of_step(model, budget=40, unit="total", selection=selection)
    small.load(large.sentences)
    grown = tiny_model(folder, steps=[*STEPS, ("MISC",)])
    third = shown(60, ["MISC"], seed=9)
    small.remember(toy_context(grown, ["MISC"], train=third))
    for before, after in zip(large.by_step(STEPS), small.by_step(STEPS), strict=True):
        assert after == before[: len(after)]
    assert [len(group) for group in small.by_step(grown.tagset.steps)] == [12, 14, 14]


@every_selection
def test_a_lower_budget_of_sentences_shrinks_earlier_steps_too(model: NerModel, selection: str) -> None:
    memory, context = end_of_step(model, budget=4, selection=selection)
    before = memory.sentences
    memory.remember(context)
    assert memory.by_step(STEPS)[0] == before[:4]


@every_selection
def test_a_lower_budget_of_mentions_leaves_what_it_would_have_chosen(
    folder: Path, model: NerModel, selection: str
) -> None:
    grown = tiny_model(folder, steps=[*STEPS, ("MISC",)])
    third = toy_context(grown, ["MISC"], train=shown(60, ["MISC"], seed=9))
    found = []
    for budgets in ((2, 2), (9, 2), (9, 20)):
        for budget in budgets:
            memory, context = end_of_step(model, budget=budget, unit="type", selection=selection)
            if budget == budgets[0]:
                memory.remember(context)
                second = memory.by_step(STEPS)[1]
            memory.load(second)
        memory.remember(third)
        found.append((second, memory.by_step(STEPS)[1]))
    (small, same), (large, shrunk), (_, raised) = found
    assert same == shrunk == small
    assert set(small) < set(large)
    assert raised == large


@pytest.mark.parametrize(
    ("values", "budget", "unit"),
    [({"budget": 1}, 1, "step"), ({"budget": 1.0, "unit": "step_fraction"}, 1.0, "step_fraction"), ({}, 0.01, "auto")],
)
def test_a_budget_of_one_is_the_same_when_its_file_is_read_again(
    values: dict[str, object], budget: float, unit: str
) -> None:
    options = MemoryOptions.model_validate(values)
    written = yaml.safe_load(yaml.safe_dump(options.model_dump(mode="json")))
    again = MemoryOptions.model_validate(written)
    assert again == options
    assert again.budget == budget
    assert unit in ("auto", again.resolved_unit)


def test_sentences_of_types_that_nobody_knows_are_refused_with_their_line() -> None:
    good = replace(toy_sentences(1, seed=1)[0].restrict(["PER"]), source="replay.jsonl:1")
    bad = Sentence(("Ada",), annotated_types=frozenset({"per"}), source="replay.jsonl:2")
    new = Sentence(("Ada",), annotated_types=frozenset({"MISC"}), source="replay.jsonl:3")
    check_kept([good, replace(good, annotated_types=frozenset({"PER", "MISC"}))], ["PER"], ["MISC"])
    with pytest.raises(DataError, match=r"replay.jsonl:2: .* for per, .* know, did you mean 'PER'\?"):
        check_kept([good, bad], ["PER"], ["MISC"])
    with pytest.raises(DataError, match=r"replay.jsonl:3: .* none of the types that the model knows \(PER\)"):
        check_kept([good, new], ["PER"], ["MISC"])


# --- what is kept


@every_selection
def test_only_the_steps_own_sentences_are_chosen_once_each_and_for_its_types(model: NerModel, selection: str) -> None:
    memory, context = end_of_step(model, budget=25, selection=selection)
    first = memory.sentences
    assert context.encoded is not None
    labelled = [  # as self-training leaves them, and some twice, and one annotated for nothing
        s.with_spans(s.spans, {*s.annotated_types, "PER"}) if "LOC" in s.annotated_types else s
        for s in context.encoded.sentences
    ]
    train = [*labelled, *labelled[:20], toy_sentences(1, seed=3)[0].restrict(())]
    memory.remember(toy_context(context.model, STEPS[1], train=train))
    old, new = memory.by_step(STEPS)
    assert old == first
    assert all(sentence.annotated_types == set(STEPS[1]) for sentence in new)
    assert len({(sentence.words, sentence.spans) for sentence in new}) == len(new) == 25
    assert set(new) <= {sentence.restrict(STEPS[1]) for sentence in labelled}


@every_selection
def test_the_choice_is_the_same_again_and_for_every_strategy_that_remembers(model: NerModel, selection: str) -> None:
    chosen = []
    for _ in range(2):
        memory, context = end_of_step(model, budget=9, selection=selection)
        memory.remember(context)
        chosen.append(memory.sentences)
    assert chosen[0] == chosen[1]


@every_selection
def test_a_smaller_budget_keeps_the_beginning_of_a_larger_one(model: NerModel, selection: str) -> None:
    kept = []
    for budget in (5, 20):
        memory, context = end_of_step(model, budget=budget, selection=selection)
        memory.remember(context)
        kept.append(memory.by_step(STEPS)[1])
    if selection != "reservoir":  # whose draws depend on its size
        assert kept[0] == kept[1][:5]
    assert len(kept[0]) == 5


@pytest.mark.parametrize("unit", ["step", "total", "new_fraction"])
def test_a_memory_that_somebody_emptied_goes_on(model: NerModel, unit: str) -> None:
    memory, context = end_of_step(model, budget=6, unit=unit)
    for left in ((), memory.sentences[:2]):
        memory.load(left)
        memory.remember(context)
        old, new = memory.by_step(STEPS)
        assert (old, bool(new)) == (left, True)


def test_a_step_without_annotation_leaves_nothing(model: NerModel) -> None:
    for selection in SELECTIONS:
        memory, _ = end_of_step(model, budget=6, selection=selection)
        train = shown(4, (), seed=1)
        memory.remember(toy_context(model, STEPS[1], train=train))
        assert sizes(memory) == [6, 0]


def test_sentences_are_told_apart_by_the_step_that_annotated_them() -> None:
    memory = Memory(MemoryOptions())
    per, both, all_, none = (
        toy_sentences(1, seed=1)[0].restrict(t) for t in (["PER"], STEPS[1], ["PER", "LOC"], ["X"])
    )
    memory.load([both, per, all_, none])
    assert memory.by_step(STEPS) == [(per,), (both, all_)]
    assert memory.by_step([]) == []


# --- reservoir


def test_a_reservoir_includes_every_item_equally_often() -> None:
    """Inclusion probability M/n, for the whole sample and for the beginning of it that a smaller budget leaves."""
    generator = np.random.default_rng(5)
    items, size, rounds = 30, 8, 3000
    for beginning in (8, 3):
        counts = np.zeros(items)
        for _ in range(rounds):
            counts[reservoir(range(items), size, generator)[:beginning]] += 1
        assert counts.sum() == rounds * beginning
        # Inclusions exclude each other a little, so the statistic is, if anything, too small.
        assert chisquare(counts).pvalue > 0.01


@given(cuts=st.lists(st.integers(1, 50), max_size=5), size=st.integers(1, 60))
def test_a_reservoir_does_not_depend_on_how_its_stream_is_cut(cuts: list[int], size: int) -> None:
    borders = [0, *sorted(set(cuts)), 50]
    batches = [range(start, end) for start, end in itertools.pairwise(borders)]
    whole = reservoir(range(50), size, np.random.default_rng(2))
    assert reservoir(itertools.chain(*batches), size, np.random.default_rng(2)) == whole
    assert len(set(whole)) == len(whole) == min(size, 50)


# --- balanced


@given(mentions=arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=st.integers(0, 3)))
def test_balanced_always_helps_the_rarest_type_most(mentions: np.ndarray) -> None:
    ranking = list(balanced(mentions, np.random.default_rng(3)))
    assert sorted(ranking) == list(range(len(mentions)))
    counts, left = np.zeros(mentions.shape[1]), set(range(len(mentions)))
    for index in ranking:
        open_types = [t for t in range(mentions.shape[1]) if any(mentions[i, t] for i in left)]
        if open_types:
            least = min(counts[t] for t in open_types)
            assert any(
                counts[t] == least and mentions[index, t] == max(mentions[i, t] for i in left) for t in open_types
            )
        counts += mentions[index]
        left.remove(index)


def test_balanced_brings_a_rare_type_in_first_and_equal_shares_after() -> None:
    mentions = np.array([[1.0, 0.0]] * 50 + [[0.0, 1.0]] * 5)
    ranking = list(balanced(mentions, np.random.default_rng(0)))
    assert mentions[ranking[:10]].sum(axis=0).tolist() == [5, 5]


# --- herding

points = arrays(
    np.float64, st.tuples(st.integers(1, 7), st.integers(1, 4)), elements=st.floats(-1, 1, width=32), unique=True
)


@given(features=points)
def test_herding_is_the_brute_force_search(features: np.ndarray) -> None:
    """iCaRL: x_m = argmin ‖μ - (φ(x) + Σ_{i<m} φ(x_i)) / m‖."""
    mean = features.mean(axis=0)
    chosen: list[int] = []
    for item in herding(features):
        distances = {
            other: np.linalg.norm(mean - features[[*chosen, other]].sum(axis=0) / (len(chosen) + 1))
            for other in range(len(features))
            if other not in chosen
        }
        assert distances[item] <= min(distances.values()) + 1e-9
        chosen.append(item)
    assert sorted(chosen) == list(range(len(features)))


def test_herding_follows_the_mean_better_than_chance() -> None:
    features = np.random.default_rng(1).normal(size=(200, 16))
    mean = features.mean(axis=0)
    herd = list(itertools.islice(herding(features), 10))
    chance = np.random.default_rng(2).permutation(200)[:10]
    assert np.linalg.norm(features[herd].mean(axis=0) - mean) < 0.5 * np.linalg.norm(
        features[chance].mean(axis=0) - mean
    )


def test_features_are_mean_word_vectors_of_a_type(folder: Path) -> None:
    model = tiny_model(folder, steps=STEPS, max_pieces=14, window_overlap=4)
    sentences = shown(20, STEPS[1], seed=4)
    assert any(len(sentence.words) > 12 for sentence in sentences)  # read in several windows
    found = type_features(model, sentences, STEPS[1], batch_tokens=64)
    whole = model.encode(sentences)
    vectors: dict[tuple[int, int], torch.Tensor] = {}
    for window in range(len(whole)):
        with torch.no_grad():
            words = torch.nn.functional.normalize(model.encoder(whole.batch([window]))[0], dim=-1)
        own = whole.windows[window]
        for place in range(len(own.word_pieces)):
            vectors[own.sentence, own.first_word + place] = words[place].double()
    for type_ in STEPS[1]:
        indices, features = found[type_]
        assert indices == [i for i, s in enumerate(sentences) if any(span.type == type_ for span in s.spans)]
        for index, feature in zip(indices, features, strict=True):
            spans = [span for span in sentences[index].spans if span.type == type_]
            mean = torch.stack([vectors[index, w] for s in spans for w in range(s.start, s.end)]).mean(dim=0)
            np.testing.assert_allclose(feature, torch.nn.functional.normalize(mean, dim=0), atol=1e-6)


def test_herding_serves_every_type_in_turn(model: NerModel) -> None:
    memory, context = end_of_step(model, budget=8, selection="herding")
    memory.remember(context)
    new = memory.by_step(STEPS)[1]
    assert context.encoded is not None
    own = list(dict.fromkeys(s for s in context.encoded.sentences if "LOC" in s.annotated_types))
    found = type_features(context.model, own, STEPS[1], batch_tokens=256)
    queues = [iter([indices[i] for i in herding(features)]) for indices, features in found.values()]
    assert list(new) == [own[index] for index in itertools.islice(in_turn(queues), 8)]


@given(queues=st.lists(st.lists(st.integers(0, 9), unique=True), max_size=4))
def test_taking_turns_loses_nothing_and_doubles_nothing(queues: list[list[int]]) -> None:
    merged = list(in_turn([iter(queue) for queue in queues]))
    assert sorted(merged) == sorted({item for queue in queues for item in queue})
    assert merged[:1] == next(([queue[0]] for queue in queues if queue), [])


def test_enough_mentions_passes_over_what_helps_no_type() -> None:
    mentions = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
    assert list(enough_mentions(range(5), mentions, 1)) == [0, 3]
    assert list(enough_mentions(range(5), mentions, 2)) == [0, 1, 3]
    assert list(enough_mentions(range(5), mentions, 99)) == [0, 1, 3, 4]
