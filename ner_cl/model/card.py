"""The model card: which type was learned when, and how that changed F1 of the others."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from ner_cl.errors import many

if TYPE_CHECKING:  # avoids a circular import, as saving a model writes its card
    from ner_cl.model.ner_model import NerModel

__all__ = ["model_card", "scored_on"]


def scored_on(record: Mapping[str, Any]) -> Literal["dev", "test"]:
    """Returns what a history record was scored on: dev sentences for a single step, the test set for a stream."""
    return "dev" if record.get("measured") else "test"


_OWN_USE = """
import ner_cl

entities = ner_cl.load("this/folder").predict("Some text.")
"""

# `first` gives a word the tag of its first piece, which is the piece that was trained.
_CLASSIFIER_USE = """
from transformers import pipeline

tagger = pipeline("token-classification", model="this/folder", aggregation_strategy="first")
entities = tagger("Some text.")
"""


def model_card(model: "NerModel", *, library: Literal["ner_cl", "transformers"] = "ner_cl") -> str:
    """Markdown with Hugging Face front matter: types by step, and F1 of every type after every step.

    Args:
        model: the model.
        library: which library loads the folder that the card is for.
    """
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: token-classification",
        "tags: [named-entity-recognition, continual-learning]",
        "---",
        "",
        f"# A tagger of {many(len(model.types), 'entity type')}, learned in {many(len(model.tagset.steps), 'step')}",
        "",
        f"Encoder `{model.encoder.options.name}`, head `{model.head.name}`.",
        "",
        "| step | types | sentences |",
        "|---|---|---|",
    ]
    for number, types in enumerate(model.tagset.steps, start=1):
        record = model.history[number - 1] if number <= len(model.history) else {}
        lines.append(f"| {number} | {', '.join(types)} | {record.get('sentences', '')} |")
    lines += _scores(model)
    for record in model.history:
        if (kept := record.get("isolation")) and kept["unchanged"]:
            earlier = ", ".join(map(str, kept["unchanged"]))
            text = f"{kept['sentences']} sentences ({kept['words']} words)"
            lines += [
                "",
                f"Step {record['step']} left what earlier steps ({earlier}) emit as it was, bit by bit, on {text}.",
            ]
    for record in model.history:
        lines += _compacted(record)
    lines += [
        "",
        f"```python{_OWN_USE if library == 'ner_cl' else _CLASSIFIER_USE}```",
        "",
    ]
    return "\n".join(lines)


def _scores(model: "NerModel") -> list[str]:
    """The table of F1 by type and step, for the steps that were scored."""
    scored = [record for record in model.history if record.get("f1_after")]
    if not scored:
        return []
    columns = [f"step {record['step']}, {scored_on(record)}" for record in scored]
    lines = [
        "",
        "F1 × 100 of each type after each step, on test or on dev sentences, which are not comparable:",
        "",
        "| type | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(scored),
    ]
    for type_ in model.types:
        cells = [_score(record, type_) for record in scored]
        lines.append(f"| {type_} | " + " | ".join(cells) + " |")
    if any("agreement" in record.get("measured", {}).values() for record in scored):
        lines += [
            "",
            "`=`: agreement with the model before the step, where no gold was at hand; not comparable with F1.",
        ]
    return lines


def _score(record: dict[str, Any], type_: str) -> str:
    value = record["f1_after"].get(type_)
    agreement = record.get("measured", {}).get(type_) == "agreement"
    return "" if value is None else f"{'=' if agreement else ''}{100 * value:.1f}"


def _compacted(record: Mapping[str, Any]) -> list[str]:
    """Lines on what distilling the sub-networks into one encoder changed, if that was done after the step."""
    if not (found := record.get("compacted")):
        return []
    lines = ["", f"After step {record['step']} the sub-networks ({found['from']}) were distilled into one encoder:", ""]
    lines += ["| type | before | after | measured |", "|---|---|---|---|"]
    for change in found["changes"]:
        before, after = ("" if change[key] is None else f"{100 * change[key]:.1f}" for key in ("before", "after"))
        lines.append(f"| {change['type']} | {before} | {after} | {change['measured']} |")
    return lines
