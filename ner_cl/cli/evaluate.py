"""`ner-cl evaluate`: precision, recall and F1 of every type."""

import json
from collections.abc import Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ner_cl.cli.console import emit, emit_json, percent, say, table
from ner_cl.cli.info import matrix_text
from ner_cl.cli.options import Alignment, Format, Json, Overlap, Scheme, Types, names
from ner_cl.errors import ConfigError
from ner_cl.files import replace_file

if TYPE_CHECKING:  # these modules import torch, which `--help` must not wait for
    from ner_cl.types import Sentence, Span

__all__ = ["evaluate"]

_SCORES = ("precision", "recall", "f1")


def evaluate(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Model folder; or several, the models of successive steps.")
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Annotated sentences.")],
    types: Types = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Also give seqeval's lenient scores, beside the strict ones.")
    ] = False,
    merge: Annotated[
        str | None, typer.Option("--merge", help="Merge blocks in another way: resolver, viterbi, vote or majority.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Also write JSON to FILE.")] = None,
    format_: Format = "auto",
    scheme: Scheme = "auto",
    alignment: Alignment = "error",
    on_overlap: Overlap = "error",
    as_json: Json = False,
) -> None:
    """Score a model on annotated sentences.

    Scoring is strict: a predicted span is right if start, end and type all match. A sentence counts only for the types
    it is annotated for.

    If each step has its own block (head addner), `alone` is the F1 of a block by itself, and `merging` is the gain or
    loss from merging the blocks.

    Of several models, each taught on top of another, the F1 of every type after every step is shown, with forgetting.

    The expected calibration error is the mean difference between scores and the share of spans with such scores that
    are right.
    """
    reading: dict[str, Any] = {"format": format_, "scheme": scheme, "alignment": alignment, "on_overlap": on_overlap}
    if len(models) > 1 and (lenient or merge is not None or types is not None):
        raise ConfigError(
            "of several models, all types are scored as the models are; leave --types, --lenient and --merge out"
        )
    if len(models) > 1:
        values, text = _across_steps(models, data, reading)
    else:
        values = _report_of(models[0], data, reading, names(types), merge=merge, lenient=lenient)
        text = _text(values)
    if output is not None:
        with replace_file(output) as file:
            file.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
    emit_json(values) if as_json else emit(text)


def _report_of(
    model: Path, data: str, reading: dict[str, Any], asked: Sequence[str] | None, *, merge: str | None, lenient: bool
) -> dict[str, Any]:
    """Score one model."""
    from ner_cl.data.readers import read_sentences
    from ner_cl.evaluate.scores import annotated_types, scored_types
    from ner_cl.model.predict import score_merged_and_nested, score_sentences
    from ner_cl.model.store import load_model

    tagger = load_model(model, device="auto")
    if merge is not None:
        measured = tagger.head.votes
        tagger.head.merge_by(merge)
        if merge == "vote" and not measured:
            say(
                "no vote of this model was ever measured, so each counts 1; modules with head.merge: vote measures them"
            )
    tagger.check_types(asked)
    sentences = read_sentences(data, types=asked, **reading)
    annotated = annotated_types(sentences)
    scored = scored_types(tagger.types, asked, annotated, data)
    if asked is None:
        _say_left_out(tagger.types, annotated)
    say(f"{len(sentences)} sentences")
    if tagger.head.apart and (len(tagger.tagset.steps) > 1 or not tagger.head.tags_words):
        merged, alone = score_merged_and_nested(tagger, sentences)
    else:  # there are no competing blocks to score separately
        merged, alone = score_sentences(tagger, sentences), None
    found = [[(item.span, item.score) for item in items] for items in merged]
    predicted = [[span for span, _ in items] for items in found]
    report = {"model": str(model), "data": data, "sentences": len(sentences)}
    report |= _report(sentences, predicted, scored, lenient=lenient)
    report["calibration"] = _calibration([sentence.restrict(scored) for sentence in sentences], found)
    if alone is not None:
        _add_alone(report, sentences, [[item.span for item in items] for items in alone])
    return report


def _across_steps(models: Sequence[Path], data: str, reading: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Score the models of successive steps on the same sentences; return the values and their table."""
    from ner_cl.data.readers import read_sentences
    from ner_cl.evaluate.scores import annotated_types, score_steps, scored_types
    from ner_cl.model.store import read_past

    sentences = read_sentences(data, **reading)
    annotated = annotated_types(sentences)
    known = [type_ for types in max((read_past(model).steps for model in models), key=len) for type_ in types]
    scored_types(known, None, annotated, data)
    _say_left_out(known, annotated)
    matrix = score_steps(models, sentences)
    return {"models": [str(model) for model in models], "data": data, **matrix.to_dict()}, matrix_text(matrix)


def _say_left_out(known: Sequence[str], annotated: Set[str]) -> None:
    """Say which types of the data the model does not know, and which it knows that the data are not annotated for."""
    for title, left_out in (
        ("unknown to the model", sorted(annotated - set(known))),
        ("not annotated in the data", [type_ for type_ in known if type_ not in annotated]),
    ):
        if left_out:
            say(f"not scored, {title}: {', '.join(left_out)}")


def _report(
    sentences: "Sequence[Sentence]", predicted: "Sequence[Sequence[Span]]", types: Sequence[str], *, lenient: bool
) -> dict[str, Any]:
    from ner_cl.data.readers import first_overlap
    from ner_cl.evaluate.counts import Counts, count_spans
    from ner_cl.evaluate.metrics import mean
    from ner_cl.evaluate.official import official_report

    counts = count_spans(sentences, predicted, types)
    modes: list[Any] = ["strict", "lenient"] if lenient else ["strict"]
    if any(first_overlap(sentence.spans) for sentence in sentences):
        say("seqeval is left out: it has one tag a word, and gold spans overlap")
        modes = []
    official = {mode: official_report(sentences, predicted, types, mode=mode) for mode in modes}
    with_gold = [cell for cell in counts.values() if cell.gold]
    macro = {key: mean(getattr(cell, key) for cell in with_gold) for key in _SCORES}
    total = sum(counts.values(), start=Counts())
    return {
        "types": {type_: _cell(cell) for type_, cell in counts.items()},
        "micro": _cell(total),
        "macro": {**macro, "support": total.gold},
        "seqeval": {mode: {key: report[key] for key in ("micro", "macro")} for mode, report in official.items()},
    }


def _calibration(gold: "Sequence[Sentence]", found: "Sequence[Sequence[tuple[Span, float]]]") -> dict[str, Any]:
    """Compare the scores of predicted spans with the share that is right."""
    from ner_cl.evaluate.reliability import calibration_error, judge, reliability

    scores, right = judge(gold, found)
    bins = reliability(scores, right)
    return {"expected_error": calibration_error(bins), "spans": len(scores), "bins": [asdict(own) for own in bins]}


def _add_alone(report: dict[str, Any], sentences: "Sequence[Sentence]", alone: "Sequence[Sequence[Span]]") -> None:
    """Add to the report, for each type, F1 of its block alone and the change due to merging."""
    from ner_cl.evaluate.counts import Counts, count_spans

    counts = count_spans(sentences, alone, list(report["types"]))
    for type_, cell in counts.items():
        report["types"][type_] |= _merged(report["types"][type_]["f1"], cell.f1)
    report["micro"] |= _merged(report["micro"]["f1"], sum(counts.values(), start=Counts()).f1)


def _merged(merged: float | None, alone: float | None) -> dict[str, Any]:
    change = None if merged is None or alone is None else merged - alone
    return {"alone_f1": alone, "merging": change}


def _cell(counts: Any) -> dict[str, Any]:
    scores = {key: getattr(counts, key) for key in _SCORES}
    return {"tp": counts.tp, "fp": counts.fp, "fn": counts.fn, **scores, "support": counts.gold}


def _text(report: dict[str, Any]) -> str:
    """Format the report as a table, with scores times 100."""
    calibration = report["calibration"]
    error = "-" if calibration["expected_error"] is None else f"{100 * calibration['expected_error']:.1f}"
    return f"{_table(report)}\nexpected calibration error of the scores, {calibration['spans']} spans found: {error}"


def _table(report: dict[str, Any]) -> str:
    lines = [*report["types"].items(), *((name, report[name]) for name in ("micro", "macro"))]  # also names of types
    lines += [(f"seqeval {mode}, micro", averages["micro"]) for mode, averages in report["seqeval"].items()]
    rows = [[name, *(percent(cell[key]) for key in _SCORES), cell["support"]] for name, cell in lines]
    if "alone_f1" not in report["micro"]:
        return table(["type", *_SCORES, "support"], rows)
    for row, (_, cell) in zip(rows, lines, strict=True):
        row[-1:] = [percent(cell.get("alone_f1")), _signed(cell.get("merging")), cell["support"]]
    return table(["type", *_SCORES, "alone", "merging", "support"], rows)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"
