"""Scores of a model on annotated sentences, and of the models of successive steps."""

import itertools
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from os import PathLike
from typing import Any

from ner_cl.data.readers import sentences_of
from ner_cl.errors import DataError, ModelError
from ner_cl.evaluate.counts import Counts, count_spans, macro_f1, micro_f1
from ner_cl.evaluate.matrix import Matrix
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.model.store import Past, load_model, read_past
from ner_cl.types import Sentence

__all__ = ["Scores", "annotated_types", "score", "score_steps", "scored_types"]


@dataclass(frozen=True)
class Scores:
    """Exact counts of each type, from which all scores follow; printed, a table.

    Attributes:
        types: the counts of each scored type, in learning order, with `precision`, `recall` and `f1` (0 to 1).
    """

    types: dict[str, Counts]

    @property
    def micro(self) -> Counts:
        """The counts of all types together."""
        return sum(self.types.values(), start=Counts())

    @property
    def micro_f1(self) -> float | None:
        """F1 of all types together; None without gold."""
        return micro_f1(self.types)

    @property
    def macro_f1(self) -> float | None:
        """Mean F1 of the types that the data mention; None if there is none."""
        return macro_f1(self.types)

    def __str__(self) -> str:
        """Precision, recall and F1 × 100 of each type, and its number of gold mentions."""
        width = max(len("micro"), *map(len, self.types), 0)
        lines = [f"{'type':<{width}}  precision  recall      f1  support"]
        for name, counts in (*self.types.items(), ("micro", self.micro)):  # a type may be called micro
            values = (counts.precision, counts.recall, counts.f1)
            precision, recall, f1 = ("-" if value is None else f"{100 * value:.1f}" for value in values)
            lines.append(f"{name:<{width}}  {precision:>9}  {recall:>6}  {f1:>6}  {counts.gold:>7}")
        return "\n".join(lines)


def score(
    model: NerModel | str | PathLike[str],
    data: str | PathLike[str] | Iterable[Any],
    *,
    types: Sequence[str] | None = None,
    **reading: Any,
) -> Scores:
    """Compares what a model finds with annotated sentences; strictly: start, end and type must match.

    Args:
        model: a model or its folder.
        data: sentences, a file, a `datasets.Dataset` or records (see `sentences_of`). A sentence counts for the types
            it is annotated for.
        types: score only these types; by default those that the data are annotated for and the model knows.
        **reading: options of `read_sentences` for a file.

    Raises:
        DataError: if the file cannot be read, or is annotated for none of the types.
        ModelError: if the model cannot be read or does not know one of `types`.

    Example:
        >>> print(ner_cl.score("models/step2", "test.jsonl"))   # doctest: +SKIP
    """
    tagger = _model(model)
    tagger.check_types(types)
    sentences = sentences_of(data, types=types, **reading)
    scored = scored_types(tagger.types, types, annotated_types(sentences), _name(data))
    return Scores(count_spans(sentences, predict_sentences(tagger, sentences), scored))


def annotated_types(sentences: Iterable[Sentence]) -> set[str]:
    """Return the types that at least one sentence is annotated for."""
    return {type_ for sentence in sentences for type_ in sentence.annotated_types}


def scored_types(
    known: Sequence[str], asked: Sequence[str] | None, annotated: Set[str], data: str = "data"
) -> list[str]:
    """Return the types to score, in learning order: those asked for, else those the data are annotated for.

    Args:
        known: the types that the model knows, in learning order.
        asked: the types asked for; None if none.
        annotated: the types that the data are annotated for.
        data: the name of the data, for the message.

    Raises:
        DataError: if the data are annotated for none of them.
    """
    wanted = annotated if asked is None else asked
    scored = [type_ for type_ in known if type_ in wanted]
    if annotated.isdisjoint(scored):
        present = ", ".join(sorted(annotated)) or "no type"
        raise DataError(f"{data}: is not annotated for {', '.join(scored or known)}; it has {present}")
    return scored


def score_steps(
    models: Sequence[NerModel | str | PathLike[str]],
    data: str | PathLike[str] | Iterable[Any],
    **reading: Any,
) -> Matrix:
    """Scores the models of successive steps on the same sentences: F1 of every type after every step.

    Args:
        models: models or their folders, in any order, each taught on top of another of them; steps may be missing.
        data: sentences annotated for all types, or what holds them, as for `score`.
        **reading: options of `read_sentences` for a file.

    Raises:
        DataError: if the file cannot be read, or is annotated for none of the types.
        ModelError: if a model cannot be read, or two of them do not continue one another.

    Example:
        >>> print(ner_cl.score_steps(["models/step1", "models/step2"], "test.jsonl").metrics)   # doctest: +SKIP
    """
    if isinstance(models, str | PathLike):
        raise ModelError(f"models must be a list of models, not the path {str(models)!r}; for one model there is score")
    pasts = [Past.of(model) if isinstance(model, NerModel) else read_past(str(model)) for model in models]
    _check_chain(pasts)
    by_step = {len(past.steps): model for past, model in zip(pasts, models, strict=True)}
    sentences = sentences_of(data, **reading)
    matrix = Matrix.start(max((past.steps for past in pasts), key=len))
    scored_types(matrix.types, None, annotated_types(sentences), _name(data))
    for number in range(1, len(matrix.steps) + 1):
        counts = None
        if number in by_step:  # only one model at a time is in memory
            found = predict_sentences(_model(by_step[number]), sentences)
            counts = count_spans(sentences, found, matrix.seen_after(number))
        matrix = matrix.with_row(counts)
    return matrix


def _check_chain(models: Sequence[Past]) -> None:
    """Refuses models of which one was not taught on top of another."""
    if not models:
        raise ModelError("there are no models to score; give one or more")
    chain = sorted(models, key=lambda model: len(model.steps))
    steps = chain[-1].steps
    for model in chain:
        if model.steps != steps[: len(model.steps)]:
            known = _said(model.steps)
            raise ModelError(f"a model that learned {known} is no earlier step of one that learned {_said(steps)}")
    for older, newer in itertools.pairwise(chain):
        if older.steps == newer.steps:
            raise ModelError("two of the models have learned the same steps; give one of each step")
        _check_continues(older, newer)


def _check_continues(older: Past, newer: Past) -> None:
    """Refuses a model that was not taught on top of another, as far as their histories tell."""
    told = [
        {record.get("step"): (record.get("data"), record.get("finished")) for record in model.history}
        for model in (older, newer)
    ]
    for step in told[0].keys() & told[1].keys():
        if told[0][step] != told[1][step]:
            raise ModelError(
                f"the model of {len(newer.steps)} steps was not taught on top of that of {len(older.steps)}: "
                f"their step {step} was learned {told[0][step][1]} and {told[1][step][1]}"
            )


def _said(steps: Sequence[Sequence[str]]) -> str:
    return " → ".join("+".join(types) for types in steps)


def _name(data: object) -> str:
    return str(data) if isinstance(data, str | PathLike) else "data"


def _model(model: NerModel | str | PathLike[str]) -> NerModel:
    return model if isinstance(model, NerModel) else load_model(str(model), device="auto")
