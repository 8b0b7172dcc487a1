"""What the component writes into a document, and how it answers to wrong settings."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import spacy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spacy.cli import find_threshold
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.training import Example

import ner_cl
from ner_cl.data.words import is_invisible
from ner_cl.errors import ConfigError, ModelError
from ner_cl.integrations.spacy_annotation import register_extensions
from ner_cl.model.predict import score_sentences
from ner_cl.model.store import load_model
from tests.integrations.conftest import entities, gold_doc
from tests.tiny import tiny_model, toy_sentences, trained_model

Build = Callable[..., Language]
TEXT = "the report met Ada Smith near Rome and visited Bob in Oslo Harbour ."


@pytest.fixture(scope="module")
def nlp(model_folder: Path) -> Language:
    nlp = spacy.blank("xx")
    nlp.add_pipe("ner_cl", config={"model": str(model_folder), "precision": "fp32"})
    return nlp


def test_entities_with_scores_and_the_step_that_taught_them(nlp: Language) -> None:
    doc = nlp(TEXT)
    assert [(e.text, e.label_, e._.step) for e in doc.ents] == [
        ("Ada Smith", "PER", 1),
        ("Rome", "LOC", 2),
        ("Bob", "PER", 1),
        ("Oslo Harbour", "LOC", 2),
    ]
    group = doc.spans["ner_cl"]
    assert [(s.start, s.end, s.label_) for s in group] == [(e.start, e.end, e.label_) for e in doc.ents]
    assert group.attrs["scores"] == [e._.score for e in doc.ents]
    assert group.attrs["steps"] == {"PER": 1, "LOC": 2}
    assert all(0 < score <= 1 for score in group.attrs["scores"])
    assert {token.ent_iob_ for token in doc} == {"B", "I", "O"}


def test_the_component_says_what_the_model_says(nlp: Language, model_folder: Path) -> None:
    sentences = toy_sentences(20, seed=3, types=("PER", "LOC"))
    docs = [Doc(nlp.vocab, words=list(sentence.words)) for sentence in sentences]
    expected = score_sentences(load_model(model_folder), sentences, precision="fp32")
    for doc, spans in zip(nlp.pipe(docs), expected, strict=True):
        found = [(s.start, s.end, s.label_) for s in doc.spans["ner_cl"]]
        assert found == [(item.span.start, item.span.end, item.span.type) for item in spans]
        assert doc.spans["ner_cl"].attrs["scores"] == pytest.approx([item.score for item in spans], abs=1e-5)


def test_whitespace_tokens_are_no_words(nlp: Language) -> None:
    plain, spaced = nlp("met Ada Smith in Oslo"), nlp("  met \t\t Ada   Smith in\u2003Oslo \n")
    assert [e.label_ for e in plain.ents] == [e.label_ for e in spaced.ents]
    assert [e._.score for e in plain.ents] == [e._.score for e in spaced.ents]
    assert [e.text.split() for e in plain.ents] == [e.text.split() for e in spaced.ents]


def test_lines_are_read_one_by_one(nlp: Language, model_folder: Path) -> None:
    """As `predict` reads them: names in a list are no single name."""
    lines = ["Ada Smith", "", "Bob met Carla in Oslo Harbour .", "the report saw", "Rome North"]
    for end in ("\n", "\r\n"):
        doc = nlp(end.join(lines))
        alone = [entity for line in lines for entity in nlp(line).ents]
        assert [(e.text, e.label_) for e in doc.ents] == [(e.text, e.label_) for e in alone]
        assert [e._.score for e in doc.ents] == pytest.approx([e._.score for e in alone], abs=1e-5)
        assert len(alone) > 3
        found = load_model(model_folder).predict(doc.text, precision="fp32")
        assert [(e.start_char, e.end_char) for e in doc.ents] == [(e.start, e.end) for e in found]


@pytest.mark.parametrize("by_sentence", [True, False])
def test_sentences_that_are_known_are_read_one_by_one(pipeline: Build, by_sentence: bool) -> None:
    nlp = pipeline(by_sentence=by_sentence)
    words = [list(sentence.words) for sentence in toy_sentences(6, seed=3, types=("PER", "LOC"))]
    starts = [index == 0 for own in words for index, _ in enumerate(own)]
    whole = [word for own in words for word in own]
    alone = [e for own in words for e in nlp(Doc(nlp.vocab, words=own)).ents]
    apart = nlp(Doc(nlp.vocab, words=whole, sent_starts=starts)).ents
    in_one = nlp(Doc(nlp.vocab, words=whole)).ents
    same_as_alone = [e._.score for e in apart] == pytest.approx([e._.score for e in alone], abs=1e-5)
    same_as_whole = [e._.score for e in apart] == pytest.approx([e._.score for e in in_one], abs=1e-7)
    assert (same_as_alone, same_as_whole) == (by_sentence, not by_sentence)


def test_tokens_without_a_visible_character_are_no_words(nlp: Language) -> None:
    plain, padded = nlp("met Ada Smith in Oslo"), nlp("met \u200d Ada \u200b\u200b Smith \ufeff in Oslo \u2060")
    assert "\u200b\u200b" in [token.text for token in padded]
    assert [(e.text.replace(" \u200b\u200b", ""), e.label_, e._.score) for e in padded.ents] == [
        (e.text, e.label_, e._.score) for e in plain.ents
    ]


def test_scores_are_in_the_json_of_a_document(nlp: Language) -> None:
    doc = nlp("met Ada Smith in Oslo")
    found = doc.to_json(underscore=["score", "step"])["underscore_span"]
    assert [(item["start"], item["end"], item["value"]) for item in found["score"]] == [
        (e.start_char, e.end_char, e._.score) for e in doc.ents
    ]
    assert [item["value"] for item in found["step"]] == [e._.step for e in doc.ents]


def test_scores_survive_the_json_of_a_document(nlp: Language) -> None:
    doc = nlp("met Ada Smith in Oslo")
    again = Doc(nlp.vocab).from_json(doc.to_json(underscore=["score", "step"]))
    assert doc.ents
    assert [(e.text, e.label_, e._.score, e._.step) for e in again.ents] == [
        (e.text, e.label_, e._.score, e._.step) for e in doc.ents
    ]


@given(st.text(max_size=60) | st.text(alphabet="Ada \u200b\u200dRome\n\t\u0628\u0623🏳🌈\u00ad", max_size=40))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gives_entities_inside_it_sorted_and_apart(nlp: Language, text: str) -> None:
    doc = nlp(text)
    assert doc.text == text
    end = 0
    for entity in doc.ents:
        assert end <= entity.start < entity.end <= len(doc)
        assert not is_invisible(entity[0].text)
        assert not is_invisible(entity[-1].text)
        assert 0 <= entity._.score <= 1
        end = entity.end
    assert all(token.ent_iob for token in doc)


@pytest.mark.parametrize("text", ["", " \n\t ", "\u200b", "Ada" * 40_000, "🏴󠁧󠁢󠁥󠁮󠁧󠁿 Ada"])
def test_odd_texts(nlp: Language, text: str) -> None:
    doc = nlp(text)
    assert doc.text == text
    assert len(doc.spans["ner_cl"]) == len(doc.ents)


def test_a_call_is_a_pipe_of_one(nlp: Language, texts: list[str]) -> None:
    component = nlp.get_pipe("ner_cl")
    for text in texts[:8]:
        called, piped = component(nlp.make_doc(text)), next(component.pipe([nlp.make_doc(text)]))
        assert called.to_bytes() == piped.to_bytes()


def test_pipe_takes_lists_and_generators_and_keeps_order(nlp: Language, texts: list[str]) -> None:
    component = nlp.get_pipe("ner_cl")
    alone = [entities(nlp(text)) for text in texts]
    for batch_size in (1, 7, 1000):
        docs = [nlp.make_doc(text) for text in texts]
        assert [entities(doc) for doc in component.pipe(docs, batch_size=batch_size)] == alone
        again = (nlp.make_doc(text) for text in texts)
        assert [entities(doc) for doc in component.pipe(again, batch_size=batch_size)] == alone
    assert list(component.pipe([])) == []


def test_pipe_batches_across_documents(nlp: Language, texts: list[str]) -> None:
    calls = []
    handle = nlp.get_pipe("ner_cl").load().encoder.register_forward_hook(lambda *_: calls.append(1))
    list(nlp.pipe(texts))
    handle.remove()
    assert len(calls) < len(texts) / 5


def test_pipe_is_lazy(nlp: Language) -> None:
    taken = []

    def endless() -> Iterator[Doc]:
        while True:
            taken.append(1)
            yield nlp.make_doc("met Ada in Oslo")

    stream = nlp.get_pipe("ner_cl").pipe(endless(), batch_size=4)
    assert [e.label_ for e in next(stream).ents] == ["PER", "LOC"]
    assert len(taken) == 4


def test_long_documents_are_read_to_the_end(nlp: Language) -> None:
    doc = nlp(" ".join(["the report today met Ada near Rome ."] * 400))
    assert len(doc) > 3000
    starts = [e.start for e in doc.ents]
    assert max(later - start for start, later in pairwise([0, *starts, len(doc)])) < 40


def test_types_scores_and_thresholds(pipeline: Build, nlp: Language) -> None:
    whole = entities(nlp(TEXT))
    assert {label for _, _, label, _ in entities(pipeline(types=["LOC"])(TEXT))} == {"LOC"}
    bar = sorted(score for *_, score in whole)[1]
    assert entities(pipeline(min_score=bar - 1e-4)(TEXT)) == [e for e in whole if e[3] >= bar]
    assert {e[2] for e in entities(pipeline(thresholds={"PER": 1.0})(TEXT))} == {"LOC"}
    # A threshold takes the place of min_score, in both directions.
    assert {e[2] for e in entities(pipeline(min_score=1.0, thresholds={"PER": 0.0})(TEXT))} == {"PER"}


def test_labels_follow_the_types(pipeline: Build) -> None:
    assert pipeline().get_pipe("ner_cl").labels == ("PER", "LOC")
    assert pipeline(types=["LOC"]).pipe_labels == {"ner_cl": ["LOC"]}
    assert pipeline(types=["LOC"]).get_pipe("ner_cl").label_data == ("LOC",)


def test_spans_key(pipeline: Build) -> None:
    assert list(pipeline(spans_key="found")(TEXT).spans) == ["found"]
    doc = pipeline(spans_key=None)(TEXT)
    assert not doc.spans
    assert doc.ents[0]._.score > 0


@pytest.mark.parametrize("head", ["addner", "spankl"])
def test_nested_spans_beside_entities_that_do_not_overlap(head: str, tmp_path: Path, pipeline: Build) -> None:
    model = trained_model(tmp_path / "encoder", head)
    # Both steps say the same of every word, the second one a little less surely: equal logits differ by their rounding.
    model.head.blocks[1].load_state_dict({k: 0.99 * v for k, v in model.head.blocks[0].state_dict().items()})
    model.save(tmp_path / "model")
    doc = pipeline(model=str(tmp_path / "model"), nested=True)("the Ada Smith met")
    group = doc.spans["ner_cl"]
    assert [(span.text, span.label_) for span in group] == [("Ada Smith", "LOC"), ("Ada Smith", "PER")]
    assert group.attrs["steps"] == {"PER": 1, "LOC": 2}
    assert [span._.step for span in group] == [2, 1]
    assert [span._.score for span in group] == group.attrs["scores"]
    assert min(group.attrs["scores"]) > 0.5
    assert [(e.text, e.label_, e._.step, e._.score) for e in doc.ents] == [
        ("Ada Smith", "PER", 1, group.attrs["scores"][1])
    ]
    nlp = pipeline(model=str(tmp_path / "model"), nested=True)
    gold = nlp.make_doc(doc.text)
    gold.spans["ner_cl"] = [Span(gold, 1, 3, "LOC"), Span(gold, 0, 1, "LOC")]
    scores = nlp.evaluate([Example(nlp.make_doc(gold.text), gold)])
    assert (scores["spans_ner_cl_p"], scores["spans_ner_cl_r"], scores["spans_ner_cl_f"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("overwrite", [False, True])
def test_entities_that_are_there(pipeline: Build, overwrite: bool) -> None:
    nlp = pipeline(overwrite_ents=overwrite)
    doc = nlp.make_doc(TEXT)
    over, apart = Span(doc, 4, 6, "RULE", span_id="r1"), Span(doc, 0, 2, "RULE", kb_id="Q7")
    doc.set_ents([apart, over], default="missing")
    doc = nlp.get_pipe("ner_cl")(doc)
    found = [(e.text, e.label_) for e in doc.ents]
    here = [("Ada Smith", "PER")] if overwrite else [("Smith near", "RULE")]
    assert found == [("the report", "RULE"), *here, ("Rome", "LOC"), ("Bob", "PER"), ("Oslo Harbour", "LOC")]
    assert doc.ents[0].kb_id_ == "Q7"
    assert doc.ents[0]._.score is None
    assert doc.ents[1].ent_id_ == ("" if overwrite else "r1")
    assert ("Ada Smith", "PER") in [(s.text, s.label_) for s in doc.spans["ner_cl"]]


@pytest.mark.parametrize("overwrite", [False, True])
def test_blocked_tokens(pipeline: Build, overwrite: bool) -> None:
    nlp = pipeline(overwrite_ents=overwrite)
    doc = nlp.make_doc(TEXT)
    doc.set_ents([], blocked=[doc[6:7], doc[0:1]], default="missing")
    doc = nlp.get_pipe("ner_cl")(doc)
    assert ("Rome" in [e.text for e in doc.ents]) is overwrite
    assert (doc[0].ent_iob, doc[0].ent_type) == (3, 0)


def test_two_components_do_not_clobber_one_another(model_folder: Path) -> None:
    nlp = spacy.blank("en")
    for name, type_ in (("people", "PER"), ("places", "LOC")):
        config = {"model": str(model_folder), "types": [type_], "spans_key": name}
        nlp.add_pipe("ner_cl", name=name, config=config)
    doc = nlp("met Ada in Oslo")
    assert [e.label_ for e in doc.ents] == ["PER", "LOC"]
    assert all(e._.score for e in doc.ents)


def test_two_components_do_not_share_a_key(pipeline: Build) -> None:
    nlp = pipeline()
    with pytest.raises(ConfigError, match="second: spans_key: 'ner_cl' is that of the component ner_cl too; give"):
        nlp.add_pipe("ner_cl", name="second")
    nlp.add_pipe("ner_cl", name="second", config={"spans_key": None})
    nlp.add_pipe("ner_cl", name="third", config={"spans_key": "third"})
    nlp.replace_pipe("ner_cl", "ner_cl")
    assert nlp.pipe_names == ["ner_cl", "second", "third"]


def test_a_reading_of_the_same_words_by_another_component_does_not_change_scores(
    tmp_path: Path, model_folder: Path
) -> None:
    """spaCy keeps one value for all spans with the same borders; these are kept by type as well."""
    other = load_model(model_folder)
    with torch.no_grad():  # a second model that takes people for places, and is less sure of it
        weight, bias = other.head.blocks[0].weight, other.head.blocks[0].bias
        people, places = slice(1, 3), other.head.blocks[1]
        weight[people], places.weight[:] = places.weight.clone(), weight[people].clone() * 0.9
        bias[people], places.bias[:] = places.bias.clone(), bias[people].clone()
    other.save(tmp_path / "other")
    nlp = spacy.blank("en")
    nlp.add_pipe("ner_cl", name="first", config={"model": str(model_folder), "types": ["PER"]})
    (alone,) = nlp("met Ada in").ents
    score = alone._.score
    config = {"model": str(tmp_path / "other"), "types": ["LOC"], "spans_key": "second"}
    nlp.add_pipe("ner_cl", name="second", config=config)
    doc = nlp("met Ada in")
    assert [(e.label_, e._.score, e._.step) for e in doc.ents] == [("PER", score, 1)]
    (reading,) = doc.spans["second"]
    assert (reading.label_, reading._.step) == ("LOC", 2)
    assert reading._.score == doc.spans["second"].attrs["scores"][0] != score
    assert doc[1:3].as_doc(copy_user_data=True).ents[0]._.score == score


def test_score_skips_what_nobody_annotated(nlp: Language) -> None:
    component = nlp.get_pipe("ner_cl")
    predicted = nlp(TEXT)  # PER, LOC, PER, LOC
    gold = nlp.make_doc(TEXT)
    assert component.score([Example(predicted, gold)])["ents_f"] is None  # no token has a gold entity
    ada, rome, bob, oslo = (gold[e.start : e.end] for e in predicted.ents)
    gold.set_ents([Span(gold, ada.start, ada.end, "PER")], missing=[rome, oslo])
    scores = component.score([Example(predicted, gold)])
    assert (scores["ents_p"], scores["ents_r"]) == (0.5, 1.0)  # Bob is wrong; Rome and Oslo are not judged
    assert set(scores["ents_per_type"]) >= {"PER"}
    gold.set_ents([Span(gold, ada.start, ada.end, "PER")], missing=[rome, oslo, bob])
    assert component.score([Example(predicted, gold)])["ents_f"] == 1.0


def test_evaluate(nlp: Language) -> None:
    golds = [gold_doc(sentence, nlp.vocab) for sentence in toy_sentences(20, seed=8, types=("PER", "LOC"))]
    scores = nlp.evaluate([Example(nlp.make_doc(gold.text), gold) for gold in golds])
    assert scores["ents_f"] > 0.8
    assert set(scores["ents_per_type"]) == {"PER", "LOC"}


def test_spacy_finds_a_threshold(tmp_path: Path, pipeline: Build, gold_file: Path) -> None:
    pipeline().to_disk(tmp_path / "pipeline")
    best, found, scores = find_threshold(
        str(tmp_path / "pipeline"), gold_file, "ner_cl", "min_score", "ents_f", n_trials=2
    )
    assert scores[0.0] > 0.8
    assert scores[1.0] < scores[0.0]
    assert (best, found) == (0.0, scores[0.0])


def test_the_pipeline_requires_this_package_once(tmp_path: Path, pipeline: Build) -> None:
    nlp = pipeline()
    nlp.meta["requirements"].insert(0, "en-other>=1.0")
    nlp.add_pipe("ner_cl", name="second", config={"spans_key": "second"})
    own = f"ner-cl>={ner_cl.__version__},<"
    assert [text.startswith(own) for text in nlp.meta["requirements"]] == [False, True]
    nlp.remove_pipe("second")
    nlp.to_disk(tmp_path / "pipeline")
    assert spacy.load(tmp_path / "pipeline").meta["requirements"] == nlp.meta["requirements"]


def test_metadata(nlp: Language) -> None:
    meta = nlp.get_pipe_meta("ner_cl")
    assert {"doc.ents", "doc.spans", "token.ent_iob", "token.ent_type", "span._.score"} <= set(meta.assigns)
    assert meta.default_score_weights == {"ents_f": 1.0, "ents_p": 0.0, "ents_r": 0.0, "ents_per_type": None}
    assert nlp.analyze_pipes()["problems"] == {"ner_cl": []}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": {"PER": 2.0}}, r"ner_cl: thresholds\.PER: .*less than or equal to 1"),
        ({"min_score": -0.1}, r"ner_cl: min_score: "),
        ({"precision": "fp8"}, r"ner_cl: precision: "),
        ({"types": []}, r"ner_cl: types: "),
        ({"batch_tokens": 0}, r"ner_cl: batch_tokens: "),
        ({"nested": True, "spans_key": None}, "ner_cl: nested needs a spans_key"),
    ],
)
def test_wrong_values_are_refused_at_once(pipeline: Build, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "no/such/folder"}, ModelError, "no/such/folder: no such model folder"),
        ({"model": None}, ModelError, "the component has no model; give it one"),
        ({"types": ["PRE"]}, ModelError, "unknown type PRE; this model knows PER, LOC"),
        ({"thresholds": {"PRE": 0.5}}, ConfigError, "thresholds: unknown type PRE, did you mean 'PER'"),
        ({"device": "toaster"}, ConfigError, "device: 'toaster' cannot be used"),
    ],
)
def test_what_does_not_fit_the_model_is_one_line_at_first_use(
    pipeline: Build, options: dict[str, object], error: type[Exception], message: str
) -> None:
    nlp = pipeline(**options)
    for use in (lambda: nlp("Ada"), lambda: list(nlp.pipe(["Ada"])), nlp.initialize):
        with pytest.raises(error, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_model_without_types_says_so(tmp_path: Path, pipeline: Build) -> None:
    tiny_model(tmp_path / "encoder").save(tmp_path / "empty")
    with pytest.raises(ModelError, match="knows no type yet"):
        pipeline(model=str(tmp_path / "empty"))("Ada")


def test_the_error_handler_decides(pipeline: Build) -> None:
    nlp = pipeline(model="no/such/folder")
    failed = []
    nlp.set_error_handler(lambda name, proc, docs, error: failed.append((name, len(docs), error)))
    assert list(nlp.pipe(["Ada", "Bob"])) == []
    assert [(name, count) for name, count, _ in failed] == [("ner_cl", 2)]


def test_a_computed_extension_of_the_same_name_is_refused(pipeline: Build) -> None:
    Span.set_extension("score", getter=lambda span: 1.0, force=True)
    try:
        with pytest.raises(ConfigError, match=r"span\._\.score is computed by another extension"):
            pipeline()
    finally:
        Span.remove_extension("score")
        register_extensions()
