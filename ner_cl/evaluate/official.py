"""Scores computed with seqeval, the reference implementation of entity-level NER scoring.

seqeval uses the scheme only with `mode="strict"`, takes its macro average over gold *and* predicted types, and gives
NaN without gold. The two modes differ only on invalid IOB2 tags: an `I-` that continues no entity is ignored in strict
mode and opens an entity in lenient mode.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from ner_cl.data.tagset import Tagset
from ner_cl.errors import DataError
from ner_cl.evaluate.counts import check_lengths
from ner_cl.evaluate.metrics import mean
from ner_cl.types import Sentence, Span

__all__ = ["Mode", "official_report", "official_report_of_tags"]

Mode: TypeAlias = Literal["strict", "lenient"]


def official_report(
    gold: Sequence[Sentence], predicted: Sequence[Sequence[Span]], types: Sequence[str], *, mode: Mode = "strict"
) -> dict[str, Any]:
    """Score predicted spans; spans of types that a sentence is not annotated for are left out on both sides.

    Args:
        gold: the annotated sentences.
        predicted: the predicted spans of each sentence, in word offsets.
        types: the types to score.
        mode: how tags are read; spans give valid tags, so both modes agree here.

    Returns:
        The same report as `official_report_of_tags`.

    Raises:
        DataError: if the two sequences differ in length, or spans of one sentence overlap.
    """
    check_lengths(gold, predicted)
    tagset = Tagset((tuple(types),))
    tags = tagset.tags
    gold_tags, predicted_tags = [], []
    for sentence, guess in zip(gold, predicted, strict=True):
        known = [span for span in guess if span.type in sentence.annotated_types]
        gold_tags.append([tags[tag] for tag in tagset.encode(sentence.spans, len(sentence.words))])
        predicted_tags.append([tags[tag] for tag in tagset.encode(known, len(sentence.words))])
    return official_report_of_tags(gold_tags, predicted_tags, types, mode=mode)


def official_report_of_tags(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], types: Sequence[str], *, mode: Mode = "strict"
) -> dict[str, Any]:
    """Score raw IOB2 tags, such as those of a model without constrained decoding; tags of other types count as `O`.

    Args:
        gold: the tags of each sentence.
        predicted: the predicted tags of each sentence, one per gold tag.
        types: the types to score.
        mode: "strict", or "lenient", which is seqeval's default and used in many papers.

    Returns:
        `{"mode": …, "types": {type: scores}, "micro": scores, "macro": scores}`, where scores are precision, recall, F1
        in [0, 1] and support (number of gold spans). Values undefined without gold are None. Macro is the mean over the
        types that have gold.

    Raises:
        DataError: if the two sequences, or the tags of one sentence, differ in length.
    """
    if [len(tags) for tags in gold] != [len(tags) for tags in predicted]:
        raise DataError("gold and predicted tags differ in number; give one tag a word for the same sentences")
    known = {f"{prefix}-{type_}" for type_ in types for prefix in "BI"}
    sides = [[[tag if tag in known else "O" for tag in tags] for tags in side] for side in (gold, predicted)]
    report = _seqeval(*sides, mode=mode)
    by_type = {type_: _scores(report.get(type_)) for type_ in types}
    macro: dict[str, float | int | None] = {
        key: mean(scores[key] for scores in by_type.values() if scores["support"])
        for key in ("precision", "recall", "f1")
    }
    micro = _scores(report.get("micro avg"))
    return {"mode": mode, "types": by_type, "micro": micro, "macro": macro | {"support": micro["support"]}}


def _seqeval(gold: list[list[str]], predicted: list[list[str]], *, mode: Mode) -> dict[str, Any]:
    """Return seqeval's report; empty if neither side has an entity, because seqeval cannot average that."""
    starts = ("B-",) if mode == "strict" else ("B-", "I-")
    if not any(tag.startswith(starts) for side in (gold, predicted) for tags in side for tag in tags):
        return {}
    options: dict[str, Any] = {"mode": "strict", "scheme": IOB2} if mode == "strict" else {}
    report: dict[str, Any] = classification_report(gold, predicted, output_dict=True, zero_division=0, **options)
    return report


def _scores(row: dict[str, Any] | None) -> dict[str, float | int | None]:
    """Convert numpy scalars to plain numbers; recall and F1 are None without gold."""
    if row is None:
        return {"precision": None, "recall": None, "f1": None, "support": 0}
    support = int(row["support"])
    recall, f1 = (float(row["recall"]), float(row["f1-score"])) if support else (None, None)
    return {"precision": float(row["precision"]), "recall": recall, "f1": f1, "support": support}
