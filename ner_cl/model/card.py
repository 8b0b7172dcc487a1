"""The model card: which type was learned when, and what it did to the others."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the model saves itself with a card, so importing it here would go round in a circle
    from ner_cl.model.ner_model import NerModel

__all__ = ["model_card"]


def model_card(model: "NerModel") -> str:
    """Markdown with Hugging Face front matter: types by step, and F1 of every type after every step."""
    lines = [
        "---",
        "library_name: ner_cl",
        "pipeline_tag: token-classification",
        "tags: [named-entity-recognition, continual-learning]",
        "---",
        "",
        f"# A tagger of {len(model.types)} entity types, learned in {len(model.tagset.steps)} steps",
        "",
        f"Encoder `{model.encoder.options.name}`, head `{model.head.name}`.",
        "",
        "| step | types | sentences |",
        "|---|---|---|",
    ]
    for number, types in enumerate(model.tagset.steps, start=1):
        record = model.history[number - 1] if number <= len(model.history) else {}
        lines.append(f"| {number} | {', '.join(types)} | {record.get('sentences', '')} |")
    scored = [record for record in model.history if record.get("f1_after")]
    if scored:
        lines += ["", "F1 × 100 of each type after each step:", ""]
        lines.append("| type | " + " | ".join(f"step {record['step']}" for record in scored) + " |")
        lines.append("|---|" + "---|" * len(scored))
        for type_ in model.types:
            cells = [_percent(record["f1_after"].get(type_)) for record in scored]
            lines.append(f"| {type_} | " + " | ".join(cells) + " |")
    for record in model.history:
        if (kept := record.get("isolation")) and kept["unchanged"]:
            steps, words = (
                ", ".join(map(str, kept["unchanged"])),
                f"{kept['sentences']} sentences, {kept['words']} words",
            )
            lines += [
                "",
                f"Step {record['step']} left the emissions of steps {steps} as they were, bit by bit, on {words}.",
            ]
    lines += [
        "",
        "```python",
        "import ner_cl",
        'entities = ner_cl.load("this/folder").predict("Some text.")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
