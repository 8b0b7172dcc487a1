"""`ner-cl compact`: distil a model's sub-networks into one encoder."""

from pathlib import Path
from typing import Annotated

import typer

from ner_cl.cli.console import emit, emit_json
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
    reading_options,
    training_options,
)

__all__ = ["compact"]


def compact(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a model with one sub-network per step.")],
    text: Annotated[str, typer.Argument(metavar="TXT", help="Raw text to distil on, a text per line, or JSON lines.")],
    dev: Annotated[
        str | None, typer.Option("--dev", metavar="DATA", help="Annotated sentences for measuring the loss in F1.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Folder of the new model; MODEL-compact by default.")
    ] = None,
    settings: Settings = None,
    max_drop: MaxDrop = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 13,
    format_: Format = "auto",
    scheme: Scheme = "auto",
    alignment: Alignment = "error",
    on_overlap: Overlap = "error",
    as_json: Json = False,
) -> None:
    """Distil a model with one sub-network per step into one encoder, and show the cost in F1.

    The new model is as fast as any other and can learn more with any strategy, but no longer guarantees that old
    predictions stay the same.
    """
    from ner_cl.cli.learn import publish, result_to_dict
    from ner_cl.cli.progress import progress
    from ner_cl.data.readers import read_sentences
    from ner_cl.data.unlabeled import read_unlabeled
    from ner_cl.model.store import load_model
    from ner_cl.train.compact import compact as make_compact

    reading = reading_options(dev, "--dev", format=format_, scheme=scheme, alignment=alignment, on_overlap=on_overlap)
    training = training_options(settings or [])
    teacher = load_model(model)
    folder = output or beside(model, "-compact")
    with model_output(folder):
        sentences = read_unlabeled(text)
        measured = read_sentences(dev, **reading) if dev is not None else ()
        with progress(1) as display:
            result = make_compact(
                teacher,
                sentences,
                dev=measured,
                training=training,
                seed=seed,
                on_event=display,
            )
        publish(
            result,
            folder,
            max_drop,
            lambda: emit_json(result_to_dict(result, folder)) if as_json else emit(result.table),
        )
