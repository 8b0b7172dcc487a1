"""`learn`, the main entry point: trains one new step on an existing model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from ner_cl.config import StrategyOptions, TrainingOptions, or_default, parse_strategies, validate
from ner_cl.config.composition import isolating
from ner_cl.data.readers import sentences_of
from ner_cl.data.stream import Step
from ner_cl.data.tally import count_mentions
from ner_cl.data.unlabeled import read_unlabeled
from ner_cl.data.words import cut_mentions
from ner_cl.errors import ConfigError, DataError
from ner_cl.evaluate.counts import count_spans
from ner_cl.model.ner_model import NerModel
from ner_cl.model.store import load_model
from ner_cl.registry import nearest
from ner_cl.strategies.replay import ReplayOptions
from ner_cl.train.changes import LearnResult, changes_of, check_measurable
from ner_cl.train.events import Event, Note
from ner_cl.train.held_back import hold_back_sentences, hold_back_texts
from ner_cl.train.learner import Learner
from ner_cl.train.notes import hardly_met
from ner_cl.train.record import history_record
from ner_cl.types import Sentence, Span

__all__ = ["learn"]

Data = str | PathLike[str] | Iterable[Any]  # see `sentences_of`


def learn(
    model: NerModel | str | PathLike[str],
    train: Data,
    *,
    types: Sequence[str],
    dev: Data | None = None,
    replay: Data | None = None,
    unlabeled: str | Path | Iterable[Any] | None = None,
    strategies: Sequence[Any] = (),
    isolate: bool = False,
    must_measure: bool = False,
    training: TrainingOptions | Mapping[str, Any] | None = None,
    seed: int = 13,
    on_event: Callable[[Event], None] = lambda event: None,
    format: str = "auto",  # noqa: A002  as in read_sentences
    scheme: str = "auto",
    on_overlap: str = "error",
    alignment: str = "error",
    explicit_types: bool = False,
) -> LearnResult:
    """Teaches a model new types without the old data.

    Args:
        model: the current model, or its folder; it is not changed.
        train: sentences annotated for the new types, or a file, a `datasets.Dataset` or a list of records that holds
            them (see `sentences_of`); annotation of other types is ignored.
        types: the new types, in order.
        dev: sentences for model selection and for measuring old types; old types without gold mentions there are
            measured by agreement with the model before the step. Without `dev`, a tenth of `train` is held back, with
            all its annotation, and a tenth of `unlabeled`, at most 500 texts, to measure old types on. Of fewer than 40
            none is held back; with fewer than 40 sentences, all epochs are trained and new types are not measured.
        replay: sentences annotated for old types, or a file of them: they replace the memory of the strategy `replay`,
            which is added to the strategies if not listed.
        unlabeled: raw texts of the domain, or a text file with one per line. `distill` also distils old types on them,
            and `das` with `pretrain_epochs` pre-trains on them first.
        strategies: options or `{"name": …}` mappings; by default the strategy that gave the model its sub-networks, if
            one did, else distillation on a frozen trunk.
        isolate: change nothing that old types are found with, and verify this bit for bit. Uses the strategy that gave
            the model its sub-networks, else `modules`, unless `strategies` lists another isolating one.
        must_measure: before any training, refuse dev sentences that old types cannot be measured on, which
            `result.check` would refuse after it.
        training: options of the training loop, or a mapping of them.
        seed: seed of all random draws.
        on_event: called with every event.
        format: format of data given as files; see `read_sentences` for this and the following options.
        scheme: tag scheme of column files.
        on_overlap: what to do with overlapping spans.
        alignment: what to do with a span that cuts a word.
        explicit_types: refuse a sentence without declared types in a file that knows several.

    Returns:
        The new model, on the old one's device (training itself uses a GPU if there is one), with F1 before and after
        for every type.

    Raises:
        DataError: if the data cannot be read or do not mention a type, or `replay` is not annotated for old types only.
        ModelError: if a type is known already.
        CheckFailed: if old blocks are isolated and one of them changed, or with `must_measure`.

    Example:
        >>> result = ner_cl.learn(model, "drugs.jsonl", types=["DRUG"])   # doctest: +SKIP
        >>> print(result.table)                                           # doctest: +SKIP
    """
    reading: dict[str, Any] = {"format": format, "scheme": scheme, "on_overlap": on_overlap, "alignment": alignment}
    reading["explicit_types"] = explicit_types
    if not isinstance(model, NerModel):
        model = load_model(str(model))
    step, dev_sentences, ignored = _prepare(model, train, types, dev, reading, seed)
    options = validate(TrainingOptions, training or {}, "training")
    student = model.copy(memory=True)
    if replay is not None:
        kept = sentences_of(replay, **{**reading, "explicit_types": True})
        _check_replay(kept, model.types, types)
        student.kept_sentences = {**student.kept_sentences, "replay": tuple(kept)}
    chosen = _chosen(strategies, model, isolate=isolate, replays=replay is not None)
    raw = [] if unlabeled is None else read_unlabeled(unlabeled)
    if dev is None and model.types:
        raw, held_back = hold_back_texts(raw, step.train, seed)
        dev_sentences = [*dev_sentences, *held_back]
    learner = Learner(student, chosen, options, seed=seed)
    _check_data(learner, raw=bool(raw))
    for note in _notes(learner, step, ignored, raw=bool(raw)):
        on_event(note)
    # A model that knows no type finds nothing; decoding needs one.
    before = learner.predict(dev_sentences) if model.types else [[] for _ in dev_sentences]
    if must_measure:
        check_measurable(dev_sentences, before, model.types)
    for event in learner.learn_step(step, unlabeled=raw):
        on_event(event)
    return _result(learner, step, model, dev_sentences, before)


def _chosen(strategies: Sequence[Any], model: NerModel, *, isolate: bool, replays: bool) -> tuple[StrategyOptions, ...]:
    """The strategies of the step: those given, or those the model was isolated with, or the default."""
    chosen = _parse(strategies) or _begun(model)
    if not isolate and model.subnetworks is None:
        chosen = tuple(or_default(chosen, model.head.options))  # a strategy added below joins the default ones
    if replays:
        if not any(options.name == "replay" for options in chosen):
            chosen += _parse(["replay"])
        _check_replayed(chosen)
    return _isolating(chosen, model) if isolate else chosen


def _check_data(learner: Learner, *, raw: bool) -> None:
    """Refuses strategies that need data a single step does not have, and raw text that none of them reads."""
    if learner.reads_earlier:
        raise ConfigError("strategies: joint needs the data of earlier steps, which a single step does not have")
    if raw and not learner.reads_unlabeled:
        advice = "distill does, and das with pretrain_epochs: 1"
        if any(strategy.isolates for strategy in learner.strategies):
            advice = "nothing does where steps are kept apart; leave it out"
        raise ConfigError(f"strategies: none of them reads unlabeled text; {advice}")


def _notes(learner: Learner, step: Step, ignored: Sequence[str], *, raw: bool) -> Iterator[Note]:
    """Yields notes on the data, before anything is trained."""
    model = learner.model
    if ignored:
        text = (
            f"mentions of {', '.join(ignored)} in the data are not trained on, as the model knows these types already"
        )
        yield Note(step=step.number, text=text)
    if cut := cut_mentions(step.train):
        yield Note(step=step.number, text=cut)
    if raw and not model.types and all(s.holds_old_types for s in learner.strategies if s.reads_unlabeled):
        yield Note(step=step.number, text="raw text preserves old types, and there are none yet: it is not read")
    if model.types and learner.reads_unlabeled and not raw and not model.kept_sentences:
        found = learner.predict(step.train)
        if hardly := hardly_met(step.train, found, model.types):
            yield Note(step=step.number, text=hardly)


def _result(
    learner: Learner, step: Step, old: NerModel, dev: Sequence[Sentence], before: Sequence[Sequence[Span]]
) -> LearnResult:
    """Measures the changes and records the step in the new model's history."""
    after = learner.predict(dev)
    counts = count_spans(dev, after, learner.model.types)
    changes = changes_of(dev, before, after, old.types, counts)
    grown = learner.model.to(old.device).eval()
    record = history_record(
        learner, step, before={c.type: c.before for c in changes}, after={c.type: c.after for c in changes}
    )
    record["measured"] = {change.type: change.measured for change in changes}
    grown.history = [*old.history, record]
    grown.metrics = {"counts": {type_: asdict(count) for type_, count in counts.items()}}
    return LearnResult(grown, changes, learner.isolation, reads_unlabeled=learner.reads_unlabeled)


def _prepare(
    model: NerModel, train: Data, types: Sequence[str], dev: Data | None, reading: dict[str, Any], seed: int
) -> tuple[Step, list[Sentence], list[str]]:
    """The step, with all types but the new ones hidden; dev sentences with all annotation; known types in `train`."""
    if isinstance(types, str) or not types:
        raise ConfigError(f"types: give a list of new types, such as ['DRUG'], not {types!r}")
    model.tagset.grow(types)
    sentences = sentences_of(train, **reading)
    _check_mentions(sentences, types)
    if dev is not None:
        dev_sentences = sentences_of(dev, **reading)
    else:
        sentences, dev_sentences = hold_back_sentences(sentences, types, seed)
    visible = [sentence.restrict(types) for sentence in sentences]
    number = len(model.tagset.steps) + 1
    own = tuple(s.restrict(types) for s in dev_sentences)
    mentioned = count_mentions(sentences)
    step = Step(number, tuple(types), tuple(visible), own)
    return step, dev_sentences, [type_ for type_ in model.types if type_ in mentioned]


def _parse(strategies: Any) -> tuple[StrategyOptions, ...]:
    try:
        return parse_strategies(strategies)
    except ValueError as error:
        raise ConfigError(f"strategies: {error}") from error


def _begun(model: NerModel) -> tuple[StrategyOptions, ...]:
    """The isolating strategies of the model's last step, if the model has no sub-networks yet."""
    if model.subnetworks is not None or not model.history or "compacted" in model.history[-1]:
        return ()
    listed = _parse(model.history[-1].get("strategies", ()))
    return tuple(options for options in listed if isolating([options]))


def _isolating(strategies: tuple[StrategyOptions, ...], model: NerModel) -> tuple[StrategyOptions, ...]:
    """Adds an isolating strategy if none is listed: the one of the model's sub-networks, else `modules`."""
    if isolating(strategies):
        return strategies
    if strategies:
        names = ", ".join(options.name for options in strategies)
        raise ConfigError(
            f"isolate: all that earlier steps use stays as it is, and none of {names} does that; list modules too, or "
            "leave --isolate, or the list and --replay, out"
        )
    if not model.head.apart:
        raise ConfigError(
            f"isolate: the head of this model, {model.head.name}, shares columns between steps, and a model keeps its "
            "head; start a new one with head addner or spankl, or hold old types with --max-drop"
        )
    return strategies + _parse([model.subnetworks.options.name if model.subnetworks is not None else "modules"])


def _check_mentions(sentences: Sequence[Sentence], types: Sequence[str]) -> None:
    if not sentences:
        raise DataError("there are no training sentences; give data that mention the new types")
    if not any(sentence.annotated_types for sentence in sentences):
        raise DataError(
            f"none of the {len(sentences)} sentences is annotated for any type; name the types in annotated_types "
            "(JSONL), or set all tokens to an entity or to O (DocBin)"
        )
    found = count_mentions(sentences)
    for type_ in types:
        if type_ not in found:
            known = ", ".join(sorted(found)) or "no spans"
            raise DataError(f"no sentence mentions {type_}{nearest(type_, found)}; the data have {known}")


def _check_replay(kept: Sequence[Sentence], old_types: Sequence[str], types: Sequence[str]) -> None:
    if not kept:
        raise DataError("there are no sentences to replay; leave replay out, or give some annotated for old types")
    known = ", ".join(old_types) or "no type yet"
    for sentence in kept:
        if not sentence.annotated_types:
            raise DataError(f"{sentence.where}a sentence to replay is annotated for no type; name its annotated_types")
        for type_ in sorted(sentence.annotated_types.difference(old_types)):
            if type_ in types:
                raise DataError(
                    f"{sentence.where}a sentence to replay is annotated for {type_}, which is only being learned; "
                    "give it with the training sentences"
                )
            raise DataError(
                f"{sentence.where}a sentence to replay is annotated for {type_}, which the model does not know"
                f"{nearest(type_, old_types)}; it knows {known}"
            )


def _check_replayed(strategies: Sequence[StrategyOptions]) -> None:
    if any(isinstance(options, ReplayOptions) and not options.strength for options in strategies):
        raise ConfigError(
            "strategies: replay has a weight of 0, so the sentences to replay would not be read; raise it, or leave "
            "replay out"
        )
