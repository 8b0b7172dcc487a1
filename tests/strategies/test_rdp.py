"""RDP and TBCL: pseudo-labels corrected by prototypes, four terms by the formula, and sentences without new words."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ner_cl.config import HeadOptions, check_head, parse_strategies
from ner_cl.data.batching import Batch, rows_from
from ner_cl.errors import ConfigError
from ner_cl.evaluate.counts import count_spans
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.rdp import Rdp, RdpOptions, word_costs
from ner_cl.train.run import run_stream
from ner_cl.types import Sentence, Span
from tests.tiny import TOY_TRAINING, tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import Interrupted, interrupt_at, learn_all, learner_of, run_config, step_files

SENTENCES = toy_sentences(14, seed=3, types=("PER", "LOC"))
TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in SENTENCES)
KEPT = toy_sentences(4, seed=8, types=("PER",))
OLD, ALL = 5, 7  # columns before the step, and in it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), layers=1)


def begin(
    folder: Path, train: tuple[Sentence, ...] = TRAIN, *, max_pieces: int = 64, **options: Any
) -> tuple[Rdp, StepContext, NerModel]:
    """A strategy at the start of a third step, its context, and a copy of the model before the step."""
    model = tiny_model(folder, steps=[["PER"], ["ORG"]], max_pieces=max_pieces, window_overlap=4)
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(20)  # a teacher with opinions
    before = copy.deepcopy(model)
    strategy, context = Rdp(RdpOptions(**options)), toy_context(model, ["LOC"], grown=False)
    model.train()
    strategy.begin_step(context)
    model.eval().grow(["LOC"], generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model.encoder.embeddings.weight.mul_(1.5)  # a student that has moved
    context.encoded = model.encode(train)
    strategy.begin_stage(context)
    return strategy, context, before


def all_rows(context: StepContext) -> Batch:
    assert context.encoded is not None
    return context.encoded.batch(range(len(context.encoded)))


def softmax(logits: Any) -> np.ndarray:
    powers = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits))
    return powers / powers.sum()


class Oracle:
    """The method by its formulas, a word at a time, in numpy."""

    def __init__(self, teacher: NerModel, student: NerModel) -> None:
        self.teacher, self.student = teacher, student
        self.prototypes: dict[int, np.ndarray] = {}

    def words(self, model: NerModel, words: tuple[str, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Vector and logits of each word of a sentence alone."""
        batch = model.encode([Sentence(words)]).batch([0])
        with torch.no_grad():
            vectors = model.encoder(batch)
            logits = model.head(vectors, batch.word_mask).flat()
        return [(v.double().numpy(), z.double().numpy()) for v, z in zip(vectors[0], logits[0], strict=True)]

    def learn_prototypes(self, sentences: tuple[Sentence, ...]) -> None:
        members: dict[int, list[np.ndarray]] = {}
        for sentence in sentences:
            gold = self.gold(sentence)
            for tag, (vector, logits) in zip(gold, self.words(self.teacher, sentence.words), strict=True):
                if tag == 0:
                    members.setdefault(int(logits.argmax()), []).append(vector)
        self.prototypes = {tag: np.mean(vectors, axis=0) for tag, vectors in members.items()}

    def gold(self, sentence: Sentence) -> list[int]:
        return self.student.tagset.encode([s for s in sentence.spans if s.type == "LOC"], len(sentence.words))

    def label(self, vector: np.ndarray, logits: np.ndarray) -> int:
        p = softmax(logits)
        closeness = [
            np.exp(-np.linalg.norm(vector - self.prototypes[tag])) if tag in self.prototypes else 0.0
            for tag in range(OLD)
        ]
        weights = np.array(closeness) / np.sum(closeness)
        return int((weights * p).argmax())

    def labels(self, words: tuple[str, ...]) -> list[int]:
        return [self.label(*read) for read in self.words(self.teacher, words)]

    def sums(self, words: tuple[str, ...], gold: list[int]) -> dict[str, float]:
        """What a sentence costs in each term, without weights."""
        found = dict.fromkeys(("ce", "kd", "soft_labels", "entropy"), 0.0)
        for tag, (vector, t), (_, s) in zip(
            gold, self.words(self.teacher, words), self.words(self.student, words), strict=True
        ):
            p, q = softmax(t), softmax(s)
            found["ce"] -= np.log(q[tag or self.label(vector, t)])
            if tag == 0:
                found["kd"] += sum(p[c] * np.log(p[c] / q[c]) for c in range(OLD))
            wanted = softmax([1 / (1 + np.exp(-t[c])) if c < OLD else float(c == tag) for c in range(ALL)])
            found["soft_labels"] -= sum(wanted[c] * np.log(q[c]) for c in range(ALL)) / ALL
            found["entropy"] -= sum(q[c] * np.log(q[c]) for c in range(ALL)) / ALL
        return found


WEIGHTS = {"ce": 1.0, "kd": 2.0, "soft_labels": 0.3, "entropy": 0.1}


def as_numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in terms.items()}


def test_every_term_is_what_the_formulas_say(folder: Path) -> None:
    strategy, context, before = begin(folder)
    batch = all_rows(context)
    found = as_numbers(strategy.losses(context, batch, context.model(batch)))
    oracle = Oracle(before, context.model)
    oracle.learn_prototypes(TRAIN)
    sums = [oracle.sums(sentence.words, oracle.gold(sentence)) for sentence in TRAIN]
    words = sum(len(sentence.words) for sentence in TRAIN)
    expected = {name: weight * sum(s[name] for s in sums) / words for name, weight in WEIGHTS.items()}
    assert found == pytest.approx(expected, rel=1e-4)
    labels = [oracle.labels(sentence.words) for sentence in TRAIN]
    assert len({tag for row in labels for tag in row}) > 1
    plain = [[int(logits.argmax()) for _, logits in oracle.words(before, s.words)] for s in TRAIN]
    assert labels != plain  # or the prototypes would not have been tested


def test_without_prototypes_labels_are_what_the_teacher_finds_likeliest(folder: Path) -> None:
    strategy, context, before = begin(folder, prototypes=False)
    batch = all_rows(context)
    with torch.no_grad():
        likeliest = before(batch).flat().argmax(dim=-1)
    emissions = context.model(batch)
    labels = torch.where(batch.targets > 0, batch.targets, likeliest)
    expected = torch.nn.functional.cross_entropy(emissions.flat()[batch.word_mask], labels[batch.word_mask])
    torch.testing.assert_close(strategy.losses(context, batch, emissions)["ce"], expected, rtol=1e-5, atol=1e-6)


def test_a_term_without_weight_is_left_out(folder: Path) -> None:
    strategy, context, _ = begin(folder, distillation=0, soft_labels=0, entropy=0)
    batch = all_rows(context)
    assert strategy.losses(context, batch, context.model(batch)).keys() == {"ce"}


def test_probabilities_of_exactly_nothing_cost_something_finite() -> None:
    """`log 0` in the authors' code."""
    logits = torch.tensor([[[0.0, -500.0, 300.0, -400.0, 0.0]]], requires_grad=True)
    costs = word_costs(logits, torch.tensor([[0]]), torch.tensor([[[900.0, 0.0, -900.0]]]), torch.tensor([[1]]))
    torch.stack([cost.sum() for cost in costs.values()]).sum().backward()
    assert all(bool(cost.isfinite().all()) for cost in costs.values())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert costs["entropy"].item() == 0


@pytest.mark.parametrize("duplets", [False, True])
def test_t6_t9_terms_do_not_depend_on_padding_and_batches(folder: Path, duplets: bool) -> None:
    strategy, context, _ = begin(folder, duplets=duplets)
    encoded = context.encoded
    assert encoded is not None

    def terms(rows: list[int]) -> dict[str, float]:
        batch = encoded.batch(rows)
        found = as_numbers(strategy.losses(context, batch, context.model(batch)))
        return {name: value * sum(batch.row_words) for name, value in found.items()}

    whole = terms(list(range(len(encoded))))
    parts = [terms([row]) for row in range(len(encoded))]
    for name, value in whole.items():
        assert sum(part.get(name, 0.0) for part in parts) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("duplets", [False, True])
def test_remembered_rows_are_the_business_of_others(folder: Path, duplets: bool) -> None:
    """They change neither prototypes nor labels, and what is left is a share of the mean over all words."""
    alone, context, _ = begin(folder, duplets=duplets)
    mixed, both, _ = begin(folder, (*TRAIN, *KEPT), duplets=duplets)
    batch, larger = all_rows(context), all_rows(both)
    own = as_numbers(alone.losses(context, batch, context.model(batch)))
    found = as_numbers(mixed.losses(both, larger, both.model(larger)))
    share = sum(batch.row_words) / sum(larger.row_words)
    assert found == pytest.approx({name: share * value for name, value in own.items()}, rel=1e-4)
    kept = larger.select(rows_from(larger.origins, "remembered"))
    assert mixed.losses(both, kept, both.model(kept)) == {}


def test_the_model_before_the_step_is_asked_once(folder: Path) -> None:
    strategy, context, _ = begin(folder, duplets=True)
    batch = all_rows(context)
    generator = torch.Generator().manual_seed(1)
    emissions = Emissions((torch.randn(*batch.word_mask.shape, ALL, generator=generator),), batch.word_mask)
    first = strategy.losses(context, batch, emissions)
    with torch.no_grad():
        for parameter in context.model.head.parameters():
            parameter.add_(1.0)  # the same for all columns: nothing that a softmax would notice
    strategy.begin_stage(context)  # a further stage does not ask again
    torch.testing.assert_close(strategy.losses(context, batch, emissions), first, rtol=1e-4, atol=1e-5)


def test_step_one_is_cross_entropy(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    strategy, context = Rdp(RdpOptions(duplets=True)), toy_context(model, ["PER"], train=KEPT)
    strategy.begin_step(context)
    strategy.begin_stage(context)
    batch = all_rows(context)
    emissions = model(batch)
    terms = strategy.losses(context, batch, emissions)
    expected = torch.nn.functional.cross_entropy(emissions.flat()[batch.word_mask], batch.targets[batch.word_mask])
    assert terms.keys() == {"ce"}
    torch.testing.assert_close(terms["ce"], expected)


# Duplets


def test_a_duplet_costs_what_both_its_sentences_cost(folder: Path) -> None:
    strategy, context, before = begin(folder, duplets=True)
    batch = all_rows(context)
    found = as_numbers(strategy.losses(context, batch, context.model(batch)))
    oracle = Oracle(before, context.model)
    oracle.learn_prototypes(TRAIN)
    sums, squares = dict.fromkeys(WEIGHTS, 0.0), 0.0
    for sentence in TRAIN:
        gold = oracle.gold(sentence)
        kept = [word for word, tag in enumerate(gold) if tag == 0]
        erased = tuple(sentence.words[word] for word in kept)
        for words, tags in ((sentence.words, gold), (erased, [0] * len(kept))):
            for name, value in oracle.sums(words, tags).items():
                sums[name] += value
        labels = oracle.labels(sentence.words)
        whole, without = oracle.words(context.model, sentence.words), oracle.words(context.model, erased)
        for place, word in enumerate(kept):
            if labels[word] > 0:
                squares += ((softmax(whole[word][1]) - softmax(without[place][1])) ** 2).sum()
    words = sum(len(sentence.words) for sentence in TRAIN)
    expected = {name: weight * sums[name] / words for name, weight in WEIGHTS.items()}
    assert squares > 0
    assert found == pytest.approx({**expected, "consistency": 0.2 * squares / words}, rel=1e-3)


def test_a_sentence_without_new_words_is_its_own_duplet(folder: Path) -> None:
    """To the last bit, even with dropout: nothing is computed again, and it is as consistent as can be."""
    train = tuple(sentence for sentence in TRAIN if not sentence.spans)
    assert train
    (plain, context, _), (paired, same, _) = (begin(folder, train, duplets=duplets) for duplets in (False, True))
    batch = all_rows(context)
    context.model.train()
    emissions = context.model(batch)
    single, double = plain.losses(context, batch, emissions), paired.losses(same, batch, emissions)
    assert single.keys() == double.keys()  # no consistency
    for name, term in single.items():
        torch.testing.assert_close(double[name], 2 * term)


def test_a_sentence_of_nothing_but_new_words_has_no_erased_version(folder: Path) -> None:
    train = (Sentence(("Rome", "North"), (Span(0, 2, "LOC"),), frozenset({"LOC"})), TRAIN[0])
    (plain, context, _), (paired, same, _) = (begin(folder, train, duplets=duplets) for duplets in (False, True))
    assert context.encoded is not None
    batch = context.encoded.batch([0])
    emissions = context.model(batch)
    torch.testing.assert_close(paired.losses(same, batch, emissions), plain.losses(context, batch, emissions))


def test_consistency_pulls_at_both_sentences_and_only_words_of_old_types(folder: Path) -> None:
    strategy, context, _ = begin(folder, distillation=0, soft_labels=0, entropy=0, duplets=True, consistency=1.0)
    batch = all_rows(context)
    emissions = context.model(batch)
    emissions.blocks[0].retain_grad()
    strategy.losses(context, batch, emissions)["consistency"].backward()
    assert emissions.blocks[0].grad is not None
    touched = emissions.blocks[0].grad.abs().sum(dim=-1) > 0
    _, labels = strategy._answers.of(batch)  # type: ignore[union-attr]
    replaced = (batch.targets > 0).any(dim=1, keepdim=True)
    assert torch.equal(touched, batch.word_mask & (batch.targets == 0) & (labels > 0) & replaced)


def test_windows_of_a_long_sentence_are_erased_each_by_itself(folder: Path) -> None:
    strategy, context, _ = begin(folder, max_pieces=14, duplets=True)
    encoded = context.encoded
    assert encoded is not None
    assert len(encoded) > len(TRAIN)
    assert strategy._erased is not None
    duplets, _ = strategy._erased
    batch = all_rows(context)
    erased = duplets.of(batch)
    assert erased is not None
    for place, row in enumerate(erased.rows):
        window = encoded.windows[row]
        targets = batch.targets[row][batch.word_mask[row]].tolist()
        words = encoded.sentences[window.sentence].words[window.first_word :]
        kept = [word for word, tag in enumerate(targets) if tag == 0]
        assert 0 < len(kept) < len(targets)
        assert duplets.encoded.sentences[place].words == tuple(words[word] for word in kept)
        assert erased.words[place][: len(kept)].tolist() == kept
        assert erased.batch.word_mask[place].sum() == len(kept)
    others = set(range(len(encoded))) - set(erased.rows)
    assert all(len(set((batch.targets[row][batch.word_mask[row]] > 0).tolist())) == 1 for row in others)


def test_a_weight_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="consistency: has no effect without duplets"):
        RdpOptions(consistency=0.5)


def test_a_head_without_a_common_softmax_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="rdp needs one softmax over the tags of all types, which head addner has not"
    ):
        check_head(parse_strategies(["rdp"]), HeadOptions(name="addner"))


# Runs


def test_with_duplets_old_types_stay_and_new_ones_are_learned(folder: Path) -> None:
    learner = learner_of(folder, [{"name": "rdp", "duplets": True}], training=TOY_TRAINING)
    stream = toy_stream()
    learn_all(learner, stream)
    found = predict_sentences(learner.model.eval(), stream.test, precision="fp32")
    for counts in count_spans(stream.test, found, ["PER", "LOC"]).values():
        assert counts.f1 is not None
        assert counts.f1 > 0.8


@pytest.mark.parametrize("partners", [["replay", "spg"], ["gpm"], ["agem", "das"]], ids="-".join)
def test_it_composes_with_masks_projections_and_memories(folder: Path, partners: list[str]) -> None:
    learner = learner_of(folder, [{"name": "rdp", "duplets": True}, *partners])
    learn_all(learner, toy_stream(train=40))
    assert all(bool(tensor.isfinite().all()) for tensor in learner.model.state_dict().values())
    assert set(partners) <= {*learner.model.strategy_state, *learner.model.kept_sentences}


def test_with_duplets_a_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    changes = {"strategies": [{"name": "rdp", "duplets": True}]}
    whole = run_stream(run_config(tmp_path, **changes, output=str(tmp_path / "whole"))).folder
    config = run_config(tmp_path, **changes, output=str(tmp_path / "stopped"), training={"checkpoint_seconds": 0})
    with pytest.raises(Interrupted):
        run_stream(config, on_event=interrupt_at(8))
    run_stream(config, resume=True)
    assert step_files(tmp_path / "stopped") == step_files(whole)
