"""Sweeps: honest, resumable, and no better than what they saw."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ner_cl.config import Config, parse_config
from ner_cl.config.reading import with_values
from ner_cl.errors import ConfigError, DataError
from ner_cl.evaluate.counts import count_spans, micro_f1
from ner_cl.train.engine import Engine
from ner_cl.train.learner import Learner
from ner_cl.train.run import open_stream
from ner_cl.train.sweep import Trial, dev_score, run_sweep
from tests.train.toy_runs import GOOD_TRAINING, run_values, toy_encoder, write_corpus

SEARCH = {"training.optimizer.lr": "1e-4..1e-2:log", "training.optimizer.head_lr": [1e-6, 5e-2]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    toy_encoder(folder / "encoder")
    write_corpus(folder / "corpus", types=("PER", "LOC", "ORG"), train=90)
    return folder


def sweep_config(home: Path, output: Path, **sweep: Any) -> Config:
    values = run_values(home, output=str(output), training={**GOOD_TRAINING.model_dump(mode="json"), "epochs": 3})
    values["stream"]["steps"] = [["PER"], ["LOC"], ["ORG"]]
    values["strategies"] = sweep.pop("strategies", [])
    values["sweep"] = {"search": SEARCH, "steps": 2, "trials": 4, **sweep}
    return parse_config(values)


def test_a_sweep_finds_the_rate_that_learns(home: Path, tmp_path: Path) -> None:
    told: list[Trial] = []
    config = sweep_config(home, tmp_path / "run", strategies=["distill"])
    found = run_sweep(config, folder=tmp_path / "sweep", on_trial=told.append)
    assert list(found.trials) == told
    assert [trial.number for trial in told] == [1, 2, 3, 4]
    assert all(1e-4 <= trial.values["training.optimizer.lr"] <= 1e-2 for trial in told)
    assert found.best.score == max(trial.score or 0.0 for trial in told)
    assert found.best.values["training.optimizer.head_lr"] == 5e-2
    best = parse_config(yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text()))
    assert best.training.optimizer.lr == found.best.values["training.optimizer.lr"]
    assert (best.stream, best.seed) == (config.stream, config.seed)


def test_a_sweep_goes_on_where_it_stopped(home: Path, tmp_path: Path) -> None:
    first = run_sweep(sweep_config(home, tmp_path, trials=1))
    more = run_sweep(sweep_config(home, tmp_path, trials=3))
    assert more.trials[0] == first.trials[0]
    assert len({str(trial.values) for trial in more.trials}) == 3
    told: list[Trial] = []
    assert run_sweep(sweep_config(home, tmp_path, trials=2), on_trial=told.append).trials == more.trials
    assert told == []
    with pytest.raises(ConfigError, match="holds a sweep of another configuration"):
        run_sweep(sweep_config(home, tmp_path, trials=4, steps=1))


def test_neither_later_steps_nor_the_test_set_are_looked_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are the same when both are exchanged for sentences that nobody may read."""
    config = sweep_config(home, home / "unused")
    stream = open_stream(config)
    learned: list[tuple[str, ...]] = []
    learn = Learner.learn_step

    def noted(self: Learner, step: Any, **options: Any) -> Any:
        learned.append(step.types)
        return learn(self, step, **options)

    monkeypatch.setattr(Learner, "learn_step", noted)
    whole = dev_score(config, stream, 2, Engine())
    assert learned == [("PER",), ("LOC",)]

    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    object.__setattr__(stream, "test", Untouchable())
    object.__setattr__(stream, "steps", (*stream.steps[:2], Untouchable()))
    assert dev_score(config, stream, 2, Engine()) == whole


def test_the_score_is_what_is_left_of_every_step(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sweep_config(home, home / "unused")
    stream = open_stream(config)
    kept: list[Learner] = []
    count = Learner.count

    def noted(self: Learner, *arguments: Any, **options: Any) -> Any:
        kept.append(self)
        return count(self, *arguments, **options)

    monkeypatch.setattr(Learner, "count", noted)
    score = dev_score(config, stream, 2, Engine())
    learner = kept[-1]
    parts = [micro_f1(count_spans(step.dev, learner.predict(step.dev), step.types)) for step in stream.steps[:2]]
    assert score == pytest.approx(sum(part or 0.0 for part in parts) / 2)


@pytest.mark.parametrize("steps", [3, 4])
def test_all_steps_are_too_many(home: Path, tmp_path: Path, steps: int) -> None:
    with pytest.raises(ConfigError, match=f"sweep.steps: {steps} of 3 steps; .* what it is tested on"):
        run_sweep(sweep_config(home, tmp_path, steps=steps))


def test_without_dev_sentences_nothing_can_be_chosen(home: Path, tmp_path: Path) -> None:
    config = sweep_config(home, tmp_path)
    corpus = config.stream.corpus.model_copy(update={"dev": None})
    config = config.model_copy(update={"stream": config.stream.model_copy(update={"corpus": corpus})})
    with pytest.raises(DataError, match="step 1 has no dev sentences with PER to score by"):
        run_sweep(config)


def test_a_key_that_does_not_exist_is_refused_before_training(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'lrr'"):
        run_sweep(sweep_config(home, tmp_path, search={"training.optimizer.lrr": "1..2"}))


@pytest.mark.parametrize("key", ["stream.protocol", "training.precision", "gate.max_drop", "output", "sweep.steps"])
def test_what_all_trials_share_is_not_searched(home: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"sweep.search.{key}: every trial has the same "):
        run_sweep(sweep_config(home, tmp_path, search={key: ["disjoint", "overlap"]}))


def test_a_value_that_is_valid_with_nothing_is_refused_before_training(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.optimizer\.name.*'sgd'"):
        run_sweep(sweep_config(home, tmp_path, search={"training.optimizer.name": ["adamw", "adamx"]}))


def test_values_that_do_not_go_together_are_no_trial(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`width` is for one head only: three of the four combinations are valid."""
    monkeypatch.setattr("ner_cl.train.sweep.dev_score", lambda config, *rest: float(config.head.width == 20))
    search = {"head.name": ["extendner", "spankl"], "head.width": [20, 50]}
    found = run_sweep(sweep_config(home, tmp_path, search=search, trials=8))
    assert [trial.number for trial in found.trials] == list(range(1, 9))
    assert {tuple(trial.values.values()) for trial in found.trials} <= {
        ("extendner", 50),
        ("spankl", 20),
        ("spankl", 50),
    }
    assert found.best.values == {"head.name": "spankl", "head.width": 20}


def test_values_that_fit_no_model_are_a_failed_trial(home: Path, tmp_path: Path) -> None:
    config = sweep_config(home, tmp_path / "run", search={"strategies.0.size": [4, 5000]}, trials=3)
    values = config.model_dump(mode="json")
    config = parse_config({**values, "head": {"name": "addner"}, "strategies": [{"name": "modules", "size": 4}]})
    found = run_sweep(config, folder=tmp_path / "sweep")
    assert len(found.trials) == 3
    for trial in found.trials:
        failed = trial.values["strategies.0.size"] == 5000
        assert (trial.score is None) == failed
        assert ("wider than" in trial.problem) == failed
    assert {trial.values["strategies.0.size"] for trial in found.trials} == {4, 5000}


def test_the_overlap_of_windows_goes_by_their_length(home: Path, tmp_path: Path) -> None:
    config = sweep_config(home, tmp_path / "run")
    assert with_values(config, {"encoder.max_pieces": 64}).encoder.window_overlap == 16
    config = with_values(config, {"encoder.window_overlap": 5})
    assert with_values(config, {"encoder.max_pieces": 64}).encoder.window_overlap == 5


def test_a_sweep_lies_beside_the_run_that_it_is_for(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ner_cl.train.sweep.dev_score", lambda *given: 0.5)
    found = run_sweep(sweep_config(home, tmp_path / "run", trials=1))
    assert found.folder == tmp_path / "run-sweep"
    assert parse_config(yaml.safe_load((found.folder / "best.yaml").read_text())).output == str(tmp_path / "run")
