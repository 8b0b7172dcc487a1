"""Teaches a model new types from annotated spaCy documents."""

from collections.abc import Callable, Sequence
from typing import Any

from ner_cl.errors import DataError
from ner_cl.integrations.spacy_examples import AnnotatedDocs, convert_docs, sentences_of
from ner_cl.model.ner_model import NerModel
from ner_cl.train.changes import LearnResult, check_gate
from ner_cl.train.learn import learn

__all__ = ["learn_from_docs"]


def learn_from_docs(
    load: Callable[[], NerModel],
    examples: AnnotatedDocs,
    *,
    types: Sequence[str],
    dev: AnnotatedDocs | None,
    max_drop: float | None,
    **options: Any,
) -> LearnResult:
    """Teaches a model new types and records in its history how many sentences were left out.

    Args:
        load: returns the model; called once the documents have been read.
        examples: documents annotated for `types`.
        types: the new types, in order.
        dev: documents for model selection and evaluation.
        max_drop: largest allowed drop of an old type's F1 (0 to 1).
        **options: options of `ner_cl.learn`; `replay` and `unlabeled` may be documents too.

    Raises:
        DataError: if no sentence is fully annotated, or none mentions a type.
        ModelError: if a type is known already.
        CheckFailed: if an old type's F1 drops by more than `max_drop`, or (before training) none can be measured.
    """
    if max_drop is not None:
        check_gate(max_drop)
    data = sentences_of(examples, types)
    if data.left_out and not data.sentences:
        raise DataError(
            f"none of the {data.left_out} sentences is annotated throughout for {', '.join(types)}; tokens that "
            "are no entities must be set to O, as doc.ents = [...] does"
        )
    if dev is not None:
        options["dev"] = sentences_of(dev, types, all_types=False).sentences
    if "replay" in options:
        options["replay"] = convert_docs(options["replay"], lambda docs: sentences_of(docs, ()).sentences)
    if "unlabeled" in options:
        options["unlabeled"] = convert_docs(options["unlabeled"], lambda docs: [doc.text for doc in docs])
    result = learn(load(), data.sentences, types=types, must_measure=max_drop is not None, **options)
    if max_drop is not None:
        result.check(max_drop)
    result.model.history[-1]["left_out"] = data.left_out
    return result
