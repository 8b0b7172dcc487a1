"""Statistics of types on layers that never change: what is measured, what it corrects, and what it leaves alone."""

import copy
import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

import ner_cl
from ner_cl.config import HeadOptions, check_composition, parse_strategies
from ner_cl.errors import ConfigError, ModelError
from ner_cl.model.discriminant import Discriminant, surroundings
from ner_cl.model.encoder import words_of
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.trunk import all_layers, word_vectors
from ner_cl.strategies.slda import SldaOptions, discriminant_of
from ner_cl.train.learner import Learner
from tests.model.test_attention import encoder_of
from tests.tiny import ALIKE, SENTENCES, TOY_TYPES, tiny_encoder, tiny_model, toy_stream
from tests.train.toy_runs import SHORT_TRAINING, learn_all, learner_of, same_weights, weights_of

STEPS = [["PER"], ["LOC"], ["ORG"]]
TRUNK = {"name": "frozen_trunk", "layers": 2}
SLDA = {"name": "slda", "layers": 1}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), layers=3)


def taught(encoder: Path, *strategies: Any, steps: Sequence[Sequence[str]] = STEPS, until: int = 3) -> Learner:
    learner = learner_of(encoder, strategies)
    stream = toy_stream(train=90, steps=steps)
    learn_all(learner, replace(stream, steps=stream.steps[:until]))
    return learner


@pytest.fixture(scope="module")
def learned(encoder: Path) -> NerModel:
    return taught(encoder, ALIKE, TRUNK, SLDA).model


def described(model: NerModel, words: Sequence[str]) -> np.ndarray[Any, Any]:
    """The description of each word of a sentence, word by word, in numpy."""
    batch = model.encode([ner_cl.Sentence(tuple(words))]).batch([0])
    backbone = copy.deepcopy(model.encoder.backbone)  # `output_hidden_states` leaves hooks in it
    with torch.no_grad():
        output = backbone(input_ids=batch.piece_ids, attention_mask=batch.piece_mask, output_hidden_states=True)
    vectors = output.hidden_states[1][0][batch.word_pieces[0]].double().numpy()
    count, size = vectors.shape
    rows = []
    for i in range(count):
        before = vectors[i - 1] if i else np.zeros(size)
        after = vectors[i + 1] if i + 1 < count else np.zeros(size)
        around = [vectors[j] for j in range(count) if 2 <= abs(i - j) <= 5]
        rows.append(np.concatenate([before, vectors[i], after, np.mean(around, axis=0) if around else np.zeros(size)]))
    return np.array(rows)


def test_what_is_kept_is_what_all_steps_show_together(encoder: Path, learned: NerModel) -> None:
    """Counts, means and scatter, measured step by step, are those of all mentions at once."""
    stream = toy_stream(train=90, steps=STEPS)
    vectors: dict[str, list[np.ndarray[Any, Any]]] = {type_: [] for type_ in learned.types}
    for step in stream.steps:
        for sentence in step.train:
            rows = described(learned, sentence.words)
            for span in sentence.spans:
                vectors[span.type] += list(rows[span.start : span.end])
    state = learned.strategy_state["slda"]
    assert state["counts"].tolist() == [len(vectors[type_]) for type_ in learned.types]
    means = [np.mean(vectors[type_], axis=0) for type_ in learned.types]
    np.testing.assert_allclose(state["means"].numpy(), means, atol=1e-5)
    apart = np.concatenate([np.array(vectors[t]) - mean for t, mean in zip(learned.types, means, strict=True)])
    scatter = apart.T @ apart
    upper = np.triu_indices(len(scatter))
    np.testing.assert_allclose(state["scatter"].numpy(), scatter[upper], atol=1e-3)


def test_the_discriminant_compares_gaussians_with_a_common_covariance() -> None:
    """Differences of scores are those of scipy's log densities plus log shares."""
    generator = np.random.default_rng(1)
    counts, means = np.array([5.0, 20.0, 10.0]), generator.normal(size=(3, 8))
    square = generator.normal(size=(40, 8))
    scatter = square.T @ square
    # 35 words, 8 numbers each.
    options = SldaOptions(strength=(35 + 8) / 35, shrinkage=0.25)
    measured = torch.tensor(counts), torch.tensor(means), torch.tensor(scatter)
    found = discriminant_of([0, 1, 2], *measured, options, layers=1)
    assert found is not None
    covariance = scatter / counts.sum()
    shrunk = 0.75 * covariance + 0.25 * np.diag(np.diag(covariance))
    for x in generator.normal(size=(6, 8)):
        expected = [
            multivariate_normal.logpdf(x, mean, shrunk) + np.log(count / counts.sum())
            for mean, count in zip(means, counts, strict=True)
        ]
        scores = (found.weight.double() @ torch.tensor(x) + found.bias.double()).numpy()
        np.testing.assert_allclose(scores - scores[0], np.array(expected) - expected[0], atol=1e-3)
    half = discriminant_of(
        [0, 1, 2], *measured, options.model_copy(update={"strength": 0.5 * options.strength}), layers=1
    )
    assert half is not None
    torch.testing.assert_close(half.weight, 0.5 * found.weight)
    torch.testing.assert_close(half.bias, 0.5 * found.bias)


def test_one_type_has_nothing_to_be_told_from(encoder: Path) -> None:
    assert discriminant_of([0], torch.ones(1), torch.ones(1, 4), torch.eye(4), SldaOptions(), layers=0) is None
    assert taught(encoder, ALIKE, SLDA, until=1).model.discriminant is None


def test_scores_are_divided_anew_among_the_types_it_knows() -> None:
    """`O`, other types, and what all its types have together stay; the ratios change by its scores."""
    discriminant = Discriminant(2, layers=0, types=[0, 2])
    discriminant.weight = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    discriminant.bias = torch.tensor([0.3, -0.2])
    generator = torch.Generator().manual_seed(2)
    scores, lower = torch.randn(2, 4, 7, generator=generator), torch.randn(2, 4, 2, generator=generator)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    corrected = discriminant(scores, lower, mask)
    torch.testing.assert_close(corrected[..., [0, 3, 4]], scores[..., [0, 3, 4]])
    said = surroundings(lower, mask) @ discriminant.weight.T + discriminant.bias
    for begin, other in ((1, 5), (2, 6)):
        pair = [begin, other]
        torch.testing.assert_close(corrected[..., pair].logsumexp(-1), scores[..., pair].logsumexp(-1))
        gained = (corrected[..., begin] - corrected[..., other]) - (scores[..., begin] - scores[..., other])
        torch.testing.assert_close(gained, said[..., 0] - said[..., 1], rtol=1e-4, atol=1e-5)


def test_padding_is_not_seen() -> None:
    words = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(1))
    alone = surroundings(words[:, :6], torch.ones(1, 6, dtype=torch.bool))
    padded = surroundings(words, torch.tensor([[True] * 6 + [False] * 3]))
    assert torch.equal(padded[:, :6], alone)


def test_training_is_that_of_the_list_without_it(encoder: Path) -> None:
    with_it, without = taught(encoder, ALIKE, TRUNK, SLDA).model, taught(encoder, ALIKE, TRUNK).model
    assert with_it.discriminant is not None
    with_it.discriminant = None
    assert same_weights(with_it, without)


def test_the_layers_it_reads_stay_without_a_frozen_trunk(encoder: Path) -> None:
    fresh, weights = weights_of(learner_of(encoder).model), weights_of(taught(encoder, ALIKE, SLDA).model)
    moved = {name for name in fresh if name.startswith("encoder.") and not torch.equal(fresh[name], weights[name])}
    assert {name.split(".")[4] for name in moved} == {"1", "2"}


def test_a_sixth_of_the_layers_is_read_by_default(tmp_path: Path) -> None:
    learner = learner_of(tiny_encoder(tmp_path, layers=6), [ALIKE, "slda"])
    learn_all(learner, toy_stream(train=60))
    assert learner.model.discriminant is not None
    assert learner.model.discriminant.layers == 1
    assert len(all_layers(learner.model.encoder)) == 6


def test_it_gives_mentions_back_that_the_network_takes_for_the_newest_type(learned: NerModel) -> None:
    """A network that finds every mention and calls it by the newest type, if not with much conviction."""
    model = learned.copy()
    assert model.discriminant is not None
    right = {"network": 0, "both": 0}
    sentences = toy_stream(train=90, steps=STEPS).test
    for sentence in sentences:
        batch = model.encode([sentence]).batch([0])
        with torch.no_grad():
            lower, _ = word_vectors(model.encoder, batch, model.discriminant.layers)
            scores = misled(model, sentence)
            corrected = model.discriminant(scores, lower, batch.word_mask)
        for name, found in (("network", scores), ("both", corrected)):
            spans = model.head.spans(model.head.of_scores(found, batch.word_mask)).tolist()
            gold = {(span.start, span.end, span.type) for span in sentence.spans}
            right[name] += len(gold & {(start, end, model.types[type_]) for _, start, end, type_ in spans})
    mentions = sum(len(sentence.spans) for sentence in sentences)
    assert right["network"] < 0.4 * mentions
    assert right["both"] > 0.6 * mentions  # by embeddings alone that are random


def misled(model: NerModel, sentence: ner_cl.Sentence) -> Tensor:
    """Scores that know where mentions begin and end, and give the newest type a little more than the others."""
    tags = torch.tensor(model.tagset.encode(sentence.spans, len(sentence.words)))
    scores = torch.full((1, len(tags), len(model.tagset)), -9.0)
    scores[0, tags == 0, 0] = 9.0
    for inside in (1, 2):
        here = (tags > 0) & ((tags - inside) % 2 == 0)
        scores[0, :, inside::2] = torch.where(here[:, None], 0.0, -9.0)
        scores[0, here, -3 + inside] += 0.1
    return scores


def test_a_saved_model_finds_the_same(learned: NerModel, tmp_path: Path) -> None:
    learned.save(tmp_path / "model")
    batch = learned.encode(SENTENCES).batch(range(len(SENTENCES)))
    with torch.no_grad():
        scores = learned(batch).flat()
        for other in (ner_cl.load(tmp_path / "model"), learned.copy()):
            assert torch.equal(other(batch).flat(), scores)
            other.discriminant = None
            assert not torch.equal(other(batch).flat(), scores)


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": 3, "types": [0, 1, 2]},
        {"layers": -1, "types": [0, 1, 2]},
        {"layers": 1, "types": [0, 1, 3]},
        {"layers": 1, "types": [0, 1, 1]},
        {"layers": 1, "types": [[0], 1]},
        {"layers": 1, "types": [0.0, 1.0]},
        {"layers": 1, "types": [0]},
        {"layers": 1},
        "slda",
    ],
)
def test_a_folder_with_other_settings_is_refused(learned: NerModel, wrong: Any, tmp_path: Path) -> None:
    learned.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["ner_cl"]["discriminant"] = wrong
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"ner_cl\.discriminant: needs layers below 3 and types by number"):
        ner_cl.load(tmp_path / "model")


def test_a_step_without_it_takes_the_discriminant_away(learned: NerModel) -> None:
    stream = toy_stream(train=90, steps=[*STEPS, ["MISC"]])
    learner = Learner(copy.deepcopy(learned), parse_strategies([ALIKE, TRUNK]), SHORT_TRAINING, seed=13)
    texts = [event.text for event in learner.learn_step(stream.steps[3]) if hasattr(event, "text")]
    assert learner.model.discriminant is None
    assert any("slda kept of earlier steps is dropped" in text for text in texts)


def test_statistics_of_other_layers_are_dropped_and_told(encoder: Path) -> None:
    stream = toy_stream(train=90, steps=STEPS)
    first = learner_of(encoder, [ALIKE, SLDA])
    learn_all(first, replace(stream, steps=stream.steps[:2]))
    other = Learner(first.model, parse_strategies([ALIKE, {**SLDA, "layers": 2}]), SHORT_TRAINING, seed=13)
    list(other.learn_step(stream.steps[2]))
    assert other.settled["slda"].values == {"dropped": ["PER", "LOC"]}
    assert other.model.strategy_state["slda"]["types"].tolist() == [2]


def test_long_sentences_read_in_windows_have_their_mentions_counted(encoder: Path) -> None:
    learner = Learner(
        tiny_model(encoder, max_pieces=16, window_overlap=4), parse_strategies([ALIKE, SLDA]), SHORT_TRAINING
    )
    words: list[str] = []
    spans: list[ner_cl.Span] = []
    for sentence in (*SENTENCES, *SENTENCES):
        spans += [replace(s, start=s.start + len(words), end=s.end + len(words)) for s in sentence.spans]
        words += sentence.words
    whole = ner_cl.Sentence(tuple(words), tuple(spans), frozenset(TOY_TYPES)).restrict(["PER"])
    stream = toy_stream(train=90, steps=STEPS)
    list(learner.learn_step(replace(stream.steps[0], train=(whole,) * 5)))
    expected = sum(span.end - span.start for span in spans if span.type == "PER")
    assert learner.model.strategy_state["slda"]["counts"].tolist() == [5 * expected]


@pytest.mark.parametrize("other", ["joint", "bias_correction", "hat", "packnet", "modules"])
def test_what_it_cannot_be_combined_with(other: str) -> None:
    with pytest.raises(ConfigError, match="cannot be combined"):
        check_composition(parse_strategies([other, "slda"]))


@pytest.mark.parametrize("head", ["addner", "spankl"])
def test_other_heads_are_refused(head: str, encoder: Path) -> None:
    with pytest.raises(ConfigError, match=f"slda needs one softmax over the tags of all types, which head {head}"):
        learner_of(encoder, [ALIKE, "slda"], head=head)


def test_words_near_the_ends_are_described_by_what_there_is() -> None:
    """By hand: five words with the numbers 1 to 5, of which the last is padding."""
    words = torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0]]])
    mask = torch.tensor([[True, True, True, True, False]])
    expected = [[0, 1, 2, 3.5], [1, 2, 3, 4], [2, 3, 4, 1], [3, 4, 0, 1.5]]
    torch.testing.assert_close(surroundings(words, mask)[0, :4], torch.tensor(expected))


def test_few_words_weigh_little() -> None:
    """As many as there are numbers in a description: half of what very many weigh."""
    means, options = torch.eye(2, 8), SldaOptions(strength=1.0)
    few, many = (
        discriminant_of([0, 1], torch.tensor([n / 2, n / 2]), means, n * torch.eye(8), options, layers=0)
        for n in (8.0, 1e9)
    )
    assert few is not None
    assert many is not None
    torch.testing.assert_close(few.weight, many.weight / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("count", "kept"), [(4, []), (5, [0])])
def test_a_type_that_few_sentences_mention_leaves_nothing(encoder: Path, count: int, kept: list[int]) -> None:
    learner = learner_of(encoder, [ALIKE, SLDA])
    stream = toy_stream(train=90, steps=STEPS)
    mentioning = [s for s in stream.steps[0].train if s.spans][:count]
    others = [s for s in stream.steps[0].train if not s.spans]
    list(learner.learn_step(replace(stream.steps[0], train=(*mentioning, *others))))
    assert learner.model.strategy_state["slda"]["types"].tolist() == kept
    list(learner.learn_step(stream.steps[1]))  # goes on from there
    assert learner.model.strategy_state["slda"]["types"].tolist() == [*kept, 1]


def test_statistics_of_another_model_are_refused(encoder: Path) -> None:
    learner = taught(encoder, ALIKE, SLDA, until=1)
    step = toy_stream(train=90, steps=STEPS).steps[1]
    good = dict(learner.model.strategy_state["slda"])
    for wrong in ({"means": good["means"][:, 1:]}, {"types": torch.tensor([1.0])}, {"types": good["types"].long()}):
        learner.model.strategy_state = {"slda": {**good, **wrong}}
        with pytest.raises(ModelError, match="kept of earlier steps is of another model"):
            list(learner.learn_step(step))
    learner.model.strategy_state = {"slda": {name: good[name] for name in good if name != "layers"}}
    with pytest.raises(ModelError, match=r"restore strategy/slda\.safetensors"):
        list(learner.learn_step(step))


def test_a_step_with_a_strength_of_zero_keeps_what_there_was(encoder: Path) -> None:
    learner = taught(encoder, ALIKE, TRUNK, SLDA, until=2)
    kept = dict(learner.model.strategy_state["slda"])
    off = Learner(learner.model, parse_strategies([ALIKE, TRUNK, {**SLDA, "strength": 0}]), SHORT_TRAINING)
    list(off.learn_step(toy_stream(train=90, steps=STEPS).steps[2]))
    assert off.model.discriminant is None
    assert all(torch.equal(off.model.strategy_state["slda"][name], kept[name]) for name in kept)


def test_a_model_that_has_predicted_can_be_pickled(learned: NerModel) -> None:
    found = list(learned.predict([SENTENCES[0], SENTENCES[3]]))
    again = pickle.loads(pickle.dumps(learned))
    assert list(again.predict([SENTENCES[0], SENTENCES[3]])) == found


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "deberta-v2", "modernbert", "albert"])
def test_encoders_of_all_kinds_give_the_state_after_a_layer(kind: str, encoder: Path) -> None:
    """That of `output_hidden_states`."""
    model = NerModel.from_parts(encoder_of(encoder, kind), HeadOptions())
    batch = model.encode(SENTENCES).batch(range(len(SENTENCES)))
    layers = len(all_layers(model.encoder)) - 1
    with torch.inference_mode():
        lower, last = word_vectors(model.encoder, batch, layers)
        expected = model.encoder.backbone(
            input_ids=batch.piece_ids, attention_mask=batch.piece_mask, output_hidden_states=True
        )
    assert torch.equal(lower, words_of(expected.hidden_states[layers], batch))
    assert torch.equal(last, words_of(expected.last_hidden_state, batch))
