"""`ner-cl evaluate`."""

import json
from pathlib import Path

import pytest

from ner_cl.cli.app import main
from ner_cl.data.readers import read_sentences
from ner_cl.data.writers import write_sentences
from ner_cl.evaluate.counts import Counts, count_spans
from ner_cl.model.predict import predict_sentences, score_sentences
from ner_cl.model.store import load_model
from tests.cli.conftest import Toy
from tests.tiny import toy_sentences


def evaluate(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    """The JSON that `evaluate` prints."""
    assert main(["-q", "evaluate", *map(str, words), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report: dict[str, object] = json.loads(captured.out)
    return report


def test_the_scores_are_those_of_the_library_and_of_seqeval(
    toy: Toy, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate(capsys, model_folder, toy.data / "test.jsonl", "--lenient")
    sentences = read_sentences(toy.data / "test.jsonl")
    model = load_model(model_folder)
    counts = count_spans(sentences, predict_sentences(model, sentences), ["PER", "LOC"])
    assert report["sentences"] == 80
    for type_, cell in counts.items():
        row = report["types"][type_]  # type: ignore[index]
        assert (row["tp"], row["fp"], row["fn"], row["support"]) == (cell.tp, cell.fp, cell.fn, cell.gold)
        assert (row["precision"], row["recall"], row["f1"]) == (cell.precision, cell.recall, cell.f1)
    for mode in ("strict", "lenient"):
        for average in ("micro", "macro"):
            ours, theirs = report[average], report["seqeval"][mode][average]  # type: ignore[index]
            assert {key: ours[key] for key in theirs} == pytest.approx(theirs)  # type: ignore[index]


def test_the_table_has_a_line_for_each_type_and_average(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.json"
    assert main(["evaluate", str(model_folder), str(toy.data / "test.jsonl"), "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["type", "precision", "recall", "f1", "support"]
    assert [line.split()[0] for line in lines[1:-1]] == ["PER", "LOC", "micro", "macro", "seqeval"]
    report = json.loads(output.read_text())
    micro = report["micro"]
    assert lines[3].split()[1:] == [*(f"{100 * micro[key]:.1f}" for key in ("precision", "recall", "f1")), "170"]
    assert "lenient" not in report["seqeval"]
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_only_asked_types_are_scored(toy: Toy, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(capsys, model_folder, toy.data / "test.jsonl", "--types", "LOC")
    whole = evaluate(capsys, model_folder, toy.data / "test.jsonl")
    assert report["types"] == {"LOC": whole["types"]["LOC"]}  # type: ignore[index]
    assert report["micro"] == report["types"]["LOC"]  # type: ignore[index]


def test_a_type_counts_only_where_it_is_annotated(
    toy: Toy, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = [sentence.restrict(["PER"]) for sentence in read_sentences(toy.data / "test.jsonl")]
    write_sentences(tmp_path / "half.jsonl", half)
    assert main(["evaluate", str(model_folder), str(tmp_path / "half.jsonl")]) == 0
    captured = capsys.readouterr()
    assert "LOC" not in captured.out
    assert "not scored, not annotated in the data: LOC" in captured.err
    report = evaluate(capsys, model_folder, tmp_path / "half.jsonl")
    whole = evaluate(capsys, model_folder, toy.data / "test.jsonl")
    assert report["types"] == {"PER": whole["types"]["PER"]}  # type: ignore[index]


def test_types_that_the_model_does_not_know_are_named(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sentences(tmp_path / "more.jsonl", toy_sentences(20, types=("PER", "ORG")))
    assert main(["evaluate", str(model_folder), str(tmp_path / "more.jsonl")]) == 0
    captured = capsys.readouterr()
    assert "ORG" not in captured.out
    assert "not scored, unknown to the model: ORG" in captured.err


def test_data_of_other_types_are_refused(toy: Toy, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(model_folder), str(toy.orgs)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "is not annotated for PER, LOC; it has ORG" in captured.err


def test_what_merging_blocks_does_is_shown_apart(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = toy.write_config(tmp_path / "addner.yaml", head={"name": "addner"}, strategies=["finetune"])
    # Beside the toy's own, or its paths would lead nowhere.
    config = config.rename(toy.config.with_name("addner.yaml"))
    short = ["--set", "training.epochs=4"]
    assert main(["-q", "train", str(config), *short, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    folder, gold = tmp_path / "run" / "steps" / "02", toy.data / "test.jsonl"
    report = evaluate(capsys, folder, gold)
    sentences, model = read_sentences(gold), load_model(folder)
    assert report["types"]["LOC"]["f1"] > 0.5  # type: ignore[index]
    for type_ in ("PER", "LOC"):
        row = report["types"][type_]  # type: ignore[index]
        alone = count_spans(sentences, predict_sentences(model, sentences, types=[type_]), [type_])[type_]
        assert row["alone_f1"] == alone.f1
        assert row["merging"] == row["f1"] - alone.f1
    assert main(["-q", "evaluate", str(folder), str(gold)]) == 0
    header = capsys.readouterr().out.splitlines()[0].split()
    assert header == ["type", "precision", "recall", "f1", "alone", "merging", "support"]
    for merge in ("resolver", "viterbi", "vote"):
        scores = evaluate(capsys, folder, gold, "--merge", merge)["micro"]
        model.head.merge_by(merge)
        counts = count_spans(sentences, predict_sentences(model, sentences), ["PER", "LOC"])
        assert scores["f1"] == sum(counts.values(), start=Counts()).f1  # type: ignore[index]
    assert main(["evaluate", str(folder), str(gold), "--merge", "vote"]) == 0
    assert "no vote of this model was ever measured" in capsys.readouterr().err
    assert main(["evaluate", str(folder), str(gold), "--merge", "viterbbi"]) == 2
    assert "merge" in capsys.readouterr().err


def test_one_output_for_all_types_has_nothing_to_merge(
    toy: Toy, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(model_folder), str(toy.data / "test.jsonl"), "--merge", "viterbi"]) == 2
    assert "head extendner has one output for all types" in capsys.readouterr().err


def test_scores_are_held_against_how_often_they_are_right(
    toy: Toy, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = evaluate(capsys, model_folder, toy.data / "test.jsonl")["calibration"]
    sentences = read_sentences(toy.data / "test.jsonl")
    found = score_sentences(load_model(model_folder), sentences)
    right = [item.span in s.spans for s, items in zip(sentences, found, strict=True) for item in items]
    assert calibration["spans"] == len(right) > 50  # type: ignore[index]
    bins = calibration["bins"]  # type: ignore[index]
    bins = [own for own in bins if own["count"]]
    assert sum(own["count"] * own["right"] for own in bins) == pytest.approx(sum(right))
    assert calibration["expected_error"] == pytest.approx(  # type: ignore[index]
        sum(own["count"] * abs(own["right"] - own["score"]) for own in bins) / len(right)
    )
    assert main(["-q", "evaluate", str(model_folder), str(toy.data / "test.jsonl")]) == 0
    assert "expected calibration error of the scores" in capsys.readouterr().out.splitlines()[-1]
