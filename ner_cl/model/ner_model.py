"""The tagger: encoder, head and tagset."""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, final, get_args, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ner_cl.config import EncoderOptions, HeadOptions, validate
from ner_cl.data.batching import Batch, EncodedSentences
from ner_cl.data.tagset import Tagset
from ner_cl.errors import ConfigError, ModelError
from ner_cl.model.discriminant import Discriminant
from ner_cl.model.encoder import Encoder
from ner_cl.model.heads.base import Head
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.precision import Precision
from ner_cl.model.runtime import OnnxRuntime
from ner_cl.model.subnetworks.base import SubnetworkOptions, Subnetworks
from ner_cl.model.subnetworks.trunk import ONE_PASS_AT_A_TIME
from ner_cl.registry import heads, subnetworks
from ner_cl.types import Entity, Sentence

__all__ = ["EXPORTED", "SENTENCE_PREFIX", "NerModel"]

EXPORTED = "an exported model cannot learn; teach the model that it was exported from"

SENTENCE_PREFIX = "sentence/"
"""Name prefix of strategy tensors about a single sentence; they are deleted together with the kept sentences."""


@final
class NerModel(nn.Module):
    """A tagger that knows some types and can grow to learn more.

    Args:
        encoder: computes word vectors.
        head: computes tag scores; its tagset is the model's.

    Attributes:
        subnetworks: computes word vectors for each step separately; None if all blocks read the encoder.
        discriminant: corrects the head's scores by what lower layers say; None if there is none. A
            step copies teachers with it, and then takes it away: what is trained is the network alone.
        runtime: computes tag scores in place of encoder and head in an exported model, which can predict but not learn.
        history: one record per step: types, data hash, F1 of every type before and after.
        metrics: exact counts of the last evaluation.
        strategy_state: tensors that strategies keep for later steps, by strategy name; never needed to predict.
        kept_sentences: sentences that strategies keep for later steps, by strategy name; never needed to predict.
    """

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.subnetworks: Subnetworks | None = None
        self.discriminant: Discriminant | None = None
        self.runtime: OnnxRuntime | None = None
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.strategy_state: Mapping[str, Mapping[str, Tensor]] = {}
        self.kept_sentences: Mapping[str, Sequence[Sentence]] = {}

    @classmethod
    def from_encoder(
        cls,
        name: str | PathLike[str] = "minilm-l6",
        *,
        head: str | Mapping[str, Any] | HeadOptions = "extendner",
        **options: Any,
    ) -> "NerModel":
        """Creates a model that knows no type yet, on a pre-trained encoder.

        Args:
            name: alias, Hugging Face id or folder of the encoder.
            head: name of the head, or its options or a mapping of them.
            **options: other `EncoderOptions`, such as `max_pieces`.

        Raises:
            ConfigError: if the head or an option does not exist.
            ModelError: if the encoder cannot be found or read.
        """
        head_options = validate(HeadOptions, {"name": head} if isinstance(head, str) else head, "head")
        encoder = {"name": fspath(name) if isinstance(name, PathLike) else name, **options}
        return cls.from_options(validate(EncoderOptions, encoder, "encoder"), head_options)

    @classmethod
    def from_options(cls, encoder_options: EncoderOptions, head_options: HeadOptions) -> "NerModel":
        """Creates a model that knows no type yet, from configuration sections."""
        return cls.from_parts(Encoder.from_options(encoder_options), head_options)

    @classmethod
    def from_parts(cls, encoder: Encoder, head_options: HeadOptions) -> "NerModel":
        """Creates a model that knows no type yet, on an existing encoder."""
        return cls(encoder, heads[head_options.name](encoder.hidden, head_options))

    def copy(self, *, memory: bool = False) -> "NerModel":
        """A copy of the model with weights of its own.

        Args:
            memory: copy history and what strategies keep too; needed to teach the copy more.
        """
        with ONE_PASS_AT_A_TIME:  # a pass in another thread may have swapped weights
            other = NerModel(copy.deepcopy(self.encoder), copy.deepcopy(self.head))
            other.subnetworks, other.runtime = copy.deepcopy(self.subnetworks), self.runtime
            other.discriminant = copy.deepcopy(self.discriminant)
            other.training = self.training
        if memory:
            other.history, other.metrics = list(self.history), dict(self.metrics)
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
        """The device that holds the parameters."""
        return next(self.parameters()).device

    def forward(self, batch: Batch, *, steps: Collection[int] | None = None) -> Emissions:
        """Computes the tag scores of every word of the batch.

        Args:
            batch: any batch.
            steps: in a model with sub-networks, run only those of these steps; the blocks of other steps then say `O`.
        """
        if not isinstance(batch, Batch):
            raise TypeError(f"a model is called with an encoded batch, not {type(batch).__name__}; use model.predict")
        if self.runtime is not None:
            return self.head.of_scores(self.runtime(batch), batch.word_mask)
        if self.subnetworks is None:
            return self.read(batch)[1]
        asked = range(1, len(self.tagset.steps) + 1) if steps is None else sorted(steps)
        return self.head.of_views(self.subnetworks(self, batch, asked), batch.word_mask)

    def read(self, batch: Batch) -> tuple[Float[Tensor, "row word hidden"], Emissions]:
        """Computes word vectors and tag scores of a model that was not exported and has no sub-networks."""
        if self.discriminant is None or not self.discriminant.corrects:
            words = self.encoder(batch)
            return words, self.head(words, batch.word_mask)
        lower, words = self.discriminant.word_vectors(self.encoder, batch)
        scores = self.discriminant(self.head(words, batch.word_mask).flat(), lower, batch.word_mask)
        return words, self.head.of_scores(scores, batch.word_mask)

    def isolate(self, options: SubnetworkOptions) -> Subnetworks:
        """Gives the next and all later steps their own sub-networks; from now on the encoder must not change.

        Raises:
            ModelError: if the head shares columns between steps, or the model was exported.
        """
        if self.runtime is not None:
            raise ModelError(EXPORTED)
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
        """Adds a block for new types to the head; logits for old types stay the same to the last bit.

        Raises:
            ModelError: if a type is already known or named twice, or the model was exported.
        """
        if self.runtime is not None:
            raise ModelError(EXPORTED)
        number, width = len(self.tagset.steps) + 1, None
        covers: Sequence[str] = ()
        self.tagset.grow(types)  # rejects invalid types before anything is changed
        if self.subnetworks is not None:
            self.subnetworks.grow(self, generator=generator)
            width, covers = self.subnetworks.width(number), self.subnetworks.covers(self.tagset)
        self.head.grow(types, generator=generator, width=width, covers=covers)
        self.to(self.device)

    def encode(self, sentences: Sequence[Sentence]) -> EncodedSentences:
        """Cuts sentences into windows of word pieces, with targets in this model's tagset."""
        return EncodedSentences(sentences, self.encoder.pieces, self.tagset, nested=not self.head.tags_words)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a text is an iterable of texts too, and the first line wins
        self,
        texts: str | Sentence,
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
        texts: Iterable[str | Sentence | Sequence[str]],
        *,
        types: Collection[str] | None = ...,
        min_score: float = ...,
        nested: bool = ...,
        batch_tokens: int | None = ...,
        precision: Precision = ...,
    ) -> Iterator[list[Entity]]: ...
    def predict(
        self,
        texts: str | Sentence | Iterable[str | Sentence | Sequence[str]],
        *,
        types: Collection[str] | None = None,
        min_score: float = 0.0,
        nested: bool = False,
        batch_tokens: int | None = None,
        precision: Precision = "auto",
    ) -> list[Entity] | Iterator[list[Entity]]:
        """Finds the entities of one text, or of many.

        Args:
            texts: one text gives a list; many give an iterator of lists, in order, batched internally. A text is cut
                into words by `split_words`; to have it read with the words of your data, give a `Sentence` or, among
                many, a list of words (offsets are then those of the words with a space between them).
            types: find only these types; all by default. A head with one softmax (extendner) decides among all and
                reports these; one with a block per step (addner, spankl) uses only the blocks of these types, so it may
                find a word that another type would have taken.
            min_score: leave out entities below this probability.
            nested: do not let spans compete. Entities may then overlap: those of different steps if the head has a
                block of tags per step, any if it scores spans. By default no two entities overlap.
            batch_tokens: word pieces per batch, padding included; by default chosen for the device.
            precision: number format of the encoder.

        Returns:
            Entities sorted by position, with code-point offsets into the text.

        Raises:
            ModelError: if the model knows no type, or one of `types` is unknown.
            ConfigError: if `texts` is neither a text nor an iterable of texts, or an option is out of range.

        Example:
            >>> model = ner_cl.load("models/step2")                       # doctest: +SKIP
            >>> [e.type for e in model.predict("Ada lives in London.")]   # doctest: +SKIP
            ['PER', 'LOC']
        """
        from ner_cl.model.predict import predict_texts  # imports this module, so not at the top

        self.check_types(types)
        _check_reading(texts, min_score, batch_tokens, precision)
        found = predict_texts(
            self,
            [texts] if isinstance(texts, str | Sentence) else texts,
            types=types,
            min_score=min_score,
            nested=nested,
            batch_tokens=batch_tokens,
            precision=precision,
        )
        return next(found) if isinstance(texts, str | Sentence) else found

    def steps_of(self, types: Collection[str] | None) -> list[int] | None:
        """The steps whose blocks know at least one of `types`; None (all steps) if `types` is None."""
        if types is None:
            return None
        for type_ in types:
            self.tagset.step_of(type_)  # rejects an unknown type
        asked = {index for index, type_ in enumerate(self.types) if type_ in types}
        return [step for step, known in enumerate(self.head.known, start=1) if not asked.isdisjoint(known)]

    def check_types(self, types: Collection[str] | None) -> None:
        """Raises ModelError if the model knows no type yet or `types` is not a collection of known types."""
        if not self.types:
            raise ModelError("this model knows no type yet; teach it one with `ner-cl learn` or ner_cl.learn")
        if isinstance(types, str):
            raise ModelError(f"types must be a list of names, not the text {types!r}; write [{types!r}]")
        for type_ in types or ():
            self.tagset.step_of(type_)

    def forget_sentences(self) -> int:
        """Deletes the sentences that strategies keep and all they stored about single sentences.

        Predictions do not change, and the model can still learn; replay just has nothing left to replay.

        Returns:
            The number of deleted sentences.
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
        """Writes the model folder, completely or not at all; an existing one is replaced."""
        from ner_cl.model.store import save_model  # imports this module, so not at the top

        save_model(self, Path(folder))


def _check_reading(texts: object, min_score: object, batch_tokens: object, precision: object) -> None:
    """Validates the arguments of `predict` before any text is read."""
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable | Sentence):
        raise ConfigError(f"texts: expected a text or texts, not {type(texts).__name__}")
    if isinstance(min_score, bool) or not isinstance(min_score, int | float) or not 0 <= min_score <= 1:
        raise ConfigError(f"min_score: {min_score!r} is not a number from 0 to 1")
    if batch_tokens is not None and (not isinstance(batch_tokens, int) or batch_tokens < 1):
        raise ConfigError(f"batch_tokens: {batch_tokens!r} is not a whole number from 1 upward, or None")
    if precision not in get_args(Precision):
        raise ConfigError(f"precision: {precision!r} is unknown; choose {', '.join(get_args(Precision))}")
