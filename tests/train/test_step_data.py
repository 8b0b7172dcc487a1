"""A step that shows what it must not show, or nothing, is refused before anything is trained (invariant E5)."""

from pathlib import Path

import pytest

from ner_cl.data.stream import Step
from ner_cl.errors import DataError, ModelError
from ner_cl.types import Sentence, Span
from tests.train.toy_runs import learner_of, toy_encoder


def sentence(*types: str) -> Sentence:
    return Sentence(("ada", "saw", "rome"), (Span(0, 1, "PER"),), frozenset(types), source="x.conll:7")


def test_old_gold_labels_never_reach_a_step(tmp_path: Path) -> None:
    learner = learner_of(toy_encoder(tmp_path / "encoder"))
    with pytest.raises(DataError, match=r"^x\.conll:7: step 1 learns PER, but the sentence is annotated for LOC too"):
        list(learner.learn_step(Step(1, ("PER",), (sentence("PER", "LOC"),), ())))
    assert learner.model.types == ()


def test_a_step_needs_sentences(tmp_path: Path) -> None:
    learner = learner_of(toy_encoder(tmp_path / "encoder"))
    with pytest.raises(DataError, match="step 1 has no training sentences"):
        list(learner.learn_step(Step(1, ("PER",), (), ())))


def test_a_type_is_learned_once(tmp_path: Path) -> None:
    learner = learner_of(toy_encoder(tmp_path / "encoder"))
    learner.model.grow(["PER"])
    with pytest.raises(ModelError, match="PER was already learned in step 1"):
        list(learner.learn_step(Step(2, ("PER",), (sentence("PER"),), ())))
