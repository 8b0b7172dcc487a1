"""Temperatures: scores say how often they are right, tags and old blocks stay what they are."""

import copy
import json
import random
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from ner_cl.config import HeadOptions
from ner_cl.errors import ModelError
from ner_cl.evaluate.reliability import calibration_error, judge, reliability
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import score_sentences
from ner_cl.model.store import load_model
from ner_cl.train.calibrate import _JudgedSpans, calibrate
from ner_cl.train.learn import learn
from ner_cl.types import Sentence
from tests.tiny import TOY_TRAINING, tiny_encoder, tiny_model, toy_sentences, toy_training, trained_model

HEADS = ("addner", "extendner", "spankl")
EVERY = pytest.mark.parametrize("head", HEADS)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def models(encoder: Path) -> dict[str, NerModel]:
    off = {head: toy_training(head).model_copy(update={"calibrate": False}) for head in HEADS}
    return {head: trained_model(encoder, head, training=training) for head, training in off.items()}


def half_wrong(types: tuple[str, ...] = ("LOC",)) -> list[Sentence]:
    """Gold in which every third mention that the words suggest is none: a model sure of itself is wrong there."""
    draw = random.Random(5)
    sentences = toy_sentences(150, seed=5, types=types)
    return [
        sentence.with_spans([span for span in sentence.spans if draw.random() < 0.66], types) for sentence in sentences
    ]


def error(model: NerModel, gold: list[Sentence], types: tuple[str, ...]) -> float:
    found = score_sentences(model, gold, types=types, precision="fp32")
    pairs = [[(item.span, item.score) for item in items] for items in found]
    return calibration_error(reliability(*judge(gold, pairs))) or 0.0


def test_looking_at_a_temperature_leaves_the_models(models: dict[str, NerModel]) -> None:
    model = copy.deepcopy(models["addner"])
    judged = _JudgedSpans(model, half_wrong(), ["LOC"], None, "fp32")
    assert not torch.equal(judged.scores(5.0), judged.scores(1.0))
    assert model.head.temperatures == [1.0, 1.0]


@EVERY
def test_scores_come_nearer_to_how_often_they_are_right(models: dict[str, NerModel], head: str) -> None:
    model = copy.deepcopy(models[head])
    gold = half_wrong()
    old = score_sentences(model, gold, types=["PER"], precision="fp32")
    tags = [[item.span for item in row] for row in score_sentences(model, gold, precision="fp32")]
    before = error(model, gold, ("LOC",))
    found = calibrate(model, gold, precision="fp32")
    assert found is not None
    assert found.temperature > 1.5
    assert model.head.temperatures == [1.0, found.temperature]
    assert found.error_before == pytest.approx(before, abs=1e-6)
    assert found.error_after == pytest.approx(error(model, gold, ("LOC",)), abs=1e-6)
    assert found.error_after < 0.7 * before
    assert [[item.span for item in row] for row in score_sentences(model, gold, precision="fp32")] == tags
    unjudged = [sentence.restrict(["PER"]) for sentence in gold]  # mention LOC, and nobody looked for it there
    again = copy.deepcopy(models[head])
    with_unjudged = calibrate(again, [*gold, *unjudged], precision="fp32")
    assert with_unjudged is not None
    assert astuple(with_unjudged) == pytest.approx(astuple(found), abs=1e-5)
    if head != "extendner":  # the old block has a temperature of its own
        assert score_sentences(model, gold, types=["PER"], precision="fp32") == old


def test_it_is_the_temperature_of_least_cost(models: dict[str, NerModel]) -> None:
    """Against a fine grid."""
    model, gold = copy.deepcopy(models["addner"]), half_wrong()
    found = calibrate(model, gold, precision="fp32")
    assert found is not None

    def cost(temperature: float) -> float:
        model.head.temperatures[-1] = temperature
        scored = score_sentences(model, gold, types=["LOC"], precision="fp32")
        pairs = [(i.score, i.span in s.spans) for s, row in zip(gold, scored, strict=True) for i in row]
        positives = sum(right for _, right in pairs)
        high, low = (positives + 1) / (positives + 2), 1 / (len(pairs) - positives + 2)
        targets = torch.tensor([high if right else low for _, right in pairs])
        return float(torch.nn.functional.binary_cross_entropy(torch.tensor([score for score, _ in pairs]), targets))

    grid = [0.25 * 1.02**power for power in range(187)]
    assert found.temperature == pytest.approx(min(grid, key=cost), rel=0.03)


@EVERY
def test_few_spans_and_no_gold_leave_it_alone(models: dict[str, NerModel], head: str) -> None:
    model = copy.deepcopy(models[head])
    assert calibrate(model, half_wrong()[:5], precision="fp32") is None
    assert calibrate(model, half_wrong(("PER",)), precision="fp32") is None  # not of the newest step
    assert calibrate(model, [], precision="fp32") is None
    assert model.head.temperatures == [1.0, 1.0]


def test_votes_have_temperatures_of_their_own(encoder: Path) -> None:
    model = tiny_model(encoder, HeadOptions(name="addner", merge="vote"), steps=(("LOC",),))
    assert calibrate(model, half_wrong(), precision="fp32") is None
    assert model.head.temperatures == [1.0]


def test_a_step_is_calibrated_and_the_model_remembers(encoder: Path, tmp_path: Path) -> None:
    model = tiny_model(encoder, "addner", steps=())
    data, distill = half_wrong(("PER",)), ["distill"]
    first = learn(model, data, types=["PER"], dev=data, strategies=distill, training=TOY_TRAINING)
    record = first.model.history[-1]["calibration"]
    assert first.model.head.temperatures == [pytest.approx(record["temperature"], abs=1e-4)]
    assert record["error_after"] < record["error_before"]
    assert record["spans"] >= 20
    first.model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.head.temperatures == first.model.head.temperatures
    assert again.copy().head.temperatures == first.model.head.temperatures
    off = TOY_TRAINING.model_copy(update={"calibrate": False})
    plain = learn(model, data, types=["PER"], dev=data, strategies=distill, training=off)
    assert plain.model.head.temperatures == [1.0]
    assert "calibration" not in plain.model.history[-1]


@pytest.mark.parametrize("value", [[1.0], [1.0, 0.0], [1.0, "hot"], None, [1.0, 2.0, 3.0]])
def test_damaged_temperatures(models: dict[str, NerModel], tmp_path: Path, value: object) -> None:
    models["addner"].save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["ner_cl"]["temperatures"] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config.json: ner_cl.temperatures: must be a list of positive numbers"):
        load_model(tmp_path / "model")


def test_folders_without_temperatures_are_read_as_they_were(models: dict[str, NerModel], tmp_path: Path) -> None:
    models["addner"].save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    del config["ner_cl"]["temperatures"]
    path.write_text(json.dumps(config))
    assert load_model(tmp_path / "model").head.temperatures == [1.0, 1.0]


@pytest.mark.parametrize("head", ["addner", "extendner", "spankl"])
def test_one_softmax_keeps_its_temperature_where_none_can_be_measured(encoder: Path, head: str) -> None:
    model = tiny_model(encoder, head, steps=[["PER"]])
    model.head.temperatures[-1] = 1.6
    model.grow(["LOC"])
    assert model.head.temperatures == [1.6, 1.6 if head == "extendner" else 1.0]
