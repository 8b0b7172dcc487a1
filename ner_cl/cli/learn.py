"""`ner-cl learn`: teach a model one new step; the everyday command."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ner_cl.cli.console import NOTABLE_FALL, emit, emit_json, is_main_process, say
from ner_cl.cli.options import (
    Alignment,
    Format,
    Json,
    MaxDrop,
    Overlap,
    Scheme,
    Settings,
    beside,
    model_output,
    names,
    parse_yaml,
    reading_options,
    training_options,
)
from ner_cl.errors import ConfigError, many

if TYPE_CHECKING:  # these modules import torch, which `--help` must not wait for
    from ner_cl.config import HeadOptions
    from ner_cl.model.ner_model import NerModel
    from ner_cl.train.changes import LearnResult

__all__ = ["learn", "publish", "result_to_dict"]

EncoderName: TypeAlias = Annotated[
    str | None, typer.Option("--encoder", metavar="NAME", help="Start a new model on this encoder.")
]
Dev: TypeAlias = Annotated[
    str | None, typer.Option("--dev", metavar="DATA", help="Sentences for selecting the model and measuring old types.")
]
Replay: TypeAlias = Annotated[
    str | None,
    typer.Option("--replay", metavar="DATA", help="Sentences annotated for old types to train on again."),
]
Unlabeled: TypeAlias = Annotated[
    str | None,
    typer.Option("--unlabeled", metavar="TXT", help="Raw in-domain text to preserve old types on, a text per line."),
]
Output: TypeAlias = Annotated[
    Path | None, typer.Option("--output", metavar="DIR", help="Folder of the new model; MODEL-stepN by default.")
]
Strategies: TypeAlias = Annotated[
    str | None, typer.Option("--strategies", metavar="LIST", help="Strategies: a name, or a list in YAML or JSON.")
]

Isolate: TypeAlias = Annotated[
    bool, typer.Option("--isolate", help="Change nothing that is used to find old types, and check that bit for bit.")
]


def learn(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Sentences annotated for the new types.")],
    types: Annotated[str, typer.Option("--types", metavar="A,B", help="New types, in order.")],
    model: Annotated[Path | None, typer.Option("--model", metavar="DIR", help="Model folder to start from.")] = None,
    encoder: EncoderName = None,
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="NAME", help="Head of the new model: a name, or options in YAML or JSON."),
    ] = None,
    dev: Dev = None,
    replay: Replay = None,
    unlabeled: Unlabeled = None,
    strategies: Strategies = None,
    isolate: Isolate = False,
    settings: Settings = None,
    output: Output = None,
    max_drop: MaxDrop = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 13,
    format_: Format = "auto",
    scheme: Scheme = "auto",
    alignment: Alignment = "error",
    on_overlap: Overlap = "error",
    as_json: Json = False,
) -> None:
    """Teach a model new types without the old data.

    Prints the F1 of every type before and after. Old types without mentions in the annotation of the dev data are
    measured by agreement with the model before the step.
    """
    from ner_cl.cli.progress import progress
    from ner_cl.config.composition import isolating, parsed_or_none
    from ner_cl.train.learn import learn as learn_step

    training = training_options(settings or [])
    listed = _strategies(strategies)
    student, folder = _start(model, encoder, head, output, apart=isolate or bool(isolating(parsed_or_none(listed))))
    _note_left_out(listed, student.head.options)
    options = reading_options(data, "DATA", format=format_, scheme=scheme, alignment=alignment, on_overlap=on_overlap)
    options |= {"dev": dev, "replay": replay, "unlabeled": unlabeled}
    with model_output(folder):
        with progress(1) as display:
            result = learn_step(
                student,
                data,
                types=names(types) or [],
                strategies=listed,
                isolate=isolate,
                must_measure=max_drop is not None,
                training=training,
                seed=seed,
                on_event=display,
                **options,
            )
        publish(result, folder, max_drop, lambda: _show(result, folder, unlabeled, max_drop, as_json=as_json))
    _note_kept(result.model, folder)


def _note_kept(model: "NerModel", folder: Path) -> None:
    """Say how many sentences the model keeps, and how to delete them."""
    if kept := sum(len(sentences) for sentences in model.kept_sentences.values()):
        say(f"note: it keeps {many(kept, 'sentence')} to learn more with; ner-cl data forget {folder} deletes them")


def publish(result: "LearnResult", folder: Path, max_drop: float | None, show: Callable[[], None]) -> None:
    """Save the model unless it fails the forgetting gate (`max_drop`); show the result either way."""
    try:
        if max_drop is not None:
            result.check(max_drop)
        if is_main_process():
            result.model.save(folder)  # before printing, because the reader of the output may be gone
            say(f"the model is in {folder}")
    finally:
        show()


def _show(result: "LearnResult", folder: Path, unlabeled: str | None, max_drop: float | None, *, as_json: bool) -> None:
    """Print the result and notes about it; they advise neither --unlabeled nor --max-drop if given."""
    if as_json:
        emit_json(result_to_dict(result, folder))
    else:
        emit(result.table)
    if result.isolation is not None and result.isolation.steps:
        say(str(result.isolation))
        if result.model.head.knows_older:
            say("note: later blocks have a vote on older types too, so what is found of them together may change")
    for change in result.changes:
        if change.before is None and change.measured == "nothing":
            say(f"note: nothing measures {change.type}; give --dev sentences that mention it")
        if change.type in result.model.tagset.steps[-1] and change.measured == "gold" and not change.after:
            say(f"note: {change.type} was not learned; give more sentences that mention it, or train for more epochs")
        if change.measured == "gold" and change.drop > NOTABLE_FALL:
            advice = "" if max_drop is not None else "; use --max-drop to reject such a model"
            say(f"note: {change.type} fell by {100 * change.drop:.1f} points{advice}")
        if change.measured == "agreement" and change.drop > NOTABLE_FALL:
            fell = f"{change.type} fell by {100 * change.drop:.1f} points of agreement"
            say(f"note: {fell} with {change.mentions} mentions found before; give --dev sentences to measure on more")
    if result.reads_unlabeled and not unlabeled and any(change.drop > NOTABLE_FALL for change in result.changes):
        say("note: raw text of your domain, given with --unlabeled, helps to keep old types")


def _start(
    model: Path | None, encoder: str | None, head: str | None, output: Path | None, *, apart: bool
) -> "tuple[NerModel, Path]":
    """Return the model to teach and the output folder.

    A new model whose steps must stay isolated (`apart`) gets the head addner by default, as with a configuration that
    names no head.
    """
    from ner_cl.model.ner_model import NerModel
    from ner_cl.model.store import load_model

    if model is not None:
        if encoder is not None or head is not None:
            raise ConfigError("--model already has an encoder and a head; leave --encoder and --head out")
        student = load_model(model)
        number = len(student.tagset.steps) + 1
        folder = output or beside(model, f"-step{number}")
    else:
        if encoder is None and head is None:
            raise ConfigError("name the model that learns more with --model, or start one with --encoder or --head")
        if output is None:
            raise ConfigError("--output: name the folder of the new model")
        student = NerModel.from_encoder(encoder or "minilm-l6", head=_head(head or ("addner" if apart else None)))
        folder = output
    return student, folder


def _head(name: str | None) -> Any:
    from ner_cl.config import HeadOptions, validate

    if name is None:
        return HeadOptions()
    value = parse_yaml(name, "--head")
    return validate(HeadOptions, value if isinstance(value, dict) else {"name": name}, "--head")


def _note_left_out(listed: list[Any], head: "HeadOptions") -> None:
    """Note which default strategies a given list drops.

    A list in which no strategy preserves old types gets `distill` added, but not the rest of the default, such as
    `frozen_trunk`.
    """
    from ner_cl.config.composition import check_composition, default_strategies, parsed_or_none
    from ner_cl.registry import strategies

    options = parsed_or_none(listed)
    if not options or any(strategies[item.name].holds_old_types for item in options):  # type: ignore[attr-defined]
        return
    for name in default_strategies(head):
        held = strategies[name].holds_old_types  # type: ignore[attr-defined]
        if held or name in {item.name for item in options}:
            continue
        try:
            check_composition([*options, *parsed_or_none([name])])
        except ConfigError:
            continue
        say(f"note: {name} is part of the default and not of --strategies; list it too to keep it")


def _strategies(text: str | None) -> list[Any]:
    """Parse `distill`, `distill,spg` or a list of mappings."""
    if text is None:
        return []
    value = parse_yaml(text, "--strategies")
    if value is None:
        raise ConfigError(f"--strategies {text!r}: name one or more, or leave it out for the default")
    if isinstance(value, str):
        return list(names(value, "--strategies") or ())
    return value if isinstance(value, list) else [value]


def result_to_dict(result: "LearnResult", folder: Path) -> dict[str, Any]:
    """Return what `--json` prints: the model, its step, and an entry per type."""
    changes = [asdict(change) for change in result.changes]
    found = {"model": str(folder), "step": len(result.model.tagset.steps), "types": changes}
    return found if result.isolation is None else {**found, "isolation": result.isolation.record()}
