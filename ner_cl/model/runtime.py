"""Models whose tag scores ONNX Runtime computes: they predict like any other model but cannot learn."""

import os
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ner_cl.data.batching import Batch
from ner_cl.errors import MissingExtra, ModelError, first_line

__all__ = ["GraphOnly", "OnnxRuntime"]


@final
class OnnxRuntime:
    """Runs a graph from word pieces to tag scores on the CPU.

    Each process gets its own session, since threads do not survive a fork, with as many threads as torch uses there.
    Several threads may use it at once.

    Args:
        graph: the ONNX file. Inputs `piece_ids` and `piece_mask` `[row, piece]` and `word_pieces` `[row, word]`, all
            int64; output `scores` `[row, word, column]`, all blocks of the head side by side.
        int8: whether its weights are 8-bit integers.

    Raises:
        MissingExtra: if ONNX Runtime is not installed.
        ModelError: if `graph` cannot be read or has other inputs or outputs.
    """

    def __init__(self, graph: bytes, *, int8: bool = False) -> None:
        self.graph = graph
        self.int8 = int8
        self._process = os.getpid()
        self._session = _open_session(graph)

    def __call__(self, batch: Batch) -> Float[Tensor, "row word column"]:
        """The tag scores of every word of the batch."""
        if self._process != os.getpid():
            self._process, self._session = os.getpid(), _open_session(self.graph)
        feeds = {name: getattr(batch, name).cpu().numpy() for name in ("piece_ids", "piece_mask", "word_pieces")}
        scores: np.ndarray[Any, Any] = self._session.run(["scores"], feeds)[0]
        return torch.from_numpy(scores).to(batch.piece_ids.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxRuntime":
        return self  # immutable apart from the per-process session

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.graph, self.int8)


def _restored(graph: bytes, int8: bool) -> OnnxRuntime:
    return OnnxRuntime(graph, int8=int8)


def _open_session(graph: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("this model runs on ONNX Runtime; pip install 'ner-cl[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise ModelError(f"model.onnx: cannot be read ({first_line(error)}); export the model again") from error
    names = {item.name for item in session.get_inputs()}, {item.name for item in session.get_outputs()}
    if names != ({"piece_ids", "piece_mask", "word_pieces"}, {"scores"}):
        raise ModelError("model.onnx: is not a graph from word pieces to tag scores; export the model again")
    return session


@final
class GraphOnly(nn.Module):
    """Placeholder for the encoder of an exported model, whose computation is in the graph.

    Args:
        config: the encoder's configuration.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, **inputs: Any) -> Any:
        """Raises ModelError: an exported model has no encoder to run."""
        raise ModelError("an exported model only predicts; use the model that it was exported from")
