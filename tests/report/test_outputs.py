"""Predictions of a run: kept, or made again."""

import json
import shutil
from pathlib import Path

import pytest

from ner_cl.errors import DataError
from ner_cl.evaluate.counts import count_spans
from ner_cl.evaluate.predictions import Predictions, predictions_file
from ner_cl.report.outputs import run_outputs
from ner_cl.report.runs import find_runs, load_run


@pytest.fixture
def run(seeds: Path, tmp_path: Path) -> Path:
    """A copy of one run."""
    return Path(shutil.copytree(seeds / "seed-1", tmp_path / "seed-1"))


def test_a_run_keeps_what_its_matrix_was_counted_on(seeds: Path) -> None:
    run = load_run(seeds / "seed-1")
    outputs = run_outputs(run, predict=False)
    assert outputs.notes == []
    for step, row in enumerate(run.matrix.counts, start=1):
        seen = run.matrix.seen_after(step)
        gold = [sentence.restrict(seen) for sentence in outputs.test]
        assert count_spans(gold, outputs.by_step[step].spans, seen) == row


def test_what_is_missing_is_made_again_and_kept(run: Path) -> None:
    kept = {step: Predictions.load(predictions_file(run, step)) for step in (1, 2)}
    shutil.rmtree(run / "predictions")
    told: list[str] = []
    outputs = run_outputs(load_run(run), say=told.append)
    assert outputs.by_step == kept
    assert outputs.notes == []
    assert [line.split(": ")[1].split()[0] for line in told] == ["finding", "finding"]
    assert Predictions.load(predictions_file(run, 2)) == kept[2]


def test_a_run_keeps_its_predictions_where_the_test_data_are_others_now(run: Path, tmp_path: Path) -> None:
    """Another file of the same name, or one corrected after the run: the run's own files stay as they are."""
    config = load_run(run).config
    lines = Path(config.stream.corpus.test).read_text().replace("B-PER", "B-LOC", 1)
    (tmp_path / "test.conll").write_text(lines)
    resolved = run / "config.resolved.yaml"
    resolved.write_text(resolved.read_text().replace(config.stream.corpus.test, str(tmp_path / "test.conll")))
    before = {step: predictions_file(run, step).read_bytes() for step in (1, 2)}
    outputs = run_outputs(load_run(run))
    assert {step: predictions_file(run, step).read_bytes() for step in (1, 2)} == before
    assert (outputs.test, outputs.by_step) == ((), {})
    assert outputs.fingerprint == Predictions.load(predictions_file(run, 1)).test
    [note] = outputs.notes
    assert "the test data are not those of the run" in note


def test_a_step_whose_predictions_are_gone_is_noted(run: Path) -> None:
    predictions_file(run, 1).unlink()
    outputs = run_outputs(load_run(run), predict=False)
    assert list(outputs.by_step) == [2]
    assert outputs.notes == [f"{run.parent.name}/seed-1: no predictions of step 1 are at hand"]


def test_a_matrix_that_the_models_do_not_give_is_told(run: Path) -> None:
    text = (run / "matrix.json").read_text()
    values = json.loads(text)
    values["counts"][0]["PER"]["tp"] += 3
    (run / "matrix.json").write_text(json.dumps(values))
    shutil.rmtree(run / "predictions")
    [note] = run_outputs(load_run(run), steps=[1]).notes
    assert "differ from the run's own by 3 spans" in note


def test_without_the_corpus_there_is_nothing_but_a_note(run: Path) -> None:
    config = run / "config.resolved.yaml"
    config.write_text(config.read_text().replace("test.conll", "gone.conll"))
    outputs = run_outputs(load_run(run))
    assert (outputs.test, outputs.by_step, outputs.fingerprint) == ((), {}, None)
    assert "the test data are not at hand" in outputs.notes[0]


def test_runs_are_found_below_a_folder(seeds: Path, tmp_path: Path) -> None:
    assert find_runs(seeds) == [seeds / "seed-1", seeds / "seed-2"]
    assert find_runs(seeds / "seed-2") == [seeds / "seed-2"]
    with pytest.raises(DataError, match="holds no finished run"):
        find_runs(tmp_path)


def test_a_record_has_times_memory_and_data(seeds: Path) -> None:
    run = load_run(seeds / "seed-2")
    assert [cost.step for cost in run.costs] == [1, 2]
    assert all(cost.train_seconds <= cost.seconds for cost in run.costs)
    assert all(cost.peak_memory and cost.peak_memory > 2**20 for cost in run.costs)
    assert run.seconds
    assert set(run.data) == set(run.dev) == {1, 2}
    assert run.pair == (2, (("PER",), ("LOC",)))


def test_a_step_that_was_refused_or_not_timed_is_no_done_step(run: Path) -> None:
    events = (run / "events.jsonl").read_text().splitlines()
    kept = [line for line in events if not (json.loads(line)["event"] == "StepDone" and json.loads(line)["step"] == 2)]
    (run / "events.jsonl").write_text("\n".join(kept) + "\n")
    killed = load_run(run)  # after it had published its model
    assert (killed.is_done, killed.seconds) == (True, None)
    shutil.rmtree(run / "steps" / "02")  # the forgetting gate refused it
    refused = load_run(run)
    assert (refused.is_done, len(refused.matrix.counts)) == (False, 2)
