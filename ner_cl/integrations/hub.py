"""Converts a model to a `transformers` token classifier."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ner_cl.errors import ModelError
from ner_cl.model.ner_model import NerModel

__all__ = ["glues_words", "to_token_classifier"]


def to_token_classifier(model: NerModel) -> Any:
    """Converts the model to an `AutoModelForTokenClassification` with one softmax over all tags.

    Exact for ExtendNER, calibration included. AddNER's blocks become one layer of log-odds against each block's own
    `O`, `W_t - W_O` and `b_t - b_O`, with a zero row for `O`: the scores of `head.merge: viterbi`
    (`ner_cl.model.merge.exclusive_scores`), which are not calibrated. Programs that use the result take the best tag of
    each word or word piece on its own, whereas ner_cl decodes whole sentences. They do not use windows: texts longer
    than the encoder's input are truncated. A discriminant (`slda`) is left out.

    Raises:
        ModelError: if the model's blocks read different word vectors or vote, its head scores spans, it was exported
            already, or `transformers` has no such classifier for its encoder.
    """
    model.check_types(None)
    if model.runtime is not None:
        raise ModelError("this model was exported already; export the model that it came from")
    if model.subnetworks is not None:
        raise ModelError("a sub-network a step is no single classifier; make one of them with ner-cl compact")
    if not model.head.tags_words:
        raise ModelError(f"head {model.head.name} scores spans, not words; use --format onnx or spacy")
    if model.head.knows_older:
        raise ModelError("blocks that vote on the same types are no single classifier; use --format onnx or spacy")
    tags = list(model.tagset.tags)
    config = type(model.encoder.config).from_dict(model.encoder.config.to_dict())
    config.id2label = dict(enumerate(tags))
    config.label2id = {tag: index for index, tag in enumerate(tags)}
    try:
        classifier = transformers.AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(f"there is no token classifier for this encoder ({str(error)[:120]})") from error
    output = getattr(classifier, "classifier", None)
    own = ("classifier.", f"{classifier.base_model_prefix}.")
    if not isinstance(output, nn.Linear) or not all(name.startswith(own) for name in classifier.state_dict()):
        raise ModelError("the token classifier of this encoder has no single output layer; use --format onnx or spacy")
    classifier.base_model.load_state_dict(model.encoder.backbone.state_dict())
    weight, bias = one_layer(model)
    output.load_state_dict({"weight": weight, "bias": bias})
    return classifier.eval()


def glues_words(tokenizer: Any) -> bool:
    """Whether the pipeline of `transformers` takes what stands without a space between for one word.

    It does unless the tokenizer marks the pieces that continue a word, as WordPiece does with `##`. Such words are not
    those that the model was taught, so that spans begin or end with punctuation.
    """
    return not getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)


def one_layer(model: NerModel) -> tuple[Tensor, Tensor]:
    """Weight `[tag, hidden]` and bias `[tag]` of one output layer over all tags.

    One softmax is divided by its temperature, so that its scores are as calibrated as the model's.
    """
    blocks: Sequence[Any] = list(model.head.blocks)
    temperature = 1.0 if model.head.apart else model.head.temperatures[-1]
    weights = [block.weight.detach().cpu() / temperature for block in blocks]
    biases = [block.bias.detach().cpu() / temperature for block in blocks]
    if model.head.apart:
        weights = [torch.zeros_like(weights[0][:1]), *(weight[1:] - weight[:1] for weight in weights)]
        biases = [torch.zeros_like(biases[0][:1]), *(bias[1:] - bias[:1] for bias in biases)]
    return torch.cat(weights), torch.cat(biases)
