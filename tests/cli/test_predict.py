"""`ner-cl predict`."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from spacy.tokens import DocBin
from spacy.vocab import Vocab

from ner_cl.cli.app import main
from ner_cl.data.documents import read_documents
from ner_cl.data.readers import read_sentences
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.model.store import load_model
from ner_cl.types import Sentence
from tests.tiny import trained_model

TEXTS = ["Ada Smith met Bob in Rome .", "", "  the old report ", "\U0001f600 Oslo visited Elif Jones ."]
Put = Callable[[bytes], None]


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_text_in_records_out_one_for_each_line(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_bytes("\r\n".join(TEXTS).encode())
    assert main(["predict", str(model_folder), str(tmp_path / "texts.txt")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = records(captured.out)
    assert [record["text"] for record in found] == TEXTS
    for record, entities in zip(found, load_model(model_folder).predict(TEXTS), strict=True):
        assert record["spans"] == [
            {"start": e.start, "end": e.end, "label": e.type, "score": round(e.score, 4), "step": e.step}
            for e in entities
        ]
        assert [record["text"][s["start"] : s["end"]] for s in record["spans"]] == [e.text for e in entities]
    assert found[-1]["spans"]  # behind a character outside the basic plane, where offsets go wrong first


@pytest.mark.parametrize("source", [[], ["-"]])
def test_stdin_is_text_or_json_lines(
    source: list[str], model_folder: Path, stdin: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin("\n".join(TEXTS).encode())
    assert main(["predict", str(model_folder), *source]) == 0
    from_text = records(capsys.readouterr().out)
    lines = [json.dumps({"id": number, "text": text, "other": 1}) for number, text in enumerate(TEXTS)]
    stdin("\n\n".join(lines).encode())
    assert main(["predict", str(model_folder), *source]) == 0
    from_json = records(capsys.readouterr().out)
    assert from_json == [{"id": number, **record} for number, record in enumerate(from_text)]


def test_a_line_of_text_may_look_like_json(model_folder: Path, stdin: Put, capsys: pytest.CaptureFixture[str]) -> None:
    stdin(b'{"a": 1}\n{"text": "Ada met Bob ."}\n')
    assert main(["predict", str(model_folder)]) == 0
    assert [record["text"] for record in records(capsys.readouterr().out)] == ['{"a": 1}', '{"text": "Ada met Bob ."}']


@pytest.mark.parametrize(("format_", "name"), [("conll", "out.conll"), ("docbin", "out.spacy"), ("jsonl", "out.jsonl")])
def test_every_format_can_be_read_back(format_: str, name: str, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:1] + TEXTS[2:]))
    output = tmp_path / "results" / name
    output.parent.mkdir()
    words = ["predict", str(model_folder), str(tmp_path / "texts.txt"), "--format", format_, "--output", str(output)]
    assert main(words) == 0
    expected = [
        [(entity.text.split(), entity.type) for entity in entities]
        for entities in load_model(model_folder).predict(TEXTS[:1] + TEXTS[2:])
    ]
    assert sum(map(len, expected)) >= 2
    read = read_sentences(output)
    assert [[(list(s.words[span.start : span.end]), span.type) for span in s.spans] for s in read] == expected
    assert [path.name for path in output.parent.iterdir()] == [name]


def test_columns_go_to_stdout_too(model_folder: Path, stdin: Put, capsys: pytest.CaptureFixture[str]) -> None:
    stdin(f"{TEXTS[0]}\n".encode())
    assert main(["predict", str(model_folder), "--format", "conll"]) == 0
    tags = dict.fromkeys(TEXTS[0].split(), "O")
    for entity in load_model(model_folder).predict(TEXTS[0]):
        first, *others = entity.text.split()
        tags |= {first: f"B-{entity.type}", **dict.fromkeys(others, f"I-{entity.type}")}
    assert set(tags.values()) >= {"O", "B-PER"}
    assert capsys.readouterr().out == "".join(f"{word}\t{tag}\n" for word, tag in tags.items()) + "\n"


def test_types_and_scores_can_be_limited(model_folder: Path, stdin: Put, capsys: pytest.CaptureFixture[str]) -> None:
    text = (TEXTS[0] + "\n").encode()
    stdin(text)
    assert main(["predict", str(model_folder), "--types", "LOC"]) == 0
    (record,) = records(capsys.readouterr().out)
    assert {span["label"] for span in record["spans"]} == {"LOC"}
    stdin(text)
    assert main(["predict", str(model_folder), "--min-score", "1.0"]) == 0
    (record,) = records(capsys.readouterr().out)
    assert all(span["score"] == 1.0 for span in record["spans"])


@pytest.mark.parametrize("head", ["addner", "spankl"])
def test_nested_entities(head: str, tmp_path: Path, stdin: Put, capsys: pytest.CaptureFixture[str]) -> None:
    """Two blocks that say the same of every word: merged, one of them is heard; nested, both are."""
    model = trained_model(tmp_path / "encoder", head)
    model.head.blocks[1].load_state_dict(model.head.blocks[0].state_dict())
    model.save(tmp_path / "model")
    for flags, labels in (([], ["PER"]), (["--nested"], ["LOC", "PER"])):
        stdin(b"the Ada Smith met\n")
        assert main(["predict", str(tmp_path / "model"), *flags]) == 0
        (record,) = records(capsys.readouterr().out)
        assert [(span["start"], span["end"], span["label"]) for span in record["spans"]] == [
            (4, 13, label) for label in labels
        ]
    assert main(["predict", str(tmp_path / "model"), "--nested", "--format", "conll"]) == 2
    assert "--format conll has one tag a word" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"text": "a"}\nnot json\n', "stdin:2: is not valid JSON"),
        (b'{"text": "a"}\n{"txt": "b"}\n', "stdin:2: has no text"),
        (b'{"text": "a"}\n[1]\n', "stdin:2: is a JSON array"),
        (b'{"text": "a"}\n{"text": "\\ud800"}\n', "stdin:2: holds half a character"),
        (b'{"text": "a"}\n{"text": "b", "meta": {"x": ["\\ud800"]}}\n', "stdin:2: holds half a character"),
        (b"fine\nG\xf6ttingen\n", "stdin:2: is not UTF-8; if it is Latin-1, convert it with: iconv"),
        ("fine".encode("utf-16"), "stdin: is UTF-16, not UTF-8"),
        (b"\x1f\x8b\x08\x00", "stdin: is a compressed file; unpack it first"),
        (b"PAR1\x15\x04\x15", "stdin: is a parquet or arrow file"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_no_file_is_left(
    data: bytes, said: str, model_folder: Path, tmp_path: Path, stdin: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(data)
    assert main(["predict", str(model_folder), "--output", str(tmp_path / "out.jsonl")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-file.txt"], "no such file"),
        (["."], "is a folder"),
        (["--types", "PRE"], "unknown type PRE"),
        (["--format", "jsnl"], "did you mean 'jsonl'"),
        (["--format", "docbin"], "--output"),
        (["--min-score", "2"], "--min-score"),
        (["--output", "."], "is a folder"),
    ],
)
def test_wrong_asking_is_refused(
    words: list[str], said: str, model_folder: Path, stdin: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(b"Ada\n")
    assert main(["predict", str(model_folder), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("Ada")
    path.chmod(0)
    assert main(["predict", str(model_folder), str(path)]) == 2
    assert "cannot be opened" in capsys.readouterr().err


def test_an_endless_stream_fits_into_memory(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command reads no further ahead of what it writes than the model does."""
    read = written = furthest = 0

    def counted(source: str) -> Iterator[Any]:
        nonlocal read
        for document in read_documents(source):
            read += 1
            yield document

    def predict(self: NerModel, texts: Iterator[str], **options: object) -> Iterator[list[Any]]:
        nonlocal written, furthest
        for _ in texts:
            furthest = max(furthest, read - written)
            yield []
            written += 1

    monkeypatch.setattr("ner_cl.cli.predict.read_documents", counted)
    monkeypatch.setattr(NerModel, "predict", predict)
    (tmp_path / "many.txt").write_text("a\n" * 5000)
    output = tmp_path / "out.jsonl"
    assert main(["predict", str(model_folder), str(tmp_path / "many.txt"), "--output", str(output)]) == 0
    assert read == 5000
    assert furthest <= 2
    assert len(output.read_text().splitlines()) == 5000


def test_a_blank_line_is_an_empty_document_in_a_docbin(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("Ada met Bob .\n\nIt rained .\n")
    output = tmp_path / "out.spacy"
    assert (
        main(["predict", str(model_folder), str(tmp_path / "texts.txt"), "--format", "docbin", "--output", str(output)])
        == 0
    )
    assert [len(doc) for doc in DocBin().from_disk(output).get_docs(Vocab())] == [4, 0, 3]


@pytest.mark.parametrize("name", ["old.conll", "old.spacy", "old.tsv"])
def test_annotated_sentences_are_no_texts(
    name: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("Ada B-PER\n")
    assert main(["predict", str(model_folder), str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"ner-cl data convert {tmp_path / name} old.jsonl" in captured.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("old.conllu", "predict reads texts; take these from it, for instance with: sed -n 's/^# text = //p'"),
        ("old.csv", "is a CSV file, whose header and commas would be read as text"),
    ],
)
def test_tables_are_no_texts(
    name: str, said: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("1\tAda\n")
    assert main(["predict", str(model_folder), str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_words_of_a_record_are_read_as_given(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `evaluate` reads of a file, `predict` reads of it too."""
    text = "the report met Ada-Smith near Rome ."
    offsets = [[0, 3], [4, 10], [11, 14], [15, 24], [25, 29], [30, 34], [35, 36]]
    record = {"text": text, "word_offsets": offsets, "id": 7}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    assert main(["predict", str(model_folder), str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o.jsonl")]) == 0
    [found] = records((tmp_path / "o.jsonl").read_text())
    assert (found["word_offsets"], found["id"]) == (offsets, 7)
    words = tuple(text[start:end] for start, end in offsets)
    [spans] = predict_sentences(load_model(model_folder), [Sentence(words)])
    assert [(s["start"], s["end"], s["label"]) for s in found["spans"]] == [
        (offsets[span.start][0], offsets[span.end - 1][1], span.type) for span in spans
    ]
    [again] = read_sentences(tmp_path / "o.jsonl")
    assert (again.words, list(again.spans)) == (words, spans)
    for format_ in ("conll", "docbin"):
        path = tmp_path / f"o.{'conll' if format_ == 'conll' else 'spacy'}"
        command = ["predict", str(model_folder), str(tmp_path / "in.jsonl"), "--output", str(path)]
        assert main([*command, "--format", format_]) == 0
        [again] = read_sentences(path)
        assert (again.words, list(again.spans)) == (words, spans)


@pytest.mark.parametrize("word", ["Smith\tvisited", "-DOCSTART-"])
def test_words_that_columns_cannot_hold_are_named(
    word: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"text": f"Ada {word}", "word_offsets": [[0, 3], [4, 4 + len(word)]]}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    output = tmp_path / "o.conll"
    command = ["predict", str(model_folder), str(tmp_path / "in.jsonl"), "--format", "conll", "--output", str(output)]
    assert main(command) == 2
    assert f"in.jsonl:1: a column file cannot hold the word {word!r}; write JSONL" in capsys.readouterr().err
    assert not output.exists()


def test_an_array_is_told_from_lines(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.json").write_text('[{"text": "Ada"}]')
    assert main(["predict", str(model_folder), str(tmp_path / "in.json")]) == 2
    assert "in.json:1: is a JSON array; give one object a line" in capsys.readouterr().err


def test_words_that_do_not_fit_the_text_are_named(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "Ada", "word_offsets": [[0, 9]]}) + "\n")
    assert main(["predict", str(model_folder), str(tmp_path / "in.jsonl")]) == 2
    assert "in.jsonl:1: has a word at 0..9; words must be in order and inside the text" in capsys.readouterr().err
