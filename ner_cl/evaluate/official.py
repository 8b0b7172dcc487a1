"""The same scores by seqeval, the reference implementation of entity-level NER scoring.

seqeval reads the scheme only together with `mode="strict"`, averages its macro over gold *and* predicted types, and
gives NaN where nothing is gold. The two readings differ on tags that are no legal IOB2: an `I-` that continues nothing
is no entity when read strictly, and opens one when read leniently. Legal tags score the same both ways.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from ner_cl.data.tagset import Tagset
from ner_cl.errors import DataError
from ner_cl.evaluate.metrics import mean
from ner_cl.types import Sentence, Span

__all__ = ["Mode", "official_report", "official_report_of_tags"]

Mode: TypeAlias = Literal["strict", "lenient"]


def official_report(
    gold: Sequence[Sentence], predicted: Sequence[Sequence[Span]], types: Sequence[str], *, mode: Mode = "strict"
) -> dict[str, Any]:
    """Scores of predicted spans; spans of types that a sentence is not annotated for are left out on both sides.

    Args:
        gold: the annotated sentences.
        predicted: for each of them the predicted spans, in words of that sentence.
        types: the types to score.
        mode: how tags are read; spans make legal tags, so both modes agree here.

    Returns:
        As `official_report_of_tags`.

    Raises:
        DataError: if the two sequences differ in length, or spans of one sentence overlap.
    """
    if len(gold) != len(predicted):
        raise DataError(f"{len(gold)} gold sentences but {len(predicted)} predictions; give one list of spans each")
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
    """Scores of raw IOB2 tags, such as a model without constrained decoding gives; other types' tags count as `O`.

    Args:
        gold: the tags of each sentence.
        predicted: as many tags for each of them.
        types: the types to score.
        mode: "strict", or "lenient" as seqeval reads by default and many papers report.

    Returns:
        `{"mode": …, "types": {type: scores}, "micro": scores, "macro": scores}`, scores being precision, recall, F1 in
        [0, 1] and support (number of gold spans). What is undefined without gold is None, and macro is the mean over
        the types that have gold.

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
    """seqeval's own report; empty where neither side has an entity, which it cannot average."""
    starts = ("B-",) if mode == "strict" else ("B-", "I-")
    if not any(tag.startswith(starts) for side in (gold, predicted) for tags in side for tag in tags):
        return {}
    options: dict[str, Any] = {"mode": "strict", "scheme": IOB2} if mode == "strict" else {}
    report: dict[str, Any] = classification_report(gold, predicted, output_dict=True, zero_division=0, **options)
    return report


def _scores(row: dict[str, Any] | None) -> dict[str, float | int | None]:
    """Plain numbers instead of numpy scalars; recall and F1 are undefined without gold."""
    if row is None:
        return {"precision": None, "recall": None, "f1": None, "support": 0}
    support = int(row["support"])
    recall, f1 = (float(row["recall"]), float(row["f1-score"])) if support else (None, None)
    return {"precision": float(row["precision"]), "recall": recall, "f1": f1, "support": support}
