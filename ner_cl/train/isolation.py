"""Bit-for-bit check that old blocks still compute what they did."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ner_cl.errors import CheckFailed
from ner_cl.model.emissions import emissions_of
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import Precision
from ner_cl.types import Sentence

__all__ = ["Fingerprints", "emission_fingerprints"]


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of what the blocks of some steps emit on some text; a single changed bit changes them.

    Attributes:
        sentences: number of sentences read.
        words: number of words in them.
        steps: SHA-256 of the emissions of each step's block.
    """

    sentences: int
    words: int
    steps: dict[int, str]

    def check(self, later: "Fingerprints") -> None:
        """Compares these with fingerprints made later.

        Raises:
            CheckFailed: if any block's emissions differ, even by one bit of one score.
        """
        if changed := [step for step, found in self.steps.items() if later.steps.get(step) != found]:
            names = ", ".join(map(str, changed))
            raise CheckFailed(
                f"the emissions of the blocks of steps {names} are not what they were, on {self.sentences} sentences "
                f"({self.words} words); something changed weights that must not change, and the model is not published"
            )

    def __str__(self) -> str:
        """The result of a successful check, in words."""
        return (
            f"the blocks of earlier steps emit what they did, to the last bit, on {self.sentences} sentences "
            f"({self.words} words)"
        )

    def record(self) -> dict[str, Any]:
        """Returns the entry for `history.jsonl`."""
        return {"sentences": self.sentences, "words": self.words, "unchanged": sorted(self.steps)}


def emission_fingerprints(
    model: NerModel, sentences: Sequence[Sentence], steps: Sequence[int], *, batch_tokens: int, precision: Precision
) -> Fingerprints:
    """Hashes the emissions and calibration of the blocks of `steps`, running only those steps' sub-networks."""
    digests = {step: hashlib.sha256() for step in steps}
    if not digests:
        return Fingerprints(len(sentences), sum(len(sentence.words) for sentence in sentences), {})
    encoded = model.encode(sentences)
    for indices, emissions in emissions_of(model, encoded, steps=steps, batch_tokens=batch_tokens, precision=precision):
        for step, digest in digests.items():
            scores = emissions.blocks[step - 1][emissions.word_mask].float().cpu().contiguous()
            digest.update(repr(indices).encode())
            digest.update(scores.view(torch.uint8).numpy().data)
    for step, digest in digests.items():
        digest.update(repr(model.head.measured(step)).encode())
    found = {step: digest.hexdigest() for step, digest in digests.items()}
    return Fingerprints(len(sentences), encoded.words, found)
