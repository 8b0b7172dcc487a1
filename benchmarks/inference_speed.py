"""Inference speed: words per second relative to the bare encoder, all measured in one run.

    python -m benchmarks.inference_speed [--data FILE] [--sentences N] [--types N] [--repeats R] [--threads T]
                                         [--precision NAME] [--output FILE]

All contestants use the same encoder and, except for ONNX Runtime, the same precision. Each alternates with the limit:
    limit         the encoder and one linear layer on prepared tensors, in batches of similar length; no tokenizer,
                  no decoding
    extendner     `model.predict(texts)`, from text to entities with scores, with `--types` types in one output layer
    slda          the same, corrected by statistics of half of the layers, as the default is, and of the lowest
                  sixth, which needs no copies of layers
    addner N      the same with N output layers of one type each, merged by the conflict resolver
    spacy         the component in a blank English pipeline, through `nlp.pipe(texts)`; includes spaCy's tokenizer
    onnx          `model.predict(texts)` of the exported ExtendNER, in fp32 and in int8
    transformers  `pipeline("token-classification", aggregation_strategy="first")` on the exported ExtendNER, one text
                  at a time (its default) and in batches of 32

Heads are untrained, which does not affect speed; the bias of `O` is set so that about as many words lie in spans as in
the gold annotation. A ratio is the median over pairs of consecutive timings. With one thread, CPU time is measured
instead of wall time. `decoding` is the share of predict's time spent after the tokenizer, the encoder and the heads:
Viterbi or the resolver, probabilities, building spans.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import spacy
import torch
import transformers
from torch import nn

from ner_cl.config import HeadOptions
from ner_cl.data.readers import read_sentences
from ner_cl.integrations.hub import to_token_classifier
from ner_cl.integrations.onnx import to_onnx
from ner_cl.model.discriminant import Discriminant
from ner_cl.model.emissions import stretches_of
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import Precision, autocast, resolve_precision
from ner_cl.model.subnetworks.trunk import all_layers
from ner_cl.train.environment import environment
from ner_cl.types import Sentence

DEFAULT_DATA = Path(__file__).parents[1] / "data" / "quickstart" / "test.jsonl"
BATCH_TOKENS = 2048
AIMS = {"extendner": 0.90, "spacy": 0.80}


@dataclass(frozen=True)
class Speed:
    """The figures of one contestant."""

    name: str
    words_per_second: float
    ratio: float
    aim: float | None


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    precision = resolve_precision(arguments.precision, torch.device("cpu"))
    sentences = read_sentences(arguments.data)[: arguments.sentences]
    words = sum(len(sentence.words) for sentence in sentences)
    share = sum(span.end - span.start for sentence in sentences for span in sentence.spans) / words
    extendner = untrained("extendner", [arguments.types], sentences, share)
    addner = {count: untrained("addner", [1] * count, sentences, share) for count in (1, 5, 20)}
    texts = [" ".join(sentence.words) for sentence in sentences]
    contestants = predictors(extendner, addner, texts, precision)
    print(header(arguments, len(sentences), words, precision), flush=True)
    limit = limit_of(extendner, sentences, precision)
    speeds = [Speed("limit", words / median_seconds(limit, arguments), 1.0, None)]
    print(line(speeds[0]), flush=True)
    for name, predict in contestants.items():
        seconds, ratio = beside(limit, predict, arguments)
        speeds.append(Speed(name, words / seconds, ratio, AIMS.get(name)))
        print(line(speeds[-1]), flush=True)
    found = findings(speeds, extendner, addner[20], texts, arguments, precision)
    print("\n" + "\n".join(f"- {what}: {value}" for what, value in found.items()), flush=True)
    if arguments.output:
        values = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        record = {
            "environment": environment(),
            "arguments": {**values, "precision": precision},
            "speeds": [asdict(speed) for speed in speeds],
            "findings": found,
        }
        arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def untrained(head: str, steps: Sequence[int], sentences: Sequence[Sentence], share: float) -> NerModel:
    """A model with `steps[i]` types in step i, and with `O` set so that about `share` of the words lie in spans."""
    model = NerModel.from_encoder("minilm-l6", head=HeadOptions(name=head))
    draw = torch.Generator().manual_seed(0)
    for number, count in enumerate(steps):
        model.grow([f"TYPE{number}.{index}" for index in range(count)], generator=draw)
    model.eval()
    every: list[list[torch.Tensor]] = [[] for _ in model.head.blocks]
    for _, emissions in stretches_of(model, model.encode(sentences[:100])):
        for found, block in zip(every, emissions.blocks, strict=True):
            found.append(block[emissions.word_mask])
    with torch.no_grad():
        for found, layer in zip(every, model.head.blocks, strict=True):
            scores = torch.cat(found)
            margin = scores[:, 1:].amax(-1) - scores[:, 0]
            assert isinstance(layer, nn.Linear)
            layer.bias[0] += torch.quantile(margin, 1 - share / len(every))
    return model


def limit_of(model: NerModel, sentences: Sequence[Sentence], precision: Precision) -> Callable[[], None]:
    """The encoder and one linear layer, on tensors prepared in advance."""
    batches = [batch for _, batch in model.encode(sentences).in_length_order(BATCH_TOKENS)]
    (layer,) = model.head.blocks

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                with autocast(precision, torch.device("cpu")):
                    hidden = model.encoder.backbone(input_ids=batch.piece_ids, attention_mask=batch.piece_mask)
                layer(hidden.last_hidden_state.float())

    return run


def predictors(
    extendner: NerModel, addner: dict[int, NerModel], texts: Sequence[str], precision: Precision
) -> dict[str, Callable[[], None]]:
    """Every compared way to get from texts to entities."""

    def own(model: NerModel) -> Callable[[], None]:
        return lambda: drain(model.predict(texts, precision=precision))

    nlp = spacy.blank("en")
    nlp.add_pipe("ner_cl", config={"precision": precision}).use(extendner)
    with tempfile.TemporaryDirectory() as folder:
        to_token_classifier(extendner).save_pretrained(folder)
        extendner.encoder.tokenizer.save_pretrained(folder)
        pipe = transformers.pipeline("token-classification", folder, aggregation_strategy="first", device="cpu")

    def piped(size: int) -> Callable[[], None]:
        def run() -> None:
            with autocast(precision, torch.device("cpu")):
                drain(pipe(list(texts), batch_size=size))

        return run

    return {
        "extendner": own(extendner),
        "slda": own(corrected(extendner, 2)),
        "slda, no copies": own(corrected(extendner, 6)),
        **{f"addner {count}": own(model) for count, model in addner.items()},
        "spacy": lambda: drain(nlp.pipe(texts)),
        "onnx fp32": own(to_onnx(extendner)),
        "onnx int8": own(to_onnx(extendner, int8=True)),
        "transformers, one by one": piped(1),
        "transformers, batches of 32": piped(32),
    }


def corrected(model: NerModel, part: int) -> NerModel:
    """A copy whose scores statistics of one `part`-th of the layers correct, all of them 0."""
    other, depth = model.copy(), len(all_layers(model.encoder))
    tags = range(1, len(model.tagset))
    other.discriminant = Discriminant.on(other.encoder, held=depth // 6, layers=depth // part, tags=tags)
    return other


def drain(results: object) -> None:
    """Consumes an iterable."""
    for _ in results:  # type: ignore[attr-defined]
        pass


def findings(
    speeds: Sequence[Speed],
    extendner: NerModel,
    addner: NerModel,
    texts: Sequence[str],
    arguments: argparse.Namespace,
    precision: Precision,
) -> dict[str, float]:
    """Speed ratios between contestants, and decoding's share of time."""
    by_name = {speed.name: speed.ratio for speed in speeds}
    fastest = max(by_name["transformers, one by one"], by_name["transformers, batches of 32"])
    return {
        "addner 20 / addner 1 (aim 0.95)": round(by_name["addner 20"] / by_name["addner 1"], 3),
        "extendner / the faster transformers pipeline (aim 3)": round(by_name["extendner"] / fastest, 2),
        "onnx int8 / onnx fp32 (aim 1.5)": round(by_name["onnx int8"] / by_name["onnx fp32"], 2),
        "decoding, extendner (aim 0.05)": round(decoding_share(extendner, texts, arguments, precision), 3),
        "decoding, addner 20 (aim 0.05)": round(decoding_share(addner, texts, arguments, precision), 3),
    }


def decoding_share(model: NerModel, texts: Sequence[str], arguments: argparse.Namespace, precision: Precision) -> float:
    """The share of predict's time left after tokenizer, encoder and heads."""
    from ner_cl.data.words import split_words

    def scores_only() -> None:
        sentences = [Sentence(tuple(text[start:end] for start, end in split_words(text))) for text in texts]
        drain(stretches_of(model, model.encode(sentences), precision=precision))

    _, ratio = beside(scores_only, lambda: drain(model.predict(texts, precision=precision)), arguments)
    return max(0.0, 1 - ratio)


def beside(base: Callable[[], None], other: Callable[[], None], arguments: argparse.Namespace) -> tuple[float, float]:
    """The median seconds of `other`, and the median of its speed relative to `base`."""
    for run in (base, other):
        run()  # fills caches
    seconds, ratios = [], []
    for _ in range(arguments.repeats):
        reference = timed(base, arguments)
        seconds.append(timed(other, arguments))
        ratios.append(reference / seconds[-1])
    return statistics.median(seconds), statistics.median(ratios)


def median_seconds(run: Callable[[], None], arguments: argparse.Namespace) -> float:
    run()
    return statistics.median(timed(run, arguments) for _ in range(arguments.repeats))


def timed(run: Callable[[], None], arguments: argparse.Namespace) -> float:
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    started = clock()
    run()
    return clock() - started


def header(arguments: argparse.Namespace, sentences: int, words: int, precision: Precision) -> str:
    """What is measured and where, and the table's header."""
    return (
        f"MiniLM, {arguments.data.parent.name}/{arguments.data.name}: {sentences} sentences, {words} words; "
        f"{precision}, {arguments.threads} threads, median of {arguments.repeats}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n\n| | words/s | of the limit | aim |\n|---|---|---|---|"
    )


def line(speed: Speed) -> str:
    """A row of the table."""
    aim = "" if speed.aim is None else f"{speed.aim:.2f}"
    return f"| {speed.name} | {speed.words_per_second:,.0f} | {speed.ratio:.2f} | {aim} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="any annotated file")
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--types", type=int, default=66)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
