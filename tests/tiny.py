"""A tagger small enough for tests: a random BERT that is built in well under a second, and sentences it can learn.

Everything is a pure function of its arguments: the same folder contents, the same weights, the same sentences.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizer

from ner_cl.config import (
    EarlyStoppingOptions,
    EncoderOptions,
    HeadOptions,
    OptimizerOptions,
    TrainingOptions,
    parse_strategies,
)
from ner_cl.data.batching import Batch
from ner_cl.data.draws import generator
from ner_cl.data.stream import Corpus, Stream, build_stream
from ner_cl.model.encoder import Encoder
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.train.learner import Learner
from ner_cl.train.loop import loss_terms
from ner_cl.types import Sentence, Span

# Products this small only lose time to a second thread.
torch.set_num_threads(1)

TOY_TYPES = ("PER", "LOC", "ORG", "MISC")
_FIRST = {
    "PER": ("Ada", "Bob", "Carla", "Dmitri", "Elif", "Fatou"),
    "LOC": ("Rome", "Oslo", "Quito", "Lagos", "Kyoto", "Perth"),
    "ORG": ("Acme", "Globex", "Initech", "Umbra", "Vandel", "Wayne"),
    "MISC": ("Latin", "Basque", "Jazz", "Chess", "Judo", "Tango"),
}
_SECOND = {
    "PER": ("Smith", "Jones", "Okoye", "Ivanov"),
    "LOC": ("North", "South", "Centre", "Harbour"),
    "ORG": ("Ltd", "Group", "Bank", "Labs"),
    "MISC": ("Cup", "Prize", "Festival", "School"),
}
_PLAIN = ("the", "a", "met", "near", "with", "visited", "in", "at", "saw", "and", "old", "new", "report", "today", ".")
# Enough for a tiny model to tell the toy types by their words, in under a second a step. Its embeddings are random, so
# unlike those of a real encoder they must be trained.
TOY_TRAINING = TrainingOptions(
    epochs=6,
    batch_tokens=128,
    precision="fp32",
    train_embeddings=True,
    optimizer=OptimizerOptions(lr=5e-3, head_lr=2e-2),
    early_stopping=EarlyStoppingOptions(tolerance=0),  # for a random encoder, the last of few epochs is not the best
)
# Where a span ends is in the words around it, which a random encoder has to learn to look at.
SPAN_TRAINING = TOY_TRAINING.model_copy(update={"epochs": 8, "optimizer": OptimizerOptions(lr=1e-2, head_lr=2e-2)})
TOY_WORDS = (*_PLAIN, *(word for table in (_FIRST, _SECOND) for words in table.values() for word in words))
SENTENCES = (
    Sentence(("Ada", "Smith", "visited", "Rome", "."), (Span(0, 2, "PER"), Span(3, 4, "LOC")), frozenset(TOY_TYPES)),
    Sentence(("the", "Acme", "Bank", "report"), (Span(1, 3, "ORG"),), frozenset(TOY_TYPES)),
    Sentence(("a", "new", "report", "today", "."), (), frozenset(TOY_TYPES)),
    Sentence(
        ("Bob", "met", "Carla", "at", "Umbra"),
        (Span(0, 1, "PER"), Span(2, 3, "PER"), Span(4, 5, "ORG")),
        frozenset(TOY_TYPES),
    ),
)


def tiny_encoder(
    folder: Path, words: Iterable[str] = TOY_WORDS, *, hidden: int = 32, layers: int = 2, positions: int = 128
) -> Path:
    """Saves a random BERT with a WordPiece tokenizer in `folder`, as a hub model would lie there, and returns `folder`.

    Each of `words` is one piece; every other word is spelled in ASCII characters, or is the unknown piece.

    Args:
        folder: where to; made if it is not there.
        words: words that are one piece.
        hidden: size of a word vector.
        layers: transformer layers.
        positions: longest input in pieces.
    """
    characters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=positions)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=positions,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_model(
    folder: Path,
    head: str | HeadOptions = "extendner",
    *,
    steps: Sequence[Sequence[str]] = (),
    max_pieces: int = 64,
    window_overlap: int = 16,
) -> NerModel:
    """A model on the encoder in `folder` (built there if it is not yet), grown by `steps`, in eval mode.

    Args:
        folder: of the encoder.
        head: name or options.
        steps: the types of each step the model already knows; their rows are random.
        max_pieces: longest row in pieces.
        window_overlap: pieces that neighbouring windows share.
    """
    if not (folder / "config.json").is_file():
        tiny_encoder(folder)
    options = EncoderOptions(name=str(folder), max_pieces=max_pieces, window_overlap=window_overlap)
    encoder = Encoder.from_options(options)
    model = NerModel.from_parts(encoder, HeadOptions(name=head) if isinstance(head, str) else head)
    generator = torch.Generator().manual_seed(1)
    for types in steps:
        model.grow(types, generator=generator)
    return model.eval()


def toy_sentences(count: int, *, seed: int = 0, types: Sequence[str] = TOY_TYPES) -> tuple[Sentence, ...]:
    """Sentences whose mentions show in their words: each type has first and second words of its own.

    A sentence has up to three mentions of one or two words among plain words; about one in eight has none.
    """
    draw = np.random.default_rng(seed)
    sentences = []
    for number in range(count):
        words: list[str] = []
        spans = []
        for _ in range(min(3, int(draw.integers(0, 8)))):
            words += draw.choice(_PLAIN[:-1], size=int(draw.integers(1, 4))).tolist()
            type_ = str(draw.choice(list(types)))
            mention = [str(draw.choice(_FIRST[type_]))]
            if draw.random() < 0.5:
                mention.append(str(draw.choice(_SECOND[type_])))
            spans.append(Span(len(words), len(words) + len(mention), type_))
            words += mention
        words += [*draw.choice(_PLAIN[:-1], size=int(draw.integers(1, 4))).tolist(), "."]
        sentences.append(Sentence(tuple(words), tuple(spans), frozenset(types), source=f"toy:{number + 1}"))
    return tuple(sentences)


def toy_corpus(
    *, train: int = 200, dev: int = 40, test: int = 80, seed: int = 0, types: Sequence[str] = TOY_TYPES[:2]
) -> Corpus:
    """A corpus of toy sentences, annotated for all `types`."""
    parts = (toy_sentences(size, seed=3 * seed + part, types=types) for part, size in enumerate((train, dev, test)))
    return Corpus(*parts, name="toy")


def toy_stream(*, steps: Sequence[Sequence[str]] = (("PER",), ("LOC",)), train: int = 200, seed: int = 0) -> Stream:
    """A toy corpus cut into disjoint steps, each annotated for its own types only."""
    types = [type_ for step in steps for type_ in step]
    return build_stream(toy_corpus(train=train, seed=seed, types=types), [list(step) for step in steps])


def toy_context(
    model: NerModel,
    types: Sequence[str],
    *,
    train: Sequence[Sentence] = (),
    earlier: Sequence[Sentence] = (),
    grown: bool = True,
    strategies: Sequence[Strategy] = (),
) -> StepContext:
    """The context of a step on `model`, for calling the hooks of a strategy by hand.

    Args:
        model: the student.
        types: the new types.
        train: the sentences, encoded where the model knows the types.
        earlier: sentences of the steps so far.
        grown: whether the model knows `types` already; if not, call `model.grow` after `begin_step`.
        strategies: whose losses make the training loss.
    """
    steps = model.tagset.steps[:-1] if grown else model.tagset.steps

    def training_loss(batch: Batch) -> Tensor:
        terms = loss_terms(strategies, context, batch, model(batch))
        return torch.stack(list(terms.values())).sum()

    context = StepContext(
        number=len(steps) + 1,
        types=tuple(types),
        old_types=tuple(type_ for step in steps for type_ in step),
        model=model,
        epochs=1,
        batch_tokens=128,
        eval_batch_tokens=256,
        precision="fp32",
        earlier=tuple(earlier),
        reset_model=lambda: None,
        predict=lambda sentences: predict_sentences(model, sentences, precision="fp32"),
        training_loss=training_loss,
        generator=lambda purpose: generator(13, purpose),
        trained=tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad),
    )
    if train:
        context.encoded = model.encode(train)
    return context


def toy_training(head: str) -> TrainingOptions:
    """Options of the loop under which a head learns a toy stream."""
    return SPAN_TRAINING if head == "spankl" else TOY_TRAINING


ALIKE = {"name": "distill", "alpha": 1.0, "mention_weight": 1.0}
"""Distillation with the papers' weights, for tests whose numbers were chosen with them."""


def trained_model(
    folder: Path,
    head: str | HeadOptions = "extendner",
    *,
    stream: Stream | None = None,
    strategies: Sequence[str | Mapping[str, object]] = ("distill",),
    training: TrainingOptions | None = None,
) -> NerModel:
    """A tiny model that has learned the steps of a toy stream (PER, then LOC) one after the other.

    Args:
        folder: of the encoder; built there if it is not yet.
        head: name or options.
        stream: what to learn.
        strategies: names or mappings.
        training: options of the loop; by default those under which the head learns the stream.
    """
    stream = stream or toy_stream()
    model = tiny_model(folder, head)
    learner = Learner(model, parse_strategies(list(strategies)), training or toy_training(model.head.name))
    for step in stream.steps:
        for _ in learner.learn_step(step, earlier=stream.everything_until(step.number)):
            pass
    return learner.model.eval()
