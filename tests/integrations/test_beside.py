"""The component among spaCy's own."""

from collections.abc import Callable
from pathlib import Path

from spacy.language import Language
from spacy.tokens import Doc, DocBin

import ner_cl
from tests.integrations.conftest import entities

Build = Callable[..., Language]
RULES = [{"label": "GREETING", "pattern": "hello"}, {"label": "VIP", "pattern": "Ada Smith"}]


def with_rules(nlp: Language, **position: str) -> Language:
    nlp.add_pipe("entity_ruler", config={"overwrite_ents": False}, **position).add_patterns(RULES)
    return nlp


def labels(doc: Doc) -> list[tuple[str, str]]:
    return [(entity.text, entity.label_) for entity in doc.ents]


def test_rules_before_win_and_rules_after_fill_the_gaps(pipeline: Build) -> None:
    text = "hello the report met Ada Smith near Rome ."
    before = with_rules(pipeline(), before="ner_cl")(text)
    assert labels(before) == [("hello", "GREETING"), ("Ada Smith", "VIP"), ("Rome", "LOC")]
    assert [entity._.score is None for entity in before.ents] == [True, True, False]
    overwritten = with_rules(pipeline(overwrite_ents=True), before="ner_cl")(text)
    assert labels(overwritten) == [("hello", "GREETING"), ("Ada Smith", "PER"), ("Rome", "LOC")]
    after = with_rules(pipeline(), after="ner_cl")(text)
    assert labels(after) == [("hello", "GREETING"), ("Ada Smith", "PER"), ("Rome", "LOC")]


def test_an_entity_that_is_found_again_keeps_its_ids(pipeline: Build) -> None:
    nlp = pipeline(overwrite_ents=True)
    ruler = nlp.add_pipe("entity_ruler", before="ner_cl")
    ruler.add_patterns([{"label": "PER", "pattern": "Ada Smith", "id": "ada"}])
    person, place = nlp("the report met Ada Smith near Rome .").ents
    assert (person.label_, person.ent_id_, person._.step, place.ent_id_) == ("PER", "ada", 1, "")
    assert person._.score == person.doc.spans["ner_cl"].attrs["scores"][0]


def test_sentence_splitters_before_and_after(pipeline: Build) -> None:
    text = "the report met Ada near Rome . a report saw Bob at Oslo ."
    plain = entities(pipeline()(text))
    for position in ("before", "after"):
        nlp = pipeline()
        nlp.add_pipe("sentencizer", **{position: "ner_cl"})
        doc = nlp(text)
        assert [entity[:3] for entity in entities(doc)] == [entity[:3] for entity in plain]
        assert (entities(doc) == plain) == (position == "after")  # known sentences are read one by one
        assert [len(sentence.ents) for sentence in doc.sents] == [2, 2]


def test_merged_entities_keep_their_score(pipeline: Build) -> None:
    nlp = pipeline()
    nlp.add_pipe("merge_entities")
    doc = nlp("the report met Ada Smith near Rome .")
    assert "Ada Smith" in [token.text for token in doc]
    assert all(entity._.score for entity in doc.ents)


def test_as_tuples_disabling_and_docs_as_input(pipeline: Build, texts: list[str]) -> None:
    nlp = pipeline()
    expected = [entities(doc) for doc in nlp.pipe(texts)]
    pairs = list(nlp.pipe([(text, {"id": number}) for number, text in enumerate(texts)], as_tuples=True))
    assert [context["id"] for _, context in pairs] == list(range(len(texts)))
    assert [entities(doc) for doc, _ in pairs] == expected
    assert [entities(doc) for doc in nlp.pipe(nlp.make_doc(text) for text in texts)] == expected
    with nlp.select_pipes(disable="ner_cl"):
        assert not nlp(texts[0]).ents


def test_scores_survive_a_docbin(pipeline: Build, texts: list[str]) -> None:
    nlp = pipeline()
    docs = list(nlp.pipe(texts))
    data = DocBin(docs=docs, store_user_data=True).to_bytes()
    again = list(DocBin(store_user_data=True).from_bytes(data).get_docs(nlp.vocab))
    assert [entities(doc) for doc in again] == [entities(doc) for doc in docs]
    groups = [(dict(doc.spans["ner_cl"].attrs), [s.label_ for s in doc.spans["ner_cl"]]) for doc in docs]
    assert [(dict(doc.spans["ner_cl"].attrs), [s.label_ for s in doc.spans["ner_cl"]]) for doc in again] == groups


def test_tokens_of_any_make_are_words(pipeline: Build) -> None:
    nlp = pipeline()
    doc = Doc(
        nlp.vocab, words=["met", "Ada", "Smith", "in", "Oslo", "."], spaces=[True, False, False, True, False, False]
    )
    assert [(e.text, e.label_) for e in nlp(doc).ents] == [("AdaSmith", "PER"), ("Oslo", "LOC")]


def test_scores_of_other_components_entities_stay(pipeline: Build, model_folder: Path) -> None:
    """A second component that finds the same spans, and rules that found one before."""
    text = "hello the report met Ada Smith near Rome ."
    ruled = pipeline()
    ruler = ruled.add_pipe("entity_ruler", before="ner_cl", config={"overwrite_ents": False})
    ruler.add_patterns([{"label": "PER", "pattern": "Ada Smith"}])
    scores = {entity.text: entity._.score for entity in ruled(text).ents}
    assert scores["Ada Smith"] is None
    assert scores["Rome"] is not None
    nlp = pipeline(spans_key="first")
    alone = [(entity.text, entity._.score) for entity in nlp(text).ents]
    hotter = ner_cl.load(model_folder)
    hotter.head.temperatures = [3.0] * len(hotter.head.temperatures)
    nlp.add_pipe("ner_cl", name="second", config={"spans_key": "second"}).use(hotter)
    doc = nlp(text)
    assert alone
    assert [(entity.text, entity._.score) for entity in doc.ents] == alone
    assert [span._.score for span in doc.spans["first"]] == doc.spans["first"].attrs["scores"]
    assert doc.spans["second"].attrs["scores"] != doc.spans["first"].attrs["scores"]
