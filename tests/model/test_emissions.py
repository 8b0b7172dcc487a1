"""Long sentences: cut where nothing is lost, read in order, never held whole."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ner_cl.config import HeadOptions
from ner_cl.data.tagset import spans_of_tags
from ner_cl.model import emissions as module
from ner_cl.model.emissions import emissions_of, stretches_of
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import ScoredSpan, predict_sentences, score_merged_and_nested, score_sentences
from ner_cl.types import Sentence
from tests.tiny import tiny_encoder, tiny_model, toy_sentences, trained_model

STEPS = (("PER",), ("LOC",))
HEADS = ("extendner", "addner", "spankl", "addner viterbi", "addner vote", "addner majority")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, NerModel]:
    found = {head: trained_model(folder, head) for head in HEADS[:2]}
    # A toy that never saw a long sentence takes the words from one name to another for a name.
    found["spankl"] = trained_model(folder, HeadOptions(name="spankl", max_words=4))
    for head in HEADS[3:]:
        name, merge = head.split()
        model = tiny_model(folder, HeadOptions(name=name, merge=merge), steps=STEPS)
        model.load_state_dict(found["addner"].state_dict(), strict=False)
        found[head] = model
    return found


def document(words: int) -> Sentence:
    text = [word for sentence in toy_sentences(words // 4, seed=5) for word in sentence.words]
    return Sentence(tuple(text[:words]))


def decoded_whole(model: NerModel, sentence: Sentence) -> list[ScoredSpan]:
    """Without any cut: one row as long as the document."""
    ((_, emissions),) = emissions_of(model, model.encode([sentence]), precision="fp32")
    spans = spans_of_tags(model.head.decode(emissions)[0].tolist(), model.types)
    places = torch.tensor([[0, s.start, s.end, model.types.index(s.type)] for s in spans])
    scores = model.head.span_scores(emissions, places).tolist()
    return [ScoredSpan(span, score) for span, score in zip(spans, scores, strict=True)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("group", [3, 1000])
def test_a_document_in_stretches_is_the_document_as_a_whole(
    models: dict[str, NerModel], head: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SHORTEST", 16)
    monkeypatch.setattr(module, "_GROUP", group)
    model, sentence = models[head], document(700)
    encoded = model.encode([sentence])
    assert len(encoded) > 6
    found = list(stretches_of(model, encoded, precision="fp32"))
    sizes = [int(mask.sum()) for _, emissions in found for mask in emissions.word_mask]
    assert sum(sizes) == 700
    assert 20 < len(sizes) <= 700 // 16
    starts = [first for places, _ in found for _, first in places]
    assert starts == [sum(sizes[:index]) for index in range(len(sizes))]
    (scored,) = score_sentences(model, [sentence], precision="fp32")
    whole = decoded_whole(model, sentence)
    assert len(whole) > 50
    assert [item.span for item in scored] == [item.span for item in whole]
    assert [item.score for item in scored] == pytest.approx([item.score for item in whole], rel=1e-2)


def test_long_and_short_documents_side_by_side(models: dict[str, NerModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHORTEST", 16)
    monkeypatch.setattr(module, "_GROUP", 3)
    model = models["extendner"]
    sentences = [document(9), document(700), Sentence(()), document(120), document(300)]
    together = predict_sentences(model, sentences, precision="fp32")
    assert together == [predict_sentences(model, [sentence], precision="fp32")[0] for sentence in sentences]
    assert together[2] == []


def test_what_may_not_be_cut_is_kept_in_one_piece(models: dict[str, NerModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word goes on with one endless span: there is no safe place, however long the document is."""
    monkeypatch.setattr(module, "_SHORTEST", 16)
    monkeypatch.setattr(module, "_GROUP", 3)
    model = models["extendner"]
    scores = torch.tensor([0.0, 1.0, 5.0, -9.0, -9.0])
    monkeypatch.setattr(
        model.head,
        "forward",
        lambda words, mask: Emissions((scores.expand(*mask.shape, 5).contiguous(),), mask),
    )
    sentence = document(400)
    ((places, emissions),) = [found for found in stretches_of(model, model.encode([sentence])) if found[0]]
    assert places == [(0, 0)]
    assert emissions.word_mask.shape == (1, 400)
    assert [(span.start, span.end) for span in predict_sentences(model, [sentence])[0]] == [(0, 400)]


def test_blocks_that_are_not_asked_for_have_no_say_in_the_cuts(
    models: dict[str, NerModel], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else scores of old types would change, by a little, with the types that are learned later."""
    monkeypatch.setattr(module, "_SHORTEST", 16)
    model = models["addner"]
    one_step = tiny_model(folder, "addner", steps=STEPS[:1])
    one_step.load_state_dict(model.state_dict(), strict=False)
    one_step.head.temperatures = model.head.temperatures[:1]
    sentence = document(700)
    later = score_sentences(model, [sentence], types=["PER"], precision="fp32")
    assert later == score_sentences(one_step, [sentence], precision="fp32")


# --- nested


def test_nested_spans_are_what_each_step_finds_alone(models: dict[str, NerModel]) -> None:
    model = copy.deepcopy(models["addner"])
    with torch.no_grad():  # blocks that say different things of the same words
        model.head.blocks[1].weight.copy_(model.head.blocks[0].weight * 0.9)
        model.head.blocks[1].bias.copy_(model.head.blocks[0].bias)
    sentences = toy_sentences(6, seed=3)
    merged, nested = score_merged_and_nested(model, sentences, precision="fp32")
    alone = [score_sentences(model, sentences, types=types, precision="fp32") for types in STEPS]
    assert nested == [sorted([*a, *b], key=lambda item: item.span) for a, b in zip(*alone, strict=True)]
    assert merged == score_sentences(model, sentences, precision="fp32")
    assert nested == score_sentences(model, sentences, nested=True, precision="fp32")
    overlapping = [(a.span, b.span) for row in nested for a in row for b in row if a.span < b.span]
    assert any(one.overlaps(other) for one, other in overlapping)
    only = score_sentences(model, sentences, nested=True, types=["LOC"], precision="fp32")
    assert only == alone[1]


def test_a_head_without_blocks_of_its_own_finds_nothing_nested(models: dict[str, NerModel]) -> None:
    sentences = toy_sentences(6, seed=3)
    merged, nested = score_merged_and_nested(models["extendner"], sentences, precision="fp32")
    assert merged == nested
    assert any(merged)


def test_a_megabyte_is_never_held_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(folder, steps=([f"T{number}" for number in range(50)],)).eval()
    with torch.no_grad():
        model.head.blocks[0].bias[0] = 9.0
    text = f"the Ada met {'z' * 101} " * 9_000  # the last of the words is one unknown piece
    assert len(text) > 1_000_000
    held: list[int] = []
    join = Emissions.joined

    def joined(parts: Sequence[Emissions]) -> Emissions:
        held.append(sum(part.word_mask.shape[1] for part in parts))
        return join(parts)

    monkeypatch.setattr(Emissions, "joined", staticmethod(joined))
    assert model.predict(text, precision="fp32") == []
    assert sum(held) >= len(text.split()) == 36_000
    assert max(held) < 10_000


def test_of_a_head_with_many_columns_fewer_windows_are_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    types = [f"T{number}" for number in range(10)]
    model = tiny_model(folder, HeadOptions(name="spankl", max_words=4), steps=(types,)).eval()
    assert model.head.columns == 1000
    encoded = model.encode([document(700)])
    monkeypatch.setattr(module, "_SHORTEST", 16)
    monkeypatch.setattr(module, "_MOST_SCORES", 3000 * model.encoder.pieces.capacity)
    held: list[int] = []
    join = Emissions.joined

    def joined(parts: Sequence[Emissions]) -> Emissions:
        held.append(sum(part.word_mask.shape[1] for part in parts))
        return join(parts)

    monkeypatch.setattr(Emissions, "joined", staticmethod(joined))
    stretches = list(stretches_of(model, encoded, precision="fp32"))
    assert sum(int(emissions.word_mask.sum()) for _, emissions in stretches) == 700
    assert len(held) == -(-len(encoded) // 3)
    assert max(held) < 300
