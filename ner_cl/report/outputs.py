"""Predictions of a run's models on its test set, as kept by the run or recomputed with its models."""

import json
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field

from ner_cl.data.corpus import load_test
from ner_cl.data.stream import fingerprint
from ner_cl.errors import NerClError
from ner_cl.evaluate.counts import count_spans
from ner_cl.evaluate.predictions import Predictions, predictions_file
from ner_cl.model.predict import score_sentences
from ner_cl.model.store import load_model
from ner_cl.report.runs import RunRecord
from ner_cl.types import Sentence

__all__ = ["Outputs", "TestSets", "run_outputs"]

# Test sets that have been read, with their fingerprints, by where and how they were read.
TestSets = MutableMapping[str, tuple[tuple[Sentence, ...], str]]


@dataclass
class Outputs:
    """Test sentences and the predictions on them.

    Attributes:
        test: the test set, annotated for all types of the stream.
        fingerprint: fingerprint of the test set that the run was scored on; None if it is not known.
        by_step: predictions by step; steps without available predictions are missing.
        notes: remarks on missing or recomputed data.
    """

    test: tuple[Sentence, ...] = ()
    fingerprint: str | None = None
    by_step: dict[int, Predictions] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run_outputs(
    run: RunRecord,
    *,
    steps: Iterable[int] | None = None,
    predict: bool = True,
    read: TestSets | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Outputs:
    """Read the test set and the predictions on it.

    Predictions that the run did not keep are computed with the models of its steps and stored for the next call.
    Unavailable data are left out and noted. So is everything if the run kept predictions on other test data than are
    there now, as then nothing made now would belong to its matrix.

    Args:
        run: a finished run.
        steps: the steps to read; all by default.
        predict: whether models may be loaded.
        read: the test sets read so far, for runs that share one; a new one is added.
        say: receives progress messages for slow work.
    """
    outputs = Outputs()
    try:
        outputs.test, test = _test_set(run, {} if read is None else read)
    except (NerClError, OSError) as error:
        outputs.notes.append(f"{run.name}: the test data are not at hand ({error})")
        return outputs
    own = _scored_on(run)
    outputs.fingerprint = own or test
    if own not in ("", test):
        outputs.test = ()
        outputs.notes.append(
            f"{run.name}: the test data are not those of the run, so nothing is shown of its predictions; restore "
            "the data, or score its models on these with `ner-cl evaluate`"
        )
        return outputs
    missing, made = [], []
    for step in steps or range(1, len(run.matrix.counts) + 1):
        if run.matrix.counts[step - 1] is None:
            continue
        path = predictions_file(run.folder, step)
        found = Predictions.load(path) if path.is_file() else None
        if found is None and predict and (run.folder / "steps" / f"{step:02d}").is_dir():
            say(f"{run.name}: finding entities in {len(outputs.test)} test sentences after step {step}")
            found = _made(run, step, test, outputs.test)
            made.append(step)
        if found is None:
            missing.append(step)
        else:
            outputs.by_step[step] = found
    if missing:
        outputs.notes.append(f"{run.name}: no predictions of step {', '.join(map(str, missing))} are at hand")
    outputs.notes += _differing(run, outputs, made)
    return outputs


def _test_set(run: RunRecord, read: TestSets) -> tuple[tuple[Sentence, ...], str]:
    """Read the test set of a run and its fingerprint, unless another run has the same."""
    corpus = run.config.stream.corpus
    key = corpus.model_dump_json(exclude={"train", "dev", "unlabeled"}) + json.dumps(sorted(run.matrix.types))
    if key not in read:
        sentences = load_test(corpus, run.matrix.types)
        read[key] = sentences, fingerprint(sentences)
    return read[key]


def _scored_on(run: RunRecord) -> str:
    """Return the fingerprint of the test set that the run kept predictions on; "" if it kept none."""
    paths = (predictions_file(run.folder, step) for step in range(1, len(run.matrix.counts) + 1))
    return next((test for path in paths if path.is_file() and (test := Predictions.test_of(path))), "")


def _made(run: RunRecord, step: int, test: str, sentences: tuple[Sentence, ...]) -> Predictions:
    """Compute predictions with the model of the step, and store them if the run folder is writable."""
    model = load_model(run.folder / "steps" / f"{step:02d}", device="auto")
    training = run.config.training
    scored = score_sentences(model, sentences, batch_tokens=training.eval_batch_tokens, precision=training.precision)
    found = Predictions.of(step, test, scored)
    try:
        found.save(predictions_file(run.folder, step))
    except OSError:
        return found
    return found


def _differing(run: RunRecord, outputs: Outputs, made: list[int]) -> list[str]:
    """Note the steps whose recomputed predictions do not match the matrix, as on a machine that rounds differently."""
    notes = []
    for step in made:
        seen = run.matrix.seen_after(step)
        gold = [sentence.restrict(seen) for sentence in outputs.test]
        again = count_spans(gold, outputs.by_step[step].spans, seen)
        row = run.matrix.counts[step - 1] or {}
        apart = sum(abs(again[t].tp - row[t].tp) + abs(again[t].fp - row[t].fp) for t in seen)
        if apart:
            notes.append(
                f"{run.name}: predictions of step {step} were made again and differ from the run's own "
                f"by {apart} spans (another machine or precision); the matrix is the run's"
            )
    return notes
