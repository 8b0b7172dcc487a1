"""Notes on effects of the listed strategies that the user may not expect."""

from collections.abc import Iterator, Sequence

from ner_cl.data.tally import count_mentions
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.pseudo_labels import with_old_types
from ner_cl.train.events import Note
from ner_cl.types import Sentence, Span

__all__ = ["hardly_met", "notes"]

_MANY_UNKNOWN = 0.05  # below that, mostly emoji and rare symbols
_FEW_MET = 5  # mentions in a step's sentences; of types with fewer, much is lost (docs/results/gum-politics.md)
_NAMED = 5  # types in a note


def notes(
    model: NerModel, strategies: Sequence[Strategy], context: StepContext, dev: Sequence[Sentence]
) -> Iterator[Note]:
    """Yields the notes to show at the start of a step.

    Args:
        model: the student.
        strategies: all strategies.
        context: context with the step's sentences encoded.
        dev: the sentences on which epochs are compared, with the mentions that count there.
    """
    state, remembered = model.strategy_state, model.kept_sentences
    kept = {name for name in (*state, *remembered) if state.get(name) or remembered.get(name)}
    if dropped := sorted(kept.difference(strategy.options.name for strategy in strategies)):
        effect = ", and predictions are no longer corrected by slda" if "slda" in dropped else ""
        reason = "they are" if len(dropped) > 1 else "it is"
        yield Note(
            step=context.number,
            text=f"what {' and '.join(dropped)} kept of earlier steps is dropped, because "
            f"{reason} not in the list of strategies{effect}; old models keep theirs",
        )
    for strategy in strategies:
        name = strategy.options.name
        if context.old_types and strategy.keeps and name not in kept:
            until = "" if strategy.acts_at_once else "; it begins to act in the next step"
            yield Note(step=context.number, text=f"{name} has kept nothing of earlier steps{until}")
        if context.old_types and strategy.reads_dev and not context.dev:
            text = f"{name} measures on dev sentences and there are none: it does nothing in this step"
            yield Note(step=context.number, text=text)
    if context.old_types and {"gpm", "spg"} <= {strategy.options.name for strategy in strategies}:
        text = "gpm beside spg solves equations for every row of every weight, which takes tens of times as long as an"
        yield Note(step=context.number, text=f"{text} update; a larger gpm.every solves them more rarely")
    if dev and not any(sentence.spans for sentence in dev):
        text = f"no dev sentence mentions {', '.join(context.types)}: the last epoch is kept, whichever is best"
        yield Note(step=context.number, text=text)
    if context.unlabeled and not any(strategy.reads_unlabeled for strategy in strategies):
        advice = "" if any(strategy.isolates for strategy in strategies) else "; distill does"
        yield Note(step=context.number, text=f"no strategy of the list reads the raw text{advice}")
    own = [sentence.words for sentence in context.encoded.sentences_from("own")]
    if (share := model.encoder.pieces.share_unknown(own)) > _MANY_UNKNOWN:
        text = f"{share:.0%} of the words are unknown to this encoder; begin with one of their language or script"
        yield Note(step=context.number, text=text)
    longest = model.head.longest_span
    if longest is not None:
        spans = (span for sentence in context.encoded.sentences for span in sentence.spans)
        if long := sum(span.end - span.start > longest and span.type in model.types for span in spans):
            text = f"{long} mentions are longer than {longest} words and cannot be learned; raise head.max_words"
            yield Note(step=context.number, text=text)
    networks = model.subnetworks
    if context.old_types and networks is not None and networks.free is not None:
        text = f"{networks.options.name}: earlier steps have left {networks.free:.1%} of the network free"
        yield Note(step=context.number, text=text)


def hardly_met(sentences: Sequence[Sentence], found: Sequence[Sequence[Span]], old_types: Sequence[str]) -> str:
    """Returns a note naming the old types that occur too rarely in the step's sentences to be preserved by them.

    It is "" if there are none.

    Args:
        sentences: the step's training sentences.
        found: the spans that the model before the step finds in each.
        old_types: the types that it knows.
    """
    known = zip(sentences, found, strict=True)
    met = count_mentions(with_old_types(sentence, spans, old_types) for sentence, spans in known)
    rare = [type_ for type_ in old_types if met[type_] < _FEW_MET]
    if not rare:
        return ""
    return (
        f"these sentences hardly mention {_named(rare)} (fewer than {_FEW_MET} times each), so little in them helps to "
        "keep that; raw text (unlabeled) or a few annotated sentences (replay) would"
    )


def _named(types: Sequence[str]) -> str:
    """The first few types, and how many more there are."""
    return ", ".join(types[:_NAMED]) + (f" and {len(types) - _NAMED} more" if len(types) > _NAMED else "")
