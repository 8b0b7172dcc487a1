"""The spaCy component `ner_cl`, which spaCy finds by its entry point.

>>> import spacy
>>> nlp = spacy.blank("en")
>>> component = nlp.add_pipe("ner_cl", config={"model": "models/step2"})
>>> [(e.text, e.label_, e._.score) for e in nlp("Ada lives in London.").ents]   # doctest: +SKIP
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final, no_type_check

import srsly  # type: ignore[import-untyped]
from spacy.language import Language
from spacy.pipeline.spancat import spancat_score
from spacy.scorer import get_ner_prf
from spacy.tokens import Doc
from spacy.tokens import Span as DocSpan
from spacy.training import Example
from spacy.util import raise_error

from ner_cl.config import validate
from ner_cl.errors import ConfigError, ModelError
from ner_cl.integrations.model_source import ModelSource
from ner_cl.integrations.spacy_annotation import Found, register_extensions, set_entities, set_span_group
from ner_cl.integrations.spacy_options import ComponentOptions, enter_pipeline, forget_model, saved_model
from ner_cl.integrations.spacy_words import chunks_of, sections_of, token_texts
from ner_cl.types import Sentence

if TYPE_CHECKING:  # importing transformers takes seconds; a pipeline that does not run yet should not wait for it
    from ner_cl.integrations.spacy_examples import AnnotatedDocs
    from ner_cl.model.ner_model import NerModel
    from ner_cl.model.predict import ScoredSpan
    from ner_cl.train.changes import LearnResult

__all__ = ["NerComponent", "make_ner_component"]

ErrorHandler = Callable[[str, Any, list[Any], Exception], Any]


@final
class NerComponent:
    """Sets `doc.ents`, `doc.spans["ner_cl"]`, and `_.score` and `_.step` of every predicted span.

    Each spaCy token with a visible character is one word for the model and gets a decision. The model reads a document
    line by line, and sentence by sentence if it has sentences. Each process reads the weights when its first document
    arrives.

    Args:
        name: the component's name in its pipeline.
        options: the settings.
        nlp: the pipeline whose config holds the settings.

    Raises:
        ConfigError: if another extension owns `span._.score` or `span._.step`.
    """

    is_trainable = False  # so that `spacy train` leaves it unchanged; it learns by `learn`
    scorer = staticmethod(get_ner_prf)  # `spacy find-threshold` refuses components that have none

    def __init__(self, name: str, options: ComponentOptions, *, nlp: Language | None = None) -> None:
        self.name = name
        self.options = options
        self._pipeline = None if nlp is None else weakref.ref(nlp)  # which would otherwise go along in pickles
        self._error_handler: ErrorHandler = raise_error
        self._source = ModelSource(None if options.model is None else Path(options.model), device=options.device)
        register_extensions()

    @property
    def labels(self) -> tuple[str, ...]:
        """The entity types to find, in learning order; empty while there is no readable model."""
        asked = self.options.types
        return tuple(type_ for type_ in self._source.types if asked is None or type_ in asked)

    @property
    def label_data(self) -> tuple[str, ...]:
        """The same as `labels`, under the name that `spacy init labels` uses."""
        return self.labels

    # A method, and not called `model`: spaCy reads `model` of every component when it is added to a pipeline.
    def load(self) -> "NerModel":
        """Returns the model; call this to read the weights before the first document.

        Raises:
            ModelError: if there is no model, it cannot be read, or it does not know a requested type.
            ConfigError: if there is a threshold for a type it does not know, or the device does not exist.
        """
        with self._source.borrow() as model:
            self._check(model)
            return model

    def __call__(self, doc: Doc) -> Doc:
        """Finds the entities of one document, as `pipe` does."""
        self._annotate([doc])
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 256) -> Iterator[Doc]:
        """Finds the entities of many documents, batched by similar length, and yields them in their original order.

        Args:
            stream: the documents.
            batch_size: how many documents to collect at most before yielding the first of them.
        """
        for docs in chunks_of(stream, batch_size):
            try:
                self._annotate(docs)
            except Exception as error:  # spaCy's contract: the pipeline's error handler decides
                self._error_handler(self.name, self, docs, error)
            else:
                yield from docs

    def set_error_handler(self, error_handler: ErrorHandler) -> None:
        """Sets the function called with name, component, documents and error if a batch fails; the default raises."""
        self._error_handler = error_handler

    def get_error_handler(self) -> ErrorHandler:
        """Returns the function called if a batch fails."""
        return self._error_handler

    def initialize(self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None) -> None:
        """Checks that there is a model that fits the options, without training; see `load` for errors."""
        self.load()

    def score(self, examples: Iterable[Example], **options: Any) -> dict[str, Any]:
        """Returns precision, recall and F1 of `doc.ents`, overall and per type, by exact boundaries and type.

        Predictions on tokens whose gold entity is unset are not counted. With `nested` the same of `doc.spans` follows
        under the names of spaCy's span categoriser, such as `spans_ner_cl_f`, against spans of that key.
        """
        examples, key = list(examples), self.options.spans_key
        nested = spancat_score(examples, spans_key=key) if self.options.nested else {}
        return {**self.scorer(examples, **options), **nested}

    def learn(
        self,
        examples: "AnnotatedDocs",
        *,
        types: Sequence[str],
        dev: "AnnotatedDocs | None" = None,
        max_drop: float | None = None,
        **options: Any,
    ) -> "LearnResult":
        """Teaches the model new types from annotated documents; the component then uses the new model.

        Only fully annotated sentences are used: a token whose entity is unset (`ent_iob == 0`) is unknown, not `O`.
        The number of sentences left out is recorded in `result.model.history[-1]["left_out"]`.

        Args:
            examples: documents annotated for `types`, or a DocBin of them; other annotation in them is ignored.
            types: the new types, in order.
            dev: documents for model selection and evaluation.
            max_drop: largest allowed drop of an old type's F1 (0 to 1); if one drops more, the old model is kept.
            **options: options of `ner_cl.learn`, such as `strategies`, `training` or `seed`; `replay` and `unlabeled`
                may be documents too.

        Raises:
            ConfigError: if the component's option `types` is set.
            DataError: if no sentence is fully annotated, or none mentions a type.
            ModelError: if a type is known already.
            CheckFailed: if an old type's F1 drops by more than `max_drop`, or (before training) none can be measured.
        """
        from ner_cl.integrations.spacy_learning import learn_from_docs

        if self.options.types is not None:
            raise ConfigError(
                f"{self.name}.types: this component looks for {', '.join(self.options.types)} only; take the option "
                "out before it learns more"
            )
        result = learn_from_docs(self.load, examples, types=types, dev=dev, max_drop=max_drop, **options)
        self.use(result.model)
        return result

    def use(self, model: "NerModel") -> None:
        """Uses this model from now on; the pipeline's config then names no model, for it is in memory only."""
        self._take(ModelSource(model=model, device=self.options.device))

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Writes the model folder to `path`; `ner_cl.load` can read it too."""
        self._source.write(Path(path))

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> "NerComponent":
        """Uses the model folder at `path`; the weights are read when the first document arrives.

        If a pipeline is loaded with another `model` than it was saved with, that one stays in use.

        Raises:
            ModelError: if there is no model, or a file of it is missing; when the weights are read, if the folder holds
                another model by then.
        """
        folder = Path(path)
        # A pipeline excludes the vocabulary, as it reads that itself; who calls this directly means `path`.
        if "vocab" in exclude and self.options.model not in (None, saved_model(folder)):
            return self
        source = ModelSource(folder, device=self.options.device)
        source.hold_to()
        self._take(source)
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Serialises the files of the model folder; nothing is pickled."""
        return bytes(srsly.msgpack_dumps({"files": dict(self._source.files())}))

    def from_bytes(self, data: bytes, *, exclude: Iterable[str] = ()) -> "NerComponent":
        """Uses the model serialised by `to_bytes`.

        Raises:
            ModelError: if the bytes are something else.
        """
        try:
            files = srsly.msgpack_loads(data)["files"]
        except Exception as error:  # msgpack raises various errors on foreign bytes
            raise ModelError("these bytes are not of a ner_cl component; make them with to_bytes") from error
        self._take(ModelSource.of_files(files, device=self.options.device))
        return self

    def _take(self, source: ModelSource) -> None:
        """Uses a model that is not, or no longer, the one named in the settings."""
        self._source = source
        self.options = self.options.model_copy(update={"model": None})
        if self._pipeline is not None and (nlp := self._pipeline()) is not None:
            forget_model(nlp, self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipeline": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        register_extensions()  # the process that unpickles may not have created a component before

    def _check(self, model: "NerModel") -> None:
        model.check_types(self.options.types)
        self.options.check_thresholds(model.types, self.name)

    def _annotate(self, docs: Sequence[Doc]) -> None:
        texts = [token_texts(doc) for doc in docs]
        by_sentence = self.options.by_sentence
        sections = [sections_of(doc, own, by_sentence=by_sentence) for doc, own in zip(docs, texts, strict=True)]
        sentences = [
            Sentence(tuple(own[index] for index in section))
            for own, parts in zip(texts, sections, strict=True)
            for section in parts
        ]
        with self._source.borrow() as model:
            self._check(model)
            merged, every = self._find(model, sentences)
            steps = {type_: model.tagset.step_of(type_) for type_ in model.types}
        entities, spans = iter(merged), iter(every)
        for doc, own in zip(docs, sections, strict=True):
            found = self._found(doc, own, entities, steps)
            if self.options.spans_key is not None:
                group = found if every is merged else self._found(doc, own, spans, steps)
                set_span_group(doc, group, self.options.spans_key)
            set_entities(doc, found, overwrite=self.options.overwrite_ents)

    def _find(
        self, model: "NerModel", sentences: Sequence[Sentence]
    ) -> "tuple[list[list[ScoredSpan]], list[list[ScoredSpan]]]":
        """Returns the predictions for `doc.ents` and those for `doc.spans`."""
        from ner_cl.model.predict import score_merged_and_nested, score_sentences

        options = self.options
        settings = options.model_dump(include={"types", "batch_tokens", "precision"})
        if options.nested and options.spans_key is not None:
            return score_merged_and_nested(model, sentences, **settings)
        merged = score_sentences(model, sentences, **settings)
        return merged, merged

    def _found(
        self,
        doc: Doc,
        sections: Sequence[Sequence[int]],
        found: "Iterator[list[ScoredSpan]]",
        steps: Mapping[str, int],
    ) -> list[Found]:
        """Converts the predictions for a document's sections, those above the thresholds, to spans of tokens."""
        limits, limit = self.options.thresholds, self.options.min_score
        return [
            Found(
                DocSpan(doc, tokens[item.span.start], tokens[item.span.end - 1] + 1, label=item.span.type),
                item.score,
                steps[item.span.type],
            )
            for tokens in sections
            for item in next(found)
            if item.score >= limits.get(item.span.type, limit)
        ]


@no_type_check  # spaCy inspects the signature, which a run-time type checker's wrapper would hide
def make_ner_component(
    nlp: Language,
    name: str,
    model: str | None,
    types: list[str] | None,
    min_score: float,
    thresholds: dict[str, float],
    overwrite_ents: bool,
    spans_key: str | None,
    nested: bool,
    by_sentence: bool,
    precision: str,
    device: str,
    batch_tokens: int | None,
) -> NerComponent:
    """Creates the component for `nlp.add_pipe("ner_cl", config={...})`; see `ComponentOptions` for the settings.

    Raises:
        ConfigError: naming the invalid setting, or if another component of the pipeline has the same `spans_key`.
    """
    values = {
        "model": model,
        "types": types,
        "min_score": min_score,
        "thresholds": thresholds,
        "overwrite_ents": overwrite_ents,
        "spans_key": spans_key,
        "nested": nested,
        "by_sentence": by_sentence,
        "precision": precision,
        "device": device,
        "batch_tokens": batch_tokens,
    }
    component = NerComponent(name, validate(ComponentOptions, values, name), nlp=nlp)
    enter_pipeline(nlp, name, component.options)
    return component


Language.factory(
    "ner_cl",
    default_config=ComponentOptions().model_dump(mode="json"),
    assigns=["doc.ents", "doc.spans", "token.ent_iob", "token.ent_type", "span._.score", "span._.step"],
    default_score_weights={"ents_f": 1.0, "ents_p": 0.0, "ents_r": 0.0, "ents_per_type": None},
    func=make_ner_component,
)
