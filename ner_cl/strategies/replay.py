"""Replay: training on sentences of earlier steps again, each annotated only for the types of its own step."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch, EncodedSentences, rows_from
from ner_cl.errors import ModelError
from ner_cl.model.emissions import emissions_of
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.losses import masked_mean
from ner_cl.model.ner_model import SENTENCE_PREFIX
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.memory import Memory, MemoryOptions
from ner_cl.strategies.mixing import mixed
from ner_cl.strategies.pseudo_labels import with_old_types
from ner_cl.strategies.rows import cross_entropy, on_rows
from ner_cl.types import Sentence

__all__ = ["Replay", "ReplayOptions"]


_USED = {
    "ratio": "batch_ratio, loss or der",
    "weight": "another mixing (der has alpha and beta)",
    "alpha": "der",
    "beta": "der",
}


class ReplayOptions(StrategyOptions, MemoryOptions):
    """What is remembered (see `MemoryOptions`), how it is mixed in, and how missing annotation is handled.

    Attributes:
        mixing: `concatenate`: remembered and new sentences shuffled together, with one mean over the words of both
            (CT0); `batch_ratio`: the same mean, but a share `ratio` of the rows of every batch is remembered; `loss`:
            batches as in `batch_ratio`, with a mean over the epoch's new words plus `weight` times a mean over its
            remembered words (ER), both times the share of new words among all words, as without replay; `der`: as
            `loss`, but the second mean is replaced by `alpha` times the squared distance from the logits at the end of
            the sentence's own step, plus `beta` times cross entropy (DER++).
        labels: `own`: a remembered sentence says nothing about types that its step did not annotate; `relabel`: the
            model before the step adds the other old types where gold leaves room; `naive`: `O` denies every type, which
            is wrong and here for comparison only.
        rehearsal: `concatenate` only: number of sentences of each earlier step per epoch, drawn with replacement (CT0);
            by default every remembered sentence once.
        ratio: share of remembered rows in a batch; above 0, at most 0.99.
        weight: weight of the loss on remembered rows; not for `der`. 0 trains as if nothing were remembered.
        alpha: for `der`: weight of the squared distance.
        beta: for `der`: weight of the cross entropy.
    """

    name: Literal["replay"] = "replay"
    mixing: Literal["concatenate", "batch_ratio", "loss", "der"] = "concatenate"
    labels: Literal["own", "relabel", "naive"] = "own"
    rehearsal: int | None = Field(None, ge=1, le=1_000_000)
    ratio: float = Field(0.25, gt=0, le=0.99)
    weight: float = Field(1.0, ge=0)
    alpha: float = Field(0.5, ge=0)
    beta: float = Field(0.5, ge=0)

    @model_validator(mode="after")
    def _rehearsal_is_concatenated(self) -> "ReplayOptions":
        if self.rehearsal is not None and self.mixing != "concatenate":
            raise ValueError(f"rehearsal: counts sentences for mixing: concatenate; {self.mixing} goes by ratio")
        return self

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> "ReplayOptions":
        unused = {"concatenate": ("ratio", "alpha", "beta"), "der": ("weight",)}.get(self.mixing, ("alpha", "beta"))
        for name in unused:
            if name in self.chosen:
                raise ValueError(
                    f"{name}: has no effect with mixing: {self.mixing}; leave it out or choose {_USED[name]}"
                )
        return self

    @property
    def strength(self) -> float:
        """The weight of remembered sentences; 0 replays nothing."""
        return max(self.alpha, self.beta) if self.mixing == "der" else self.weight


@strategies.register("replay")
@final
class Replay(Strategy):
    """Keeps a few sentences of every step and trains on them again in later ones (CT0, ER, DER++).

    A remembered sentence is annotated only for the types of its own step, so its `O` does not rule out any other type,
    including new ones: AddNER trains the blocks it was annotated for, ExtendNER uses the marginal likelihood.
    """

    options_class = ReplayOptions
    options: ReplayOptions
    keeps = True
    excludes: ClassVar[Mapping[str, str]] = {"joint": "joint trains on all earlier sentences anyway"}

    def __init__(self, options: ReplayOptions) -> None:
        super().__init__(options)
        self.memory = Memory(options)
        self._logits: dict[str, Tensor] = {}
        # Remembered sentences as trained on, and by their `id()` the step and sentence they come from: sentences of two
        # steps may look the same.
        self._shown: list[Sentence] = []
        self._origins: dict[int, tuple[int, Sentence]] = {}
        self._targets: _Stored | None = None
        self._scale = 1.0

    @property
    def fills_batches(self) -> bool:
        """True for every `mixing` that goes by `ratio`."""
        return self.options.mixing != "concatenate"

    def sentences(self, context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
        """The step's sentences, followed by the remembered ones."""
        groups = self.memory.by_step(context.model.tagset.steps) if self.options.strength else []
        kept = [(number, sentence) for number, group in enumerate(groups) for sentence in group]
        shown = [sentence.restrict(context.old_types) for _, sentence in kept]
        if shown and self.options.labels == "relabel":
            found = context.predict(shown)
            nested = not context.model.head.tags_words
            shown = [
                with_old_types(sentence, spans, context.old_types, nested=nested)
                for sentence, spans in zip(shown, found, strict=True)
            ]
        self._shown, self._targets = shown, None
        self._origins = dict(zip(map(id, shown), kept, strict=True))
        return [*train, *shown] if shown else train

    def plan(self, context: StepContext, batches: list[list[int]], generator: np.random.Generator) -> list[list[int]]:
        """The batches, with remembered rows mixed in as `mixing` and `rehearsal` say."""
        encoded = context.encoded
        kept = rows_from(encoded.origins, "remembered")
        if not kept or (self.options.mixing == "concatenate" and self.options.rehearsal is None):
            return batches
        own = [row for batch in batches for row in batch if encoded.origins[row] != "remembered"]
        if self.options.mixing == "concatenate":
            rows = [*own, *self._rehearsed(context, kept, generator)]
            return encoded.plan(rows, batch_tokens=context.batch_tokens, generator=generator)
        ratio = self.options.ratio
        units = [[row] for row in own]
        planned = mixed(units, kept, encoded.lengths, tokens=context.batch_tokens, ratio=ratio, generator=generator)
        if self.options.mixing in ("loss", "der"):
            self._scale = _second_mean(encoded, planned)
        return planned

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`replay`, the cross entropy of remembered rows, and with `der` also `replay_logits`."""
        options = self.options
        reading: Literal["negative", "unknown"] = "negative" if options.labels == "naive" else "unknown"

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            found = {}
            if weight := options.beta if self._der else options.weight:
                found["replay"] = self._scale * weight * cross_entropy(context.model.head, batch, emissions, reading)
            if self._der and options.alpha and self._logits:
                found["replay_logits"] = self._scale * options.alpha * self._distance(context, batch, emissions)
            return found

        return on_rows(batch, emissions, terms, "remembered")

    def end_step(self, context: StepContext) -> None:
        """Chooses what to remember of the step and what to drop of earlier ones; stores logits with `der`."""
        self.memory.remember(context)
        self._forget_logits()
        new = self.memory.by_step(context.model.tagset.steps)[-1]
        if not self._der:
            self._logits = {}
            return
        encoded = context.model.encode(new)
        for rows, emissions in emissions_of(
            context.model, encoded, batch_tokens=context.eval_batch_tokens, precision="fp32"
        ):
            for place, (row, logits) in enumerate(zip(rows, emissions.flat(), strict=True)):
                own = logits[emissions.word_mask[place]].float()
                self._logits[_key(new[row])] = own.cpu().clone()

    def release(self) -> None:
        """Releases what belongs to the sentences of this step."""
        self._shown, self._origins, self._targets = [], {}, None

    def state_dict(self) -> dict[str, Tensor]:
        """The logits of every remembered sentence at the end of its step, with `der`."""
        return dict(self._logits)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        self._logits = dict(state)

    def kept_sentences(self) -> Sequence[Sentence]:
        """The memory."""
        return self.memory.sentences

    def load_sentences(self, sentences: Sequence[Sentence]) -> None:
        """Restores the memory, from which sentences may have been deleted; drops the logits of other sentences."""
        self.memory.load(sentences)
        self._forget_logits()

    @property
    def _der(self) -> bool:
        return self.options.mixing == "der"

    def _forget_logits(self) -> None:
        kept = {_key(sentence) for sentence in self.memory.sentences}
        self._logits = {key: logits for key, logits in self._logits.items() if key in kept}

    def _rehearsed(self, context: StepContext, kept: Sequence[int], generator: np.random.Generator) -> list[int]:
        """The rows of `rehearsal` sentences of each earlier step, drawn with replacement."""
        encoded = context.encoded
        assert self.options.rehearsal is not None
        rows_of: dict[int, dict[int, list[int]]] = {}
        for row in kept:
            index = encoded.windows[row].sentence
            # Sentences remembered by another strategy count as a step of their own; steps are numbered from 0.
            step, _ = self._origins.get(id(encoded.sentences[index]), (-1, None))
            rows_of.setdefault(step, {}).setdefault(index, []).append(row)
        drawn = []
        for _, rows in sorted(rows_of.items()):
            choices = list(rows.values())
            for choice in generator.integers(len(choices), size=self.options.rehearsal).tolist():
                drawn += choices[choice]
        return drawn

    def _distance(self, context: StepContext, batch: Batch, emissions: Emissions) -> Float[Tensor, ""]:
        """The mean over words of the mean squared distance to the stored logits, over the columns stored then."""
        if self._targets is None:
            self._targets = self._stored_logits(context)
        places = self._targets.places[batch.word_numbers]
        wanted = self._targets.logits[places.clamp(min=0)]
        known = wanted.isfinite() & (batch.word_mask & (places >= 0)).unsqueeze(-1)
        found = emissions.flat()[..., : wanted.shape[-1]].float()
        error = torch.where(known, found - wanted, torch.zeros_like(wanted)).square()
        return masked_mean(error.sum(dim=-1) / known.sum(dim=-1).clamp(min=1), batch.word_mask)

    def _stored_logits(self, context: StepContext) -> "_Stored":
        """The stored logits of the sentences of this step."""
        encoded, device = context.encoded, context.model.device
        places = torch.full((encoded.words,), -1)
        found: list[Tensor] = []
        start = rows = 0
        for sentence in encoded.sentences:
            end = start + len(sentence.words)
            if id(sentence) in self._origins:
                logits = self._logits.get(_key(self._origins[id(sentence)][1]))
                if logits is not None:
                    if len(logits) != end - start:
                        raise ModelError("replay: stored logits do not fit their sentence; teach the steps anew")
                    places[start:end] = torch.arange(rows, rows + len(logits))
                    found.append(logits)
                    rows += len(logits)
            start = end
        columns = max((logits.shape[-1] for logits in found), default=0)
        padded = [F.pad(logits, (0, columns - logits.shape[-1]), value=torch.nan) for logits in found]
        table = torch.cat(padded) if padded else torch.empty(1, 0)
        return _Stored(places.to(device), table.to(device))


@dataclass(frozen=True)
class _Stored:
    """Stored logits of remembered words.

    Attributes:
        places: row of each word in `logits`, by `Batch.word_numbers`; -1 where nothing is stored.
        logits: the logits; NaN where a column did not exist yet.
    """

    places: Int[Tensor, " word"]
    logits: Float[Tensor, "place column"]


def _second_mean(encoded: EncodedSentences, batches: Sequence[Sequence[int]]) -> float:
    """The factor that turns the remembered words' share of a mean over all words into a second mean of their own.

    With n new and m remembered words in an epoch, the strategy that trains on the new ones gives `n / (n + m)` times
    their mean. Remembered words get the same factor instead of `m / (n + m)`, so the sum is `n / (n + m)` times the sum
    of two means. Counted over the epoch, the factor does not depend on how batches are cut.
    """
    words = Counter[str]()
    for row in chain(*batches):
        words[encoded.origins[row]] += len(encoded.windows[row].word_pieces)
    return words["own"] / words["remembered"] if words["own"] else 1.0


def _key(sentence: Sentence) -> str:
    """The key of a sentence's stored logits, which changes with its words and its annotated types."""
    content = "\x1f".join((*sentence.words, "", *sorted(sentence.annotated_types)))
    return SENTENCE_PREFIX + hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]
