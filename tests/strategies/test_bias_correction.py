"""Bias correction: old types are found as often as before the step, by one number on their logits and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.config import HeadOptions, check_composition, check_head, parse_strategies
from ner_cl.data.encode import PieceEncoder
from ner_cl.data.stream import Step
from ner_cl.errors import ConfigError
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.bias_correction import least_lift
from ner_cl.train.learner import Learner
from ner_cl.types import Sentence
from tests.tiny import TOY_TRAINING, tiny_encoder, toy_sentences, trained_model
from tests.train.toy_runs import same_weights, weights_of

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
HALF = {"name": "weight_average", "old_share": 0.5}
WHOLE: dict[str, Any] = {"name": "bias_correction", "strength": 1.0, "evidence": 0.0, "most": 20.0}
TRAIN = tuple(s.restrict(["ORG"]) for s in toy_sentences(60, seed=1, types=("PER", "LOC", "ORG")))
DEV = tuple(s.restrict(["ORG"]) for s in toy_sentences(80, seed=2, types=("PER", "LOC", "ORG")))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NerModel]:
    """A model of each head that knows two types."""
    folder = tiny_encoder(tmp_path_factory.mktemp("encoder"))
    return {head: trained_model(folder, head) for head in ("addner", "extendner")}


def taught(known: NerModel, *strategies: Any, dev: tuple[Sentence, ...] = DEV) -> tuple[int, Learner]:
    """How many old mentions a model finds in the dev sentences, and then a copy that was taught a third type."""
    model = known.copy()
    training = TOY_TRAINING.model_copy(update={"epochs": 2, "calibrate": False})
    learner = Learner(model, parse_strategies(list(strategies)), training, seed=3)
    before = old_found(learner)
    list(learner.learn_step(Step(len(model.tagset.steps) + 1, ("ORG",), TRAIN, dev)))
    return before, learner


def old_found(learner: Learner) -> int:
    found = learner.predict(DEV)
    return sum(
        span.type != "ORG" and not any(span.overlaps(gold) for gold in sentence.spans)
        for sentence, spans in zip(DEV, found, strict=True)
        for span in spans
    )


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: after[name] - before[name] for name in before if not torch.equal(before[name], after[name])}


@BOTH
def test_old_types_are_found_as_often_as_before(models: dict[str, NerModel], head: str) -> None:
    before, plain = taught(models[head], "finetune")
    assert old_found(plain) < 0.8 * before  # it has forgotten some
    again, corrected = taught(models[head], "finetune", WHOLE)
    assert again == before
    assert old_found(corrected) >= before
    assert old_found(corrected) <= before + 5  # no more than it takes
    _, half = taught(models[head], "finetune", {**WHOLE, "strength": 0.5})
    assert old_found(plain) <= old_found(half) <= old_found(corrected)


@BOTH
def test_it_corrects_the_averaged_weights_where_weights_are_averaged(models: dict[str, NerModel], head: str) -> None:
    before, both = taught(models[head], "finetune", WHOLE, HALF)
    _, averaged = taught(models[head], "finetune", HALF)
    assert set(moved(weights_of(averaged.model), weights_of(both.model))) <= {
        name for name in weights_of(both.model) if name.startswith("head.blocks.") and name.endswith("bias")
    }
    assert old_found(both) >= before


@BOTH
def test_one_number_on_the_biases_of_old_types_is_all(models: dict[str, NerModel], head: str) -> None:
    _, plain = taught(models[head], "finetune")
    _, corrected = taught(models[head], "finetune", WHOLE)
    changes = moved(weights_of(plain.model), weights_of(corrected.model))
    assert changes
    assert all(name.startswith("head.blocks.") and name.endswith(".bias") for name in changes)
    lifts = torch.cat([change[change != 0] for change in changes.values()])
    assert lifts.min() > 0
    torch.testing.assert_close(lifts, lifts[:1].expand_as(lifts), rtol=1e-3, atol=1e-4)
    assert len(lifts) == 2 * 2  # both tags of PER and LOC


@BOTH
def test_the_lift_is_told(models: dict[str, NerModel], head: str) -> None:
    _, plain = taught(models[head], "finetune")
    before, corrected = taught(models[head], "finetune", WHOLE)
    lifts = torch.cat(
        [change[change != 0] for change in moved(*map(weights_of, (plain.model, corrected.model))).values()]
    )
    settled = corrected.settled["bias_correction"]
    assert settled.values["lift"] == pytest.approx(float(lifts[0]), abs=1e-3)
    assert (settled.values["found_after"], settled.values["found_before"]) == (old_found(plain), before)
    assert settled.text.startswith(f"{settled.values['lift']:+.2f} on the logits of old types: {old_found(plain)} of")
    # One that has forgotten nothing is told too.
    _, same = taught(models[head], "finetune", {**WHOLE, "evidence": 1e9})
    assert same.settled["bias_correction"].values["lift"] == 0
    assert same.settled["bias_correction"].text.startswith(f"nothing changed: {old_found(plain)} of their mentions")


@BOTH
def test_without_dev_sentences_nothing_moves(models: dict[str, NerModel], head: str) -> None:
    _, plain = taught(models[head], "finetune", dev=())
    _, corrected = taught(models[head], "finetune", WHOLE, dev=())
    assert same_weights(weights_of(plain.model), weights_of(corrected.model))
    assert corrected.settled == {}


def test_few_mentions_move_it_little(models: dict[str, NerModel]) -> None:
    _, plain = taught(models["extendner"], "finetune")
    found = []
    for evidence in (1e6, 30.0, 0.0):
        _, corrected = taught(models["extendner"], "finetune", {**WHOLE, "evidence": evidence})
        found.append(old_found(corrected))
    assert old_found(plain) <= found[0] <= old_found(plain) + 1
    assert found == sorted(found)
    assert found[0] < found[2]


@given(steps=st.lists(st.floats(0, 3), max_size=30), goal=st.integers(0, 40))
def test_the_least_lift_is_that_of_a_search_over_all(steps: list[float], goal: int) -> None:
    """What is found grows by one at each of some lifts."""

    def found(lift: float) -> int:
        return sum(step <= lift for step in steps)

    def enough(lift: float) -> bool:
        return found(lift) >= goal

    lift = least_lift(found, goal, most=3.0)
    grid = [number * 3.0 / 256 for number in range(257)]
    assert lift == pytest.approx(next(filter(enough, grid), 3.0))


@pytest.mark.parametrize("other", ["joint", "frozen", "ice", "modules", "hat", "packnet"])
def test_what_leaves_no_old_type_to_lift_is_refused(other: str) -> None:
    with pytest.raises(ConfigError, match="cannot be combined"):
        check_composition(parse_strategies([other, "bias_correction"]))


def test_a_head_without_logits_of_tags_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no logit of a type to add to"):
        check_head(parse_strategies(["distill", "bias_correction"]), HeadOptions(name="spankl"))


@BOTH
def test_sentences_of_several_windows_are_counted_as_they_are_predicted(
    models: dict[str, NerModel], head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mention at the border of two windows is one mention."""
    counted: list[int] = []

    def watch(found: Callable[[float], int], goal: int, *, most: float) -> float:
        counted.append(found(0.0))
        return 0.0

    monkeypatch.setattr("ner_cl.strategies.bias_correction.least_lift", watch)
    known = models[head].copy()
    known.encoder.pieces = PieceEncoder(known.encoder.tokenizer, max_pieces=8, overlap=2)
    assert len(known.encode(DEV)) > len(DEV)
    _, learner = taught(known, "finetune", WHOLE)
    assert counted == [old_found(learner)]
