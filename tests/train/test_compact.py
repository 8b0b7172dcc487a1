"""Many sub-networks made into one encoder."""

from pathlib import Path

import pytest

import ner_cl
from ner_cl.config import HeadOptions, OptimizerOptions, TrainingOptions
from ner_cl.errors import DataError, ModelError
from ner_cl.model.card import model_card
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.modules import ModuleOptions
from ner_cl.train.events import EpochDone, Event
from tests.tiny import tiny_model, toy_sentences
from tests.train.toy_runs import GOOD_TRAINING, SHORT_TRAINING, same_weights

RAW = [ner_cl.Sentence(s.words) for s in toy_sentences(150, seed=5, types=("PER", "LOC"))]
GOLD = toy_sentences(60, seed=6, types=("PER", "LOC"))
TRAINING = TrainingOptions(
    epochs=10, batch_tokens=128, precision="fp32", optimizer=OptimizerOptions(lr=5e-3, head_lr=5e-2)
)


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> NerModel:
    model = tiny_model(tmp_path_factory.mktemp("compact") / "tiny", "addner")
    for type_ in ("PER", "LOC"):
        sentences = [s.restrict([type_]) for s in toy_sentences(120, seed=len(type_), types=("PER", "LOC"))]
        strategies = [{"name": "modules", "kind": "adapter", "trunk": "pretrained"}]
        model = ner_cl.learn(model, sentences, types=[type_], strategies=strategies, training=GOOD_TRAINING).model
    return model


def test_one_encoder_learns_to_say_what_the_modules_say(isolated: NerModel) -> None:
    before = {name: tensor.clone() for name, tensor in isolated.state_dict().items()}
    result = ner_cl.compact(isolated, RAW, dev=GOLD, training=TRAINING)
    assert same_weights(before, dict(isolated.state_dict()))
    assert result.model.subnetworks is None
    assert result.model.types == isolated.types
    assert [record["step"] for record in result.model.history] == [1, 2]
    assert all("isolation" not in record for record in result.model.history)
    assert "new" not in result.table
    assert repr(result) == f"LearnResult(2 types)\n{result.table}"
    still = TRAINING.model_copy(update={"optimizer": OptimizerOptions(lr=1e-12, head_lr=1e-12)})
    untaught = ner_cl.compact(isolated, RAW, dev=GOLD, training=still)
    for change in result.changes:
        assert change.measured == "gold"
        assert change.before is not None
        assert change.drop < 0.15
    assert sum(c.after or 0 for c in result.changes) > 0.2 + sum(c.after or 0 for c in untaught.changes)


def test_without_gold_the_loss_is_told_by_agreement(isolated: NerModel) -> None:
    result = ner_cl.compact(isolated, RAW, training=TRAINING)
    assert {(change.before, change.measured) for change in result.changes} == {(1.0, "agreement")}
    again = ner_cl.compact(isolated, RAW, training=TRAINING)
    assert same_weights(result.model, again.model)


def test_the_sentences_held_back_are_looked_at_as_often_as_asked(isolated: NerModel) -> None:
    stopping = TRAINING.early_stopping.model_copy(update={"every": 2, "patience": 0})
    events: list[Event] = []
    training = TRAINING.model_copy(update={"epochs": 3, "early_stopping": stopping})
    ner_cl.compact(isolated, RAW, training=training, on_event=events.append)
    assert [event.score is not None for event in events if isinstance(event, EpochDone)] == [False, True, True]


def test_the_compact_model_can_be_taught_in_any_way(
    isolated: NerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated.head, "temperatures", [1.5, 0.7])
    model = ner_cl.compact(isolated, RAW, training=TRAINING.model_copy(update={"epochs": 1})).model
    model.save(tmp_path / "compact")
    card = (tmp_path / "compact" / "README.md").read_text()
    assert "After step 2 the sub-networks (modules) were distilled into one encoder" in card
    assert "bit by bit" not in card
    assert model.head.temperatures == [1.5, 0.7]  # blocks that imitate are scored alike
    assert all("calibration" not in record for record in model.history)
    org = [s.restrict(["ORG"]) for s in toy_sentences(40, seed=3, types=("ORG",))]
    taught = ner_cl.learn(
        ner_cl.load(tmp_path / "compact"), org, types=["ORG"], strategies=["distill"], training=GOOD_TRAINING
    )
    assert taught.model.types == ("PER", "LOC", "ORG")
    assert "distilled into one encoder" in model_card(taught.model)
    by_default = ner_cl.learn(model, org, types=["ORG"], training=SHORT_TRAINING).model  # and not by modules again
    assert [options["name"] for options in by_default.history[-1]["strategies"]] == ["distill", "frozen_trunk"]


def test_what_cannot_be_made_compact_is_refused(isolated: NerModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="one encoder for all its steps already"):
        ner_cl.compact(tiny_model(tmp_path / "tiny", "addner", steps=[["PER"]]), RAW)
    voting = tiny_model(tmp_path / "tiny", HeadOptions(name="addner", merge="vote"), steps=[["PER"]])
    voting.isolate(ModuleOptions(join="vote"))
    voting.grow(["LOC"])
    with pytest.raises(ModelError, match=r"know older types too \(join: vote\)"):
        ner_cl.compact(voting, RAW)
    with pytest.raises(DataError, match="3 sentences are too few"):
        ner_cl.compact(isolated, RAW[:3])


def test_texts_and_a_mapping_of_options_do_as_well(isolated: NerModel, tmp_path: Path) -> None:
    texts = [" ".join(sentence.words) for sentence in RAW]
    file = tmp_path / "raw.txt"
    file.write_text("\n".join(texts))
    training = TRAINING.model_dump(mode="json") | {"epochs": 1}
    one, other = (ner_cl.compact(isolated, given, training=training) for given in (texts, str(file)))
    same = ner_cl.compact(isolated, RAW, training=TRAINING.model_copy(update={"epochs": 1}))
    assert same_weights(one.model, other.model)
    assert same_weights(one.model, same.model)
