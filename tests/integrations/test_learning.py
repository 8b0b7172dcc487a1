"""Learning from spaCy's annotation."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin, Span
from spacy.training import Example
from spacy.vocab import Vocab

from ner_cl.errors import CheckFailed, ConfigError, DataError, ModelError
from ner_cl.integrations.spacy_examples import sentences_of
from ner_cl.model.store import load_model
from tests.integrations.conftest import entities, gold_doc
from tests.tiny import TOY_TRAINING, toy_sentences

Build = Callable[..., Language]


def gold(count: int, types: Sequence[str], seed: int = 21) -> list[Doc]:
    vocab = Vocab()
    return [gold_doc(sentence, vocab) for sentence in toy_sentences(count, seed=seed, types=types)]


def test_a_new_type_from_examples(tmp_path: Path, pipeline: Build) -> None:
    nlp = pipeline()
    before = nlp("a report saw Acme Bank in Oslo .")
    docs = gold(200, ("PER", "LOC", "ORG"))
    # A quarter of them say nothing about one token, and nothing is learned from those.
    for doc in docs[::4]:
        doc.set_ents(list(doc.ents), missing=[doc[len(doc) - 1 :]], default="unmodified")
    examples = [Example(nlp.make_doc(doc.text), doc) for doc in docs]
    component = nlp.get_pipe("ner_cl")
    result = component.learn(examples, types=["ORG"], training=TOY_TRAINING, seed=3)
    assert [(change.type, change.before is None) for change in result.changes] == [
        ("PER", False),
        ("LOC", False),
        ("ORG", True),
    ]
    assert result.model.history[-1]["left_out"] == 50
    assert component.labels == ("PER", "LOC", "ORG")
    after = nlp("a report saw Acme Bank in Oslo .")
    assert [e.label_ for e in before.ents if e.label_ == "ORG"] == []
    assert [(e.text, e._.step) for e in after.ents if e.label_ == "ORG"] == [("Acme Bank", 3)]
    nlp.to_disk(tmp_path / "grown")
    again = spacy.load(tmp_path / "grown")
    assert entities(again("a report saw Acme Bank in Oslo .")) == entities(after)
    assert load_model(tmp_path / "grown" / "ner_cl").history[-1]["left_out"] == 50


def test_a_model_that_forgets_does_not_serve(pipeline: Build) -> None:
    nlp = pipeline()
    component = nlp.get_pipe("ner_cl")
    docs = gold(30, ("ORG",))
    with pytest.raises(CheckFailed, match="not published"):
        component.learn(docs, types=["ORG"], dev=docs[:10], max_drop=-2.0, training=TOY_TRAINING)
    assert component.labels == ("PER", "LOC")


def test_of_nested_spans_in_a_docbin_the_longest_are_learned(pipeline: Build) -> None:
    docs = gold(30, ("ORG",))
    for doc in docs[::2]:
        doc.spans["sc"] = [Span(doc, 0, len(doc), "SLOGAN")]
    component = pipeline().get_pipe("ner_cl")
    options = {"types": ["ORG", "SLOGAN"], "training": TOY_TRAINING.model_copy(update={"epochs": 1})}
    with pytest.raises(DataError, match=r"overlaps another span.*on_overlap: longest"):
        component.learn(DocBin(docs=docs), **options)
    component.learn(DocBin(docs=docs), dev=DocBin(docs=docs[:10]), on_overlap="longest", **options)
    assert component.labels == ("PER", "LOC", "ORG", "SLOGAN")


def test_documents_to_replay_and_raw_ones(pipeline: Build) -> None:
    nlp = pipeline()
    training = TOY_TRAINING.model_copy(update={"epochs": 1})
    old = gold(10, ("PER", "LOC"), seed=5)
    raw = (nlp.make_doc(text) for text in ("Ada met Bob in Oslo .", "nobody saw Rome ."))
    result = nlp.get_pipe("ner_cl").learn(
        gold(20, ("ORG",)), types=["ORG"], replay=DocBin(docs=old), unlabeled=raw, training=training
    )
    remembered = {sentence.words for sentence in result.model.kept_sentences["replay"]}
    assert {tuple(token.text for token in doc) for doc in old} <= remembered


def test_what_cannot_be_learned(pipeline: Build) -> None:
    component = pipeline().get_pipe("ner_cl")
    docs = gold(12, ("ORG",))
    with pytest.raises(ModelError, match="type LOC was already learned in step 2"):
        component.learn(docs, types=["LOC"])
    with pytest.raises(DataError, match="no sentence mentions DRUG"):
        component.learn(docs, types=["DRUG"])
    with pytest.raises(ConfigError, match="give a list of new types"):
        component.learn(docs, types="ORG")
    with pytest.raises(ConfigError, match="expected spaCy Examples or Docs, not str"):
        component.learn(iter(["Acme Bank"]), types=["ORG"])
    with pytest.raises(DataError, match="none of the 2 sentences is annotated throughout for ORG"):
        component.learn([Doc(Vocab(), words=["Acme"]), Doc(Vocab(), words=["Bank"])], types=["ORG"])
    with pytest.raises(ConfigError, match="looks for PER only"):
        pipeline(types=["PER"]).get_pipe("ner_cl").learn(docs, types=["ORG"])
    assert component.labels == ("PER", "LOC")


def test_a_token_without_a_decision_makes_its_sentence_unknown() -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    doc = nlp("Ada met Bob . Bob met nobody . Rome is old .")
    doc.set_ents([Span(doc, 0, 1, "PER"), Span(doc, 8, 9, "LOC")], missing=[doc[4:5]])
    data = sentences_of([doc, nlp("nobody annotated this . or this .")], ["PER"])
    assert data.left_out == 3
    assert [" ".join(sentence.words) for sentence in data.sentences] == ["Ada met Bob .", "Rome is old ."]
    assert [sentence.spans[0].type for sentence in data.sentences] == ["PER", "LOC"]
    assert data.sentences[0].annotated_types == {"PER", "LOC"}


def test_one_type_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"types: give a list of new types, such as \['DRUG'\], not 'DATE'"):
        sentences_of([], "DATE")


def test_dev_documents_without_annotation_are_kept_for_what_the_model_finds_in_them() -> None:
    raw = spacy.blank("en")("Ada went to Oslo")
    assert sentences_of([raw], ["LOC"]).sentences == ()
    (sentence,) = sentences_of([raw], ["LOC"], all_types=False).sentences
    assert sentence.words == ("Ada", "went", "to", "Oslo")
    assert not sentence.spans
    assert not sentence.annotated_types


def test_the_reference_is_what_is_learned_from() -> None:
    nlp = spacy.blank("en")
    example = Example.from_dict(
        nlp("Ada met Bob"), {"words": ["Ada", "met", "Bo", "b"], "entities": ["O", "O", "B-X", "L-X"]}
    )
    (sentence,) = sentences_of([example], ["X"]).sentences
    assert sentence.words == ("Ada", "met", "Bo", "b")
    assert [(span.start, span.end, span.type) for span in sentence.spans] == [(2, 4, "X")]


def test_misaligned_offsets_are_left_out_and_counted() -> None:
    nlp = spacy.blank("en")
    with pytest.warns(UserWarning, match="W030"):
        example = Example.from_dict(nlp.make_doc("Ada met Bobby"), {"entities": [(8, 11, "PER")]})
    data = sentences_of([example], ["PER"])
    assert (data.sentences, data.left_out) == ((), 1)


def test_whitespace_tokens_and_borders_inside_entities() -> None:
    doc = Doc(Vocab(), words=["\n", "New", " ", "York", "Bay", " ", "old"], sent_starts=[1, 0, 0, 1, 0, 0, 0])
    doc.ents = [Span(doc, 0, 4, "LOC"), Span(doc, 4, 6, "LOC")]
    (sentence,) = sentences_of([doc], ["LOC"]).sentences
    assert sentence.words == ("New", "York", "Bay", "old")
    assert [(span.start, span.end) for span in sentence.spans] == [(0, 2), (2, 3)]
    blank = Doc(Vocab(), words=["\n", " "])
    blank.ents = [Span(blank, 0, 1, "LOC")]
    assert sentences_of([blank], ["LOC"]).sentences == ()


def test_documents_that_say_what_they_are_annotated_for_are_believed() -> None:
    first, second = Doc(Vocab(), words=["Ada"]), Doc(Vocab(), words=["Bob"])
    first.user_data["annotated_types"] = ["PER", "ORG"]
    second.user_data["annotated_types"] = ["LOC"]
    data = sentences_of([first, second], ["PER"])
    assert (len(data.sentences), data.left_out) == (1, 1)
    assert data.sentences[0].annotated_types == {"PER", "ORG"}


def test_documents_are_read_as_from_a_file() -> None:
    """Spans that overlap stand in the group that ner_cl writes, and a document may have nothing else."""
    declared, alone = (Doc(Vocab(), words=["Bank", "of", "Rome"]) for _ in range(2))
    for doc in (declared, alone):
        doc.spans["sc"] = [Span(doc, 0, 3, "ORG"), Span(doc, 2, 3, "LOC")]
    declared.set_ents([])
    declared.user_data["annotated_types"] = ["ORG", "LOC"]
    data = sentences_of([declared, alone], ["ORG"])
    assert data.left_out == 0
    for sentence in data.sentences:
        assert [(span.start, span.end, span.type) for span in sentence.spans] == [(0, 3, "ORG"), (2, 3, "LOC")]
        assert sentence.annotated_types == {"ORG", "LOC"}


def test_dev_documents_of_old_types_measure_them_by_gold(pipeline: Build) -> None:
    dev = gold(40, ("PER", "LOC"), seed=5)
    for doc in dev:
        doc.user_data["annotated_types"] = ["PER", "LOC"]
    dev += gold(40, ("ORG",), seed=6)
    for doc in dev[40:]:
        doc.user_data["annotated_types"] = ["ORG"]
    component = pipeline().get_pipe("ner_cl")
    result = component.learn(gold(60, ("ORG",)), types=["ORG"], dev=dev, training=TOY_TRAINING)
    assert {change.type: change.measured for change in result.changes} == dict.fromkeys(("PER", "LOC", "ORG"), "gold")
