"""Distils a model with many sub-networks into one with a single encoder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions, TrainingOptions, validate
from ner_cl.data.batching import Batch
from ner_cl.data.draws import generator
from ner_cl.data.lines import by_lines
from ner_cl.data.unlabeled import read_unlabeled
from ner_cl.errors import DataError, ModelError
from ner_cl.evaluate.counts import count_spans, micro_f1
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.heads.options import DistillOptions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.model.restoring import random_state_restored
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.teacher import Teacher
from ner_cl.train.changes import LearnResult, TypeChange, changes_of
from ner_cl.train.checkpoint import Checkpoint
from ner_cl.train.engine import Engine
from ner_cl.train.events import Event
from ner_cl.train.loop import StepTraining, epochs_between_scores, plan_epochs
from ner_cl.types import Sentence, Span

__all__ = ["compact"]

_HELD_BACK = 10  # one sentence in this many is held back for early stopping
_FEWEST_SENTENCES = 20
# Entries of a history record that hold for the teacher's blocks but not for the student's.
_OF_BLOCKS = ("calibration", "free", "isolation")


class _ImitateOptions(StrategyOptions):
    name: Literal["imitate"] = "imitate"


@final
class _Imitate(Strategy):
    """Every block imitates the same block of the teacher, on every word (Hinton et al. 2015)."""

    options_class = _ImitateOptions

    def __init__(self, teacher: NerModel) -> None:
        super().__init__(_ImitateOptions())
        self._teacher = Teacher(teacher, cache=True)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Returns the summed KL divergence of all blocks as `kd`; there is no gold."""
        teacher = self._teacher.logits_of(context, batch)
        return {"kd": context.model.head.imitation(emissions, teacher, DistillOptions())}


def compact(
    model: NerModel,
    sentences: str | PathLike[str] | Sequence[str] | Sequence[Sentence],
    *,
    dev: Sequence[Sentence] = (),
    training: TrainingOptions | Mapping[str, Any] | None = None,
    seed: int = 13,
    on_event: Callable[[Event], None] = lambda event: None,
) -> LearnResult:
    """Distils a model with one sub-network per step into one with a single encoder, which runs in one pass.

    The student starts from the shared encoder and the blocks, and imitates the emissions of all blocks on raw text. Its
    old blocks are no longer guaranteed not to change; in return, any strategy can teach it further types.

    Args:
        model: the teacher; it is not changed.
        sentences: text similar to what the model will tag, as texts, a file of them, or sentences, whose annotation is
            ignored.
        dev: annotated sentences for evaluation; types they are not annotated for are measured by agreement with the
            teacher. If empty, a tenth of `sentences` is used.
        training: options of the training loop, or a mapping of them.
        seed: seed of all random draws.
        on_event: called with every event.

    Returns:
        The student, with F1 before and after for every type.

    Raises:
        ModelError: if the model has no sub-networks, or has blocks that know types of earlier steps too.
        DataError: if there are too few sentences.
    """
    raw = _raw(sentences)
    _check(model, raw)
    options = validate(TrainingOptions, training or {}, "training")
    engine = Engine(options.precision)
    held_back, train = raw[::_HELD_BACK], [s for number, s in enumerate(raw) if number % _HELD_BACK]
    # Imitation ignores annotation, but the loop skips sentences that are annotated for no type.
    train = [sentence.with_spans((), model.types) for sentence in train]
    with random_state_restored(engine.device):
        student = _single(model, seed).to(engine.device)
    teacher = model.copy().to(engine.device).eval()

    def find(tagger: NerModel, texts: Sequence[Sentence]) -> list[list[Span]]:
        return predict_sentences(tagger, texts, batch_tokens=options.eval_batch_tokens, precision=engine.precision)

    reference = [s.with_spans(spans, model.types) for s, spans in zip(held_back, find(teacher, held_back), strict=True)]

    def agreement() -> float | None:
        return micro_f1(count_spans(reference, find(student, held_back), student.types))

    with random_state_restored(engine.device):
        for event in _imitation(teacher, student, train, held_back, agreement, options, engine, seed):
            on_event(event)
    measured = list(dev) or held_back
    before, after = find(teacher, measured), find(student, measured)
    counts = count_spans(measured, after, student.types)
    student = student.to(model.device).eval()
    changes = changes_of(measured, before, after, model.types, counts)
    student.history = _history(model, changes)
    student.metrics = {"counts": {type_: asdict(count) for type_, count in counts.items()}}
    return LearnResult(student, changes, new=())


def _raw(texts: str | PathLike[str] | Sequence[str] | Sequence[Sentence]) -> list[Sentence]:
    """Sentences without annotation."""
    if isinstance(texts, str | PathLike) or (texts and isinstance(texts[0], str)):
        return read_unlabeled(texts)
    return [Sentence(sentence.words) for sentence in by_lines(texts)]  # type: ignore[arg-type]


def _history(teacher: NerModel, changes: Sequence[TypeChange]) -> list[dict[str, Any]]:
    """The teacher's history, without entries that hold for its blocks only, plus the changes made by distillation."""
    records = [{k: v for k, v in record.items() if k not in _OF_BLOCKS} for record in teacher.history]
    name = teacher.subnetworks.options.name if teacher.subnetworks is not None else ""
    if records:
        records[-1]["compacted"] = {"from": name, "changes": [asdict(change) for change in changes]}
    return records


def _check(model: NerModel, sentences: Sequence[Sentence]) -> None:
    if model.subnetworks is None:
        raise ModelError("this model has one encoder for all its steps already; there is nothing to make compact")
    if model.head.knows_older:
        raise ModelError(
            "blocks of this model know older types too (join: vote), which nothing but modules can keep apart"
        )
    if len(sentences) < _FEWEST_SENTENCES:
        raise DataError(f"{len(sentences)} sentences are too few to imitate on; give {_FEWEST_SENTENCES} or more")


def _imitation(
    teacher: NerModel,
    student: NerModel,
    train: Sequence[Sentence],
    held_back: Sequence[Sentence],
    agreement: Callable[[], float | None],
    options: TrainingOptions,
    engine: Engine,
    seed: int,
) -> Iterator[Event]:
    """Trains the student, yielding events; it ends with the weights that agreed best with the teacher."""
    context = _context(student, train, options, engine, seed)
    epochs, times = plan_epochs(options, context, engine.processes)
    loop = StepTraining(
        context=context,
        strategies=[_Imitate(teacher)],
        options=options,
        epochs=epochs,
        patience=times * options.early_stopping.patience,
        mentions=0,
        every=epochs_between_scores(options, context, held_back),
        engine=engine,
        dev_score=agreement,
        seed=int(context.generator("dropout").integers(2**62)),
        checkpoint=Checkpoint(None),
        fingerprint="",
    )
    yield from loop.run()


def _single(model: NerModel, seed: int) -> NerModel:
    """A model with the same blocks and score calibration, all on the shared encoder."""
    student = NerModel.from_parts(model.copy().encoder, model.head.options)
    draw = torch.Generator().manual_seed(int(generator(seed, "compact/blocks").integers(2**62)))
    for types, block in zip(model.tagset.steps, model.head.blocks, strict=True):
        student.grow(types, generator=draw)
        new = student.head.new_block()
        if new.weight.shape == block.weight.shape:
            new.load_state_dict(block.state_dict())
    student.head.measured_as(model.head)
    return student


def _context(
    student: NerModel, train: Sequence[Sentence], options: TrainingOptions, engine: Engine, seed: int
) -> StepContext:
    """The context of a step that teaches no type."""

    def nothing(*_: object) -> None:
        return None

    context = StepContext(
        number=len(student.tagset.steps),
        types=student.tagset.steps[-1],
        old_types=student.types,
        model=student,
        batch_tokens=options.batch_tokens,
        eval_batch_tokens=options.eval_batch_tokens,
        precision=engine.precision,
        earlier=(),
        reset_model=nothing,
        predict=lambda sentences: predict_sentences(student, sentences),
        training_loss=lambda batch: torch.zeros(()),
        generator=lambda purpose: generator(seed, f"compact/{purpose}"),
    )
    context.encoded = student.encode(train)
    return context
