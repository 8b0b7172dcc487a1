"""The tagger: encoder, head and tagset."""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final, get_args, overload

import torch
from torch import Tensor, nn

from ner_cl.config import EncoderOptions, HeadOptions, validate
from ner_cl.data.batching import Batch, EncodedSentences
from ner_cl.data.tagset import Tagset
from ner_cl.errors import ConfigError, ModelError
from ner_cl.model.encoder import Encoder
from ner_cl.model.heads.base import Head
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.precision import Precision
from ner_cl.model.runtime import OnnxRuntime
from ner_cl.model.subnetworks.base import SubnetworkOptions, Subnetworks
from ner_cl.model.subnetworks.trunk import ONE_PASS_AT_A_TIME
from ner_cl.registry import heads, subnetworks
from ner_cl.types import Entity, Sentence

__all__ = ["SENTENCE_PREFIX", "NerModel"]

_EXPORTED = "an exported model cannot learn; teach the model that it was exported from"

SENTENCE_PREFIX = "sentence/"
"""How the names of tensors begin that strategies keep about a single sentence; they are deleted with the sentences."""


@final
class NerModel(nn.Module):
    """A tagger that knows some types and can be grown to know more.

    Args:
        encoder: gives word vectors.
        head: gives tag scores; its tagset is the model's.

    Attributes:
        subnetworks: what computes word vectors for each step on its own; None where all blocks read the encoder.
        runtime: what computes tag scores in place of encoder and head, in a model that was exported; such a model
            predicts and does not learn.
        history: one record a step: types, data hash, F1 of every type before and after.
        metrics: exact counts of the last evaluation.
        strategy_state: tensors that strategies keep for later steps, by strategy name; never needed to predict.
        kept_sentences: sentences that strategies keep for later steps, by strategy name; never needed to predict.
    """

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.subnetworks: Subnetworks | None = None
        self.runtime: OnnxRuntime | None = None
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.strategy_state: Mapping[str, Mapping[str, Tensor]] = {}
        self.kept_sentences: Mapping[str, Sequence[Sentence]] = {}

    @classmethod
    def from_encoder(
        cls, name: str = "minilm-l6", *, head: str | Mapping[str, Any] | HeadOptions = "extendner", **options: Any
    ) -> "NerModel":
        """A model that knows no type yet, on a pre-trained encoder.

        Args:
            name: alias, Hugging Face id or folder of the encoder.
            head: name or options of the head, or a mapping of them.
            **options: other `EncoderOptions`, such as `max_pieces`.

        Raises:
            ConfigError: if there is no such head or option.
            ModelError: if the encoder cannot be found or read.
        """
        head_options = validate(HeadOptions, {"name": head} if isinstance(head, str) else head, "head")
        return cls.from_options(validate(EncoderOptions, {"name": name, **options}, "encoder"), head_options)

    @classmethod
    def from_options(cls, encoder_options: EncoderOptions, head_options: HeadOptions) -> "NerModel":
        """A model that knows no type yet, from configuration sections."""
        return cls.from_parts(Encoder.from_options(encoder_options), head_options)

    @classmethod
    def from_parts(cls, encoder: Encoder, head_options: HeadOptions) -> "NerModel":
        """A model that knows no type yet, on an encoder at hand."""
        return cls(encoder, heads[head_options.name](encoder.hidden, head_options))

    def copy(self, *, memory: bool = False) -> "NerModel":
        """All weights once more.

        Args:
            memory: also history and what strategies keep, which whoever is to learn more needs.
        """
        with ONE_PASS_AT_A_TIME:  # a pass in another thread may have exchanged weights
            other = NerModel(copy.deepcopy(self.encoder), copy.deepcopy(self.head))
            other.subnetworks, other.runtime = copy.deepcopy(self.subnetworks), self.runtime
        if memory:
            other.history = list(self.history)
            other.strategy_state, other.kept_sentences = dict(self.strategy_state), dict(self.kept_sentences)
        return other

    @property
    def tagset(self) -> Tagset:
        """The types the model knows, in learning order."""
        return self.head.tagset

    @property
    def types(self) -> tuple[str, ...]:
        """The types the model knows, in learning order."""
        return self.head.tagset.types

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(self, batch: Batch, *, steps: Collection[int] | None = None) -> Emissions:
        """Tag scores of every word of the batch.

        Args:
            batch: any batch.
            steps: run the sub-networks of these steps only, where there are any: the blocks of others then say `O`.
        """
        if self.runtime is not None:
            return self.head.of_scores(self.runtime(batch), batch.word_mask)
        if self.subnetworks is None:
            return self.head(self.encoder(batch), batch.word_mask)  # type: ignore[no-any-return]
        asked = range(1, len(self.tagset.steps) + 1) if steps is None else sorted(steps)
        return self.head.of_views(self.subnetworks(self, batch, asked), batch.word_mask)

    def isolate(self, options: SubnetworkOptions) -> Subnetworks:
        """Gives the steps from the next one on sub-networks of their own; the encoder must not change any more.

        Raises:
            ModelError: if the head cannot be told apart by steps.
        """
        if self.runtime is not None:
            raise ModelError(_EXPORTED)
        if not self.head.apart:
            raise ModelError(
                f"head {self.head.name} shares columns between steps, so that none can have a sub-network of its own; "
                "use head addner or spankl"
            )
        first = len(self.tagset.steps) + 1
        made: Subnetworks = subnetworks[options.name](self.encoder, options, first=first)
        self.subnetworks = made.to(self.device)
        return made

    def grow(self, types: Sequence[str], *, generator: torch.Generator | None = None) -> None:
        """Adds a block for new types to the head; what the model says about old types does not change by a bit.

        Raises:
            ModelError: if a type is known already or named twice, or the model was exported.
        """
        if self.runtime is not None:
            raise ModelError(_EXPORTED)
        number, width = len(self.tagset.steps) + 1, None
        covers: Sequence[str] = ()
        self.tagset.grow(types)  # refuses types before anything is made for them
        if self.subnetworks is not None:
            self.subnetworks.grow(self, generator=generator)
            width, covers = self.subnetworks.width(number), self.subnetworks.covers(self.tagset)
        self.head.grow(types, generator=generator, width=width, covers=covers)
        self.to(self.device)

    def encode(self, sentences: Sequence[Sentence]) -> EncodedSentences:
        """Sentences cut into windows of word pieces, with targets in this model's tagset."""
        return EncodedSentences(sentences, self.encoder.pieces, self.tagset, nested=not self.head.tags_words)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a text is an iterable of texts too, and the first line wins
        self,
        texts: str,
        *,
        types: Collection[str] | None = ...,
        min_score: float = ...,
        nested: bool = ...,
        batch_tokens: int | None = ...,
        precision: Precision = ...,
    ) -> list[Entity]: ...
    @overload
    def predict(
        self,
        texts: Iterable[str],
        *,
        types: Collection[str] | None = ...,
        min_score: float = ...,
        nested: bool = ...,
        batch_tokens: int | None = ...,
        precision: Precision = ...,
    ) -> Iterator[list[Entity]]: ...
    def predict(
        self,
        texts: str | Iterable[str],
        *,
        types: Collection[str] | None = None,
        min_score: float = 0.0,
        nested: bool = False,
        batch_tokens: int | None = None,
        precision: Precision = "auto",
    ) -> list[Entity] | Iterator[list[Entity]]:
        """Finds the entities of one text, or of many.

        Args:
            texts: one text gives a list; many give an iterator of lists, in order, batched inside.
            types: only these types; all by default. A head with one softmax (extendner) decides among all and shows
                these, one with a block a step (addner, spankl) asks the blocks of these alone, so that a word which
                another type would have taken may be found.
            min_score: entities below this probability are left out.
            nested: what is found where nothing competes, so that entities may overlap: those of different steps, where
                the head has a block a step, or any, where it scores spans. Otherwise no two entities overlap.
            batch_tokens: word pieces of one batch, padding included; by default what suits the device.
            precision: number format of the encoder.

        Returns:
            Entities sorted by position, with code-point offsets into the text.

        Raises:
            ModelError: if the model knows no type, or one of `types` is unknown.
            ConfigError: if `texts` are no texts, or an option is out of its range.

        Example:
            >>> model = ner_cl.load("models/step2")                       # doctest: +SKIP
            >>> [e.type for e in model.predict("Ada lives in London.")]   # doctest: +SKIP
            ['PER', 'LOC']
        """
        from ner_cl.model.predict import predict_texts  # predict works on models, so it cannot be imported above

        self.check_types(types)
        _check_reading(texts, min_score, batch_tokens, precision)
        found = predict_texts(
            self,
            [texts] if isinstance(texts, str) else texts,
            types=types,
            min_score=min_score,
            nested=nested,
            batch_tokens=batch_tokens,
            precision=precision,
        )
        return next(found) if isinstance(texts, str) else found

    def steps_of(self, types: Collection[str] | None) -> list[int] | None:
        """The steps whose blocks know one of some types; None, for all, where all are asked for."""
        if types is None:
            return None
        for type_ in types:
            self.tagset.step_of(type_)  # refuses an unknown one
        asked = {index for index, type_ in enumerate(self.types) if type_ in types}
        return [step for step, known in enumerate(self.head.known, start=1) if not asked.isdisjoint(known)]

    def check_types(self, types: Collection[str] | None) -> None:
        """ModelError if the model knows no type yet, or one of `types` is unknown to it."""
        if not self.types:
            raise ModelError("this model knows no type yet; teach it one with `ner-cl learn` or ner_cl.learn")
        if isinstance(types, str):
            raise ModelError(f"types must be a list of names, not the text {types!r}; write [{types!r}]")
        for type_ in types or ():
            self.tagset.step_of(type_)

    def forget_sentences(self) -> int:
        """Deletes the sentences that strategies keep and all they stored about single sentences.

        What the model predicts does not change, and it can still learn more; only replay has nothing left to replay.

        Returns:
            How many sentences went.
        """
        count = sum(len(sentences) for sentences in self.kept_sentences.values())
        self.kept_sentences = {}
        states = {
            name: {key: tensor for key, tensor in state.items() if not key.startswith(SENTENCE_PREFIX)}
            for name, state in self.strategy_state.items()
        }
        self.strategy_state = {name: state for name, state in states.items() if state}
        return count

    def save(self, folder: str | Path) -> None:
        """Writes the model folder, whole or not at all; an existing folder is replaced."""
        from ner_cl.model.store import save_model  # the store reads and writes models, so it cannot be imported above

        save_model(self, Path(folder))


def _check_reading(texts: object, min_score: object, batch_tokens: object, precision: object) -> None:
    """What `predict` is asked, before anything is read."""
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
        raise ConfigError(f"texts: expected a text or texts, not {type(texts).__name__}")
    if isinstance(min_score, bool) or not isinstance(min_score, int | float) or not 0 <= min_score <= 1:
        raise ConfigError(f"min_score: {min_score!r} is not a number from 0 to 1")
    if batch_tokens is not None and (not isinstance(batch_tokens, int) or batch_tokens < 1):
        raise ConfigError(f"batch_tokens: {batch_tokens!r} is not a whole number from 1 upward, or None")
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: {precision!r} is unknown; choose {', '.join(get_args(Precision))}")
