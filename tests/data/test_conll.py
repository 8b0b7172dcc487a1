import re
from pathlib import Path

import pytest

from ner_cl.data.readers import ReadReport, read_sentences, read_with_report
from ner_cl.errors import ConfigError, DataError
from ner_cl.types import Sentence


@pytest.fixture
def read(tmp_path: Path):
    def read(content: str | bytes, **options: object) -> tuple[list[Sentence], ReadReport]:
        path = tmp_path / "x.conll"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return read_with_report(path, **options)  # type: ignore[arg-type]

    return read


def flat(sentences: list[Sentence]) -> list[tuple[str, list[tuple[int, int, str]]]]:
    return [(" ".join(s.words), [(x.start, x.end, x.type) for x in s.spans]) for s in sentences]


def lines(report: ReadReport) -> dict[str, list[int]]:
    return report.repairs


PLAIN = [("Ada Lovelace writes", [(0, 2, "PER")]), ("In London", [(1, 2, "LOC")])]


@pytest.mark.parametrize(
    "content",
    [
        "Ada\tB-PER\nLovelace\tI-PER\nwrites\tO\n\nIn\tO\nLondon\tB-LOC\n\n",
        "Ada B-PER\nLovelace I-PER\nwrites O\n\nIn O\nLondon B-LOC",  # spaces, no line end at the end
        "Ada\tB-PER\r\nLovelace\tI-PER\r\nwrites\tO\r\n\r\nIn\tO\r\nLondon\tB-LOC\r\n",
        "Ada NNP B-NP B-PER\nLovelace NNP I-NP I-PER\nwrites VB O O\n\nIn IN O O\nLondon NNP B-NP B-LOC\n",
        "Ada B-PER\nLovelace E-PER\nwrites O\n\nIn O\nLondon S-LOC\n",
        "Ada B-PER\nLovelace L-PER\nwrites O\n\nIn O\nLondon U-LOC\n",
        "Ada I-PER\nLovelace I-PER\nwrites O\n\nIn O\nLondon I-LOC\n",
        "Ada PER\nLovelace PER\nwrites O\n\nIn O\nLondon LOC\n",
        "\n\n\nAda\tB-PER\nLovelace\tI-PER\nwrites\tO\n\t\n \n\n\nIn\tO\nLondon\tB-LOC\n\t\n",
        "\ufeffAda\tB-PER\nLovelace\tI-PER\nwrites\tO\n\nIn\tO\nLondon\tB-LOC\n",
    ],
)
def test_shapes_that_mean_the_same(read, content: str) -> None:
    sentences, _ = read(content)
    assert flat(sentences) == PLAIN
    assert all(sentence.annotated_types == {"PER", "LOC"} for sentence in sentences)


def test_source_is_file_and_line(read, tmp_path: Path) -> None:
    sentences, _ = read("\nAda\tB-PER\n\n\nBob\tO\n")
    assert [sentence.source for sentence in sentences] == [f"{tmp_path / 'x.conll'}:2", f"{tmp_path / 'x.conll'}:5"]


def test_types_say_what_was_annotated(read) -> None:
    content = "Ada\tB-PER\nParis\tB-LOC\n"
    (sentence,), report = read(content, types=["PER", "DRUG"])
    assert sentence.annotated_types == {"PER", "DRUG"}
    assert flat([sentence]) == [("Ada Paris", [(0, 1, "PER")])]
    assert lines(report) == {"span of a type that was not asked for left out": [1]}
    with pytest.raises(DataError, match="knows none of the types PRE, did you mean 'PER'"):
        read(content, types=["PRE"])
    with pytest.raises(ConfigError, match="must be a list"):
        read(content, types="PER")


def test_every_repair_is_counted_with_its_lines(read) -> None:
    content = "\ufeff# id 1\tdomain=en\r\na\tO\n \tO\n\u200b\tO\n\t\n-DOCSTART-\tO\n\nb\tO\nc\tI-X\nd\tB-Y\n"
    sentences, report = read(content)
    assert [sentence.words for sentence in sentences] == [("a", "\u200b"), ("b", "c", "d")]
    assert lines(report) == {
        "byte-order mark at the start of the file removed": [1],
        "CRLF line end": [1],
        "comment line skipped": [1],
        "empty word with tag O dropped": [3],
        "word without a visible character kept": [4],
        "separator line that holds blanks": [5],
        "document marker skipped": [6],
        "I- tag that continues nothing opened a span": [9],
    }
    assert report.scheme == "iob2"


@pytest.mark.parametrize(
    "marker", ["-DOCSTART- -X- -X- O", "-DOCSTART- -X- O O", "-DOCSTART- O", "-DOCSTART- -DOCSTART- O", "-DOCSTART-,O"]
)
def test_document_markers_part_sentences(read, marker: str) -> None:
    sentences, _ = read(f"{marker}\n\na b c O\n{marker}\nd e f B-X\n")
    assert [sentence.words for sentence in sentences] == [("a",), ("d",)]


@pytest.mark.parametrize(
    "comment",
    [
        "# id 5e3\tdomain=en",
        "# id 5e3",
        "# sent_id = 4",
        "###MEDLINE:90092414",
        "## klue-1\ta whole sentence",
        "#\thttp://x.org/I-9",
    ],
)
@pytest.mark.parametrize("separator", ["\t", " "])
def test_comments(read, comment: str, separator: str) -> None:
    sentences, report = read(f"{comment}\na{separator}O\nb{separator}B-X\n")
    assert flat(sentences) == [("a b", [(1, 2, "X")])]
    assert lines(report) == {"comment line skipped": [1]}


def test_words_that_look_like_tags_or_comments_are_words(read) -> None:
    content = "I-95\tO\nO\tO\n#\tO\n#1\tB-X\n# id\tI-X\nE-Mail\tO\nB-52\tS-Y\n".replace("S-Y", "B-Y")
    sentences, report = read(content)
    assert flat(sentences) == [("I-95 O # #1 # id E-Mail B-52", [(3, 5, "X"), (6, 7, "Y")])]
    assert lines(report) == {}
    bare, _ = read("# PER\na O\nb PER\n")
    assert flat(bare) == [("# a b", [(0, 1, "PER"), (2, 3, "PER")])]
    assert [sentence.words for sentence in read("#\tO\n#x\tO\n")[0]] == [("#", "#x")]


def test_tabs_part_columns_spaces_do_not(read) -> None:
    sentences, _ = read("New York \tB-LOC\na\xa0b\tO\nc\t O \n")
    assert sentences[0].words == ("New York ", "a\xa0b", "c")
    assert read("this\xa0 O\nb  O  \n")[0][0].words == ("this\xa0", "b")


def test_only_line_feeds_end_lines(read) -> None:
    sentences, _ = read("a\x85b\tO\nc\u2028d\tB-X\n\x91e\x0c\tO\n")
    assert sentences[0].words == ("a\x85b", "c\u2028d", "\x91e\x0c")


def test_the_type_is_all_after_the_first_hyphen(read) -> None:
    types = ["event-attack/battle/war", "building-other", "PER.NOM", "GPE_LOC", "LEGISLATION/ACT", "geo political"]
    (sentence,), _ = read("".join(f"w\tB-{type_}\n" for type_ in types))
    assert [span.type for span in sentence.spans] == types


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("a\tO\nscript\nb\tB-X\n", 2, "has no tag after the word 'script'; add it"),
        ("a O\nscript\nb B-X\n", 2, "has no tag after the word 'script'"),
        ("a\tO\nNew York\nb\tB-X\n", 2, "has no tag after the word 'New York'"),
        ("a O\n S-MALon I-ACT\nb B-X\n", 2, "3 columns where the file has 2"),
        ("a O\nApp I-TOO B-IDTYL\nb B-X\n", 2, "3 columns where the file has 2"),
        ("a N N O\nb N B-NP\nc N N B-X\n", 2, "3 columns where the file has 4"),
        ("a O\nAPT18 S-APT\xa0is\nb S-APT\n", 2, "holds whitespace"),
        ("a B-X\nMcAfee PROT\nb I-X\n", 2, "tag 'PROT' is neither O nor"),
        ("a S-X\nMcAfee S-S-X\n", 2, "two prefixes; write 'S-X'"),
        ("a\tO\n\tB-X\nb\tO\n", 2, "has the tag 'B-X' but no word"),
        ("a\tO\rb\tO\nc\tB-X\nd\tO\n", 1, "carriage return"),
        ("\na\nb\n", 2, "has one column only"),
        ("a,O\nb,B-X\n", 1, "replace the commas by tabs"),
    ],
)
def test_what_has_no_one_meaning_is_refused_with_its_line(
    read, tmp_path: Path, content: str, line: int, says: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(content)
    assert str(caught.value).startswith(f"{tmp_path / 'x.conll'}:{line}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    _, report = read(content, tolerant=True)
    assert [problem.line for problem in report.problems] == [line]


def test_tolerant_reading_lists_all_and_keeps_the_good_sentences(read) -> None:
    sentences, report = read("a\tB-X\n\nb\n\nc\n\nd\tZ-X\n\ne\tO\n", tolerant=True)
    assert [sentence.words for sentence in sentences] == [("a",), ("e",)]
    assert [(problem.kind, problem.line) for problem in report.problems] == [
        ("broken", 3),
        ("broken", 5),
        ("broken", 7),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n \n\t\n", "is empty"),
        (b"-DOCSTART- O\n\n", "holds no sentence"),
        ("a\tO\nMünchen\tB-X\n".encode("latin-1"), "2: is not UTF-8; if it is Latin-1, convert it with: iconv"),
        ("a\tO\n".encode("utf-16"), "is UTF-16"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        (b"PAR1\x15\x04", "is a parquet or arrow file"),
        (b"a\x00\xff\xfe\n", "is neither UTF-8 nor text in another encoding"),
    ],
)
def test_files_that_are_no_utf8_text(read, content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        read(content)


@pytest.mark.parametrize(
    "content",
    [
        "# text = Ada left .\n1-2\tAda left\t_\t_\t_\t_\t_\t_\t_\t_\n"
        "1\tAda\tAda\tPROPN\t_\t_\t2\tnsubj\t_\tName=B-PER\n"
        "2\tleft\tleave\tVERB\t_\t_\t0\troot\t_\t_\n2.1\t.\t_\t_\t_\t_\t_\t_\t_\t_\n",
        "# from 1998\n1\tAda\tB-PER\tO\n2\tleft\tO\tO\n\n1\tRome\tB-LOC\tO\n",
    ],
    ids=["CoNLL-U", "GermEval"],
)
def test_numbered_words_are_refused(read, content: str) -> None:
    with pytest.raises(DataError, match=r"x\.conll:2: has the number of the word in its first column.*: cut -f2,3"):
        read(content)


def test_words_that_are_numbers_are_words(read) -> None:
    (sentence, *_), _ = read("1 CD B-X\n2 CD I-X\n\nto TO O\n")
    assert sentence.words == ("1", "2")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.conll: no such file"):
        read_sentences(tmp_path / "none.conll")
    with pytest.raises(DataError, match="is a folder"):
        read_sentences(tmp_path, format="conll")


def test_options_are_checked(read) -> None:
    with pytest.raises(ConfigError, match="unknown tag scheme"):
        read("a\tO\n", scheme="iobx")
    with pytest.raises(ConfigError, match="on_overlap 'longst' is unknown, did you mean 'longest'"):
        read("a\tO\n", on_overlap="longst")
    with pytest.raises(ConfigError, match="alignment"):
        read("a\tO\n", alignment="shrink")
    with pytest.raises(ConfigError, match="unknown format 'conl', did you mean 'conll'"):
        read("a\tO\n", format="conl")


def test_a_named_scheme_refuses_another(read) -> None:
    with pytest.raises(DataError, match=r":1: tag 'B-X' is not io"):
        read("a\tB-X\nb\tI-X\n", scheme="io")


def test_tags_in_another_column_are_noted(read) -> None:
    _, report = read("Q\tO\tQ\tO\nx\tB-Y\tx\tO\n")
    assert lines(report) == {"the last column is always O and was read, but column 2 holds tags": [2]}
