"""Exports a model for use in other programs."""

from pathlib import Path
from typing import Any

import transformers

from ner_cl.errors import ModelError
from ner_cl.files import publish_folder
from ner_cl.model.card import model_card
from ner_cl.model.ner_model import NerModel

__all__ = ["FORMATS", "export_model"]

FORMATS = ("onnx", "spacy", "hf")


def export_model(
    model: NerModel,
    folder: Path,
    *,
    format: str,  # noqa: A002
    int8: bool = False,
    language: str = "en",
) -> None:
    """Exports a model atomically.

    Args:
        model: the model to export.
        folder: destination; must be new or empty.
        format: `onnx`, a model folder whose graph ONNX Runtime runs; `spacy`, a pipeline folder; `hf`, a `transformers`
            token classifier.
        int8: for `onnx`, store weights as 8-bit integers.
        language: for `spacy`, the language code of its tokenizer.

    Raises:
        ModelError: if the folder is not empty, or the model cannot be exported in this format.
        MissingExtra: if a package that the export needs is not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder}: exists and is not an empty folder; choose another one")
    if format == "onnx":
        from ner_cl.integrations.onnx import to_onnx

        to_onnx(model, int8=int8).save(folder)
    elif format == "spacy":
        nlp = _pipeline(model, language)
        publish_folder(folder, nlp.to_disk)
    else:
        from ner_cl.integrations.hub import to_token_classifier

        classifier = to_token_classifier(model)
        publish_folder(folder, lambda draft: _save_classifier(model, classifier, draft))


def _pipeline(model: NerModel, language: str) -> Any:
    import spacy

    try:
        nlp = spacy.blank(language)
    except ImportError as error:
        reason = " ".join(str(error).split())
        if "E048" in reason:
            reason = "spaCy has none of that code; give one that it has, such as en, or xx"
        raise ModelError(f"language {language!r}: {reason[:240]}") from error
    component: Any = nlp.add_pipe("ner_cl")
    component.use(model)
    return nlp


def _save_classifier(model: NerModel, classifier: Any, folder: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    classifier.save_pretrained(folder)
    model.encoder.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(model, library="transformers"), encoding="utf-8")
