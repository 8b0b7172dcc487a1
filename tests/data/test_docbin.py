from pathlib import Path

import pytest
import spacy
from spacy.tokens import Doc, DocBin
from spacy.tokens import Span as DocSpan

from ner_cl.data.readers import read_sentences, read_with_report
from ner_cl.data.readers.base import ReadReport
from ner_cl.data.readers.docbin import drafts_of_doc
from ner_cl.errors import DataError
from ner_cl.types import Span

NLP = spacy.blank("en")


def store(path: Path, *docs: Doc) -> Path:
    DocBin(docs=docs).to_disk(path)
    return path


def annotated(text: str, *spans: tuple[int, int, str], default: str = "outside") -> Doc:
    doc = NLP(text)
    doc.set_ents([DocSpan(doc, *span) for span in spans], default=default)
    return doc


def test_a_document_is_a_sentence_with_its_text(tmp_path: Path) -> None:
    path = store(tmp_path / "x.spacy", annotated("Ada didn't\n\ncome.", (0, 1, "PER")), annotated("No one."))
    first, second = read_sentences(path)
    assert first.words == ("Ada", "did", "n't", "come", ".")
    assert first.spans == (Span(0, 1, "PER"),)
    assert first.text == "Ada didn't\n\ncome."
    assert first.offsets is not None
    assert tuple(first.text[start:end] for start, end in first.offsets) == first.words
    assert first.annotated_types == second.annotated_types == {"PER"}
    assert (first.source, second.source) == (f"{path}:1", f"{path}:2")


def test_sentence_starts_cut_documents(tmp_path: Path) -> None:
    doc = annotated("Ada came. Bob Ross left. Eve", (0, 1, "PER"), (3, 5, "PER"))
    for token in doc:
        token.is_sent_start = token.i in (0, 3, 7)
    first, second, third = read_sentences(store(tmp_path / "x.spacy", doc))
    assert [s.words for s in (first, second, third)] == [("Ada", "came", "."), ("Bob", "Ross", "left", "."), ("Eve",)]
    assert second.spans == (Span(0, 2, "PER"),)
    assert second.offsets is not None
    assert second.text is not None
    assert [second.text[start:end] for start, end in second.offsets] == ["Bob", "Ross", "left", "."]


def test_a_sentence_start_inside_an_entity_cuts_nothing(tmp_path: Path) -> None:
    doc = annotated("Dr. Who came", (0, 2, "PER"))
    for token in doc:
        token.is_sent_start = token.i in (0, 1)
    sentences, report = read_with_report(store(tmp_path / "x.spacy", doc))
    assert [sentence.words for sentence in sentences] == [("Dr.", "Who", "came")]
    assert report.repairs == {"sentence border inside a span passed over": [1]}


def test_unset_entities_are_unknown_not_o(tmp_path: Path) -> None:
    partly = annotated("Ada came", (0, 1, "PER"), default="missing")
    path = store(tmp_path / "x.spacy", partly, NLP("Bob came"), annotated("Eve came", (0, 1, "PER")))
    sentences, report = read_with_report(path)
    assert [sentence.annotated_types for sentence in sentences] == [set(), set(), {"PER"}]
    assert [sentence.spans for sentence in sentences] == [(), (), (Span(0, 1, "PER"),)]
    assert report.repairs == {"span in a sentence with unannotated words left out": [1]}
    told = read_sentences(path, types=["PER"])
    assert [sentence.annotated_types for sentence in told] == [{"PER"}] * 3
    assert told[0].spans == (Span(0, 1, "PER"),)


def test_span_groups_are_read_as_nested_spans(tmp_path: Path) -> None:
    doc = annotated("University of London", (0, 3, "ORG"))
    doc.spans["sc"] = [DocSpan(doc, 2, 3, "LOC")]
    path = store(tmp_path / "x.spacy", doc)
    assert read_sentences(path, on_overlap="keep")[0].spans == (Span(0, 3, "ORG"), Span(2, 3, "LOC"))
    with pytest.raises(DataError, match=r"x.spacy:1: spans overlap"):
        read_sentences(path)


def test_a_document_with_a_span_group_alone_was_annotated_there(tmp_path: Path) -> None:
    doc = NLP("University of London")
    doc.spans["sc"] = [DocSpan(doc, 0, 3, "ORG"), DocSpan(doc, 2, 3, "LOC")]
    (sentence,) = read_sentences(store(tmp_path / "x.spacy", doc), on_overlap="keep")
    assert sentence.spans == (Span(0, 3, "ORG"), Span(2, 3, "LOC"))
    assert sentence.annotated_types == {"ORG", "LOC"}


def test_spans_that_say_nothing_are_refused(tmp_path: Path) -> None:
    blank = NLP("a \n\n b")
    blank.spans["sc"] = [DocSpan(blank, 1, 2, "X")]
    unnamed = NLP("a b")
    unnamed.spans["sc"] = [DocSpan(unnamed, 0, 1)]
    path = store(tmp_path / "x.spacy", blank, unnamed, annotated("\n\n"))
    _, report = read_with_report(path, tolerant=True)
    assert [(problem.line, problem.message.split("'")[-1]) for problem in report.problems] == [
        (1, " covers whitespace only; correct it"),
        (2, " has no label; correct it"),
    ]
    assert report.repairs == {"text without a word skipped": [3]}


@pytest.mark.parametrize("content", [b"", b"not a docbin", b"x\x9c\x03\x00\x00\x00\x00\x01"])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.spacy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.spacy: is not a spaCy DocBin") as caught:
        read_sentences(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("PER", "has annotated_types 'PER'; write a list of names"),
        (3, "has annotated_types 3; write a list of names"),
        ([""], "has annotated_types"),
        (["LOC"], r"has a span of type PER that its annotated_types \(LOC\) lack"),
    ],
)
def test_what_a_document_says_it_is_annotated_for_is_checked(tmp_path: Path, declared: object, said: str) -> None:
    doc = annotated("Ada came.", (0, 1, "PER"))
    doc.user_data["annotated_types"] = declared
    DocBin(docs=[doc], store_user_data=True).to_disk(tmp_path / "x.spacy")
    with pytest.raises(DataError, match=rf"x\.spacy:1: {said}"):
        read_sentences(tmp_path / "x.spacy")


def test_the_types_that_a_document_declares_may_be_in_any_collection() -> None:
    doc = annotated("Ada came.", (0, 1, "PER"))
    doc.user_data["annotated_types"] = {"PER", "LOC"}
    [draft] = drafts_of_doc(doc, 1, ReadReport("document"))
    assert draft.annotated_types == {"PER", "LOC"}


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_sentences(tmp_path / "x.spacy")


def test_an_empty_span_group_says_that_there_is_nothing(tmp_path: Path) -> None:
    """As in a corpus for spaCy's span categorizer, where most documents mention nothing."""
    some, none = NLP("Ada came"), NLP("No one")
    some.spans["sc"], none.spans["sc"] = [DocSpan(some, 0, 1, "PER")], []
    sentences, report = read_with_report(store(tmp_path / "x.spacy", some, none))
    assert [sentence.annotated_types for sentence in sentences] == [{"PER"}, {"PER"}]
    assert not report.incomplete
