"""All words of a step as flat tensors, for decisions made once per word, before the step is trained."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ner_cl.data.batching import EncodedSentences

__all__ = ["StepWords"]


@dataclass(frozen=True)
class StepWords:
    """All words of a step, by `Batch.word_numbers`.

    Attributes:
        targets: tag id of the word.
        sentences: index of its sentence.
        rows: index of its window.
        own: whether it is in one of the step's own sentences.
    """

    targets: Int[Tensor, " word"]
    sentences: Int[Tensor, " word"]
    rows: Int[Tensor, " word"]
    own: Bool[Tensor, " word"]

    @classmethod
    def of(cls, encoded: EncodedSentences, device: torch.device) -> "StepWords":
        """The words of encoded sentences.

        Args:
            encoded: the encoded sentences of the step.
            device: device of the tensors.
        """
        lengths = [len(sentence.words) for sentence in encoded.sentences]
        starts = np.cumsum([0, *lengths])
        rows = np.zeros(encoded.words, dtype=np.int64)
        for row, window in enumerate(encoded.windows):
            first = starts[window.sentence] + window.first_word
            rows[first : first + len(window.word_pieces)] = row
        return cls(
            targets=encoded.targets.to(device),
            sentences=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device),
            rows=torch.from_numpy(rows).to(device),
            own=torch.tensor([encoded.origins[row] == "own" for row in rows], device=device),
        )

    @property
    def outside(self) -> Bool[Tensor, " word"]:
        """Which of the step's own words are labelled `O`."""
        return self.own & (self.targets == 0)

    @property
    def typed(self) -> Bool[Tensor, " word"]:
        """Which of the step's own words have a tag of a new type."""
        return self.own & (self.targets > 0)
