"""`ner-cl export`: write a model for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ner_cl.cli.console import emit, emit_json, say
from ner_cl.cli.options import Alignment, Json, Overlap, reading_options
from ner_cl.errors import ConfigError

if TYPE_CHECKING:  # these modules import torch, which `--help` must not wait for
    from ner_cl.integrations.parity import Parity
    from ner_cl.model.ner_model import NerModel

__all__ = ["export"]

# Default texts for the comparison if no data are given: names, numbers, odd words, a sentence longer than a window.
_TEXTS = (
    "Ada Lovelace met Charles Babbage in London on 5 June 1833 .",
    "Acme Ltd. paid $ 3.2 million for Globex , said the B.B.C. , and moved from Oslo to Kyoto .",
    "She took 40 mg of aspirin after the Olympic Games in Rio de Janeiro .",
    "@user lol the new iPhone 15 is sooo good http://t.co/x1 :)",
    "Straße , naïve , 東 京 and Łódź\u200b",
    " ".join(["Bob told Mary of Paris , Texas , and of Judo ;"] * 40),
)


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write.")],
    format_: Annotated[
        str, typer.Option("--format", help="onnx, spacy (a pipeline folder) or hf (a transformers token classifier).")
    ] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="For onnx: store weights as 8-bit integers; faster, less exact.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Fail if the exported model finds something else; with --int8, if F1 drops too much."
        ),
    ] = False,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="Annotated sentences to compare both on, with F1.")
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="For spacy: language of the tokenizer, en by default.")
    ] = None,
    alignment: Alignment = "error",
    on_overlap: Overlap = "error",
    as_json: Json = False,
) -> None:
    """Write a model for ONNX Runtime, spaCy or transformers.

    The output of --format onnx is a model folder that can be used for everything except learning.
    """
    from ner_cl.data.readers import read_sentences
    from ner_cl.integrations.export import export_model
    from ner_cl.model.store import load_model
    from ner_cl.types import Sentence

    _check_usage(format_, int8=int8, language=language)
    reading = reading_options(data, "--data", alignment=alignment, on_overlap=on_overlap)
    if int8 and check and data is None:
        raise ConfigError("--check of --int8 compares F1: give annotated sentences with --data")
    tagger = load_model(model)
    sentences = read_sentences(data, **reading) if data is not None else ()
    export_model(tagger, output, format=format_, int8=int8, language=language or "en")
    say(f"{format_} is in {output}")
    if format_ == "hf":
        _note_on_classifier(tagger)
    if check or data is not None:
        from ner_cl.integrations.parity import check_export

        if format_ == "hf":
            tagger.discriminant = None  # see the note
        compared = sentences or [Sentence(tuple(text.split())) for text in _TEXTS]
        parity = check_export(tagger, output, compared, format=format_)
        emit_json(_to_dict(parity)) if as_json else emit(_in_words(parity))
        if check:
            parity.check(format_, int8=int8)


def _note_on_classifier(tagger: "NerModel") -> None:
    """Say what a program that uses the classifier finds otherwise."""
    from ner_cl.integrations.hub import glues_words

    if tagger.discriminant is not None and tagger.discriminant.corrects:
        say(
            "note: the classifier leaves out the statistics of tags (slda), which transformers has no place for; "
            "it finds what the network alone finds, and is compared with that"
        )
    if glues_words(tagger.encoder.tokenizer):
        say(
            "note: with the tokenizer of this encoder, the pipeline of transformers takes punctuation for a part of "
            "the word before it; give tokenizer and model the words, or use --format onnx or spacy"
        )


def _check_usage(format_: str, *, int8: bool, language: str | None) -> None:
    """Refuse an unknown format, and options that are for another one."""
    from ner_cl.integrations.export import FORMATS
    from ner_cl.registry import nearest

    if format_ not in FORMATS:
        raise ConfigError(f"--format {format_!r} is unknown{nearest(format_, FORMATS)}; choose {', '.join(FORMATS)}")
    if int8 and format_ != "onnx":
        raise ConfigError(f"--int8 is for --format onnx, not for {format_}; leave it out")
    if language is not None and format_ != "spacy":
        raise ConfigError(f"--language is for --format spacy, not for {format_}; leave it out")


def _to_dict(parity: "Parity") -> dict[str, float | int | None]:
    return {
        "sentences": parity.sentences,
        "agreement": parity.agreement,
        "f1_before": parity.f1_before,
        "f1_after": parity.f1_after,
        "on_text": parity.on_text,
    }


def _in_words(parity: "Parity") -> str:
    agreement = "nothing found" if parity.agreement is None else f"{100 * parity.agreement:.2f} % agreement"
    line = f"{parity.sentences} sentences: {agreement}"
    if parity.on_text is not None:
        line += f", {100 * parity.on_text:.2f} % where it reads text"
    if parity.f1_before is not None:
        line += f"; micro F1 {100 * parity.f1_before:.2f} before, {100 * (parity.f1_after or 0.0):.2f} after"
    return line
