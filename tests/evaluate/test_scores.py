"""Scores of a model, and of the models of successive steps, in Python and from the command line."""

import json
from pathlib import Path

import pytest

import ner_cl
from ner_cl.cli.app import main
from ner_cl.data.writers import write_sentences
from ner_cl.errors import DataError, ModelError
from ner_cl.evaluate.counts import Counts, count_spans
from ner_cl.evaluate.matrix import render
from ner_cl.evaluate.scores import Scores
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.train.learner import Learner
from ner_cl.types import Sentence, Span
from tests.tiny import TOY_TRAINING, tiny_model, toy_corpus, toy_stream

TEST = toy_corpus().test


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The models after each of two steps (PER, then LOC)."""
    home = tmp_path_factory.mktemp("steps")
    stream = toy_stream(steps=(("PER",), ("LOC",)))
    learner = Learner(tiny_model(home / "encoder"), (), TOY_TRAINING, seed=3)
    for step in stream.steps:
        list(learner.learn_step(step))
        learner.model.save(home / f"{step.number}")
    return [home / "1", home / "2"]


def counted(model: NerModel) -> dict[str, Counts]:
    return count_spans(TEST, predict_sentences(model, TEST), model.types)


def test_a_model_is_scored_as_its_predictions_are(folders: list[Path]) -> None:
    model = ner_cl.load(folders[1])
    scores = ner_cl.score(model, TEST)
    assert scores.types == counted(model)
    assert scores.micro == sum(counted(model).values(), start=Counts())
    assert scores.micro_f1 == scores.micro.f1
    assert scores.macro_f1 == pytest.approx(sum(cell.f1 or 0.0 for cell in scores.types.values()) / 2)
    lines = str(scores).splitlines()
    assert [line.split()[0] for line in lines] == ["type", "PER", "LOC", "micro"]
    assert lines[1].split()[3:] == [f"{100 * (scores.types['PER'].f1 or 0):.1f}", str(scores.types["PER"].gold)]


def test_a_folder_and_a_file_do_as_well(folders: list[Path], tmp_path: Path) -> None:
    write_sentences(tmp_path / "test.jsonl", TEST)
    assert ner_cl.score(folders[1], tmp_path / "test.jsonl") == ner_cl.score(str(folders[1]), TEST)
    only = ner_cl.score(folders[1], tmp_path / "test.jsonl", types=["LOC"])
    assert only.types == {"LOC": ner_cl.score(folders[1], TEST).types["LOC"]}
    with pytest.raises(ModelError, match="LCO"):
        ner_cl.score(folders[1], TEST, types=["LCO"])


def test_spurious_spans_count_although_the_file_mentions_none(folders: list[Path], tmp_path: Path) -> None:
    """A column file cannot say what it is annotated for."""
    silent = [sentence.with_spans([s for s in sentence.spans if s.type == "PER"], ["PER", "LOC"]) for sentence in TEST]
    write_sentences(tmp_path / "silent.conll", silent)
    found = ner_cl.score(folders[1], tmp_path / "silent.conll", types=["PER", "LOC"])
    assert found.types["LOC"].fp == sum(
        span.type == "LOC" for spans in predict_sentences(ner_cl.load(folders[1]), TEST) for span in spans
    )
    assert found.types["LOC"].fp > 0


def test_the_models_of_successive_steps_make_a_matrix(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = ner_cl.score_steps(list(reversed(folders)), TEST)
    assert matrix.steps == (("PER",), ("LOC",))
    one, two = (ner_cl.load(folder) for folder in folders)
    assert matrix.counts == (counted(one), counted(two))
    write_sentences(tmp_path / "test.jsonl", TEST)
    words = ["evaluate", *map(str, folders), str(tmp_path / "test.jsonl")]
    assert main([*words, "--output", str(tmp_path / "all.json")]) == 0
    assert capsys.readouterr().out.startswith(render(matrix) + "\n")
    told = json.loads((tmp_path / "all.json").read_text())
    assert told["models"] == [str(folder) for folder in folders]
    assert {key: told[key] for key in matrix.to_dict()} == json.loads(json.dumps(matrix.to_dict()))
    assert "not scored" not in capsys.readouterr().err
    only = [sentence.restrict(["PER"]) for sentence in TEST]
    write_sentences(tmp_path / "only.jsonl", only)
    assert main([*words[:-1], str(tmp_path / "only.jsonl")]) == 0
    assert "not scored, not annotated in the data: LOC" in capsys.readouterr().err
    write_sentences(tmp_path / "other.jsonl", [Sentence(("Ada",), (Span(0, 1, "DRUG"),), frozenset({"DRUG"}))])
    assert main([*words[:-1], str(tmp_path / "other.jsonl")]) == 2
    assert "other.jsonl: is not annotated for PER, LOC; it has DRUG" in capsys.readouterr().err
    assert main([*words, "--types", "PER"]) == 2
    assert "leave --types, --lenient and --merge out" in capsys.readouterr().err


def test_a_type_may_be_called_as_an_average_is() -> None:
    lines = str(Scores({"micro": Counts(tp=1), "PER": Counts(fp=5, fn=5)})).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["micro", "100.0", "100.0", "100.0", "1"],
        ["PER", "0.0", "0.0", "0.0", "5"],
        ["micro", "16.7", "16.7", "16.7", "6"],
    ]


def test_a_step_may_be_missing(folders: list[Path]) -> None:
    matrix = ner_cl.score_steps([folders[1]], TEST)
    assert matrix.counts == (None, counted(ner_cl.load(folders[1])))


def test_models_that_do_not_continue_one_another_are_refused(folders: list[Path], tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "encoder", steps=[["LOC"]])
    with pytest.raises(ModelError, match="a model that learned LOC is no earlier step of one that learned PER → LOC"):
        ner_cl.score_steps([other, folders[1]], TEST)
    with pytest.raises(ModelError, match="learned the same steps"):
        ner_cl.score_steps([folders[0], folders[0]], TEST)
    again = ner_cl.load(folders[0])  # as if step 1 had been taught once more after step 2 was taught on top of it
    again.history = [{"step": 1, "types": ["PER"], "data": "other", "finished": "2026-01-02"}]
    newer = ner_cl.load(folders[1])
    newer.history = [{"step": 1, "types": ["PER"], "data": "first", "finished": "2026-01-01"}]
    with pytest.raises(
        ModelError, match="the model of 2 steps was not taught on top of that of 1: their step 1 was learned"
    ):
        ner_cl.score_steps([again, newer], TEST)
    with pytest.raises(ModelError, match="there are no models"):
        ner_cl.score_steps([], TEST)


def test_data_of_other_types_and_a_single_model_are_refused(folders: list[Path]) -> None:
    records = [{"text": "Ada lives", "spans": [{"start": 0, "end": 3, "label": "DRUG"}]}]
    with pytest.raises(DataError, match="data: is not annotated for PER, LOC; it has DRUG"):
        ner_cl.score(folders[1], records)
    with pytest.raises(DataError, match="data: is not annotated for PER, LOC; it has DRUG"):
        ner_cl.score_steps(folders, records)
    with pytest.raises(DataError, match="it has no type"):
        ner_cl.score(folders[1], [])
    with pytest.raises(ModelError, match="models must be a list of models, not the path"):
        ner_cl.score_steps(str(folders[1]), TEST)  # type: ignore[arg-type]
