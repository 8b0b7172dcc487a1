"""Converts a model to an ONNX graph, optionally with 8-bit weights, which ONNX Runtime runs without torch."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ner_cl.data.batching import Batch
from ner_cl.errors import MissingExtra, ModelError
from ner_cl.model.encoder import Encoder
from ner_cl.model.ner_model import NerModel
from ner_cl.model.runtime import GraphOnly, OnnxRuntime
from ner_cl.types import Sentence

__all__ = ["to_onnx"]

# Exporters write the weights of larger graphs to a file of their own, and a graph in one file ends at 2 GB anyway.
_LARGEST = 1536 * 1024**2
_INPUTS = ("piece_ids", "piece_mask", "word_pieces")
_PROBE = (Sentence(("Ada", "lives", "in", "London", ".")), Sentence(("Aspirin", "helped", ".")))


def to_onnx(model: NerModel, *, int8: bool = False) -> NerModel:
    """Converts a model's computation to an ONNX graph; the result can predict, be saved and be loaded as before.

    The graph maps rows of word pieces to the tag scores of every word; `OnnxRuntime` describes its inputs and output.
    Merging blocks and decoding are not part of the graph.

    Args:
        model: any model that knows a type and was not exported.
        int8: store weights as 8-bit integers with one scale per output, and quantise activations dynamically.

    Raises:
        MissingExtra: if the libraries are not installed.
        ModelError: if the model cannot be expressed as one graph, or has more than 1.5 GB of weights.
    """
    model.check_types(None)
    if model.runtime is not None:
        raise ModelError("this model was exported already; export the model that it came from")
    if model.subnetworks is not None:
        raise ModelError("a sub-network a step does not make one graph; make one encoder of them with ner-cl compact")
    if (size := sum(weight.nbytes for weight in model.state_dict().values())) > _LARGEST:
        most, found = (f"{count / 1024**3:.1f} GB" for count in (_LARGEST, size))
        held = None if model.discriminant is None else model.discriminant.held
        smaller = "" if held is None else f", or teach it with slda.layers: {held}, which copies no layers"
        raise ModelError(
            f"a graph holds {most} of weights at most, and this model has {found}; use --format spacy or hf{smaller}"
        )
    graph = _graph(model)
    runtime = OnnxRuntime(_with_int8(graph) if int8 else graph, int8=int8)
    encoder = Encoder(GraphOnly(model.encoder.config), model.encoder.tokenizer, model.encoder.options)
    exported = NerModel(encoder, copy.deepcopy(model.head).cpu()).eval()
    exported.history, exported.metrics = list(model.history), dict(model.metrics)
    exported.runtime = runtime
    return exported


def _graph(model: NerModel) -> bytes:
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise MissingExtra(f"exporting needs {' and '.join(missing)}; pip install 'ner-cl[export]'")
    batch = model.encode(_PROBE).batch([0, 1])
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            program = torch.onnx.export(
                _Scores(copy.deepcopy(model).cpu().eval()),
                tuple(getattr(batch, name) for name in _INPUTS),
                input_names=_INPUTS,
                output_names=("scores",),
                dynamic_shapes=dict.fromkeys(_INPUTS, free),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # of any kind: the encoder traced may be third-party code
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:160]
        raise ModelError(f"this encoder cannot be written as a graph ({reason}); use --format spacy") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        program.save(path)  # type: ignore[union-attr]
        return path.read_bytes()


@final
class _Scores(nn.Module):
    """Maps the inputs of the graph to its output."""

    def __init__(self, model: NerModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        piece_ids: Int[Tensor, "row piece"],
        piece_mask: Int[Tensor, "row piece"],
        word_pieces: Int[Tensor, "row word"],
    ) -> Float[Tensor, "row word column"]:
        """Returns the scores of all blocks, concatenated along the columns."""
        batch = Batch(
            piece_ids=piece_ids,
            piece_mask=piece_mask,
            word_pieces=word_pieces,
            word_mask=_real(word_pieces),
            targets=word_pieces,
            annotated=word_pieces[:, :0].bool(),
            word_numbers=word_pieces,
            spans=torch.zeros(0, 4, dtype=torch.long),
        )
        emissions = self.model(batch)
        return emissions.flat()  # type: ignore[no-any-return]


def _real(word_pieces: Int[Tensor, "row word"]) -> Bool[Tensor, "row word"]:
    """Which words are real: padding has the number of the first piece, as at most the first word of a row does."""
    later = word_pieces > 0
    return torch.cat([torch.ones_like(later[:, :1]), later[:, 1:]], dim=1)


def _with_int8(graph: bytes) -> bytes:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise MissingExtra("int8 needs ONNX Runtime; pip install 'ner-cl[export]'") from None
    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, small = Path(folder) / "plain.onnx", Path(folder) / "small.onnx"
        plain.write_bytes(graph)
        quantize_dynamic(plain, small, weight_type=QuantType.QInt8, per_channel=True)
        return small.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences log messages and warnings of the exporters, which concern their internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
