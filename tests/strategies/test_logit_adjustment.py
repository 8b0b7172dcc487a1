"""Logit adjustment: what is added to which logits, and that a type is then found about as often as it is met."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.config import HeadOptions, check_head, parse_strategies
from ner_cl.data.stream import Step
from ner_cl.errors import ConfigError
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.logit_adjustment import log_ratios, rarity_of_old_types
from ner_cl.train.learner import Learner
from ner_cl.train.record import history_record
from ner_cl.types import Sentence, Span
from tests.tiny import TOY_TRAINING, tiny_encoder, tiny_model, toy_sentences
from tests.train.toy_runs import SHORT_TRAINING, same_weights, weights_of

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def sentences(count: int, words: int, *mentions: str) -> list[Sentence]:
    """The same sentence so many times, with a word of each of some types in it."""
    spans = tuple(Span(place, place + 1, type_) for place, type_ in enumerate(mentions))
    return [Sentence(("word",) * words, spans, frozenset({"A", "B"}))] * count


def test_ratios_worked_by_hand() -> None:
    """Of A, 20 mentions in 100 words of training, so 40 in 200; there are 10. Of B 20 are expected, and 30 there."""
    train = [*sentences(10, 10, "A", "A", "B")]
    dev = [*sentences(10, 10, "A", "B", "B", "B"), *sentences(10, 10)]
    found = log_ratios(train, dev, ["A", "B", "C"], evidence=10.0)
    assert found == pytest.approx({"A": math.log(20 / 50), "B": math.log(40 / 30), "C": 0.0})


def test_words_that_nobody_looked_at_for_a_type_say_nothing_of_it() -> None:
    train, dev = sentences(10, 10, "A"), sentences(10, 10, "A")
    other = [Sentence(("word",) * 10, (), frozenset({"B"}))] * 200
    assert log_ratios(train, [*dev, *other], ["A"], evidence=10.0)["A"] == pytest.approx(0.0)
    assert log_ratios([*train, *other], dev, ["A"], evidence=10.0)["A"] == pytest.approx(0.0)


@given(count=st.integers(1, 50), words=st.integers(2, 9), evidence=st.floats(0.1, 100))
def test_sentences_alike_change_nothing(count: int, words: int, evidence: float) -> None:
    found = log_ratios(sentences(7, words, "A"), sentences(count, words, "A"), ["A"], evidence=evidence)
    assert found["A"] == pytest.approx(0.0, abs=1e-12)


def test_a_handful_of_dev_sentences_moves_little() -> None:
    train, none = sentences(100, 10, "A"), sentences(1, 10)
    few, many = (log_ratios(train, none * count, ["A"], evidence=10.0)["A"] for count in (3, 3000))
    assert -0.3 < few < 0
    assert many < -5


HISTORY = [
    {"step": 1, "mentions": {"A": 30, "B": 10}, "words": {"A": 100, "B": 100}},
    {"step": 2, "mentions": {"C": 20}, "words": {"C": 200}},
]


def test_rarity_worked_by_hand() -> None:
    """At (0.3 + 0.1 + 0.1) mentions a word, 50 are expected in 100 words; found are 10, of which 2 are a new type's."""
    train = [Sentence(("word",) * 10, (Span(0, 2, "D"),), frozenset({"D"}))] * 10
    found = [[Span(4, 5, "A")]] * 8 + [[Span(1, 3, "C")]] * 2
    rarity = rarity_of_old_types(train, found, HISTORY, ["D"], evidence=2.0)
    assert rarity == pytest.approx(math.log((8 + 2) / (50 + 2)))


def test_an_old_mention_that_another_strategy_wrote_into_the_sentence_counts() -> None:
    labelled = [Sentence(("word",) * 10, (Span(4, 5, "A"),), frozenset({"A", "D"}))] * 10
    plain = [Sentence(("word",) * 10, (), frozenset({"D"}))] * 10
    found = [[Span(4, 5, "A")]] * 10
    assert rarity_of_old_types(labelled, found, HISTORY, ["D"], evidence=2.0) == rarity_of_old_types(
        plain, found, HISTORY, ["D"], evidence=2.0
    )


@pytest.mark.parametrize("history", [[], [{"step": 1, "types": ["A"]}], [{"mentions": {"A": 0}, "words": {"A": 0}}]])
def test_a_history_without_rates_says_nothing(history: list[dict[str, object]]) -> None:
    train = [Sentence(("word",) * 10, (), frozenset({"D"}))] * 10
    assert rarity_of_old_types(train, [[Span(0, 1, "A")]] * 10, history, ["D"], evidence=2.0) == 0
    assert rarity_of_old_types(train, [[]] * 10, history, ["D"], evidence=2.0) == 0


@given(met=st.integers(0, 300), evidence=st.floats(0.1, 100))
def test_a_new_type_is_never_lifted_and_the_less_met_the_lower(met: int, evidence: float) -> None:
    train = [Sentence(("word",) * 300, (), frozenset({"D"}))]
    few, more = (
        rarity_of_old_types(train, [[Span(n, n + 1, "A") for n in range(count)]], HISTORY[:1], ["D"], evidence=evidence)
        for count in (met, min(300, met + 10))
    )
    assert few <= more <= 0
    assert (few == 0) == (met >= 120)


@BOTH
def test_sentences_without_old_types_lower_the_new_one(folder: Path, head: str) -> None:
    """PER was taught by sentences full of it; those of the next step are not, so LOC and ORG are as rare elsewhere."""

    first, second = (
        Step(number, types, tuple(s.restrict(set(types)) for s in toy_sentences(40, seed=number, types=types)), ())
        for number, types in enumerate((("PER",), ("LOC", "ORG")), start=1)
    )

    def after(*strategies: object) -> tuple[dict[str, torch.Tensor], float]:
        learner = Learner(tiny_model(folder, head), parse_strategies(["distill", *strategies]), SHORT_TRAINING)
        list(learner.learn_step(first))
        history = [history_record(learner, first, before={}, after={})]
        learner.model.history = history
        found = learner.predict(second.train)
        list(learner.learn_step(second))
        rarity = rarity_of_old_types(second.train, found, history, second.types, evidence=5.0)
        return weights_of(learner.model), rarity

    plain, _ = after()
    adjusted, rarity = after({"name": "logit_adjustment", "strength": 0.8, "evidence": 5.0, "prior": "old_types"})
    name = "head.blocks.1.bias"
    moved = adjusted.pop(name) - plain.pop(name)
    assert same_weights(adjusted, plain)
    assert (moved[:-4] == 0).all()
    assert rarity < -0.2
    torch.testing.assert_close(moved[-4:], torch.full((4,), 0.8 * rarity), atol=1e-6, rtol=0)


def learned(folder: Path, head: str, *strategies: object, dev: tuple[Sentence, ...]) -> Learner:
    """A model that knows PER after a step for LOC and ORG."""
    model = tiny_model(folder, head, steps=[["PER"]])
    learner = Learner(model, parse_strategies(["distill", *strategies]), SHORT_TRAINING)
    train = toy_sentences(40, seed=1, types=("LOC", "LOC", "ORG"))
    list(learner.learn_step(Step(2, ("LOC", "ORG"), tuple(s.restrict({"LOC", "ORG"}) for s in train), dev)))
    return learner


@BOTH
def test_only_the_biases_of_new_types_move_and_by_the_ratio(folder: Path, head: str) -> None:
    mentions = toy_sentences(60, seed=2, types=("PER", "PER", "PER", "LOC"))
    dev = tuple(s.with_spans(s.restrict({"LOC"}).spans, {"LOC", "ORG"}) for s in mentions)
    plain = weights_of(learned(folder, head, dev=dev).model)
    options = {"name": "logit_adjustment", "strength": 0.8, "evidence": 5.0}
    learner = learned(folder, head, options, dev=dev)
    adjusted = weights_of(learner.model)
    train = toy_sentences(40, seed=1, types=("LOC", "LOC", "ORG"))
    ratios = log_ratios(train, dev, ["LOC", "ORG"], evidence=5.0)
    assert ratios["ORG"] < ratios["LOC"] < 0
    name = "head.blocks.1.bias"
    moved = [0.8 * ratios[type_] for type_ in ("LOC", "LOC", "ORG", "ORG")]
    expected = torch.tensor([0.0] * (len(plain[name]) - 4) + moved)
    torch.testing.assert_close(adjusted.pop(name) - plain.pop(name), expected, atol=1e-6, rtol=0)
    assert same_weights(adjusted, plain)
    settled = learner.settled["logit_adjustment"]
    assert settled.values["shifts"] == pytest.approx({type_: 0.8 * ratios[type_] for type_ in ratios}, abs=1e-4)
    listed = ", ".join(f"{type_} {0.8 * ratios[type_]:+.2f}" for type_ in ("LOC", "ORG"))
    assert settled.text == f"on the logits of new types: {listed}"


@BOTH
@pytest.mark.parametrize("dev", [(), "same"])
def test_without_other_frequencies_nothing_moves(folder: Path, head: str, dev: object) -> None:
    """None are known without dev sentences, and none differ if they are the training sentences."""
    train = toy_sentences(40, seed=1, types=("LOC", "LOC", "ORG"))
    known = tuple(s.restrict({"LOC", "ORG"}) for s in train) if dev else ()
    plain, adjusted = (
        weights_of(learned(folder, head, *more, dev=known).model) for more in ((), ("logit_adjustment",))
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(adjusted[name], tensor, atol=1e-7, rtol=0)


@BOTH
def test_a_type_is_found_less_where_it_is_rarer(folder: Path, head: str) -> None:
    """Half-learned from sentences full of places, on texts with few: nearer to how many there are."""
    train = tuple(s.restrict({"LOC"}) for s in toy_sentences(60, seed=3, types=("LOC",)))
    rare = [*toy_sentences(12, seed=4, types=("LOC",)), *toy_sentences(200, seed=5, types=("ORG", "MISC", "PER"))]
    dev = tuple(s.with_spans([x for x in s.spans if x.type == "LOC"], {"LOC"}) for s in rare)
    there = sum(len(sentence.spans) for sentence in dev)
    found = []
    for strategies in (["finetune"], ["finetune", "logit_adjustment"]):
        training = TOY_TRAINING.model_copy(update={"epochs": 2})
        learner = Learner(tiny_model(folder, head), parse_strategies(strategies), training)
        list(learner.learn_step(Step(1, ("LOC",), train, dev)))
        found.append(sum(map(len, learner.predict(dev))))
    assert there <= found[1] < found[0]


@pytest.mark.parametrize("ground", ["modules", "hat", "packnet"])
def test_old_blocks_stay_as_they_are_where_that_is_promised(folder: Path, ground: str) -> None:
    learner = Learner(tiny_model(folder, "addner"), parse_strategies([ground, "logit_adjustment"]), SHORT_TRAINING)
    dev = toy_sentences(40, seed=2, types=("PER", "LOC", "ORG"))
    biases = []
    for number, type_ in enumerate(("PER", "LOC"), start=1):
        train = tuple(s.restrict({type_}) for s in toy_sentences(30, seed=number, types=(type_,)))
        list(learner.learn_step(Step(number, (type_,), train, tuple(s.restrict({type_}) for s in dev))))
        biases.append(learner.model.head.new_block().bias.clone())
    assert learner.isolation is not None  # or the check would have failed
    plain = Learner(tiny_model(folder, "addner"), parse_strategies([ground]), SHORT_TRAINING)
    train = tuple(s.restrict({"PER"}) for s in toy_sentences(30, seed=1, types=("PER",)))
    list(plain.learn_step(Step(1, ("PER",), train, tuple(s.restrict({"PER"}) for s in dev))))
    moved = biases[0] - plain.model.head.new_block().bias
    assert moved[0] == 0
    torch.testing.assert_close(moved[1], moved[2])
    assert moved[1] < -0.1


def test_what_it_does_not_go_with() -> None:
    with pytest.raises(ConfigError, match="head spankl has no logit of a type to add to"):
        check_head(parse_strategies(["logit_adjustment"]), HeadOptions(name="spankl"))
    with pytest.raises(ConfigError, match="logit_adjustment and joint cannot be combined: joint learns all types anew"):
        build_strategies(parse_strategies(["joint", "logit_adjustment"]))
