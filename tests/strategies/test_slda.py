"""Statistics of tags on lower layers as they were: what is measured, what it corrects, and what it leaves alone."""

import copy
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import multivariate_normal
from torch import Tensor

import ner_cl
from ner_cl.config import HeadOptions, check_composition, parse_strategies
from ner_cl.data.stream import Step
from ner_cl.errors import ConfigError, ModelError
from ner_cl.model.discriminant import Discriminant, surroundings
from ner_cl.model.encoder import words_of
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.trunk import all_layers, word_vectors
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.moments import Moments, Sums
from ner_cl.strategies.slda import SldaOptions, discriminant_of
from ner_cl.strategies.teacher import Teacher
from ner_cl.train.learner import Learner
from tests.model.test_attention import encoder_of
from tests.strategies.test_das import of_kind
from tests.strategies.test_encoders import gpt2
from tests.tiny import ALIKE, SENTENCES, TOY_TRAINING, TOY_TYPES, tiny_encoder, tiny_model, toy_stream
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


@pytest.fixture(scope="module")
def moved(encoder: Path) -> NerModel:
    """Copies of two layers, of which the encoder's own have moved since."""
    model = taught(encoder, ALIKE, {**SLDA, "layers": 2}).model
    assert model.discriminant is not None
    for copied, own in zip(model.discriminant.above, all_layers(model.encoder), strict=False):
        assert not torch.equal(copied.state_dict()["output.dense.weight"], own.state_dict()["output.dense.weight"])
    return model


def of_one_word(step: Step) -> Step:
    """The same with mentions cut to their first words."""
    cut = [replace(s, spans=tuple(replace(span, end=span.start + 1) for span in s.spans)) for s in step.train]
    return replace(step, train=tuple(cut))


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
    """Counts, means and scatter by tag, measured step by step, are those of all mentions at once."""
    vectors: list[list[np.ndarray[Any, Any]]] = [[] for _ in learned.tagset.tags]
    for step in toy_stream(train=90, steps=STEPS).steps:
        for sentence in step.train:
            rows = described(learned, sentence.words)
            for tag, row in zip(learned.tagset.encode(sentence.spans, len(rows)), rows, strict=True):
                vectors[tag].append(row)
    state = learned.strategy_state["slda"]
    assert state["tags"].tolist() == list(range(1, len(vectors)))
    check_moments(state, "tag", vectors[1:])


def test_words_are_counted_by_prefix_unless_the_model_finds_an_old_type(encoder: Path) -> None:
    learner = learner_of(encoder, [ALIKE, TRUNK, SLDA], training=TOY_TRAINING)
    vectors: list[list[np.ndarray[Any, Any]]] = [[], [], []]
    left_out = 0
    for step in toy_stream(train=90, steps=STEPS).steps[:2]:
        before = learner.model.discriminant
        list(learner.learn_step(step))
        model, old = learner.model.copy(), len(learner.model.types) - 1
        model.discriminant = None if before is None else before.for_teachers()
        for sentence in step.train:
            batch = model.encode([sentence]).batch([0])
            with torch.no_grad():
                said = model(batch).flat()[0].argmax(-1)
            gold = model.tagset.encode(sentence.spans, len(sentence.words))
            for tag, other, row in zip(gold, said.tolist(), described(model, sentence.words), strict=True):
                if tag == 0 and other in range(1, 1 + 2 * old):
                    left_out += 1
                else:
                    vectors[0 if tag == 0 else 1 if tag % 2 else 2].append(row)
    assert left_out
    check_moments(learner.model.strategy_state["slda"], "prefix", vectors)


def check_moments(state: Mapping[str, Tensor], name: str, vectors: Sequence[Sequence[np.ndarray[Any, Any]]]) -> None:
    assert state[f"{name}_counts"].tolist() == [len(rows) for rows in vectors]
    means = [np.mean(rows, axis=0) for rows in vectors]
    np.testing.assert_allclose(state[f"{name}_means"].numpy(), means, atol=1e-5)
    apart = np.concatenate([np.array(rows) - mean for rows, mean in zip(vectors, means, strict=True)])
    scatter = apart.T @ apart
    upper = np.triu_indices(len(scatter))
    np.testing.assert_allclose(state[f"{name}_scatter"].numpy(), scatter[upper], atol=1e-3)


def test_the_discriminant_compares_gaussians_with_a_common_covariance() -> None:
    """Differences of scores are those of scipy's log densities plus log shares."""
    generator = np.random.default_rng(1)
    counts, means = np.array([5.0, 20.0, 10.0]), generator.normal(size=(3, 8))
    square = generator.normal(size=(40, 8))
    scatter = square.T @ square
    # 35 words, 8 numbers each.
    options = SldaOptions(strength=((35 + 8) / 35) ** 0.5, shrinkage=0.25)
    moments = Moments(torch.tensor(counts), torch.tensor(means), torch.tensor(scatter))
    weight, bias = discriminant_of(moments, options)
    covariance = scatter / counts.sum()
    shrunk = 0.75 * covariance + 0.25 * np.diag(np.diag(covariance))
    for x in generator.normal(size=(6, 8)):
        expected = [
            multivariate_normal.logpdf(x, mean, shrunk) + np.log(count / counts.sum())
            for mean, count in zip(means, counts, strict=True)
        ]
        scores = (weight.double() @ torch.tensor(x) + bias.double()).numpy()
        np.testing.assert_allclose(scores - scores[0], np.array(expected) - expected[0], atol=1e-3)
    half_weight, half_bias = discriminant_of(moments, options.model_copy(update={"strength": 0.5 * options.strength}))
    torch.testing.assert_close(half_weight, 0.5 * weight)
    torch.testing.assert_close(half_bias, 0.5 * bias)


def test_moments_of_parts_add_up() -> None:
    """To those of all vectors at once, also with a class of which only one part has any."""
    generator = torch.Generator().manual_seed(1)
    vectors, classes = torch.randn(60, 5, generator=generator) + 3, torch.randint(0, 3, (60,), generator=generator)
    classes[:30] = classes[:30].clamp(max=1)
    parts = []
    for rows in (range(30), range(30, 60), range(60)):
        sums = Sums(3, 5)
        sums.add(vectors[rows], classes[rows].unsqueeze(1) == torch.arange(3))
        parts.append(sums.moments())
    for found in (parts[0].plus(parts[1]), parts[1].plus(parts[0])):
        again = Moments.from_tensors(found.tensors("some"), "some")
        for name in ("counts", "means", "scatter"):
            torch.testing.assert_close(getattr(found, name), getattr(parts[2], name), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(getattr(found, name), getattr(again, name))


def test_what_is_not_annotated_for_a_new_type_does_not_count_as_outside(encoder: Path) -> None:
    """Every second sentence is annotated for one of the two new types."""
    step = toy_stream(train=60, steps=[["PER", "LOC"]]).steps[0]
    half = tuple(s.restrict(["PER"]) if number % 2 else s for number, s in enumerate(step.train))
    learner = learner_of(encoder, [ALIKE, TRUNK, SLDA], training=TOY_TRAINING)
    list(learner.learn_step(replace(step, train=half)))
    model, hidden = learner.model.copy(), 0
    model.discriminant = None
    counts = [0, 0, 0]
    for sentence in half:
        batch = model.encode([sentence]).batch([0])
        with torch.no_grad():
            said = model(batch).flat()[0].argmax(-1).tolist()
        for tag, other in zip(model.tagset.encode(sentence.spans, len(sentence.words)), said, strict=True):
            if tag or sentence.annotated_types == frozenset(model.types) or other in (0, 1, 2):
                counts[model.tagset.prefixes[tag]] += 1
            else:
                hidden += 1
    assert hidden > 10
    assert learner.model.strategy_state["slda"]["prefix_counts"].tolist() == counts


def test_pseudo_labels_of_old_types_are_not_measured_again(encoder: Path, tmp_path: Path) -> None:
    learner = learner_of(encoder, ["self_training", TRUNK, SLDA], training=TOY_TRAINING)
    learn_all(learner, toy_stream(train=90, steps=STEPS[:2]))
    state = learner.model.strategy_state["slda"]
    assert state["tags"].tolist() == [1, 2, 3, 4]
    assert state["prefix_counts"][1:].tolist() == [state["tag_counts"][0::2].sum(), state["tag_counts"][1::2].sum()]
    learner.model.save(tmp_path / "model")
    assert list(ner_cl.load(tmp_path / "model").predict(SENTENCES)) == list(learner.model.predict(SENTENCES))


def test_where_no_mention_has_a_second_word_it_scores_as_the_first(encoder: Path) -> None:
    """One tag has nothing to be told from but `O`."""
    weight, bias = discriminant_of(Moments(torch.ones(1), torch.ones(1, 4), torch.eye(4)), SldaOptions())
    assert not weight.any()
    assert not bias.any()
    learner = learner_of(encoder, [ALIKE, SLDA])
    list(learner.learn_step(of_one_word(toy_stream(train=90, steps=STEPS).steps[0])))
    model = learner.model
    assert model.strategy_state["slda"]["tags"].tolist() == [1]
    assert model.strategy_state["slda"]["prefix_counts"][2] == 0
    batch = model.encode(SENTENCES).batch(range(len(SENTENCES)))
    with torch.no_grad():
        scores = model(batch).flat()
        model.discriminant = None
        gained = (scores - model(batch).flat())[batch.word_mask]
    torch.testing.assert_close(gained[:, 1], gained[:, 2])
    assert (gained[:, 0] - gained[:, 1]).abs().max() > 0.01


def test_scores_are_divided_anew_among_the_tags_it_knows_and_prefixes_added() -> None:
    """But for the prefixes, other tags and what all its tags have together stay; the ratios change by its scores."""
    own = [1, 2, 5]
    discriminant = Discriminant(2, held=0, tags=own)
    discriminant.weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    discriminant.bias = torch.tensor([0.5, 0.0, -0.1, 0.3, -0.2, 0.1])
    generator = torch.Generator().manual_seed(2)
    scores, lower = torch.randn(2, 4, 7, generator=generator), torch.randn(2, 4, 2, generator=generator)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    said = surroundings(lower, mask) @ discriminant.weight.T + discriminant.bias
    prefixes, said = said[..., [0, 1, 2, 1, 2, 1, 2]], said[..., 3:]
    corrected = discriminant(scores, lower, mask) - prefixes
    torch.testing.assert_close(corrected[..., [0, 3, 4, 6]], scores[..., [0, 3, 4, 6]])
    torch.testing.assert_close(corrected[..., own].logsumexp(-1), scores[..., own].logsumexp(-1))
    gained = corrected[..., own] - scores[..., own]
    torch.testing.assert_close(gained - gained[..., :1], said - said[..., :1], rtol=1e-4, atol=1e-5)


def test_padding_is_not_seen() -> None:
    words = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(1))
    alone = surroundings(words[:, :6], torch.ones(1, 6, dtype=torch.bool))
    padded = surroundings(words, torch.tensor([[True] * 6 + [False] * 3]))
    assert torch.equal(padded[:, :6], alone)


def test_training_is_that_of_the_list_without_it_but_for_the_teacher(encoder: Path) -> None:
    """Step 1 has no teacher, nor has `finetune`."""
    for strategy, until, same in ((ALIKE, 1, True), (ALIKE, 2, False), ("finetune", 3, True)):
        with_it, without = (taught(encoder, strategy, TRUNK, *more, until=until).model for more in ([SLDA], []))
        assert with_it.discriminant is not None
        with_it.discriminant = None
        assert same_weights(with_it, without) == same


def words_of_types(learner: Learner) -> float:
    return float(learner.model.strategy_state["slda"]["tag_counts"].sum())


def test_the_teacher_is_corrected_the_less_the_more_words_there_are(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all three: network, statistics, and copies of layers that have moved since."""
    learner = taught(encoder, ALIKE, TRUNK, {**SLDA, "layers": 2}, until=2)
    step = toy_stream(train=90, steps=STEPS).steps[2]
    batch = learner.model.encode(step.train).batch(range(len(step.train)))
    assert learner.model.discriminant is not None
    assert learner.model.discriminant.teaching == pytest.approx((128 / (128 + words_of_types(learner))) ** 0.5)
    weaker = learner.model.copy()
    weaker.discriminant = learner.model.discriminant.for_teachers()
    with torch.no_grad():
        expected = weaker(batch).flat()
    seen: list[Tensor] = []
    logits = Teacher.logits

    def kept(self: Teacher, context: StepContext) -> Tensor:
        seen.append(logits(self, context))
        return seen[-1]

    monkeypatch.setattr(Teacher, "logits", kept)
    list(learner.learn_step(step))
    torch.testing.assert_close(seen[0][batch.word_numbers][batch.word_mask], expected[batch.word_mask])


def test_the_layers_it_reads_stay_without_a_frozen_trunk(tmp_path: Path) -> None:
    """The lowest sixth in the encoder, which learns above it; the others in copies, as they were before step 1."""
    encoder = tiny_encoder(tmp_path, layers=6)
    fresh, model = weights_of(learner_of(encoder).model), taught(encoder, ALIKE, {**SLDA, "layers": 4}).model
    weights = weights_of(model)
    moved = {name for name in fresh if name.startswith("encoder.") and not torch.equal(fresh[name], weights[name])}
    assert {name.split(".")[4] for name in moved} == {"1", "2", "3", "4", "5"}
    copies = {name: tensor for name, tensor in weights.items() if name.startswith("discriminant.above.")}
    assert len(copies) == 3 * 16
    for name, tensor in copies.items():
        number, _, rest = name.removeprefix("discriminant.above.").partition(".")
        assert torch.equal(tensor, fresh[f"encoder.backbone.encoder.layer.{int(number) + 1}.{rest}"])


def test_more_layers_than_there_are_mean_all_but_the_last(encoder: Path) -> None:
    learner = taught(encoder, ALIKE, {**SLDA, "layers": 12})
    assert learner.model.discriminant is not None
    assert learner.model.discriminant.settings()["layers"] == 2
    assert learner.model.discriminant.tags == (1, 2, 3, 4, 5, 6)


def test_half_of_the_layers_are_read_by_default(tmp_path: Path) -> None:
    learner = learner_of(tiny_encoder(tmp_path, layers=6), [ALIKE, "slda"])
    learn_all(learner, toy_stream(train=60))
    assert learner.model.discriminant is not None
    assert (learner.model.discriminant.held, len(learner.model.discriminant.above)) == (1, 2)


def test_it_gives_mentions_back_that_the_network_takes_for_the_newest_type(learned: NerModel) -> None:
    """A network that finds every mention and calls it by the newest type, if not with much conviction."""
    model = learned.copy()
    assert model.discriminant is not None
    right = {"network": 0, "both": 0}
    sentences = toy_stream(train=90, steps=STEPS).test
    for sentence in sentences:
        batch = model.encode([sentence]).batch([0])
        with torch.no_grad():
            lower, _ = model.discriminant.word_vectors(model.encoder, batch)
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


def test_a_saved_model_finds_the_same(moved: NerModel, tmp_path: Path) -> None:
    moved.save(tmp_path / "model")
    batch = moved.encode(SENTENCES).batch(range(len(SENTENCES)))
    with torch.no_grad():
        scores = moved(batch).flat()
        for other in (ner_cl.load(tmp_path / "model"), moved.copy(), pickle.loads(pickle.dumps(moved))):
            assert torch.equal(other(batch).flat(), scores)
            other.discriminant = None
            assert not torch.equal(other(batch).flat(), scores)


def save_with(model: NerModel, settings: Any, folder: Path) -> None:
    """Saves it with other settings of the discriminant."""
    model.save(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["ner_cl"]["discriminant"] = settings
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    "wrong",
    [
        {"held": 0, "layers": 3, "teaching": 1.0, "tags": [1, 2, 5]},
        {"held": -1, "layers": 1, "teaching": 1.0, "tags": [1, 2, 5]},
        {"held": 2, "layers": 1, "teaching": 1.0, "tags": [1, 2, 5]},
        {"held": 0, "layers": 1, "teaching": 1.0, "tags": [1, 2, 7]},
        {"held": 0, "layers": 1, "teaching": 1.0, "tags": [1, 2, 1]},
        {"held": 0, "layers": 1, "teaching": 1.0, "tags": [[1], 2]},
        {"held": 0, "layers": 1, "teaching": 1.0, "tags": [1.0, 2.0]},
        {"held": 0, "layers": 1, "teaching": 1.0},
        {"held": 0, "layers": 1, "teaching": 1.0, "tags": [0, 1, 2]},
        {"held": 0, "layers": 1, "teaching": 1.5, "tags": [1, 2, 5]},
        "slda",
    ],
)
def test_a_folder_with_other_settings_is_refused(learned: NerModel, wrong: Any, tmp_path: Path) -> None:
    save_with(learned, wrong, tmp_path / "model")
    with pytest.raises(ModelError, match=r"discriminant: needs layers below 3, of them held ones, teaching from 0"):
        ner_cl.load(tmp_path / "model")


def test_a_folder_with_statistics_of_types_is_refused(learned: NerModel, tmp_path: Path) -> None:
    """As before there were tags."""
    save_with(learned, {"held": 0, "layers": 1, "teaching": 1.0, "types": [0, 1, 2]}, tmp_path / "model")
    with pytest.raises(ModelError, match=r"statistics of whole types, of an earlier version; train the model anew"):
        ner_cl.load(tmp_path / "model")


def test_a_model_from_a_folder_learns_as_one_in_memory(moved: NerModel, tmp_path: Path) -> None:
    moved.save(tmp_path / "model")
    found = []
    for model in (moved.copy(memory=True), ner_cl.load(tmp_path / "model")):
        learner = Learner(model, parse_strategies([ALIKE, SLDA | {"layers": 2}]), SHORT_TRAINING, seed=13)
        list(learner.learn_step(toy_stream(train=90, steps=[*STEPS, ["MISC"]]).steps[3]))
        assert not learner.settled
        found.append(weights_of(learner.model) | learner.model.strategy_state["slda"])
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


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
    assert other.model.strategy_state["slda"]["tags"].tolist() == [5, 6]


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
    lengths = [span.end - span.start for span in spans if span.type == "PER"]
    counts = [5 * len(lengths), 5 * (sum(lengths) - len(lengths))]
    assert learner.model.strategy_state["slda"]["tag_counts"].tolist() == counts


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


def test_few_words_weigh_little_and_say_little_of_the_covariance() -> None:
    """As many as there are numbers in a description: √½ of what very many weigh, and √½ of the diagonal alone."""
    means, square = torch.eye(2, 8), torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    covariance = square @ square.T
    half = 0.5**0.5
    fixed = SldaOptions(strength=1.0, shrinkage=half)
    found = {
        (options.shrinkage, n): discriminant_of(Moments(torch.tensor([n / 2, n / 2]), means, n * covariance), options)[
            0
        ]
        for options in (fixed, SldaOptions(strength=1.0))
        for n in (8.0, 1e9)
    }
    torch.testing.assert_close(found[half, 8.0], half * found[half, 1e9], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["auto", 8.0], found[half, 8.0], rtol=1e-4, atol=1e-6)
    apart = means - means.mean(0)
    torch.testing.assert_close(found["auto", 1e9], apart @ covariance.inverse(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("count", "kept"), [(4, []), (5, [1])])
def test_a_type_that_few_sentences_mention_leaves_nothing(encoder: Path, count: int, kept: list[int]) -> None:
    learner = learner_of(encoder, [ALIKE, SLDA])
    stream = toy_stream(train=90, steps=STEPS)
    mentioning = [s for s in stream.steps[0].train if s.spans][:count]
    others = [s for s in stream.steps[0].train if not s.spans]
    list(learner.learn_step(of_one_word(replace(stream.steps[0], train=(*mentioning, *others)))))
    assert learner.model.strategy_state["slda"]["tags"].tolist() == kept
    list(learner.learn_step(stream.steps[1]))  # goes on from there
    assert learner.model.strategy_state["slda"]["tags"].tolist() == [*kept, 3, 4]


def test_statistics_of_another_model_are_refused(encoder: Path) -> None:
    learner = taught(encoder, ALIKE, SLDA, until=1)
    step = toy_stream(train=90, steps=STEPS).steps[1]
    good = dict(learner.model.strategy_state["slda"])
    for wrong in (
        {"tag_means": good["tag_means"][:, 1:]},
        {"prefix_counts": torch.ones(2)},
        {"counts": torch.ones(2), "types": torch.zeros(1)},  # as before there were tags
        {"tags": torch.tensor([1.0, 3.0])},
        {"tags": good["tags"].long()},
    ):
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
    stream = toy_stream(train=90, steps=[*STEPS, ["MISC"]])
    list(off.learn_step(stream.steps[2]))
    assert off.model.discriminant is not None
    assert off.model.discriminant.tags == ()
    assert all(torch.equal(off.model.strategy_state["slda"][name], kept[name]) for name in kept)
    on = Learner(off.model, parse_strategies([ALIKE, TRUNK, SLDA]), SHORT_TRAINING)
    list(on.learn_step(stream.steps[3]))
    assert on.model.strategy_state["slda"]["tags"].tolist() == [1, 2, 3, 4, 7, 8]
    assert not on.settled


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "deberta-v2", "modernbert", "albert"])
def test_encoders_of_all_kinds_give_the_state_after_a_layer(kind: str, encoder: Path) -> None:
    """That of `output_hidden_states`."""
    model = NerModel.from_parts(encoder_of(encoder, kind), HeadOptions())
    batch = model.encode(SENTENCES).batch(range(len(SENTENCES)))
    layers = len(all_layers(model.encoder)) - 1
    with torch.inference_mode():
        lower, last = word_vectors(model.encoder, batch, layers)
        again, _ = word_vectors(model.encoder, batch, 0, all_layers(model.encoder)[:layers])
        expected = model.encoder.backbone(
            input_ids=batch.piece_ids, attention_mask=batch.piece_mask, output_hidden_states=True
        )
    assert torch.equal(lower, words_of(expected.hidden_states[layers], batch))
    assert torch.equal(again, lower)
    assert torch.equal(last, words_of(expected.last_hidden_state, batch))


BESIDE = sorted(set(strategies) - {"joint", "bias_correction", "hat", "modules", "packnet", "slda"})


@pytest.mark.parametrize("name", BESIDE)
def test_strategies_go_on_beside_it_when_there_are_copies(name: str, tmp_path: Path) -> None:
    """Three steps, of which the third begins with a model that has copies of layers."""
    learner = learner_of(tiny_encoder(tmp_path, layers=6), [name, {**SLDA, "layers": 3}])
    learn_all(learner, toy_stream(train=45, steps=STEPS))
    model = learner.model
    assert model.discriminant is not None
    assert len(model.discriminant.above) == 2
    tags = model.strategy_state["slda"]["tags"].int().tolist()
    assert len(set(tags)) == len(tags)
    assert model.tagset.types_of(tags) == ["PER", "LOC", "ORG"]


@pytest.mark.parametrize("name", ["distill", "lwf", "is3", "cpfd", "cfner", "rdp"])
def test_what_teachers_say_is_corrected(name: str, moved: NerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The correction is asked for in training, when the model has none of its own."""
    asked = []
    correct = Discriminant.forward

    def counted(self: Discriminant, *given: Tensor) -> Tensor:
        asked.append(student.discriminant is None)
        return correct(self, *given)

    monkeypatch.setattr(Discriminant, "forward", counted)
    student = moved.copy(memory=True)
    learner = Learner(student, parse_strategies([name, {**SLDA, "layers": 2}]), SHORT_TRAINING)
    list(learner.learn_step(toy_stream(train=90, steps=[*STEPS, ["MISC"]]).steps[3]))
    assert any(asked)


def test_an_encoder_with_a_cache_is_measured(encoder: Path) -> None:
    """GPT-2 hands its layers a cache, to which each adds."""
    learner = Learner(gpt2(encoder), parse_strategies([ALIKE, TRUNK | {"layers": 1}, "slda"]), SHORT_TRAINING)
    learn_all(learner, toy_stream(train=45, steps=STEPS))
    assert learner.model.discriminant is not None
    assert learner.model.discriminant.corrects
    assert not learner.settled


def test_an_encoder_whose_layers_cannot_be_copied_is_told(encoder: Path) -> None:
    """XLNet keeps its states in another order."""
    config = transformers.XLNetConfig(vocab_size=300, d_model=24, n_layer=4, n_head=3, d_inner=48)
    learner = Learner(of_kind(encoder, config), parse_strategies([ALIKE, "slda"]), SHORT_TRAINING)
    learn_all(learner, toy_stream(train=45, steps=STEPS))
    assert learner.model.discriminant is None
    assert "slda" not in learner.model.strategy_state
    assert "measures nothing, because layers of a xlnet encoder cannot" in learner.settled["slda"].text
