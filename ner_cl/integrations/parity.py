"""Checks that an exported model finds the same mentions as its original."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ner_cl.data.words import text_and_offsets
from ner_cl.errors import CheckFailed
from ner_cl.evaluate.counts import count_spans, micro_f1
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.types import Sentence, Span

__all__ = ["LEAST_AGREEMENT", "LEAST_ON_TEXT", "MOST_LOSS", "Parity", "check_export"]

MOST_LOSS = 0.005
"""Largest drop of micro F1 (0 to 1) that passes the check."""
LEAST_AGREEMENT = {"onnx": 0.999, "spacy": 0.999, "hf": 0.95}
"""Least F1 of the exported model against the original's predictions; `hf` picks the best tag of each word alone."""
LEAST_ON_TEXT = 0.8
"""The same of a pipeline that reads the text itself; its tokenizer may cut some words otherwise."""

Finder = Callable[[Sequence[Sentence]], list[list[Span]]]


@dataclass(frozen=True)
class Parity:
    """Comparison of an exported model with its original.

    Attributes:
        sentences: how many sentences both models read.
        agreement: micro F1 (0 to 1) of the exported model with the original's predictions as gold; None if neither
            finds a mention.
        f1_before: micro F1 of the original model; None without gold.
        f1_after: micro F1 of the exported model; None without gold.
        on_text: `agreement`, by characters, where a pipeline reads the text with its own tokenizer; None for other
            exports.
    """

    sentences: int
    agreement: float | None
    f1_before: float | None
    f1_after: float | None
    on_text: float | None = None

    def check(self, format: str, *, int8: bool) -> None:  # noqa: A002  it is the word of the command line
        """Raises CheckFailed if they differ by more than `format` allows; with `int8` only the drop in F1 counts."""
        if self.agreement is None:
            raise CheckFailed(
                f"neither the model nor the exported one finds anything in {self.sentences} sentences, so nothing is "
                "checked; give sentences that mention its types with --data"
            )
        least = LEAST_AGREEMENT[format]
        if not int8 and self.agreement < least:
            raise CheckFailed(
                f"the exported model agrees with the model in {100 * self.agreement:.2f} % of what they find, less "
                f"than {100 * least:.1f} %"
            )
        if self.on_text is not None and self.on_text < LEAST_ON_TEXT:
            raise CheckFailed(
                f"where it reads text, the exported pipeline agrees with the model in {100 * self.on_text:.2f} % of "
                f"what they find, less than {100 * LEAST_ON_TEXT:.0f} %: its tokenizer cuts words that the model was "
                "given whole; export with another --language, such as xx"
            )
        if self.f1_before is not None and self.f1_before - (self.f1_after or 0.0) > MOST_LOSS:
            raise CheckFailed(
                f"micro F1 fell from {100 * self.f1_before:.2f} to {100 * (self.f1_after or 0.0):.2f} with the export, "
                f"by more than {100 * MOST_LOSS:.1f} points"
            )


def check_export(
    model: NerModel,
    folder: Path,
    sentences: Sequence[Sentence],
    *,
    format: str,  # noqa: A002
) -> Parity:
    """Loads an exported model as its users would and compares its predictions with the original model's.

    Args:
        model: the original model.
        folder: the exported model.
        sentences: the sentences to read; their annotation of types that the model knows is the gold.
        format: the export format.
    """
    ours = predict_sentences(model, sentences, precision="fp32")
    on_text = None
    if format == "spacy":
        nlp = _load_pipeline(folder)
        theirs, on_text = _found_in_words(nlp, sentences), _agreement_on_text(nlp, sentences, ours)
    else:
        theirs = {"onnx": _onnx_finder, "hf": _hf_finder}[format](model, folder)(sentences)
    told = [Sentence(s.words, tuple(spans), frozenset(model.types)) for s, spans in zip(sentences, ours, strict=True)]
    gold = [sentence.restrict(model.types) for sentence in sentences]
    has_gold = any(sentence.spans for sentence in gold)
    return Parity(
        sentences=len(sentences),
        agreement=0.0 if any(theirs) and not any(ours) else _f1(told, theirs, model.types),
        f1_before=_f1(gold, ours, model.types) if has_gold else None,
        f1_after=_f1(gold, theirs, model.types) if has_gold else None,
        on_text=on_text,
    )


def _f1(gold: Sequence[Sentence], found: Sequence[Sequence[Span]], types: Sequence[str]) -> float | None:
    return micro_f1(count_spans(gold, found, types))


def _onnx_finder(model: NerModel, folder: Path) -> Finder:
    from ner_cl.model.store import load_model

    exported = load_model(folder)
    return lambda sentences: predict_sentences(exported, sentences)


def _load_pipeline(folder: Path) -> Any:
    import spacy

    # With the precision of what it is compared with.
    return spacy.load(folder, config={"components": {"ner_cl": {"precision": "fp32"}}})


def _found_in_words(nlp: Any, sentences: Sequence[Sentence]) -> list[list[Span]]:
    from spacy.tokens import Doc

    docs = nlp.pipe(Doc(nlp.vocab, words=list(sentence.words)) for sentence in sentences)
    return [[Span(entity.start, entity.end, entity.label_) for entity in doc.ents] for doc in docs]


def _agreement_on_text(nlp: Any, sentences: Sequence[Sentence], ours: Sequence[Sequence[Span]]) -> float | None:
    """F1, with `ours` as gold, of what the pipeline finds in the texts of the sentences; None if neither finds any."""
    both, all_found = 0, 0
    texts = [text_and_offsets(sentence) for sentence in sentences]
    for doc, (_, offsets), spans in zip(nlp.pipe(text for text, _ in texts), texts, ours, strict=True):
        said = {(offsets[span.start][0], offsets[span.end - 1][1], span.type) for span in spans}
        found = {(entity.start_char, entity.end_char, entity.label_) for entity in doc.ents}
        both, all_found = both + len(said & found), all_found + len(said) + len(found)
    return 2 * both / all_found if all_found else None


def _hf_finder(model: NerModel, folder: Path) -> Finder:
    import torch
    import transformers

    from ner_cl.data.tagset import spans_of_tags

    transformers.utils.logging.disable_progress_bar()
    classifier = transformers.AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def find(sentences: Sequence[Sentence]) -> list[list[Span]]:
        encoded = model.encode(sentences)
        found: dict[int, list[int]] = {}
        for rows, batch in encoded.in_length_order(2048):
            with torch.inference_mode():
                best = classifier(input_ids=batch.piece_ids, attention_mask=batch.piece_mask).logits.argmax(-1)
            for place, (row, words) in enumerate(zip(rows, batch.row_words, strict=True)):
                found[row] = best[place][batch.word_pieces[place, :words]].tolist()
        return [spans_of_tags([tag for row in rows for tag in found[row]], model.types) for rows in encoded.rows_of]

    return find
