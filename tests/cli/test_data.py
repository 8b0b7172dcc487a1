"""`ner-cl data check`, `convert`, `split` and `forget`."""

import json
from pathlib import Path

import pytest
import spacy
import torch
import yaml
from spacy.tokens import DocBin
from spacy.tokens import Span as DocSpan

from ner_cl.cli.app import main
from ner_cl.config import parse_config
from ner_cl.data.readers import read_sentences
from ner_cl.data.stream import Corpus, build_stream, fingerprint
from ner_cl.data.writers import write_sentences
from ner_cl.model.store import load_model
from ner_cl.train.run import open_stream
from ner_cl.types import Sentence, Span
from tests.cli.conftest import Toy
from tests.tiny import toy_sentences


def test_check_counts_what_is_in_a_folder(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(toy.data)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["file", "train", "dev", "test"]
    train = read_sentences(toy.data / "train.jsonl")
    people = sum(span.type == "PER" for sentence in train for span in sentence.spans)
    assert ["PER", str(people)] in [line.split()[:2] for line in lines]
    assert lines[-1] == "no problems"


def test_check_of_a_broken_file_ends_with_1_and_names_the_lines(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.conll"
    path.write_text("Ada\tB-PER\n\nBob\n\nEve\tX-PER\n")
    assert main(["data", "check", str(path), str(toy.orgs)]) == 1
    captured = capsys.readouterr()
    assert f"{path}:3: " in captured.out
    assert f"{path}:5: " in captured.out
    assert captured.err.splitlines() == ["ner-cl: error: 2 problems found; correct the data, then train on them"]
    assert main(["data", "check", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], len(report["problems"])) == (False, 2)


def test_check_can_take_spans_that_cut_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_text('{"text": "Adas book", "spans": [{"start": 0, "end": 3, "label": "PER"}]}\n')
    assert main(["data", "check", str(path)]) == 1
    assert main(["data", "check", str(path), "--alignment", "expand"]) == 0


@pytest.mark.parametrize("names", [[], ["train.conll", "train.jsonl"]])
def test_a_folder_must_say_which_file_is_which(
    names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "name the files one by one" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "{", "[1]", '{"splits": 3}'])
def test_a_saved_data_set_that_is_damaged_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset_dict.json").write_text(text)
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "dataset_dict.json: does not list the splits of a data set; save it again" in capsys.readouterr().err


def test_equal_names_in_two_folders_are_told_apart(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    other = f"{toy.data}/../data/train.jsonl"
    assert main(["data", "check", str(toy.data / "train.jsonl"), other, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["splits"]) == {str(toy.data / "train.jsonl"), other}


@pytest.mark.parametrize("scheme", ["iob1", "iob2", "bioes"])
def test_convert_there_and_back_loses_nothing(
    scheme: str, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns, binary, lines = (tmp_path / name for name in ("a.conll", "b.spacy", "c.jsonl"))
    assert main(["data", "convert", str(toy.data / "train.jsonl"), str(columns), "--scheme", scheme]) == 0
    assert "200 sentences with " in capsys.readouterr().err
    assert main(["data", "convert", str(columns), str(binary), "--from", "conll"]) == 0
    assert main(["data", "convert", str(binary), str(lines), "--to", "jsonl"]) == 0
    first, last = read_sentences(toy.data / "train.jsonl"), read_sentences(lines)
    assert [(s.words, s.spans, s.annotated_types) for s in last] == [
        (s.words, s.spans, s.annotated_types) for s in first
    ]
    assert capsys.readouterr().out == ""


def test_convert_keeps_only_asked_types(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "per.jsonl"
    assert main(["data", "convert", str(toy.data / "train.jsonl"), str(output), "--types", "PER,PRE"]) == 0
    assert "no mention of PRE, did you mean 'PER'?" in capsys.readouterr().err
    assert {span.type for sentence in read_sentences(output) for span in sentence.spans} == {"PER"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out.xyz"], "says no format"),
        (["out.jsonl", "--to", "jsonlines"], "cannot be written"),
        (["out.conll", "--scheme", "iob3"], "unknown tag scheme"),
        (["/proc/none/out.jsonl"], "cannot be written"),
    ],
)
def test_convert_refuses_what_it_cannot_write(
    words: list[str], said: str, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "convert", str(toy.orgs), str(tmp_path / words[0]), *words[1:]]
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_split_writes_what_the_stream_gives(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "steps"
    words = ["data", "split", str(toy.data), str(output), "--protocol", "greedy", "--steps", "[[LOC], [PER]]"]
    assert main([*words, "--seed", "3"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["1", "LOC", "100", "40"],
        ["2", "PER", "100", "40"],
    ]
    corpus = Corpus(*(tuple(read_sentences(toy.data / f"{part}.jsonl")) for part in ("train", "dev", "test")))
    stream = build_stream(corpus, [["LOC"], ["PER"]], protocol="greedy", seed=3)
    for step in stream.steps:
        folder = output / f"step-{step.number:02d}"
        for part, sentences in (("train", step.train), ("dev", step.dev)):
            read = read_sentences(folder / f"{part}.jsonl")
            assert [(s.words, s.spans, s.annotated_types) for s in read] == [
                (s.words, s.spans, s.annotated_types) for s in sentences
            ]
    assert len(read_sentences(output / "test.jsonl")) == 80

    config = toy.write_config(toy.config.parent / "split.yaml", stream={"file": str(output / "stream.yaml")})
    assert main(["train", str(config), "--dry-run", "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert [step["types"] for step in description["steps"]] == [["LOC"], ["PER"]]
    assert [step["mentions"] for step in description["steps"]] == [
        {type_: sum(len(sentence.spans) for sentence in step.train) for type_ in step.types} for step in stream.steps
    ]

    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err

    other = [*words[:3], str(tmp_path / "other"), *words[4:]]
    assert main([*other, "--json"]) == 0
    sizes = [{"step": s.number, "types": list(s.types), "train": 100, "dev": len(s.dev)} for s in stream.steps]
    assert json.loads(capsys.readouterr().out) == {"output": str(tmp_path / "other"), "steps": sizes}


def test_the_files_of_a_split_make_the_same_stream(toy: Toy, tmp_path: Path) -> None:
    """A list of files, one for each step, gives the steps that the protocol gave, and the same test set."""
    output = tmp_path / "steps"
    words = ["--protocol", "greedy", "--steps", "[[LOC], [PER]]"]
    assert main(["data", "split", str(toy.data), str(output), *words]) == 0
    files = {part: [str(output / f"step-0{step}" / f"{part}.jsonl") for step in (1, 2)] for part in ("train", "dev")}
    corpora = (
        {"file": str(output / "stream.yaml")},
        {"corpus": {**files, "test": str(output / "test.jsonl")}, "steps": [["LOC"], ["PER"]]},
        {
            "corpus": {"train": files["train"], "dev": str(toy.data / "dev.jsonl"), "test": str(output / "test.jsonl")},
            "steps": [["LOC"], ["PER"]],
        },
    )
    divided, listed, one_dev = (open_stream(parse_config({"stream": stream})) for stream in corpora)
    assert (divided.protocol, listed.protocol) == ("greedy", "files")
    for one, other, third in zip(divided.steps, listed.steps, one_dev.steps, strict=True):
        assert one.data_hash == other.data_hash == third.data_hash
        assert fingerprint(one.dev) == fingerprint(other.dev) == fingerprint(third.dev)
    assert fingerprint(divided.test) == fingerprint(listed.test)
    assert len(listed.everything_until(2)) == len(divided.everything_until(2))
    assert {s.annotated_types for s in listed.everything_until(2)} == {frozenset({"LOC"}), frozenset({"PER"})}


def test_files_in_another_order_than_the_steps_are_told(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "split", str(toy.data), str(tmp_path / "steps"), "--steps", "[[LOC], [PER]]"]) == 0
    files = [str(tmp_path / "steps" / f"step-0{step}" / "train.jsonl") for step in (2, 1)]
    stream = {"corpus": {"train": files, "test": str(toy.data / "test.jsonl")}, "steps": [["LOC"], ["PER"]]}
    config = toy.write_config(tmp_path / "config.yaml", stream=stream)
    capsys.readouterr()
    assert main(["train", str(config), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "step 1: none of its 100 training sentences mentions LOC" in said
    assert "check stream.steps and the order of the files in corpus.train" in said
    assert "100 of the sentences count as annotated for none of the step's types" in said
    assert "seed" not in said
    dev = [str(tmp_path / "steps" / f"step-0{step}" / "dev.jsonl") for step in (2, 1)]
    stream["corpus"] |= {"train": files[::-1], "dev": dev}
    assert main(["train", str(toy.write_config(config, stream=stream)), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "step 1: none of its 20 dev sentences mentions LOC; check the order of the files in corpus.dev" in said


def test_split_of_one_file_orders_its_types(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "steps"
    words = ["data", "split", str(toy.data / "train.jsonl"), str(output), "--order", "frequency", "--first", "2"]
    assert main([*words, "--protocol", "overlap"]) == 0
    without = sum(not sentence.spans for sentence in read_sentences(toy.data / "train.jsonl"))
    said = capsys.readouterr().err
    assert f"note: {without} of 200 training sentences are in no step" in said
    assert f"note: there is no test set; add corpus.test to {output / 'stream.yaml'}" in said
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert found == {"step-01/train.jsonl", "stream.yaml"}
    values = yaml.safe_load((output / "stream.yaml").read_text())
    reading = {"format": "auto", "scheme": "auto", "alignment": "error", "on_overlap": "error"}
    assert values["corpus"] == {**reading, "train": str(toy.data / "train.jsonl")}
    assert set(values["steps"][0]) == {"PER", "LOC"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--protocol", "gredy"], "did you mean 'greedy'"),
        (["--order", "frequent"], "did you mean 'frequency'"),
        (["--steps", "[PER, LOC]"], "list of lists"),
        (["--steps", "[]"], "list of lists"),
        (["--steps", "[[PER], []]"], "list of lists"),
        (["--steps", "[[NO], [PER]]"], "False is no name; write names such as 'NO' or '1' in quotes"),
        (["--steps", "[[PER], [1]]"], "1 is no name"),
        (["--steps", "[[PER], [LCO]]"], "did you mean 'LOC'"),
        (["--steps", "[[PER], [PER]]"], "already in step 1"),
        (["--steps", "[[PER"], "not valid YAML"),
        (["--steps", "[[PER], [LOC]]", "--order", "frequency"], "leave --order, --increment and --first out"),
        (["--steps", "[[PER], [LOC]]", "--increment", "1"], "leave --order, --increment and --first out"),
    ],
)
def test_split_refuses_what_makes_no_stream(
    words: list[str], said: str, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "split", str(toy.data), str(tmp_path / "steps"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_scheme_that_messages_ask_for_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells, lines = tmp_path / "x.conll", tmp_path / "x.jsonl"
    cells.write_text("a\tO\ncell\tT-cell\n\ncell\tB-cell\ncell\tT-cell\n\n")
    assert main(["data", "convert", str(cells), str(lines)]) == 2
    assert "name the scheme io" in capsys.readouterr().err
    assert main(["data", "convert", str(cells), str(lines), "--from-scheme", "io"]) == 0
    assert {span.type for s in read_sentences(lines) for span in s.spans} == {"T-cell", "B-cell"}
    assert main(["data", "split", str(cells), str(tmp_path / "steps"), "--scheme", "io"]) == 0
    assert len(list((tmp_path / "steps").glob("step-*"))) == 2
    assert main(["data", "convert", str(cells), str(lines), "--scheme", "io"]) == 2
    assert "--scheme is for column files, and OUT is none" in capsys.readouterr().err


# --- forget


@pytest.fixture
def remembering(model_folder: Path, tmp_path: Path) -> Path:
    """A model that keeps sentences, tensors about them, and one that is about none."""
    model = load_model(model_folder)
    kept = tuple(sentence.restrict({"PER"}) for sentence in toy_sentences(3, types=("PER",)))
    model.kept_sentences = {"replay": kept, "agem": kept[:1]}
    model.strategy_state = {
        "replay": {"sentence/1": torch.ones(2, 3)},
        "ewc": {"fisher": torch.ones(4), "sentence/2": torch.ones(1)},
    }
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_forget_deletes_sentences_and_what_is_about_them_and_nothing_else(
    remembering: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (remembering / "notes.txt").write_text("mine")
    assert main(["data", "forget", str(remembering)]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"4 sentences deleted from {remembering}\n")
    found = {str(path.relative_to(remembering)) for path in remembering.rglob("*") if path.is_file()}
    expected = {str(path.relative_to(model_folder)) for path in model_folder.rglob("*") if path.is_file()}
    assert found == expected | {"notes.txt", "strategy/ewc.safetensors"}
    assert list(load_model(remembering).strategy_state["ewc"]) == ["fisher"]
    for name in expected:
        assert (remembering / name).read_bytes() == (model_folder / name).read_bytes()
    assert [path.name for path in remembering.parent.iterdir()] == ["model"]
    assert main(["data", "forget", str(remembering)]) == 0
    assert capsys.readouterr().err == f"0 sentences deleted from {remembering}\n"


def test_forget_finishes_what_a_killed_one_began(remembering: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (remembering / "strategy").rename(remembering / ".strategy.replaced-1")
    assert main(["-q", "data", "forget", str(remembering)]) == 0
    left = [path.name for path in remembering.rglob("*") if "replaced" in path.name or path.suffix == ".jsonl"]
    assert left == ["history.jsonl"]
    assert list(load_model(remembering).strategy_state) == ["ewc"]


def test_forget_of_a_run_names_its_models(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "forget", str(run_folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run_folder}: is a run folder; its models are in {run_folder / 'steps'}/*" in line


@pytest.mark.parametrize("name", ["nothing", "folder", "file"])
def test_forget_refuses_what_is_no_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder" / "strategy").mkdir(parents=True)
    (tmp_path / "folder" / "strategy" / "replay.jsonl").write_text("mine")
    (tmp_path / "file").write_text("mine")
    assert main(["data", "forget", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / name) in line
    assert (tmp_path / "folder" / "strategy" / "replay.jsonl").read_text() == "mine"


def test_sentences_left_out_of_a_split_are_counted_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All sentences of a spaCy document come from the same place."""
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    doc = nlp("Ada came. It rained. It snowed.")
    doc.set_ents([DocSpan(doc, 0, 1, "PER")])
    DocBin(docs=[doc]).to_disk(tmp_path / "train.spacy")
    assert main(["data", "split", str(tmp_path / "train.spacy"), str(tmp_path / "out"), "--protocol", "overlap"]) == 0
    assert "note: 2 of 3 training sentences are in no step" in capsys.readouterr().err


def test_only_columns_cannot_say_what_is_annotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentences = [
        Sentence(("Ada",), (Span(0, 1, "PER"),), frozenset({"PER"})),
        Sentence(("Rome",), (Span(0, 1, "LOC"),), frozenset({"LOC"})),
    ]
    write_sentences(tmp_path / "in.jsonl", sentences)
    for name, told in (("out.spacy", False), ("out.ndjson", False), ("out.conll", True)):
        assert main(["data", "convert", str(tmp_path / "in.jsonl"), str(tmp_path / name)]) == 0
        assert ("annotated for different types" in capsys.readouterr().err) == told
        again = read_sentences(tmp_path / name)
        assert ([s.annotated_types for s in again] == [s.annotated_types for s in sentences]) != told


def test_spans_that_overlap_can_be_checked_as_they_will_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nested = Sentence(("Bank", "of", "Rome"), (Span(0, 3, "ORG"), Span(2, 3, "LOC")), frozenset({"ORG", "LOC"}))
    write_sentences(tmp_path / "x.jsonl", [nested])
    for flags, code in (([], 1), (["--on-overlap", "longest"], 0), (["--on-overlap", "keep"], 0)):
        assert main(["data", "check", str(tmp_path / "x.jsonl"), *flags]) == code
    assert main(["data", "check", str(tmp_path / "x.jsonl"), "--on-overlap", "keeep"]) == 2
    assert "did you mean 'keep'" in capsys.readouterr().err
