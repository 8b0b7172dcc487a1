"""Hyperparameter search on the dev sentences of a stream's first steps; later steps and the test set stay unseen.

Tuning on a whole stream would be cheating: when the first types arrive, the later ones are unknown. So a sweep trains
and scores on the first steps only, as Chaudhry et al. 2019 ("Efficient Lifelong Learning with A-GEM", section 3) do,
and the options found are then used for all steps.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ner_cl.config import Config, with_values
from ner_cl.data.stream import Stream, fingerprint
from ner_cl.errors import ConfigError, DataError, MissingExtra, ModelError, TrainingError
from ner_cl.evaluate.counts import micro_f1
from ner_cl.evaluate.metrics import mean
from ner_cl.files import replace_text
from ner_cl.model.ner_model import NerModel
from ner_cl.train.engine import Engine
from ner_cl.train.learner import Learner
from ner_cl.train.run import learn_step, open_stream
from ner_cl.train.search import Dimension, check_values, parse_search

try:
    import optuna
except ImportError as error:
    raise MissingExtra("a sweep needs optuna; run: pip install 'ner-cl[sweep]'") from error

__all__ = ["Sweep", "Trial", "dev_score", "run_sweep"]

_STUDY = "sweep"
_SETTING = "setting"
_MOST_INVALID = 100  # sets of values drawn one after the other
_PROBLEM = "problem"
_FAILURES = (TrainingError, ModelError)  # those of a set of values; the sweep goes on with others


@dataclass(frozen=True)
class Trial:
    """A trial of one set of values.

    Attributes:
        number: the trial, from 1.
        values: the values by key path.
        score: mean F1 (0 to 1) over the first steps on their dev sentences; None if training failed.
        seconds: how long the trial took.
        problem: why it failed; "" if it did not.
    """

    number: int
    values: dict[str, Any]
    score: float | None
    seconds: float
    problem: str = ""


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
        folder: holds its database and `best.yaml`, the complete configuration with the best values.
        steps: number of first steps that were trained and scored.
        trials: all finished trials, in order.
        best: the best trial.
    """

    folder: Path
    steps: int
    trials: tuple[Trial, ...] = field(repr=False)
    best: Trial


def run_sweep(
    config: Config, *, folder: str | Path | None = None, on_trial: Callable[[Trial], None] = lambda trial: None
) -> Sweep:
    """Runs trials until there are `config.sweep.trials`, including those of earlier calls with the same folder.

    Args:
        config: base configuration; `sweep` gives the search space and the numbers of steps and trials.
        folder: where to keep the trials; by default beside the run folder, with `-sweep` at the end of its name.
        on_trial: called after every trial.

    Raises:
        ConfigError: if the search space is invalid or cannot be searched, all steps of the stream count, or the folder
            holds another sweep.
        DataError: if one of the steps has no dev sentences with its types.
        TrainingError: if no trial succeeded: each diverged, or its values fitted no model.
    """
    dimensions = parse_search(config.sweep.search)
    stream = open_stream(config)
    steps = _checked_steps(stream, config.sweep.steps)
    engine = Engine(config.training.precision)
    check_values(dimensions, partial(with_values, config))
    folder = Path(f"{config.output}-sweep") if folder is None else Path(folder)
    study = _study(folder, config, stream)

    def objective(trial: "optuna.Trial") -> float:
        values = {dimension.key: _suggested(trial, dimension) for dimension in dimensions}
        try:
            changed = with_values(config, values)
        except ConfigError as error:
            raise optuna.TrialPruned(str(error)) from error
        try:
            return dev_score(changed, stream, steps, engine)
        except _FAILURES as error:
            trial.set_user_attr(_PROBLEM, str(error))
            raise

    invalid = 0
    while (before := len(_done(study))) < config.sweep.trials:
        # The seed depends on the number of trials, or a resumed sweep would repeat its earlier draws.
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))
        study.optimize(objective, n_trials=1, catch=_FAILURES)
        if len(done := _done(study)) > before:
            invalid = 0
            on_trial(done[-1])
        elif (invalid := invalid + 1) == _MOST_INVALID:
            raise ConfigError(
                f"sweep.search: {invalid} sets of values in a row were invalid; search fewer keys at once"
            )
    trials = _done(study)
    best = max(trials, key=lambda trial: -1.0 if trial.score is None else trial.score)
    if best.score is None:
        raise TrainingError(f"sweep: no trial could be trained; the last one: {trials[-1].problem}")
    _write_best(folder, with_values(config, best.values))
    return Sweep(folder, steps, tuple(trials), best)


def dev_score(config: Config, stream: Stream, steps: int, engine: Engine) -> float:
    """Trains the first steps and returns the mean over them of the final model's micro F1 on their dev sentences.

    Neither the test set nor later steps are used. Each step's dev sentences count only for its own types, for which
    they are annotated.
    """
    model = NerModel.from_options(config.encoder, config.head)
    learner = Learner(model, config.strategies, config.training, engine=engine, seed=config.seed)
    for step in stream.steps[:steps]:
        for _ in learn_step(learner, step, stream):
            pass
    scores = (micro_f1(learner.count(step.dev, step.types)) for step in stream.steps[:steps])
    return mean(scores) or 0.0


def _checked_steps(stream: Stream, steps: int) -> int:
    if not 1 <= steps < len(stream.steps):
        raise ConfigError(
            f"sweep.steps: {steps} of {len(stream.steps)} steps; a sweep counts the first ones and leaves at least one "
            "for the run, or it would choose options by what it is tested on"
        )
    for step in stream.steps[:steps]:
        if not any(sentence.spans for sentence in step.dev):
            raise DataError(f"sweep: step {step.number} has no dev sentences with {', '.join(step.types)} to score by")
    return steps


def _study(folder: Path, config: Config, stream: Stream) -> "optuna.Study":
    """Opens the study in the folder, or creates one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failed trial is told by `on_trial`
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / 'sweep.db').absolute()}",
        study_name=_STUDY,
        direction="maximize",
        load_if_exists=True,
    )
    values = config.model_dump(mode="json", exclude={"output": True, "tracker": True, "sweep": {"trials"}})
    values["data"] = [step.data_hash for step in stream.steps[: config.sweep.steps]]
    values["dev"] = [fingerprint(step.dev) for step in stream.steps[: config.sweep.steps]]
    setting = json.dumps(values, sort_keys=True)
    if study.user_attrs.setdefault(_SETTING, setting) != setting:
        raise ConfigError(f"output: {folder} holds a sweep of another configuration; use --output for another folder")
    study.set_user_attr(_SETTING, setting)
    return study


def _suggested(trial: "optuna.Trial", dimension: Dimension) -> Any:
    if dimension.choices:
        return trial.suggest_categorical(dimension.key, dimension.choices)
    if dimension.whole:
        return trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)


def _done(study: "optuna.Study") -> list[Trial]:
    """All finished trials, failed ones included, numbered from 1; sets of values that were invalid do not count."""
    pruned = optuna.trial.TrialState.PRUNED
    ended = [trial for trial in study.trials if trial.state.is_finished() and trial.state != pruned]
    return [
        Trial(
            number,
            dict(trial.params),
            trial.value,
            trial.duration.total_seconds() if trial.duration else 0.0,
            trial.user_attrs.get(_PROBLEM, ""),
        )
        for number, trial in enumerate(ended, start=1)
    ]


def _write_best(folder: Path, config: Config) -> None:
    values = config.model_dump(mode="json", exclude={"sweep"})
    made = f"# Found by ner-cl sweep, {time.strftime('%Y-%m-%d')}, on the first {config.sweep.steps} steps by dev F1.\n"
    replace_text(folder / "best.yaml", made + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
