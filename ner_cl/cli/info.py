"""`ner-cl info`: describe the installation, a model or a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ner_cl.cli.console import emit, emit_json, percent, table
from ner_cl.cli.options import Json
from ner_cl.errors import DataError, ModelError

if TYPE_CHECKING:
    from ner_cl.evaluate.matrix import Matrix
    from ner_cl.model.ner_model import NerModel

__all__ = ["info", "matrix_text"]


def info(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="Model folder, run folder, or folder of runs.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe this installation, a model, a run or a folder of runs.

    For a model: the types of each step, F1 after each step, sizes, and what strategies keep. For a run: its matrix. For
    a folder of runs, such as several seeds: the scores of each after its last step.
    """
    if folder is None:
        values = _installation()
        emit_json(values) if as_json else emit(_lines(values))
    elif (folder / "matrix.json").is_file():
        _run(folder, as_json=as_json)
    elif folder.is_dir() and not (folder / "labels.json").is_file():
        _runs(folder, as_json=as_json)
    else:
        _model(folder, as_json=as_json)


def _installation() -> dict[str, Any]:
    from ner_cl.model.precision import resolve_device, resolve_precision
    from ner_cl.registry import heads, readers, strategies
    from ner_cl.train.environment import environment

    device = resolve_device("auto")
    return {
        **environment(),
        "device": str(device),
        "precision": resolve_precision("auto", device),
        "strategies": list(strategies),
        "heads": list(heads),
        "formats": list(readers),
    }


def _lines(values: dict[str, Any]) -> str:
    """Format one line per key; nested values get lines of their own."""
    from ner_cl.config import flatten

    flat = {key: ", ".join(value) if isinstance(value, list) else value for key, value in flatten(values).items()}
    width = max(map(len, flat))
    return "\n".join(f"{key:<{width}}  {'-' if value is None else value}" for key, value in flat.items())


def _run(folder: Path, *, as_json: bool) -> None:
    from ner_cl.evaluate.matrix import Matrix

    matrix = Matrix.load(folder)
    if as_json:
        emit(json.dumps(matrix.to_dict(), indent=2, ensure_ascii=False))
        return
    emit(matrix_text(matrix))


def _runs(folder: Path, *, as_json: bool) -> None:
    from ner_cl.evaluate.matrix import Matrix
    from ner_cl.report.runs import find_runs

    try:
        runs = {path.relative_to(folder).as_posix(): Matrix.load(path) for path in find_runs(folder)}
    except DataError as error:
        if any(folder.rglob("matrix.json")):
            raise
        what = "is neither a model folder nor a run folder (no labels.json, no matrix.json), and holds no runs"
        raise ModelError(f"{folder}: {what}") from error
    if as_json:
        emit_json({"runs": {name: matrix.to_dict() for name, matrix in runs.items()}})
        return
    rows = [
        [
            name,
            f"{len(matrix.counts)} of {len(matrix.steps)}",
            percent(matrix.micro_f1[-1]),
            percent(matrix.macro_f1[-1]),
        ]
        for name, matrix in runs.items()
    ]
    emit(table(["run", "steps", "micro F1 × 100", "macro F1 × 100"], rows))


def matrix_text(matrix: "Matrix") -> str:
    """Format a matrix and the scores that follow from it."""
    from ner_cl.evaluate.matrix import render

    scores = [[key, percent(value)] for key, value in matrix.metrics.items()]
    return f"{render(matrix)}\n\n{table(['score', '× 100'], scores)}"


def _values(folder: Path) -> tuple[dict[str, Any], Sequence[str]]:
    """Describe a model of that folder or of the hub, and return its types."""
    from ner_cl.model.fetch import fetch, is_hub_id
    from ner_cl.model.store import load_model

    name = str(folder)
    if not folder.is_dir() and is_hub_id(folder):
        folder = fetch(folder.as_posix())
    model = load_model(folder)
    steps = [
        {"step": number, "types": list(types), **_of_history(model.history, number)}
        for number, types in enumerate(model.tagset.steps, start=1)
    ]
    return {
        "model": name,
        "encoder": model.encoder.options.name,
        "head": model.head.options.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "bytes_to_learn_more": sum(path.stat().st_size for path in (folder / "strategy").rglob("*") if path.is_file()),
        "subnetworks": _subnetworks(model),
        "discriminant": _discriminant(model),
        "kept": _kept(model, folder),
        "steps": steps,
    }, model.types


def _model(folder: Path, *, as_json: bool) -> None:
    from ner_cl.model.card import scored_on

    values, types = _values(folder)
    steps = values["steps"]
    if as_json:
        emit_json(values)
        return
    head = {key: value for key, value in values.items() if key not in ("steps", "kept")}
    blocks = [_lines(head)]
    rows = [[step["step"], ", ".join(step["types"]), step.get("sentences") or "-"] for step in steps]
    blocks.append(table(["step", "types", "sentences"], rows, text_columns=2))
    scored = [step for step in steps if step.get("f1")]
    if scored:
        lines = [[type_, *(_score(step, type_) for step in scored)] for type_ in types]
        note = "\n= agreement with the model before the step, where no gold was at hand"
        agreed = any("agreement" in step["measured"].values() for step in scored)
        f1 = table(["F1 × 100 after step", *(f"{step['step']} {scored_on(step)}" for step in scored)], lines)
        blocks.append(f1 + note if agreed else f1)
    blocks += [
        f"step {step['step']} left what earlier steps emit as it was, bit by bit, "
        f"on {step['isolation']['sentences']} sentences"
        for step in steps
        if step.get("isolation", {}).get("unchanged")
    ]
    blocks += [
        f"step {step['step']}, {name}: {found['text']}"
        for step in steps
        for name, found in step.get("settled", {}).items()
    ]
    for step in steps:
        if compacted := step.get("compacted"):
            rows = [[c["type"], percent(c["before"]), percent(c["after"]), c["measured"]] for c in compacted["changes"]]
            title = f"after step {step['step']} the sub-networks ({compacted['from']}) were distilled into one encoder:"
            blocks.append(f"{title}\n" + table(["type", "before", "after", "measured"], rows))
    if kept := values["kept"]:
        lines = [[row["strategy"], row["bytes"], f"{row['bytes_per_parameter']:.2f}", row["sentences"]] for row in kept]
        blocks.append(table(["kept to learn more by", "bytes", "bytes / encoder parameter", "sentences"], lines))
    emit("\n\n".join(blocks))


def _score(step: dict[str, Any], type_: str) -> str:
    agreement = step["measured"].get(type_) == "agreement"
    return f"{'=' if agreement else ''}{percent(step['f1'].get(type_))}"


def _subnetworks(model: "NerModel") -> dict[str, Any] | None:
    """Describe the sub-networks that give steps their own word vectors; None if there are none."""
    found = model.subnetworks
    if found is None:
        return None
    parameters = sum(parameter.numel() for parameter in found.parameters())
    return {**found.options.model_dump(), "first_step": found.first, "parameters": parameters}


def _discriminant(model: "NerModel") -> dict[str, Any] | None:
    """Describe what corrects the scores of tags; None if nothing does."""
    found = model.discriminant
    if found is None or not found.corrects:
        return None
    return {
        "types": model.tagset.types_of(found.tags),
        "layers": found.layers,
        "copied_layers": len(found.above),
        "bytes": sum(tensor.nbytes for tensor in found.state_dict().values()),
    }


def _kept(model: "NerModel", folder: Path) -> list[dict[str, Any]]:
    """Describe what each strategy keeps for later steps, in files named after it."""
    parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
    rows = []
    for name in sorted({*model.strategy_state, *model.kept_sentences}):
        size = sum(path.stat().st_size for path in (folder / "strategy").glob(f"{name}.*"))
        sentences = len(model.kept_sentences.get(name, ()))
        rows.append({"strategy": name, "bytes": size, "bytes_per_parameter": size / parameters, "sentences": sentences})
    return rows


def _of_history(history: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Return what the model's history records about a step."""
    for record in history:
        if record.get("step") == step:
            return {
                "sentences": record.get("sentences"),
                "finished": record.get("finished"),
                "f1": record.get("f1_after"),
                "measured": record.get("measured", {}),
                **{key: record[key] for key in ("isolation", "compacted", "settled") if key in record},
            }
    return {}
