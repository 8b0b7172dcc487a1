import json
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ner_cl.data.readers import first_overlap, read_sentences, read_with_report
from ner_cl.data.words import split_words
from ner_cl.data.writers import write_sentences
from ner_cl.errors import ConfigError, DataError
from ner_cl.types import Sentence, Span

TYPES = ("PER", "event-attack/battle", "PER.NOM", "GPE_LOC", "geo political")
ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)

any_word = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
column_word = any_word.filter(lambda word: word.strip(" ") and not set(word) & set("\t\n\r"))
visible_word = any_word.filter(lambda word: bool(word.strip()))
text_like = st.text(alphabet="ab. \u200b\xad東é\n👍#", min_size=1, max_size=20)


# Hypothesis draws plain values only and the tests build sentences from them: the run-time type checks that the package
# runs under use `random`, which must not be used while a value is drawn.
Recipe = tuple[list[str], str, list[tuple[int, int, str]], set[str]]


def recipes(word: st.SearchStrategy[str], *, texts: bool = False) -> st.SearchStrategy[list[Recipe]]:
    borders = st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from(TYPES))
    text = st.one_of(st.just(""), text_like) if texts else st.just("")
    one = st.tuples(
        st.lists(word, min_size=1, max_size=8), text, st.lists(borders, max_size=4), st.sets(st.sampled_from(TYPES))
    )
    return st.lists(one, min_size=1, max_size=4)


def build(recipe: Recipe, *, nested: bool) -> Sentence:
    drawn, text, borders, types = recipe
    offsets = tuple(split_words(text))
    words = tuple(text[a:b] for a, b in offsets) or tuple(drawn)
    spans: list[Span] = []
    for first, last, type_ in borders:
        start, end = min(first, last), min(max(first, last), len(words))
        span = Span(start, end, type_)
        if start < end and span not in spans and (nested or not any(span.overlaps(other) for other in spans)):
            spans.append(span)
    annotated = frozenset(types | {span.type for span in spans})
    return Sentence(words, tuple(spans), annotated, text if offsets else None, offsets or None)


def facts(items: list[Sentence]) -> list[tuple[tuple[str, ...], tuple[Span, ...], frozenset[str]]]:
    return [(item.words, item.spans, item.annotated_types) for item in items]


@given(drawn=recipes(any_word, texts=True))
@ONE_FILE
def test_jsonl_holds_everything(drawn: list[Recipe], tmp_path: Path) -> None:
    path, items = tmp_path / "x.jsonl", [build(recipe, nested=True) for recipe in drawn]
    write_sentences(path, items)
    back, report = read_with_report(path, on_overlap="keep")
    assert facts(back) == facts(items)
    assert set(report.repairs) <= {"overlapping spans kept", "whitespace at the border of a span trimmed"}
    for item, found in zip(items, back, strict=True):
        if item.text is not None:
            assert (found.text, found.offsets) == (item.text, item.offsets)


@given(drawn=recipes(visible_word))
@settings(ONE_FILE, max_examples=25)
def test_docbin_holds_all_but_blank_words(drawn: list[Recipe], tmp_path: Path) -> None:
    path, items = tmp_path / "x.spacy", [build(recipe, nested=True) for recipe in drawn]
    write_sentences(path, items)
    assert facts(read_sentences(path, on_overlap="keep")) == facts(items)


@pytest.mark.parametrize(
    "text",
    ["Ada ran.", "  Ada  ran\n\nto Rome \n", "Ada\tran", "Ada\u3000ran\u2028home", "\nAda", "東京 へ行く", "   "],
)
def test_a_docbin_holds_the_text_itself(text: str, tmp_path: Path) -> None:
    """Offsets in it are those in the text that was read, whatever whitespace is between words."""
    from spacy.tokens import DocBin
    from spacy.vocab import Vocab

    offsets = tuple(split_words(text))
    spans = (Span(0, 1, "PER"), Span(len(offsets) - 1, len(offsets), "X")) if len(offsets) > 1 else ()
    words = tuple(text[start:end] for start, end in offsets)
    sentence = Sentence(words, spans, frozenset({"PER", "X"}), text, offsets)
    write_sentences(tmp_path / "x.spacy", [sentence], empty=True)
    (doc,) = DocBin().from_disk(tmp_path / "x.spacy").get_docs(Vocab())
    assert doc.text == text
    assert [(e.start_char, e.end_char) for e in doc.ents] == [offsets[span.start] for span in spans]
    if words:
        (back,) = read_sentences(tmp_path / "x.spacy")
        assert (back.words, back.spans, back.text, back.offsets) == (words, spans, text, offsets)


def test_what_is_no_whitespace_between_words_is_left_out_of_a_docbin(tmp_path: Path) -> None:
    text = "Ada\u200bran \u200b to"
    offsets = tuple(split_words(text))
    sentence = Sentence(tuple(text[a:b] for a, b in offsets), (), frozenset({"PER"}), text, offsets)
    write_sentences(tmp_path / "x.spacy", [sentence])
    (back,) = read_sentences(tmp_path / "x.spacy")
    assert (back.words, back.text) == (("Ada", "ran", "to"), "Adaran to")


@given(drawn=recipes(column_word), scheme=st.sampled_from(["iob1", "iob2", "bioes"]))
@ONE_FILE
def test_columns_hold_flat_spans(drawn: list[Recipe], scheme: str, tmp_path: Path) -> None:
    path, items = tmp_path / "x.conll", [build(recipe, nested=False) for recipe in drawn]
    write_sentences(path, items, scheme=scheme)
    back, report = read_with_report(path)
    assert [(item.words, item.spans) for item in back] == [(item.words, item.spans) for item in items]
    assert set(report.repairs) <= {
        "byte-order mark at the start of the file removed",
        "word without a visible character kept",
    }


def test_the_contract_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    text = "Ada took aspirin."
    words = tuple(text[a:b] for a, b in split_words(text))
    person, both = Span(0, 1, "PER"), frozenset({"PER", "DRUG"})
    write_sentences(
        path,
        [
            Sentence(words, (person,), both, text, tuple(split_words(text))),
            Sentence(("don't", "Ada"), (Span(1, 2, "PER"),), both),
        ],
    )
    first, second = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert first == {
        "text": text,
        "spans": [{"start": 0, "end": 3, "label": "PER"}],
        "annotated_types": ["DRUG", "PER"],
    }
    assert second["text"] == "don't Ada"
    assert second["spans"] == [{"start": 6, "end": 9, "label": "PER"}]
    assert second["word_offsets"] == [[0, 5], [6, 9]]


WORD, TYPED = Sentence(("a",)), frozenset({"X", "Y", "A\tB"})


@pytest.mark.parametrize(
    ("name", "sentence", "says"),
    [
        ("x.conll", Sentence(("a\tb",)), r"sentence 2: a column file cannot hold the word 'a\tb'; write JSONL"),
        ("x.conll", Sentence(("a\n",)), "cannot hold the word"),
        ("x.conll", Sentence(("a\r",)), "cannot hold the word"),
        ("x.conll", Sentence((" ",)), "cannot hold the word ' '"),
        ("x.conll", Sentence(("-DOCSTART-",)), "cannot hold the word"),
        ("x.conll", Sentence(("a",), (Span(0, 1, "A\tB"),), TYPED), "cannot hold the type"),
        ("x.conll", Sentence(("a",), (Span(0, 1, "X"), Span(0, 1, "Y")), TYPED), "sentence 2: span 0..1 Y overlaps"),
        ("x.conll", Sentence(("a", "\ud83d"), source="y.jsonl:7"), "y.jsonl:7: UTF-8 cannot hold"),
        ("x.conll", Sentence(()), "sentence 2: has no words"),
        ("x.jsonl", Sentence(()), "sentence 2: has no words"),
        ("x.jsonl", Sentence(("\ud83d",)), "UTF-8 cannot hold"),
        ("x.spacy", Sentence(("\n",)), "sentence 2: a DocBin cannot hold a word of whitespace only"),
        ("x.spacy", Sentence(("\ud83d",)), "UTF-8 cannot hold"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_old_file_stays(
    tmp_path: Path, name: str, sentence: Sentence, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(DataError) as caught:
        write_sentences(path, [WORD, sentence])
    assert says in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_replaced_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    other = tmp_path / "other"
    other.touch()
    write_sentences(path, [WORD])
    write_sentences(str(path), [WORD, WORD], scheme="bioes")
    assert path.read_bytes() == b"a\tO\n\na\tO\n\n"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [other, path]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "x.conll").mkdir()
    with pytest.raises(DataError, match=r"x\.conll: is a folder; name a file in it"):
        write_sentences(tmp_path / "x.conll", [WORD])
    with pytest.raises(DataError, match=r"cannot be written \(No such file or directory\); check the folder"):
        write_sentences("/proc/none/x.conll", [WORD])
    assert list(tmp_path.iterdir()) == [tmp_path / "x.conll"]


def test_the_folder_is_made(tmp_path: Path) -> None:
    write_sentences(tmp_path / "new" / "x.conll", [WORD])
    assert (tmp_path / "new" / "x.conll").read_bytes() == b"a\tO\n\n"


def test_unknown_formats_and_schemes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the ending '\.xyz' says no format; name one of conll, jsonl, docbin"):
        write_sentences(tmp_path / "x.xyz", [WORD])
    with pytest.raises(ConfigError, match="format 'hub' cannot be written"):
        write_sentences(tmp_path / "x", [WORD], format="hub")
    with pytest.raises(ConfigError, match="unknown tag scheme"):
        write_sentences(tmp_path / "x.conll", [WORD], scheme="iob9")


def test_overlaps_in_a_docbin_are_a_span_group(tmp_path: Path) -> None:
    from spacy.tokens import DocBin
    from spacy.vocab import Vocab

    spans = (Span(0, 3, "X"), Span(2, 3, "Y"))
    assert first_overlap(spans) == spans
    write_sentences(
        tmp_path / "x.spacy", [Sentence(("a", "b", "c"), spans, TYPED), Sentence(("a",), (Span(0, 1, "X"),), TYPED)]
    )
    nested, flat = DocBin(store_user_data=True).from_disk(tmp_path / "x.spacy").get_docs(Vocab())
    assert [(span.start, span.end, span.label_) for span in nested.spans["sc"]] == [(0, 3, "X"), (2, 3, "Y")]
    assert [(span.start, span.end, span.label_) for span in flat.ents] == [(0, 1, "X")]
    assert all(token.ent_iob != 0 for token in nested)
