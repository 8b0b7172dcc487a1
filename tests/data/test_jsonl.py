import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.data.readers import ReadReport, read_sentences, read_with_report
from ner_cl.data.readers.align import CharSpan, align_spans
from ner_cl.data.words import split_words
from ner_cl.errors import DataError
from ner_cl.types import Sentence, Span

TEXT = "Ada took aspirin in London."
GOLD = [(0, 1, "PER"), (4, 5, "LOC")]
CHARS = [(0, 3, "PER"), (20, 26, "LOC")]
OBJECTS = [{"start": start, "end": end, "label": type_} for start, end, type_ in CHARS]


@pytest.fixture
def read(tmp_path: Path):
    def read(*values: Any, **options: Any) -> tuple[list[Sentence], ReadReport]:
        path = tmp_path / "x.jsonl"
        texts = (value if isinstance(value, str) else json.dumps(value) for value in values)
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return read_with_report(path, **options)

    return read


def triples(sentence: Sentence) -> list[tuple[int, int, str]]:
    return [(span.start, span.end, span.type) for span in sentence.spans]


def test_the_contract_line(read, tmp_path: Path) -> None:
    (sentence,), _ = read({"text": TEXT, "spans": OBJECTS, "annotated_types": ["PER", "LOC", "ORG"]})
    assert sentence.words == ("Ada", "took", "aspirin", "in", "London", ".")
    assert triples(sentence) == GOLD
    assert sentence.annotated_types == {"PER", "LOC", "ORG"}
    assert (sentence.text, sentence.source) == (TEXT, f"{tmp_path / 'x.jsonl'}:1")
    assert sentence.offsets == tuple(split_words(TEXT))


@pytest.mark.parametrize(
    "value",
    [
        {"text": TEXT, "spans": [list(span) for span in CHARS]},
        {"text": TEXT, "entities": [list(span) for span in CHARS]},  # spaCy
        [TEXT, {"entities": [list(span) for span in CHARS]}],  # spaCy, older
        {"id": 1, "text": TEXT, "label": [list(span) for span in CHARS], "Comments": []},  # doccano
        {"id": 1, "text": TEXT, "labels": [list(span) for span in CHARS]},  # doccano, older
        {  # doccano with relations
            "text": TEXT,
            "entities": [
                {"id": i, "label": t, "start_offset": s, "end_offset": e} for i, (s, e, t) in enumerate(CHARS)
            ],
            "relations": [],
        },
        {  # Prodigy
            "text": TEXT,
            "_input_hash": 1,
            "tokens": [{"text": "Ada", "start": 0, "end": 3, "id": 0, "ws": True}],
            "spans": [{**span, "token_start": 0, "token_end": 0} for span in OBJECTS],
            "answer": "accept",
        },
        {  # Label Studio
            "id": 1,
            "data": {"text": TEXT},
            "annotations": [
                {"was_cancelled": True, "result": []},
                {
                    "was_cancelled": False,
                    "result": [
                        {"type": "labels", "value": {"start": s, "end": e, "text": TEXT[s:e], "labels": [t]}}
                        for s, e, t in CHARS
                    ]
                    + [{"type": "choices", "value": {"choices": ["x"]}}],
                },
            ],
        },
        {
            "text": TEXT,
            "label": [{"start": s, "end": e, "text": TEXT[s:e], "labels": [t]} for s, e, t in CHARS],
        },  # its JSON-MIN
        {"tokens": TEXT.replace(".", " .").split(), "ner_tags": ["B-PER", "O", "O", "O", "B-LOC", "O"]},
        {"text": TEXT, "spans": OBJECTS, "tokens": ["Ada", "took"], "tags": ["news"]},
        {"text": TEXT, "tokens": TEXT.replace(".", " .").split(), "ner_tags": ["B-PER", "O", "O", "O", "B-LOC", "O"]},
        {"words": TEXT.replace(".", " .").split(), "tags": ["S-PER", "O", "O", "O", "S-LOC", "O"]},
        {"tokens": TEXT.replace(".", " .").split(), "spans": [list(span) for span in GOLD]},
        {"tokens": TEXT.replace(".", " .").split(), "spans": [{"start": s, "end": e, "label": t} for s, e, t in GOLD]},
    ],
)
@pytest.mark.parametrize("layout", ["line", "array", "pretty array"])
def test_exports_of_other_tools_mean_the_same(read, value: Any, layout: str) -> None:
    whole = {"line": value, "array": [value], "pretty array": json.dumps([value], indent=2)}[layout]
    (sentence,), _ = read(whole)
    assert triples(sentence) == GOLD
    assert sentence.words == ("Ada", "took", "aspirin", "in", "London", ".")
    assert sentence.annotated_types == {"PER", "LOC"}


def test_tokens_that_say_where_they_are_are_the_words_where_spans_need_them(read) -> None:
    """As Prodigy writes them; elsewhere words are those that `predict` finds in a text."""
    pieces = [("I", 0, 1), ("do", 2, 4), ("n't", 4, 7), (" ", 8, 9), ("go", 9, 11)]
    tokens = [{"text": text, "start": start, "end": end} for text, start, end in pieces]
    record = {"text": "I don't  go", "tokens": tokens, "spans": [{"start": 4, "end": 7, "label": "NOT"}]}
    (sentence,), _ = read(record)
    assert (sentence.words, triples(sentence)) == (("I", "do", "n't", "go"), [(2, 3, "NOT")])
    (sentence,), _ = read({**record, "spans": [{"start": 0, "end": 1, "label": "ME"}]})
    assert sentence.words == ("I", "don", "'", "t", "go")
    with pytest.raises(DataError, match=r"cuts a word; .* correct the offsets, give the words as word_offsets, or"):
        read({**record, "spans": [{"start": 3, "end": 7, "label": "NOT"}]})


@pytest.mark.parametrize("key", ["spans", "entities"])
def test_tags_count_where_spans_are_empty(read, key: str) -> None:
    record = {"text": "Ada left", "tokens": ["Ada", "left"], "tags": ["B-PER", "O"], key: []}
    (sentence,), _ = read(record)
    assert triples(sentence) == [(0, 1, "PER")]
    assert read({**record, "tags": ["news"]})[0][0].spans == ()


def test_array_elements_know_their_line(read, tmp_path: Path) -> None:
    sentences, _ = read(json.dumps([{"text": "a", "spans": []}, {"text": "b", "spans": []}], indent=1))
    assert [sentence.source.rpartition(":")[2] for sentence in sentences] == ["2", "6"]


def test_annotated_types(read) -> None:
    declared = {"text": "Ada", "spans": [], "annotated_types": ["DRUG", "DOSE"]}
    silent = {"text": "Ada", "spans": [[0, 3, "PER"]]}
    assert [s.annotated_types for s in read(declared, silent)[0]] == [{"DRUG", "DOSE"}, {"PER"}]
    # what a line says about itself is never widened by a wish
    assert [s.annotated_types for s in read(declared, silent, types=["DRUG", "PER"])[0]] == [{"DRUG"}, {"DRUG", "PER"}]


def test_offsets_count_code_points(read) -> None:
    text = "👍🏽 Zoë 東京"
    (sentence,), report = read({"text": text, "spans": [[3, 6, "PER"], [7, 9, "LOC"]]})
    assert triples(sentence) == [(1, 2, "PER"), (2, 4, "LOC")]
    assert report.repairs == {}


def test_offsets_counted_by_a_browser_are_found_out(read) -> None:
    text = "👍🏽 Zoë"  # five UTF-16 units before Zoë, three code points
    (sentence,), report = read({"text": text, "label": [{"start": 5, "end": 8, "text": "Zoë", "labels": ["PER"]}]})
    assert triples(sentence) == [(1, 2, "PER")]
    assert report.repairs == {"offsets in UTF-16 units converted": [1]}
    with pytest.raises(DataError, match=r"a span 0\.\.3 for 'Bob', but the text there is 'Ada'"):
        read({"text": "Ada", "spans": [{"start": 0, "end": 3, "label": "PER", "text": "Bob"}]})


def test_repairs_are_counted(read) -> None:
    sentences, report = read(
        "\ufeff" + json.dumps({"text": "Ada  here", "spans": [[0, 4, "PER"], [0, 3, "PER"], [0, 3, "PER "]]}),
        {"text": "x", "answer": "reject"},
        {"text": "x", "answer": "ignore"},
        "",
        {"text": " \u200b", "spans": []},
        {"data": {"text": "x"}, "annotations": []},
        {"text": "no", "answer": "accept"},
    )
    assert [sentence.words for sentence in sentences] == [("Ada", "here"), ("no",)]
    assert triples(sentences[0]) == [(0, 1, "PER")]
    assert report.repairs == {
        "byte-order mark at the start of the file removed": [1],
        "whitespace at the border of a span trimmed": [1],
        "whitespace around a label removed": [1],
        "span given twice kept once": [1, 1],
        "line with answer 'reject' skipped": [2],
        "line with answer 'ignore' skipped": [3],
        "blank line skipped": [4],
        "text without a word skipped": [5],
        "task without an annotation skipped": [6],
    }


def test_a_span_that_cuts_a_word(read, tmp_path: Path) -> None:
    line = {"text": "in Londonderry today", "spans": [[3, 9, "LOC"]]}
    with pytest.raises(DataError) as caught:
        read(line)
    assert str(caught.value) == (
        f"{tmp_path / 'x.jsonl'}:1: span 3..9 'London' LOC cuts a word; the nearest word borders are "
        "3..14 'Londonderry': correct the offsets, give the words as word_offsets, or read with alignment 'expand'"
    )
    (sentence,), report = read(line, alignment="expand")
    assert triples(sentence) == [(1, 2, "LOC")]
    assert report.repairs == {"span that cut a word expanded to whole words": [1]}
    _, report = read(line, tolerant=True)
    assert [problem.kind for problem in report.problems] == ["misaligned"]


def test_a_cut_that_nobody_can_see_is_none(read) -> None:
    (sentence,), _ = read({"text": "ന്\u200d x", "spans": [[0, 2, "PER"]]})
    assert triples(sentence) == [(0, 1, "PER")]


NESTED = {"text": "University of London", "spans": [[0, 20, "ORG"], [14, 20, "LOC"]]}


def test_overlaps(read) -> None:
    with pytest.raises(DataError, match="spans overlap: 'University of London' ORG and 'London' LOC"):
        read(NESTED)
    assert triples(read(NESTED, on_overlap="keep")[0][0]) == [(0, 3, "ORG"), (2, 3, "LOC")]
    (sentence,), report = read(NESTED, on_overlap="longest")
    assert triples(sentence) == [(0, 3, "ORG")]
    assert report.repairs == {"overlapping span dropped, a longer one kept": [1]}
    # longest first, not first come: b-c-d beats a-b, then e stays
    crossing = {"tokens": list("abcde"), "spans": [[0, 2, "X"], [1, 4, "Y"], [3, 4, "X"], [4, 5, "X"]]}
    assert triples(read(crossing, on_overlap="longest")[0][0]) == [(1, 4, "Y"), (4, 5, "X")]
    _, report = read(NESTED, {"text": "a", "spans": []}, tolerant=True)
    assert [problem.kind for problem in report.problems] == ["overlap"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('{"text": "a", "spans": [}', "is not valid JSON (column 25"),
        ("[" * 100_000, "is not valid JSON (nested too deeply)"),
        ('"a"', "is str, not a JSON object"),
        ({"spans": []}, "has no text"),
        ({"text": 7, "spans": []}, "has a text that is int, not a string"),
        ({"text": None, "spans": []}, "has a text that is NoneType"),
        ({"text": "a"}, 'has no spans; write "spans": []'),
        ({"text": "a", "spans": {"a": 1}}, "has spans that is dict, not a list"),
        ({"text": "a", "spans": ["PER"]}, "has a span 'PER'"),
        ({"text": "a b", "spans": [[0, 1]]}, "has a span [0, 1]"),
        ({"text": "a b", "spans": [[0.0, 1, "X"]]}, "offsets 0.0..1; write whole numbers"),
        ({"text": "a b", "spans": [["0", 1, "X"]]}, "write whole numbers"),
        ({"text": "a b", "spans": [[False, 1, "X"]]}, "write whole numbers"),
        ({"text": "a b", "spans": [[0, 1, 3]]}, "whose label is 3"),
        ({"text": "a b", "spans": [{"start": 0, "end": 1}]}, "whose label is None"),
        ({"text": "a b", "spans": [[0, 1, " "]]}, "whose label is ' '"),
        ({"text": "a b", "spans": [[0, 4, "X"]]}, "outside the text: the text has 3 characters"),
        ({"text": "a b", "spans": [[-1, 1, "X"]]}, "outside the text"),
        ({"text": "a b", "spans": [[1, 1, "X"]]}, "start must lie before end"),
        ({"text": "a b", "spans": [[2, 1, "X"]]}, "start must lie before end"),
        ({"text": "a b", "spans": [[1, 2, "X"]]}, "covers no word, only ' '"),
        ({"text": "a b", "spans": [[0, 1, "X"]], "entities": [[2, 3, "Y"]]}, "has spans in spans and in entities"),
        ({"text": "a", "spans": [[0, 1, "X"]], "annotated_types": ["Y"]}, "type X that its annotated_types (Y) lack"),
        ({"text": "a", "spans": [], "annotated_types": "Y"}, "has annotated_types 'Y'; write a list"),
        ({"text": "\ud83d", "spans": []}, "half a character (U+D83D) at 0"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "has a word ''"),
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, "has a word 1"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "has 1 words but 2 tags"),
        ({"tokens": ["a"], "ner_tags": [3]}, "has numbers in ner_tags"),
        ({"tokens": ["a"], "spans": [[0, 2, "X"]]}, "a span 0..2 over 1 words"),
        ({"tokens": ["a", "b"], "tags": ["B-X", "Y"]}, "tag 'Y' is neither O nor"),
        ({"text": "a b", "spans": [], "word_offsets": [[2, 3], [0, 1]]}, "a word at 0..1; words must be in order"),
        ({"text": "a b", "spans": [], "word_offsets": [[0]]}, "has word_offsets that hold [0]"),
        ({"data": {"a": "x", "b": "y"}, "annotations": [{"result": []}]}, "has 2 texts in its data"),
    ],
)
def test_broken_lines_name_their_line(read, tmp_path: Path, value: Any, says: str) -> None:
    good = {"text": "good", "spans": []}
    with pytest.raises(DataError) as caught:
        read(good, value, good)
    assert str(caught.value).startswith(f"{tmp_path / 'x.jsonl'}:2: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    sentences, report = read(good, value, good, tolerant=True)
    assert len(sentences) == 2
    assert [problem.line for problem in report.problems] == [2]


def test_broken_arrays_name_their_line(read) -> None:
    with pytest.raises(DataError, match=r":3: is not valid JSON"):
        read('[\n{"text": "a", "spans": []},\n{"text": }\n]')
    with pytest.raises(DataError, match=r":2: is followed by neither a comma"):
        read('[\n{"text": "a", "spans": []}\n{"text": "b", "spans": []}]')


def test_a_pretty_object_is_one_sentence(read) -> None:
    assert read(json.dumps({"text": "a", "spans": []}, indent=1))[0][0].words == ("a",)


@given(st.data())
def test_spans_on_word_borders_are_found_again(data: st.DataObject) -> None:
    text = data.draw(st.text(alphabet="ab. \u200b\u00ad東é\n👍", min_size=1))
    offsets = split_words(text)
    if not offsets:
        return
    first = data.draw(st.integers(0, len(offsets) - 1))
    last = data.draw(st.integers(first, len(offsets) - 1))
    span = CharSpan(offsets[first][0], offsets[last][1], "X")
    report = ReadReport("x")
    assert align_spans(text, [span], offsets, alignment="error", line=1, report=report) == [Span(first, last + 1, "X")]
    assert report.repairs == {}


@given(st.text(alphabet="ab. \u200b東"), st.integers(-2, 12), st.integers(-2, 12))
def test_any_offsets_are_aligned_or_refused(text: str, start: int, end: int) -> None:
    offsets = split_words(text)
    strict, wide = ReadReport("x", tolerant=True), ReadReport("x", tolerant=True)
    exact = align_spans(text, [CharSpan(start, end, "X")], offsets, alignment="error", line=1, report=strict)
    grown = align_spans(text, [CharSpan(start, end, "X")], offsets, alignment="expand", line=1, report=wide)
    assert (exact is None) == bool(strict.problems)
    assert (grown is None) == bool(wide.problems)
    touched = [index for index, (a, b) in enumerate(offsets) if a < end and start < b]
    if 0 <= start < end <= len(text) and touched:
        assert grown == [Span(touched[0], touched[-1] + 1, "X")]
    else:
        assert grown is None
    assert exact is None or exact == grown


@pytest.mark.slow
def test_nested_corpus(shared_data: Path) -> None:
    path = shared_data / "gum" / "nested_test.jsonl"
    with pytest.raises(DataError, match="overlap"):
        read_with_report(path)
    nested, _ = read_with_report(path, on_overlap="keep")
    flat, _ = read_with_report(shared_data / "gum" / "test.conll")
    assert [sentence.words for sentence in nested] == [sentence.words for sentence in flat]
    outermost = [
        {
            s
            for s in sentence.spans
            if not any(
                o.start <= s.start and s.end <= o.end and (o.start, o.end) != (s.start, s.end) for o in sentence.spans
            )
        }
        for sentence in nested
    ]
    assert all(set(sentence.spans) <= outer for sentence, outer in zip(flat, outermost, strict=True))


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ('[{"text": "a", "spans": []}]\n[{"text": "b", "spans": []}]\n', 1, "more follows the end of the array"),
        ('[\n{"text": "a", "spans": []},\n{"text": "b", "spans": []},\n', 3, "the file ends before its array does"),
        ('[\n{"text": "a", "spans": []}\n', 2, "neither a comma nor the end"),
    ],
)
def test_an_array_that_is_not_the_whole_file_is_refused(tmp_path: Path, content: str, line: int, said: str) -> None:
    """What would be read in part looks like all there is."""
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"x\.json:{line}: .*{said}"):
        read_with_report(path)


def test_a_record_may_have_data_of_its_own(tmp_path: Path) -> None:
    """An object `data` makes a Label Studio task only of a record that is one otherwise."""
    path = tmp_path / "x.jsonl"
    record = {"text": "Ada took it", "spans": [{"start": 0, "end": 3, "label": "PER"}], "data": {"source": "x"}}
    path.write_text(json.dumps(record), encoding="utf-8")
    (sentence,) = read_sentences(path)
    assert sentence.spans == (Span(0, 1, "PER"),)
