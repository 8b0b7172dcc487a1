"""The promise of isolation, from outside: old types are found as before, to the last bit, or nothing is published."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import ner_cl
from ner_cl.config import parse_config
from ner_cl.errors import CheckFailed, ConfigError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.modules import ModuleOptions
from ner_cl.strategies.modules import ModuleStrategy
from ner_cl.train.isolation import emission_fingerprints
from ner_cl.train.run import run_stream
from tests.tiny import tiny_model, toy_sentences
from tests.train.toy_runs import GOOD_TRAINING, SHORT_TRAINING, Interrupted, interrupt_at

TYPES = ("PER", "LOC", "ORG")
TEXTS = [" ".join(sentence.words) for sentence in toy_sentences(60, seed=77, types=TYPES)]
LADDER = [{"name": "modules", "kind": "ladder", "trunk": "pretrained"}]


def data(type_: str) -> list[ner_cl.Sentence]:
    return [sentence.restrict([type_]) for sentence in toy_sentences(80, seed=len(type_), types=TYPES)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[NerModel]:
    """Models that know one, two and three types, each learned from the one before as read from its folder."""
    folder = tmp_path_factory.mktemp("isolated")
    model = tiny_model(folder / "tiny", "addner")
    for number, type_ in enumerate(TYPES, start=1):
        options = LADDER if number == 1 else []
        result = ner_cl.learn(
            model, data(type_), types=[type_], strategies=options, isolate=True, training=GOOD_TRAINING
        )
        result.model.save(folder / str(number))
        model = ner_cl.load(folder / str(number))
    return [ner_cl.load(folder / str(number)) for number in (1, 2, 3)]


def test_old_types_are_found_as_before_to_the_last_bit(models: list[NerModel]) -> None:
    """Spans and scores of a later model that is asked for old types only, against the earlier model."""
    found = [list(model.predict(TEXTS, types=TYPES[:1])) for model in models]
    assert sum(len(entities) for entities in found[0]) > 10
    assert found[0] == found[1] == found[2]
    assert list(models[1].predict(TEXTS)) == list(models[2].predict(TEXTS, types=TYPES[:2]))


def test_what_was_checked_is_written_down(models: list[NerModel], tmp_path: Path) -> None:
    records = [record["isolation"] for record in models[2].history]
    assert [record["unchanged"] for record in records] == [[], [1], [1, 2]]
    assert all(record["sentences"] > 0 and record["words"] > record["sentences"] for record in records)
    models[2].save(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Step 3 left what earlier steps (1, 2) emit as it was, bit by bit" in card


def test_one_bit_of_one_score_is_seen(models: list[NerModel]) -> None:
    model = models[2].copy()
    sentences = data("PER")[:20]

    def now() -> object:
        return emission_fingerprints(model, sentences, [1, 2], batch_tokens=256, precision="fp32")

    before = now()
    before.check(now())  # type: ignore[attr-defined]

    def one_bit_more(module: object, given: object, said: Emissions) -> Emissions:
        hook.remove()  # in the first batch only
        changed = said.blocks[1].clone()
        changed[0, 0, 0] = torch.nextafter(changed[0, 0, 0], changed.new_tensor(torch.inf))
        return replace(said, blocks=(said.blocks[0], changed, *said.blocks[2:]))

    hook = model.register_forward_hook(one_bit_more)
    with pytest.raises(CheckFailed, match=r"steps 2 are not what they were, on 20 sentences \(\d+ words\)"):
        before.check(now())  # type: ignore[attr-defined]


def test_a_step_that_touches_a_frozen_weight_is_not_published(
    models: list[NerModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(self: ModuleStrategy, context: object) -> None:
        with torch.no_grad():
            weight = next(context.model.encoder.backbone.parameters())  # type: ignore[attr-defined]
            weight.add_(1e-3)

    monkeypatch.setattr(ModuleStrategy, "settle", careless)
    with pytest.raises(CheckFailed, match="the model is not published"):
        ner_cl.learn(models[0], data("LOC"), types=["LOC"], training=GOOD_TRAINING)


def test_a_changed_temperature_of_an_old_block_is_seen(models: list[NerModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves no tag, and every score of the block."""

    def careless(self: ModuleStrategy, context: Any) -> None:
        context.model.head.temperatures[0] *= 1.5

    monkeypatch.setattr(ModuleStrategy, "settle", careless)
    with pytest.raises(CheckFailed, match=r"blocks of steps 1 are not what they were"):
        ner_cl.learn(models[0], data("LOC"), types=["LOC"], isolate=True, training=SHORT_TRAINING)


def test_the_first_step_decides_what_modules_will_be(tmp_path: Path) -> None:
    """Step 1 has none where it trains the encoder, but what was said of them then holds for the next step."""
    listed = [{"name": "modules", "kind": "copy", "layers": 1}]
    empty = tiny_model(tmp_path / "tiny", "addner")
    first = ner_cl.learn(empty, data("PER"), types=["PER"], strategies=listed, training=SHORT_TRAINING).model
    assert first.subnetworks is None
    for isolate in (True, False):
        second = ner_cl.learn(first, data("LOC"), types=["LOC"], isolate=isolate, training=SHORT_TRAINING).model
        assert second.subnetworks is not None
        assert second.subnetworks.options == ModuleOptions(kind="copy", layers=1)


def test_what_would_fail_in_step_2_is_refused_before_step_1(tmp_path: Path) -> None:
    listed = [{"name": "modules", "size": 9999}]
    with pytest.raises(ner_cl.ModelError, match="size 9999 are wider than four times the encoder"):
        ner_cl.learn(tiny_model(tmp_path / "tiny", "addner"), data("PER"), types=["PER"], strategies=listed)


def test_a_shared_head_and_shared_strategies_are_refused(models: list[NerModel], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="modules keeps steps apart, but head extendner shares columns"):
        ner_cl.learn(tiny_model(tmp_path / "tiny"), data("PER"), types=["PER"], strategies=["modules"])
    with pytest.raises(ConfigError, match=r"a sub-network of its own.*list modules"):
        ner_cl.learn(models[0], data("LOC"), types=["LOC"], strategies=["distill"])
    with pytest.raises(ConfigError, match="have kind 'ladder', not 'copy'; leave kind out"):
        ner_cl.learn(models[0], data("LOC"), types=["LOC"], strategies=[{"name": "modules", "kind": "copy"}])


def test_a_model_that_was_taught_otherwise_can_be_isolated_from_now_on(tmp_path: Path) -> None:
    first = ner_cl.learn(
        tiny_model(tmp_path / "tiny", "addner"), data("PER"), types=["PER"], training=GOOD_TRAINING
    ).model
    assert first.subnetworks is None
    second = ner_cl.learn(first, data("LOC"), types=["LOC"], isolate=True, training=GOOD_TRAINING)
    assert second.isolation is not None
    assert list(second.isolation.steps) == [1]
    assert second.model.subnetworks is not None
    assert (second.model.subnetworks.first, second.model.subnetworks.count) == (2, 1)
    assert list(first.predict(TEXTS)) == list(second.model.predict(TEXTS, types=["PER"]))


def test_the_options_of_sub_networks_are_read_strictly(models: list[NerModel], tmp_path: Path) -> None:
    models[1].save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["ner_cl"]["subnetworks"]["options"]["kind"] = "leder"
    path.write_text(json.dumps(config))
    with pytest.raises(ner_cl.ModelError, match="subnetworks: cannot be read"):
        ner_cl.load(tmp_path / "model")


@pytest.mark.slow
def test_old_blocks_stay_through_five_steps_on_real_text(repository: Path, tmp_path: Path) -> None:
    """MiniLM and the quickstart corpus; the run is stopped twice and resumed, and read back from its folders."""
    for part, count in (("train", 40), ("dev", 15), ("test", 30)):
        lines = (repository / "data" / "quickstart" / f"{part}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{part}.jsonl").write_text("".join(lines[:count]))
    values = {
        "stream": {
            "corpus": {part: str(tmp_path / f"{part}.jsonl") for part in ("train", "dev", "test")},
            "steps": [["PERSON"], ["LOCATION"], ["ORGANIZATION"], ["DATE"], ["MONEY"]],
            "protocol": "overlap",
        },
        "strategies": ["modules"],
        "training": {"epochs": 1, "batch_tokens": 64, "checkpoint_seconds": 0},
        "output": str(tmp_path / "run"),
    }
    config = parse_config(values)
    for number, update in enumerate((4, 4)):
        with pytest.raises(Interrupted):
            run_stream(config, resume=number > 0, on_event=interrupt_at(update))
    run_stream(config, resume=True)
    sentences = ner_cl.read_sentences(tmp_path / "test.jsonl")
    models = [ner_cl.load(tmp_path / "run" / "steps" / f"{number:02d}") for number in range(1, 6)]
    unchanged = [record["isolation"]["unchanged"] for record in models[4].history]
    assert unchanged == [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    for number, model in enumerate(models, start=1):
        then, now = (
            emission_fingerprints(found, sentences, range(1, number + 1), batch_tokens=1024, precision="auto")
            for found in (model, models[4])
        )
        then.check(now)


def test_isolation_says_what_it_cannot_be_combined_with(models: list[NerModel], tmp_path: Path) -> None:
    known = ner_cl.learn(tiny_model(tmp_path / "tiny"), data("PER"), types=["PER"], training=GOOD_TRAINING).model
    with pytest.raises(ConfigError, match=r"isolate: the head of this model, extendner, .* start a new one"):
        ner_cl.learn(known, data("LOC"), types=["LOC"], isolate=True)
    with pytest.raises(ConfigError, match=r"isolate: .* none of distill, spg does that; list modules too"):
        ner_cl.learn(models[0], data("LOC"), types=["LOC"], isolate=True, strategies=["distill", "spg"])
    with pytest.raises(ConfigError, match=r"none of them reads unlabeled text"):
        ner_cl.learn(models[0], data("LOC"), types=["LOC"], isolate=True, unlabeled=TEXTS)
    too_wide = [{"name": "modules", "size": 100_000, "trunk": "pretrained"}]
    with pytest.raises(ner_cl.ModelError, match="size 100000 are wider than four times the encoder"):
        ner_cl.learn(tiny_model(tmp_path / "tiny", "addner"), data("PER"), types=["PER"], strategies=too_wide)


@pytest.mark.parametrize("change", [{"first": 0}, {"first": "2"}, {"options": None}, {"options": {}}])
def test_damaged_settings_of_sub_networks_are_told(models: list[NerModel], tmp_path: Path, change: Any) -> None:
    models[1].save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["ner_cl"]["subnetworks"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(ner_cl.ModelError, match="subnetworks: must have first, a step from 1, and options"):
        ner_cl.load(tmp_path / "model")


def test_damaged_weights_of_sub_networks_are_told(models: list[NerModel], tmp_path: Path) -> None:
    models[1].save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = next(name for name in weights if name.startswith("subnetworks."))
    safetensors.torch.save_file({**weights, name: weights[name] * torch.nan}, path)
    with pytest.raises(ner_cl.ModelError, match=r"damaged \(subnetworks\..* is not finite\); restore the folder"):
        ner_cl.load(tmp_path / "model")
    del weights[name]
    safetensors.torch.save_file(weights, path)
    with pytest.raises(ner_cl.ModelError, match=r"of another model .*Missing key.*subnetworks\."):
        ner_cl.load(tmp_path / "model")
